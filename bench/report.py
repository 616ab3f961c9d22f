"""The report: Markdown for people, made from the figures that were kept, and nothing but them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import plot
from bench.results import (
    Compare,
    Conditions,
    Contest,
    Copy,
    Decode,
    Drain,
    Latency,
    Results,
    Sample,
    Scaling,
    Spread,
    percentile,
)

_HEAD = """# Benchmarks

Written by `make bench` (`python -m bench`); the figures behind it are in [benchmarks.json](benchmarks.json). In each
part every contender does the same work on the same two servers in one run. They take turns, and a figure is the median
of the rounds with the lowest and the highest in parentheses. After each round the target is compared with the source,
table by table, by number of rows and sum of row hashes, by the harness itself: who is wrong has no figure.

![All figures at a glance](benchmarks.svg)
"""

_DRAIN = """## Draining a backlog

The source is filled (pgbench, scale 10, and an empty table), everyone's starting point is noted, and then a backlog is
made, once: an insert of many rows into a table of five columns, an update of half of them, pgbench's own transactions by
four clients, a delete. {changes} row changes in {transactions} transactions, {wal} of WAL. In every round everyone
gets a fresh copy of the same target database and a copy of the slot that has seen nothing of the backlog yet. The
clock runs from the contender's start (the start of the daemon's process, `ALTER SUBSCRIPTION … ENABLE`) until the
backlog's last row is visible on the target, asked every 20 ms. The floor receives the whole stream and applies nothing.
"""

_DECODE = """## Decoding

The stream of {changes} changes of the same backlog, {size}, as a real server sent it, decoded by one core: nothing is
received and nothing applied. *Ready to copy* is decoded, gathered into batches, brought to what each batch comes to, and
written as COPY's text. Compiled and interpreted are the same source.
"""

_COPY = """## The first copy

pgbench's tables at scale {scale} with their foreign keys, and a table of {rows} rows with three indexes: {size}. Onto
an empty database in every round. The clock runs from the start until the last process has ended, and all the data is
on the target with its indexes and constraints. `pglockstep once` then goes on and compares every row of both ends, which
no other contender does; *copied after* is when its copy was complete, seen on the target.
"""

_COMPARE = """## Are they the same?

{rows} rows at each end: a table of five columns, one in ten values NULL, and pgbench's tables but its history, which has no
key; {size}. Both ends hold the same, and whoever takes part has to say so of every table. Before the clock is used at
all, everyone has to have found one NULL turned into '' and one number off by one. The clock runs from the start of the
process until its end. The floor is `select count(*), sum(hashtextextended(t::text, 0))` of one table after another, at
both ends at once: it cannot tell which row differs. `pglockstep check` compares schema and sequences as well. data-diff
is told the tables and their columns, compares all of them in one process, and is kept from sending its statistics home;
its factor is into how many ranges of keys it splits what it compares.
"""

_LATENCY = """## A lone insert

One row, one transaction, nothing else going on; {inserts} rows a block, {blocks} blocks each. A reader on the target
asks for the row by primary key, again and again, with 0.1 ms of sleep in between: every figure is late by that much. At
{rates} inserts a second; the next one is not sent before the last one has arrived. In milliseconds.
"""

_SCALING = """## Twice the backlog, twice the time?

The drain above with one, two and four times the backlog, everything in one run. Changes a second stay the same if time
grows just as the work does.
"""

_LIMITS = """## What these figures do not say

* Source, target and contender share one machine and its cores, and there is no network between them. Where they each
  have their own, a contender that works in a process of its own loses less than here.
* CPU is user and system time: *own* is of the contender's processes outside the servers, *source* and *target* of all
  processes of each server, its background ones too. Memory is the highest sum of resident pages, without the servers'
  shared buffers, of the contender's processes or of its worker inside the target server, sampled every 50 ms. What
  the contender's sessions in the servers hold is not in it.
* The servers write their WAL to disk as by default (`fsync = on`), but PostgreSQL's own subscription, pglogical
  and pglockstep all commit on the target without waiting for it.
* Every row that is changed is found by a primary key; without one everyone is slower.
* A few rounds on one machine tell which of two is faster where the spreads do not overlap, and no more than that.
"""


def write(out: Path, results: Results) -> None:
    """Write ``benchmarks.md`` and ``benchmarks.svg`` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmarks.md").write_text(render(results))
    (out / "benchmarks.svg").write_text(plot.render(results))


