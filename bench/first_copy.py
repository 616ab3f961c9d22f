"""How long a first copy takes, from the contender's start until its last process has ended."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench import work
from bench.contest import Entrant, hold, say, wait
from bench.copiers import Copier, Job
from bench.results import Conditions, Copy, Sample
from bench.servers import Servers, connect, create_database, drop_database
from bench.usage import Meter
from bench.work import FirstCopy

_SOURCE = "copy_source"
_TARGET = "copy_target"
_PATIENCE = 7200.0

Truth = dict[str, tuple[int, str]]


def measure(
    servers: Servers, contenders: Sequence[Copier], what: FirstCopy, rounds: int, conditions: Conditions
) -> Copy:
    """Fill the source once, and let everyone copy it, `rounds` times in turns."""
    say(f"first copy: pgbench scale {what.pgbench_scale} and {what.rows} rows, {rounds} rounds")
    absent = {one.title: lacks for one in contenders if (lacks := one.missing(servers.installation))}
    able = [one for one in contenders if one.title not in absent]
    try:
        source = create_database(servers.source, _SOURCE)
        size = what.prepare(servers, _SOURCE)
        truth = work.fingerprints(source)
        entrants = [Entrant(one.name, one.title, partial(play, servers, one, truth)) for one in able]
        contest = hold(entrants, rounds, absent)
    finally:
        drop_database(servers.source, _SOURCE)
    return Copy(
        conditions=conditions,
        database_bytes=size,
        pgbench_scale=what.pgbench_scale,
        rows=what.rows,
        contest=contest,
    )


def play(servers: Servers, copier: Copier, truth: Truth) -> Sample:
    """One round of one contender, onto a fresh database."""
    with tempfile.TemporaryDirectory(prefix="bench-copy-") as scratch:
        try:
            create_database(servers.target, _TARGET)
            return _timed(servers, copier, truth, Path(scratch))
        finally:
            drop_database(servers.target, _TARGET)


def _timed(servers: Servers, copier: Copier, truth: Truth, scratch: Path) -> Sample:
    source, target = servers.source.conninfo(_SOURCE), servers.target.conninfo(_TARGET)
    job = Job(
        copier.steps(servers, source, target, scratch), copier.environment(servers, source, target, scratch)
    )
    pids = servers.source.pid, servers.target.pid
    assert pids[0] is not None
    assert pids[1] is not None
    copied_after: float | None = None

    def done() -> bool:
        nonlocal copied_after
        if copied_after is None and copier.copied(reader):
            copied_after = time.perf_counter() - begun
        return job.done()

    servers.settle()
    meter = Meter(pids[0], pids[1], job.pids)
    meter.start()
    with connect(target) as reader:
        begun = time.perf_counter()
        try:
            job.start()
            wait(done, lambda: None, _PATIENCE)
            seconds = time.perf_counter() - begun
        finally:
            usage = meter.stop()
            job.stop()
    sample = Sample(
        copier.name,
        seconds,
        usage,
        wrong=work.differences(truth, work.fingerprints(target)),
        copied_after=copied_after,
    )
    copier.clean(servers, source, target, scratch)
    return sample
