"""The pure parts of the benchmarks: their statistics, who counts, and that a report says what was measured."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from bench import plot, report, results
from bench.contest import Entrant, hold
from bench.drain import drainers
from bench.processes import ContenderFailed, Process, pglockstep_environment
from bench.results import (
    Block,
    Compare,
    Conditions,
    Contest,
    Copy,
    Decode,
    DecodeRound,
    Drain,
    Latency,
    Results,
    Sample,
    Scaling,
    Spread,
    percentile,
)
from bench.usage import Usage
from bench.work import Backlog, differences
from hypothesis import given
from hypothesis import strategies as st

CONDITIONS = Conditions(
    command="python -m bench drain --major 18 --rounds 3 --scale 1",
    measured_at=datetime(2026, 1, 2, tzinfo=UTC),
    pglockstep="0.1.0",
    postgresql="18.1",
    python="3.12.1",
    cores=2,
    processor="a <processor> & more",
    memory_bytes=2**33,
    settings={"shared_buffers": "512MB"},
)
USAGE = Usage(own_cpu=1.0, source_cpu=2.0, target_cpu=4.0, peak_memory=50 * 2**20)


def contest(**seconds: list[Sample]) -> Contest:
    """Each contender with its rounds."""
    samples = [sample for rounds in seconds.values() for sample in rounds]
    return Contest({name: f"{name} itself" for name in seconds}, samples, {"an absent one": "not installed"})


def rounds(name: str, *seconds: float) -> list[Sample]:
    """Rounds that went well."""
    return [Sample(name, each, USAGE) for each in seconds]


def drained(changes: int = 1000, factor: int = 1) -> Drain:
    """A drain with a fast one, a wrong one and one that failed."""
    wrong = Sample("wrong", 0.01, USAGE, wrong="item: 3 rows instead of 4")
    failed = Sample("failed", failure="ContenderFailed: it ended with 5")
    return Drain(
        CONDITIONS,
        changes=changes * factor,
        transactions=10,
        wal_bytes=2**30,
        contest=contest(
            floor=rounds("floor", 0.5 * factor),
            native=rounds("native", 2.0 * factor, 1.0 * factor, 4.0 * factor),
            pglockstep=rounds("pglockstep", 1.0 * factor),
            wrong=[*rounds("wrong", 0.01), wrong],
            failed=[*rounds("failed", 0.02), failed],
        ),
    )


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentile_leaves_its_share_at_or_below_it(figures: list[float], share: float) -> None:
    """At least the share is not above it, and of what is below it there is less than the share."""
    found = percentile(sorted(figures), share)
    assert sum(figure <= found for figure in figures) >= share * len(figures) - 1e-9
    assert sum(figure < found for figure in figures) < share * len(figures)


def test_the_99th_of_a_hundred() -> None:
    """The textbook case, where floating point would take the hundredth."""
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0


def test_a_spread_needs_every_figure() -> None:
    """A median of what happens to be known would compare different things."""
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([3.0, None]) is None
    assert Spread.of([]) is None


def test_whoever_is_wrong_once_has_no_figure() -> None:
    """A fast round does not make up for one that lost rows or failed."""
    held = drained().contest
    assert held.seconds("wrong") is None
    assert held.seconds("failed") is None
    assert held.complaint("wrong") == "wrong: item: 3 rows instead of 4"
    assert held.complaint("failed") == "failed: ContenderFailed: it ended with 5"
    assert held.seconds("native") == Spread(2.0, 1.0, 4.0, 3)


def test_differences_name_the_table() -> None:
    """Both fewer rows and other contents are told."""
    source = {"a": (2, "7"), "b": (3, "8"), "c": (4, "9")}
    target = {"a": (1, "7"), "b": (3, "0"), "c": (4, "9")}
    assert differences(source, target) == "a: 1 rows instead of 2, b: content"
    assert differences(source, source) == ""


def test_the_standard_backlog() -> None:
    """What the report's introduction says of it."""
    assert Backlog.scaled(1) == Backlog(1_000_000, 500_000, 80_000, 300_000)
    assert Backlog.scaled(1).changes == 2_120_001
    assert Backlog.scaled(0.01).transactions % 4 == 0


def test_everybody_takes_turns_and_nobody_stops_another() -> None:
    """A round starts with another one than the last, and a failure is a sample like any other."""
    order: list[str] = []

    def play(name: str) -> Sample:
        order.append(name)
        if name == "b":
            raise ContenderFailed("it\nended")
        return Sample(name, 1.0)

    entrants = [Entrant(name, name, lambda name=name: play(name)) for name in "abc"]  # type: ignore[misc]
    held = hold(entrants, 2, {})
    assert order == ["a", "b", "c", "b", "c", "a"]
    assert held.complaint("b") == "failed: ContenderFailed: it ended"
    assert held.seconds("a") == Spread(1.0, 1.0, 1.0, 2)