def render(results: Results) -> str:
    """The whole report."""
    parts = [_HEAD]
    if results.drain:
        parts += _drain(results.drain)
    if results.decode:
        parts += _decode(results.decode)
    if results.copy:
        parts += _copy(results.copy)
    if results.compare:
        parts += _compare(results.compare)
    if results.latency:
        parts += _latency(results.latency)
    if results.scaling:
        parts += _scaling(results.scaling)
    return "\n".join([*parts, _LIMITS])


def _drain(drain: Drain) -> Iterable[str]:
    yield _DRAIN.format(
        changes=f"{drain.changes:,}", transactions=f"{drain.transactions:,}", wal=_bytes(drain.wal_bytes)
    )
    contest = drain.contest
    native, floor = contest.seconds("native"), contest.seconds("floor")
    rows = [
        [
            contest.titles[name],
            _spread(took, "s"),
            f"{drain.changes / took.median:,.0f}",
            _ratio(took, native),
            _ratio(took, floor),
            *_usage(contest.of(name)),
        ]
        for name, took in _ranked(contest)
    ]
    head = ["contender", "time", "changes/s", "× native", "× floor", *_USAGE]
    yield _table(head, rows)
    yield from _others(contest)
    yield _conditions(drain.conditions)


def _decode(decode: Decode) -> Iterable[str]:
    yield _DECODE.format(changes=f"{decode.changes:,}", size=_bytes(decode.stream_bytes))
    rows = []
    for form in dict.fromkeys(each.form for each in decode.rounds):
        rounds = [each for each in decode.rounds if each.form == form]
        decoded, prepared = (
            Spread.of(each.decoded for each in rounds),
            Spread.of(each.prepared for each in rounds),
        )
        assert decoded is not None
        assert prepared is not None
        rows.append(
            [
                form,
                *(f"{each.median:,.0f} ({each.low:,.0f}–{each.high:,.0f})" for each in (decoded, prepared)),
            ]
        )
    yield _table(["form", "decoded, changes/s", "ready to copy, changes/s"], rows)
    yield _conditions(decode.conditions)


def _copy(copy: Copy) -> Iterable[str]:
    yield _COPY.format(scale=copy.pgbench_scale, rows=f"{copy.rows:,}", size=_bytes(copy.database_bytes))
    contest = copy.contest
    pipe = contest.seconds("dump-pipe")
    rows = []
    for name, took in _ranked(contest):
        copied = Spread.of(sample.copied_after for sample in contest.of(name))
        rows.append(
            [
                contest.titles[name],
                _spread(took, "s"),
                _spread(copied, "s") if copied else "",
                _ratio(copied or took, pipe),
                *_usage(contest.of(name)),
            ]
        )
    yield _table(["contender", "time", "copied after", "× pg_dump", *_USAGE], rows)
    yield "*× pg_dump* compares the copy alone with `pg_dump -Fc | pg_restore`.\n"
    yield from _others(contest)
    yield _conditions(copy.conditions)


def _compare(compare: Compare) -> Iterable[str]:
    yield _COMPARE.format(rows=f"{compare.rows:,}", size=_bytes(compare.database_bytes))
    contest = compare.contest
    floor = contest.seconds("plain")
    others = [took for name in ("data-diff", "data-diff-tuned") if (took := contest.seconds(name))]
    fastest = min(others, key=lambda took: took.median, default=None)
    rows = [
        [
            contest.titles[name],
            _spread(took, "s"),
            f"{compare.rows / took.median:,.0f}",
            _ratio(took, floor),
            _ratio(took, fastest),
            *_usage(contest.of(name)),
        ]
        for name, took in _ranked(contest)
    ]
    yield _table(["contender", "time", "rows/s", "× floor", "× data-diff", *_USAGE], rows)
    if fastest:
        yield "*× data-diff* compares with the faster of the two.\n"
    yield from _others(contest)
    yield _conditions(compare.conditions)


