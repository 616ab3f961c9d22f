"""How soon a lone insert on the source is visible on the target.

One row at a time, on its own, nothing else going on. The reader asks again and again by primary key; what it finds is
late by half the time between two of its questions, about 0.1 ms, for every contender alike.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from bench.contest import one_line, say, wait
from bench.drainers import Native, Pglockstep
from bench.processes import ContenderFailed, Process, pglockstep_environment
from bench.results import Block, Conditions, Latency, percentile
from bench.servers import Servers, connect, create_database, drop_database
from pglockstep.errors import LockstepError

RATES = (200, 20)
_SOURCE = "latency_source"
#: The first ones of a block find cold caches and plans, and are not counted.
_WARM_UP = 20
#: A row that takes longer is never coming, in seconds.
_PATIENCE = 120.0
_TABLE = b"CREATE TABLE tick (id bigint PRIMARY KEY, note text, at timestamptz DEFAULT now())"


def measure(servers: Servers, names: set[str], inserts: int, rounds: int, conditions: Conditions) -> Latency:
    """`inserts` rows a block, each contender `rounds` blocks at each rate, in turns."""
    followers = {
        one.name: (one.title, follow)
        for one, follow in ((Native(), subscribed), (Pglockstep(), daemon))
        if one.name in names
    }
    blocks: list[Block] = []
    failures: dict[str, str] = {}
    keys = itertools.count(1)
    say(f"latency: blocks of {inserts} lone inserts, {rounds} rounds")
    with ExitStack() as after:
        after.callback(drop_database, servers.source, _SOURCE)
        source = create_database(servers.source, _SOURCE)
        with connect(source) as conn:
            conn.execute(_TABLE)
        for name in followers:
            after.callback(drop_database, servers.target, f"latency_{name}")
            create_database(servers.target, f"latency_{name}")
        state = Path(after.enter_context(tempfile.TemporaryDirectory(prefix="bench-state-")))
        prepare(source, servers.target.conninfo("latency_native"), names)
        after.callback(unsubscribe, servers.target.conninfo("latency_native"), names)
        for number, rate in itertools.product(range(rounds), RATES):
            # who goes first changes, too
            for name in sorted(followers, reverse=bool(number % 2)):
                if name in failures:
                    continue
                title, follow = followers[name]
                target = servers.target.conninfo(f"latency_{name}")
                try:
                    with follow(source, target, state) as check:
                        block = play(name, source, target, rate, inserts, keys, check)
                except (ContenderFailed, TimeoutError, psycopg.Error, LockstepError) as error:
                    failures[name] = one_line(error)
                    say(f"  {title}: failed: {failures[name]}")
                    continue
                blocks.append(block)
                middle = percentile(sorted(block.from_commit), 0.5)
                say(f"  round {number + 1}: {title}, {rate} a second: {middle:.2f} ms from the commit")
    titles = {name: title for name, (title, _) in followers.items()}
    return Latency(conditions, titles, blocks, failures)


def prepare(source: str, target: str, names: set[str]) -> None:
    """A disabled subscription, with its slot."""
    if Native.name not in names:
        return
    with connect(source) as conn:
        conn.execute("CREATE PUBLICATION bench FOR TABLE tick")
        conn.execute("SELECT pg_create_logical_replication_slot('latency_native', 'pgoutput')")
    with connect(target) as conn:
        conn.execute(_TABLE)
        conn.execute(
            sql.SQL(
                "CREATE SUBSCRIPTION latency_native CONNECTION {} PUBLICATION bench WITH "
                "(create_slot = false, slot_name = 'latency_native', copy_data = false, enabled = false)"
            ).format(sql.Literal(source))
        )


def unsubscribe(target: str, names: set[str]) -> None:
    """Take the subscription away; its slot goes with the source."""
    if Native.name not in names:
        return
    with connect(target) as conn:
        conn.execute("ALTER SUBSCRIPTION latency_native DISABLE")
        conn.execute("ALTER SUBSCRIPTION latency_native SET (slot_name = NONE)")
        conn.execute("DROP SUBSCRIPTION latency_native")


@contextmanager
def subscribed(source: str, target: str, state: Path) -> Iterator[Callable[[], None]]:
    """The subscription, enabled for one block."""
    with connect(target) as conn:
        conn.execute("ALTER SUBSCRIPTION latency_native ENABLE")
        try:
            yield lambda: None
        finally:
            conn.execute("ALTER SUBSCRIPTION latency_native DISABLE")
            working = "SELECT FROM pg_stat_subscription WHERE subname = 'latency_native' AND pid IS NOT NULL"
            wait(lambda: conn.execute(working).rowcount == 0, lambda: None, _PATIENCE)


@contextmanager
def daemon(source: str, target: str, state: Path) -> Iterator[Callable[[], None]]:
    """The daemon, for one block; in its first one it makes the first copy before."""
    environment = pglockstep_environment(source, target, state)
    with Process([sys.executable, "-m", "pglockstep", "run"], environment) as process:
        yield process.demand_alive


def play(
    name: str,
    source: str,
    target: str,
    rate: int,
    inserts: int,
    keys: Iterator[int],
    check: Callable[[], None],
) -> Block:
    """One block: insert, look until it is there, wait for the next one's time."""
    from_sending: list[float] = []
    from_commit: list[float] = []
    with connect(source) as writer, connect(target) as reader:

        def visible(key: int) -> bool:
            try:
                return reader.execute("SELECT FROM tick WHERE id = %s", [key], prepare=True).rowcount == 1
            except psycopg.errors.UndefinedTable:
                return False

        first = next(keys)
        writer.execute("INSERT INTO tick (id, note) VALUES (%s, 'lone')", [first], prepare=True)
        wait(lambda: visible(first), check, _PATIENCE)
        due = time.perf_counter()
        for number in range(_WARM_UP + inserts):
            due = max(due + 1 / rate, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))
            key = next(keys)
            sent = time.perf_counter()
            writer.execute("INSERT INTO tick (id, note) VALUES (%s, 'lone')", [key], prepare=True)
            returned = time.perf_counter()
            wait(lambda key=key: visible(key), check, _PATIENCE, every=0.0001)  # type: ignore[misc]
            seen = time.perf_counter()
            if number >= _WARM_UP:
                from_sending.append(round((seen - sent) * 1000, 3))
                from_commit.append(round((seen - returned) * 1000, 3))
    return Block(name, rate, from_sending, from_commit)
