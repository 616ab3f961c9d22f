"""How soon a running daemon notices what was done to the target, and has it back; printed, never asserted. Under load."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from fix_servers import INSTALLED, Cli, Pair, connect, wait_until
from fix_shop import Shop, load
from pglockstep.demo.servers import ThrowawayServer
from test_guard_target import harm, level
from test_guard_watch import on_15_and_18
from test_target_watch import drop_database

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@contextmanager
def target_that_notifies(pair: Pair) -> Iterator[Pair]:
    """The pair with a target server as PostgreSQL is by default: nothing can be prepared there, so the watch may notify."""
    settings = {"max_prepared_transactions": "0"}
    with ThrowawayServer(INSTALLED[pair.target_server.major], name="notifies", settings=settings) as server:
        with connect(server.conninfo()) as conn:
            conn.execute("CREATE DATABASE twin")
        twin = Pair(pair.source, server.conninfo("twin"), pair.source_server, server)
        yield twin
        twin.close()


def rows(pair: Pair, table: str) -> int:
    """How many rows the target has; -1 while there is no table, or no database."""
    try:
        with connect(pair.target) as conn:
            found = conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    except psycopg.Error:
        return -1
    assert found is not None
    return int(found[0])


def back_after(pair: Pair, table: str, count: int, harmed: Callable[[], object]) -> float:
    """Seconds from the end of `harmed` until the table has its rows again."""
    harmed()
    began = time.monotonic()
    wait_until(lambda: rows(pair, table) == count, 120, f"{table} to be back")
    return time.monotonic() - began


def settled(shop: Shop, number: int) -> None:
    """So many incidents, all of them over."""
    wait_until(
        lambda: [each["state"] for each in shop.incidents()] == ["healed"] * number,
        60,
        f"{number} healed incidents",
    )


@on_15_and_18
def test_a_small_table(cli: Cli, pair: Pair) -> None:
    """22 rows of "User", wiped in each way, ten times over for what it takes to notice one update."""
    with target_that_notifies(pair) as ends:
        shop = Shop(cli, ends)
        shop.once()
        running = shop.start()
        with load(pair.source):
            time.sleep(2)
            for number in range(10):
                harm(ends, f"UPDATE \"User\" SET note = 'theirs {number}' WHERE id = 7")
                settled(shop, number + 1)
                time.sleep(0.3)
            found = [each["detected_after_seconds"] for each in shop.incidents()]
            healed = [each["healed_after_seconds"] for each in shop.incidents()]
            print(
                f"\nPostgreSQL {ends.target_server.major}: one update noticed after {statistics.median(found) * 1000:.0f} ms "
                f"in the median, {max(found) * 1000:.0f} ms at most; undone after {statistics.median(healed):.2f} s in the median"
            )
            for number, what in enumerate(
                ('DELETE FROM "User"', 'TRUNCATE "User" CASCADE', "DROP SCHEMA public CASCADE")
            ):
                took = back_after(ends, '"User"', 22, lambda what=what: harm(ends, what))  # type: ignore[misc]
                settled(shop, 11 + number)
                print(f'{what}: 22 rows of "User" are back after {took:.2f} s')
                time.sleep(1.5)
            took = back_after(ends, '"User"', 22, lambda: drop_database(ends))
            settled(shop, 14)
            print(f"DROP DATABASE: back after {took:.2f} s")
        level(shop, running)
        running.kill()


@on_15_and_18
def test_a_million_rows(cli: Cli, pair: Pair) -> None:
    """Lost by TRUNCATE, by DELETE, by DROP TABLE; beside a raw binary COPY of the same table."""
    pair.on_source().execute(
        "CREATE TABLE big (id int PRIMARY KEY, at timestamptz, name text, amount numeric, note text); "
        "INSERT INTO big SELECT n, now(), 'name ' || n, n / 7.0, repeat('x', 40) FROM generate_series(1, 1000000) AS n"
    )
    shop = Shop(cli, pair)
    shop.once()
    with pair.on_source() as source, pair.on_target() as target:
        target.execute("CREATE TABLE raw (LIKE big INCLUDING ALL)")
        began = time.monotonic()
        with (
            source.cursor().copy("COPY big TO STDOUT (FORMAT binary)") as out,
            target.cursor().copy("COPY raw FROM STDIN (FORMAT binary)") as into,
        ):
            for chunk in out:
                into.write(chunk)
        print(f"\nPostgreSQL {pair.target_server.major}: raw binary COPY {time.monotonic() - began:.2f} s")
        target.execute("DROP TABLE raw")
    running = shop.start()
    with load(pair.source):
        time.sleep(2)
        for number, what in enumerate(("TRUNCATE big", "DELETE FROM big", "DROP TABLE big")):
            took = back_after(pair, "big", 1_000_000, lambda what=what: harm(pair, what))  # type: ignore[misc]
            settled(shop, 1 + number)
            print(f"{what}: a million rows are back after {took:.2f} s")
            time.sleep(1.5)
    level(shop, running)
