"""How long it takes to tell that two databases hold the same, from the start of the first command to the last one's end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import psycopg

from bench import datadiff, work
from bench.comparers import Comparer, PglockstepCheck, Plain
from bench.contest import Entrant, hold, one_line, say, wait
from bench.processes import ContenderFailed, Process
from bench.results import Compare, Conditions, Sample
from bench.servers import Servers, create_database, drop_database
from bench.usage import Meter, Usage
from bench.work import Twins

_DATABASE = "compared"
_PATIENCE = 3600.0
_EVERY = 0.005


def comparers() -> list[Comparer]:
    """All of them, in the order of the report."""
    return [Plain(), PglockstepCheck(), *datadiff.contenders()]


def measure(
    servers: Servers, contenders: Sequence[Comparer], what: Twins, rounds: int, conditions: Conditions
) -> Compare:
    """Fill both ends, let everyone find a difference once, and then let them look for none, `rounds` times in turns."""
    say(f"compare: pgbench scale {what.pgbench_scale} and {what.rows} rows, {rounds} rounds")
    absent = {one.title: lacks for one in contenders if (lacks := one.missing(servers.installation))}
    able = [one for one in contenders if one.title not in absent]
    try:
        source = create_database(servers.source, _DATABASE)
        target = create_database(servers.target, _DATABASE)
        size = what.prepare(servers, _DATABASE)
        what.damage(target)
        for one in able:
            if blind := blindness(servers, one, source, target):
                absent[one.title] = blind
                say(f"  {one.title}: no contender: {blind}")
        what.mend(target)
        truth = work.fingerprints(source, list(Twins.KEYS))
        if differs := work.differences(truth, work.fingerprints(target, list(Twins.KEYS))):
            raise ContenderFailed(f"the ends are not what they were: {differs}")
        seeing = [one for one in able if one.title not in absent]
        entrants = [
            Entrant(one.name, one.title, partial(play, servers, one, source, target)) for one in seeing
        ]
        contest = hold(entrants, rounds, absent)
    finally:
        drop_database(servers.source, _DATABASE)
        drop_database(servers.target, _DATABASE)
    return Compare(conditions=conditions, database_bytes=size, rows=what.all_rows, contest=contest)


def blindness(servers: Servers, comparer: Comparer, source: str, target: str) -> str:
    """What one did not see of the damage; empty if it named just the tables that differ."""
    try:
        same, _, _ = compared(servers, comparer, source, target, (0, comparer.differs))
    except (ContenderFailed, TimeoutError, psycopg.Error) as error:
        return one_line(error)
    return misjudged(same, Twins.DAMAGE)


def play(servers: Servers, comparer: Comparer, source: str, target: str) -> Sample:
    """One round of one contender, on ends that are the same."""
    servers.settle()
    same, seconds, usage = compared(servers, comparer, source, target, (0,))
    return Sample(comparer.name, seconds, usage, wrong=misjudged(same, ()))


def misjudged(same: dict[str, bool], different: Collection[str]) -> str:
    """In what an answer is not the truth: that the tables `different` differ, and the others do not."""
    truth = {table: table not in different for table in Twins.KEYS}
    words = {True: "the same", False: "different", None: "nothing"}
    return ", ".join(
        f"{table}: told {words[same.get(table)]}"
        for table, equal in truth.items()
        if same.get(table) != equal
    )


def compared(
    servers: Servers, comparer: Comparer, source: str, target: str, codes: Collection[int]
) -> tuple[dict[str, bool], float, Usage]:
    """Run its commands to their end: what it says of each table, how many seconds it took, and what it used."""
    assert servers.source.pid is not None
    assert servers.target.pid is not None
    running: list[Process] = []
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as scratch:
        # what a command is told of the tables is no part of the work
        commands = comparer.commands(servers, source, target, Path(scratch))
        meter = Meter(servers.source.pid, servers.target.pid, lambda: [one.pid for one in running])
        try:
            meter.start()
            begun = time.perf_counter()
            try:
                for argv in commands:
                    running.append(Process(argv, codes=codes))
                wait(lambda: not any(one.alive() for one in running), lambda: None, _PATIENCE, every=_EVERY)
                seconds = time.perf_counter() - begun
            finally:
                usage = meter.stop()
            return comparer.same([one.written() for one in running]), seconds, usage
        finally:
            for one in running:
                one.stop()