def _latency(latency: Latency) -> Iterable[str]:
    rates = sorted({block.per_second for block in latency.blocks}, reverse=True)
    sizes = [len(block.from_commit) for block in latency.blocks]
    yield _LATENCY.format(
        inserts=max(sizes, default=0),
        blocks=max((len(sizes) // max(1, len(rates) * len(latency.titles)), 1)),
        rates=" and ".join(map(str, rates)),
    )
    rows = []
    for rate in rates:
        for name, title in latency.titles.items():
            blocks = [one for one in latency.blocks if (one.contender, one.per_second) == (name, rate)]
            for words, from_sending in (("the commit's return", False), ("sending", True)):
                if not (figures := latency.pooled(name, rate, from_sending=from_sending)):
                    continue
                of_blocks = Spread.of(
                    percentile(sorted(one.from_sending if from_sending else one.from_commit), 0.5)
                    for one in blocks
                )
                assert of_blocks is not None
                rows.append(
                    [
                        title,
                        str(rate),
                        words,
                        f"{percentile(figures, 0.5):.2f} ({of_blocks.low:.2f}–{of_blocks.high:.2f})",
                        f"{percentile(figures, 0.99):.2f}",
                        f"{figures[-1]:.2f}",
                    ]
                )
    yield _table(["contender", "per second", "from", "median (of blocks: min–max)", "p99", "max"], rows)
    for name, failure in latency.failures.items():
        yield f"* {latency.titles[name]}: failed: {failure}\n"
    yield _conditions(latency.conditions)


def _scaling(scaling: Scaling) -> Iterable[str]:
    yield _SCALING
    rows = []
    names = {name: title for drain in scaling.drains.values() for name, title in drain.contest.titles.items()}
    for name, title in names.items():
        for factor, drain in scaling.drains.items():
            took = drain.contest.seconds(name)
            if took is None:
                rows.append(
                    [title, f"{factor} ×", f"{drain.changes:,}", drain.contest.complaint(name), "", ""]
                )
                continue
            first = scaling.drains[min(scaling.drains)].contest.seconds(name)
            rows.append(
                [
                    title,
                    f"{factor} ×",
                    f"{drain.changes:,}",
                    _spread(took, "s"),
                    _ratio(took, first),
                    f"{drain.changes / took.median:,.0f}",
                ]
            )
    yield _table(["contender", "backlog", "changes", "time", "× the smallest", "changes/s"], rows)
    yield _conditions(scaling.conditions)


_USAGE = ["CPU own", "CPU source", "CPU target", "CPU in all", "peak memory"]


def _usage(samples: Sequence[Sample]) -> list[str]:
    cpus = [
        Spread.of(sample.usage.own_cpu for sample in samples),
        Spread.of(sample.usage.source_cpu for sample in samples),
        Spread.of(sample.usage.target_cpu for sample in samples),
        Spread.of(sample.usage.total_cpu for sample in samples),
    ]
    memory = Spread.of(sample.usage.peak_memory for sample in samples)
    return [
        *(f"{cpu.median:.1f} s" if cpu else "–" for cpu in cpus),
        f"{memory.median / 2**20:.0f} MiB" if memory else "–",
    ]


def _ranked(contest: Contest) -> list[tuple[str, Spread]]:
    """The fastest first."""
    timed = [(name, took) for name in contest.titles if (took := contest.seconds(name))]
    return sorted(timed, key=lambda pair: pair[1].median)


def _others(contest: Contest) -> Iterable[str]:
    """Those without a figure, and why."""
    lines = [
        f"* {title}: {contest.complaint(name)}"
        for name, title in contest.titles.items()
        if contest.complaint(name)
    ]
    lines += [f"* {title}: not measured: {why}" for title, why in contest.absent.items()]
    if lines:
        yield "\n".join(lines) + "\n"


def _conditions(conditions: Conditions) -> str:
    settings = ", ".join(f"`{key} = {value}`" for key, value in conditions.settings.items())
    return (
        f"Measured {conditions.measured_at:%Y-%m-%d} with `{conditions.command}`: pglockstep {conditions.pglockstep}, "
        f"PostgreSQL {conditions.postgresql} on both ends, Python {conditions.python}, {conditions.cores} cores of "
        f"{conditions.processor}, {_bytes(conditions.memory_bytes)} of memory, connections by Unix sockets. Both servers: "
        f"{settings}; else PostgreSQL's defaults.\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def _spread(spread: Spread, unit: str) -> str:
    return f"{spread.median:.2f} {unit} ({spread.low:.2f}–{spread.high:.2f})"


def _ratio(took: Spread, other: Spread | None) -> str:
    return f"{took.median / other.median:.2f}" if other else "–"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