def test_a_contest_of_nobody() -> None:
    """Where everybody who was asked for is absent, that is all there is to tell."""
    held = hold([], 2, {"pgcopydb clone": "not installed"})
    assert (held.samples, held.absent) == ([], {"pgcopydb clone": "not installed"})


def test_a_process_that_fails_is_heard() -> None:
    """Its exit code and its last words are in the error."""
    with Process(["sh", "-c", "echo first; echo last words >&2; exit 3"]) as process:
        process.wait(10)
        with pytest.raises(ContenderFailed, match=r"sh ended with 3: first \| last words"):
            process.alive()


def test_an_exit_code_can_be_an_answer() -> None:
    """A code that is expected is no failure; what was written is kept apart from what was complained of."""
    with Process(["sh", "-c", "echo written; echo said >&2; exit 1"], codes=(0, 1)) as process:
        process.wait(10)
        assert not process.alive()
        assert process.written() == "written\n"


def test_interpreted_is_named() -> None:
    """Whoever leaves the compiled hot path aside says so to the processes, and in the report."""
    compiled, interpreted = (
        pglockstep_environment("a", "b", Path("c"), interpreted=choice) for choice in (False, True)
    )
    assert interpreted == compiled | {"PGLOCKSTEP_INTERPRETED": "1"}
    assert [one.title for one in drainers(interpreted=True)][-1] == "pglockstep run, interpreted"
    assert [one.title for one in drainers()][-1] == "pglockstep run"


def test_the_report_and_its_plot(tmp_path: Path) -> None:
    """Kept figures are read back as they were; every part has its table, and the plot is well-formed."""
    measured = Results(
        drain=drained(),
        copy=Copy(
            CONDITIONS,
            database_bytes=2**29,
            pgbench_scale=30,
            rows=1000,
            contest=contest(
                **{"dump-pipe": rounds("dump-pipe", 4.0)},
                pglockstep=[Sample("pglockstep", 6.0, USAGE, copied_after=3.0)],
            ),
        ),
        compare=Compare(
            CONDITIONS,
            database_bytes=2**29,
            rows=4000,
            contest=contest(
                plain=rounds("plain", 2.0),
                pglockstep=rounds("pglockstep", 3.0),
                **{"data-diff": rounds("data-diff", 9.0), "data-diff-tuned": rounds("data-diff-tuned", 8.0)},
            ),
        ),
        latency=Latency(
            CONDITIONS,
            {"native": "native", "pglockstep": "pglockstep"},
            [Block(name, 20, [2.0, 3.0], [1.0, 2.0]) for name in ("native", "pglockstep")],
            {},
        ),
        decode=Decode(
            CONDITIONS, 1000, 2**20, [DecodeRound("compiled", each * 1e6, 7e5) for each in (3.0, 2.0, 4.0)]
        ),
        scaling=Scaling(CONDITIONS, {factor: drained(factor=factor) for factor in (1, 2, 4)}),
    )
    results.save(tmp_path / "benchmarks.json", measured)
    kept = results.load(tmp_path / "benchmarks.json")
    assert msgspec.to_builtins(kept) == msgspec.to_builtins(measured)

    text = report.render(kept)
    # time, changes/s, × native, × floor
    assert (
        "| native itself | 2.00 s (1.00–4.00) | 500 | 1.00 | 4.00 | 1.0 s | 2.0 s | 4.0 s | 7.0 s | 50 MiB |"
        in text
    )
    assert "* wrong itself: wrong: item: 3 rows instead of 4" in text
    assert "* failed itself: failed: ContenderFailed" in text
    assert "* an absent one: not measured: not installed" in text
    # the copy alone against pg_dump
    assert "| pglockstep itself | 6.00 s (6.00–6.00) | 3.00 s (3.00–3.00) | 0.75 |" in text
    # rows a second; against the floor, and against data-diff at its best
    assert "| pglockstep itself | 3.00 s (3.00–3.00) | 1,333 | 1.50 | 0.38 |" in text
    assert "| native | 20 | the commit's return | 1.00 (1.00–1.00) | 2.00 | 2.00 |" in text
    assert "| pglockstep itself | 4 × | 4,000 | 4.00 s (4.00–4.00) | 4.00 | 1,000 |" in text
    assert "| compiled | 3,000,000 (2,000,000–4,000,000) | 700,000 (700,000–700,000) |" in text
    assert "python -m bench drain --major 18" in text

    picture = ET.fromstring(plot.render(kept))  # our own text
    bars = [each for each in picture.iter() if each.tag.endswith("rect")]
    assert len(bars) == 3 + 3 + 4 + 2 + 9
    assert not any(
        "wrong" in "".join(each.itertext()) for each in picture.iter() if each.tag.endswith("text")
    )


def test_a_report_of_nothing() -> None:
    """Before anything is measured there is a report all the same."""
    assert report.render(Results()).startswith("# Benchmarks")
    ET.fromstring(plot.render(Results()))
