"""How long it takes to drain a backlog, from the contender's start until the target has everything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from bench.contest import Entrant, hold, say, wait
from bench.drainers import Drainer, Floor, Native, Pglockstep
from bench.pglogical import Pglogical
from bench.results import Conditions, Drain, Sample
from bench.servers import Servers
from bench.stage import Stage, built
from bench.usage import Meter
from bench.work import Backlog

#: Whoever is slower than this many changes a second is given up.
SLOWEST = 300


def drainers(*, interpreted: bool = False) -> list[Drainer]:
    """All of them, in the order of the report; `interpreted` has our own do without its compiled hot path."""
    return [Floor(), Native(), Pglogical(), Pglockstep(interpreted=interpreted)]


def measure(
    servers: Servers, contenders: Sequence[Drainer], backlog: Backlog, rounds: int, conditions: Conditions
) -> Drain:
    """Make the backlog once, and let everyone drain it, `rounds` times in turns."""
    say(f"drain: {backlog.changes} changes, {rounds} rounds")
    absent = {one.title: lacks for one in contenders if (lacks := one.missing(servers.installation))}
    able = [one for one in contenders if one.title not in absent]
    with built(servers, backlog, [one.prepare for one in able]) as stage:
        entrants = [Entrant(one.name, one.title, partial(play, stage, one)) for one in able]
        contest = hold(entrants, rounds, absent)
        return Drain(
            conditions=conditions,
            changes=backlog.changes,
            transactions=backlog.transactions + 4,
            wal_bytes=stage.wal_bytes,
            contest=contest,
        )


def play(stage: Stage, drainer: Drainer) -> Sample:
    """One round of one contender."""
    source, target = stage.servers.source.pid, stage.servers.target.pid
    assert source is not None
    assert target is not None
    with drainer.ready(stage) as turn:
        stage.servers.settle()
        meter = Meter(source, target, turn.pids, drainer.worker)
        meter.start()
        begun = time.perf_counter()
        try:
            turn.start()
            wait(turn.done, turn.demand_alive, max(120.0, stage.backlog.changes / SLOWEST))
        finally:
            seconds = time.perf_counter() - begun
            usage = meter.stop()
        return Sample(drainer.name, seconds, usage, wrong=turn.wrong())
