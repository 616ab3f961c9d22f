"""Lone-insert latency and backlog drain, on two throwaway servers of the newest version, beside PostgreSQL's own.

The same work for both in one run: the native subscription and pglockstep take turns on the same pair of servers.
Prints medians with their spread.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from pglockstep.demo.servers import ThrowawayServer, find_servers

INSERTS = 300
ROUNDS = 3
BACKLOG = 20_000

SCHEMA = b"CREATE TABLE item (id bigint PRIMARY KEY, name text, amount numeric, at timestamptz DEFAULT now())"


def main() -> None:
    """Measure and print."""
    newest = find_servers(dict(os.environ))[-1]
    print(f"PostgreSQL {newest.version}, {os.cpu_count()} cores; medians (min to max)")
    print(f"lone insert: commit on the source until visible on the target, {INSERTS} times")
    print(f"drain: {BACKLOG} transactions of one insert and one update, {ROUNDS} times")
    with ThrowawayServer(newest, name="source") as source, ThrowawayServer(newest, name="target") as target:
        drains: dict[str, list[float]] = {"native": [], "pglockstep": []}
        for number in range(ROUNDS):
            for name, contender in (("native", native), ("pglockstep", pglockstep)):
                with contender(source, target, f"{name}_{number}") as (ends, pause, resume):
                    if number == 0:
                        report(
                            f"{name}: lone insert", [seconds * 1000 for seconds in lone_inserts(*ends)], "ms"
                        )
                    drains[name].append(drain(*ends, pause, resume))
        for name, figures in drains.items():
            report(f"{name}: drain", figures, "s")


def report(what: str, figures: list[float], unit: str) -> None:
    """One line of the result."""
    ordered = sorted(figures)
    tail = f", p99 {ordered[int(len(ordered) * 0.99) - 1]:.2f} {unit}" if len(ordered) >= 100 else ""
    print(f"{what:<26} {statistics.median(figures):.2f} {unit} ({ordered[0]:.2f} to {ordered[-1]:.2f}{tail})")


def databases(source: ThrowawayServer, target: ThrowawayServer, name: str) -> tuple[str, str]:
    """Two fresh databases, the source's with a table."""
    for server in (source, target):
        with psycopg.connect(server.conninfo(), autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with psycopg.connect(source.conninfo(name), autocommit=True) as conn:
        conn.execute(SCHEMA)
    return source.conninfo(name), target.conninfo(name)


Contender = tuple[tuple[str, str], Callable[[], None], Callable[[], None]]


@contextmanager
def native(source: ThrowawayServer, target: ThrowawayServer, name: str) -> Iterator[Contender]:
    """PostgreSQL's own publication and subscription."""
    ends = databases(source, target, name)
    with psycopg.connect(ends[0], autocommit=True) as conn:
        conn.execute("CREATE PUBLICATION p FOR ALL TABLES")
    with psycopg.connect(ends[1], autocommit=True) as conn:
        conn.execute(SCHEMA)
        conn.execute(
            sql.SQL("CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION p").format(
                sql.Identifier(name), sql.Literal(ends[0])
            )
        )

        def switch(word: str) -> None:
            conn.execute(sql.SQL("ALTER SUBSCRIPTION {} {}").format(sql.Identifier(name), sql.SQL(word)))
            # the worker ends a moment later, and would eat of the backlog until then
            working = sql.SQL("SELECT FROM pg_stat_subscription WHERE subname = {} AND pid IS NOT NULL")
            while word == "DISABLE" and conn.execute(working.format(sql.Literal(name))).rowcount:
                time.sleep(0.01)

        wait_level(*ends)
        yield ends, lambda: switch("DISABLE"), lambda: switch("ENABLE")
        conn.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(name)))


@contextmanager
def pglockstep(source: ThrowawayServer, target: ThrowawayServer, name: str) -> Iterator[Contender]:
    """The daemon."""
    ends = databases(source, target, name)
    with tempfile.TemporaryDirectory() as state:
        environment = dict(
            os.environ, PGLOCKSTEP_SOURCE=ends[0], PGLOCKSTEP_TARGET=ends[1], PGLOCKSTEP_STATE_DIR=state
        )
        running: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "pglockstep", "run"], env=environment, stderr=subprocess.DEVNULL
                )
            )

        def stop() -> None:
            process = running.pop()
            process.terminate()
            process.wait()

        start()
        wait_level(*ends)
        yield ends, stop, start
        stop()
        command = [sys.executable, "-m", "pglockstep", "teardown", "--yes"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def lone_inserts(source: str, target: str) -> list[float]:
    """Seconds from each commit until the row is visible."""
    figures = []
    with (
        psycopg.connect(source, autocommit=True) as writer,
        psycopg.connect(target, autocommit=True) as reader,
    ):
        for number in range(INSERTS):
            writer.execute("INSERT INTO item (id, name) VALUES (%s, 'lone')", [-1000 - number])
            began = time.perf_counter()
            while reader.execute("SELECT FROM item WHERE id = %s", [-1000 - number]).rowcount == 0:
                pass
            figures.append(time.perf_counter() - began)
    return figures


def drain(source: str, target: str, pause: Callable[[], None], resume: Callable[[], None]) -> float:
    """Seconds from the start of the contender until a backlog is on the target."""
    pause()
    with psycopg.connect(source, autocommit=True) as conn, conn.pipeline():
        for number in range(BACKLOG):
            with conn.transaction():
                conn.execute("INSERT INTO item (id, name, amount) VALUES (%s, 'backlog', 1)", [number])
                conn.execute("UPDATE item SET amount = amount + 1 WHERE id = %s", [number])
    began = time.perf_counter()
    resume()
    wait_level(source, target)
    return time.perf_counter() - began


def wait_level(source: str, target: str) -> None:
    """Wait until a last row has arrived."""
    with (
        psycopg.connect(source, autocommit=True) as writer,
        psycopg.connect(target, autocommit=True) as reader,
    ):
        mark = -time.time_ns()
        writer.execute("INSERT INTO item (id, name) VALUES (%s, 'mark')", [mark])
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            try:
                if reader.execute("SELECT FROM item WHERE id = %s", [mark]).rowcount:
                    return
            except psycopg.errors.UndefinedTable:
                pass
            time.sleep(0.005)
    raise TimeoutError("the target did not follow")


if __name__ == "__main__":
    main()
