"""What the guard promises, each line under a running pgbench, with 1,000 items beside 22 users; ways and times are printed.

The quick forms are in test_guard_source.py, test_guard_target.py and test_identity_live.py, under our own writers.
"""

from __future__ import annotations

import contextlib
import json
import time

import psycopg
import pytest

from fix_copy import dumped, refused
from fix_pgbench import Pgbench
from fix_servers import Cli, Pair, all_pairs, wait_until
from fix_shop import Shop, load
from test_guard_target import harm, level
from test_target_watch import drop_database

#: pgbench's tables belong to whoever starts it
pytestmark = [pytest.mark.soak, pytest.mark.superusers, pytest.mark.timeout(900)]

#: the same version, and up from the oldest to the newest
on_two_pairs = pytest.mark.parametrize(
    "pair", all_pairs[:2], indirect=True, ids=[f"{a}-to-{b}" for a, b in all_pairs[:2]]
)

#: In one transaction of its own each.
SMALL = [*(f"DELETE FROM thing WHERE id = {number}" for number in range(1, 1001))]

#: What happens to the source, the kind of incident, and the tables that it takes.
WIPES: dict[str, tuple[list[str], str]] = {
    "delete": (['DELETE FROM "User"'], "delete"),
    "truncate cascade": (['TRUNCATE "User" CASCADE'], "truncate"),
    "drop table": (['DROP TABLE "User" CASCADE'], "drop"),
    "drop schema": (["DROP SCHEMA public CASCADE"], "drop"),
    "update to null": (['UPDATE "User" SET name = NULL, note = NULL'], "update"),
    "a thousand small ones": (SMALL, "delete"),
}

HARMS: dict[str, list[str]] = {
    "drop schema": ["DROP SCHEMA public CASCADE"],
    "truncate cascade": ['TRUNCATE "User" CASCADE'],
    "delete everything": [
        *(
            f"DELETE FROM {table}"
            for table in ('"order"', '"User"', "item", "visit", "beat", "mail", "thing")
        ),
        *(f"DELETE FROM bench.pgbench_{table}" for table in ("history", "accounts", "tellers", "branches")),
    ],
    "drop column": ["ALTER TABLE item DROP COLUMN label"],
    "one update": ["UPDATE \"User\" SET note = 'theirs' WHERE id = 7"],
    "drop database": [],
}


def prepared(cli: Cli, pair: Pair, settings: str = "") -> tuple[Shop, Pgbench]:
    """A shop with 1,000 things and pgbench's tables, and a role that may read it all."""
    shop = Shop(cli, pair, settings)
    bench = Pgbench(pair)
    shop.wipe(
        "CREATE TABLE thing (id int PRIMARY KEY, v text NOT NULL DEFAULT 'thing')",
        "INSERT INTO thing (id) SELECT n FROM generate_series(1, 1000) AS n",
        'CREATE VIEW mailing AS SELECT email FROM "User"',
    )
    return shop, bench


def contents(shop: Shop, *, source: bool) -> dict[str, list[str]]:
    """The rows that nobody writes to, and the keys of those that are written to."""
    found = {
        table: (shop.source_rows if source else shop.target_rows)(table)
        for table in ('"User"', "visit", "thing")
    }
    with shop.pair.on_source() if source else shop.pair.on_target() as conn:
        for table, columns in (("item", "id, label"), ('"order"', "id, customer, item, amount, at")):
            with contextlib.suppress(psycopg.errors.UndefinedTable):
                rows = conn.execute(f"SELECT ({columns})::text FROM {table} ORDER BY id".encode()).fetchall()
                found[table] = [row[0] for row in rows]
    return found


@on_two_pairs
@pytest.mark.parametrize("what", WIPES)
def test_the_source_is_wiped(pair: Pair, cli: Cli, what: str) -> None:
    """The target keeps every row that stood; `check` and `once` exit 6; `restore` brings all back, and what came since stays."""
    statements, kind = WIPES[what]
    shop, bench = prepared(cli, pair)
    shop.once()
    running = shop.start()
    with bench.running():
        time.sleep(2)
        before = contents(shop, source=True)
        schema = dumped(pair.source_server, pair.source)
        with load(pair.source):
            began = time.monotonic()
            for each in statements:
                shop.wipe(each)
            incident = shop.held()
            print(
                f"\n{what}: held {time.monotonic() - began:.2f} s after it began; it lost "
                f"{sum(each['rows_lost'] for each in incident['tables'])} rows"
            )
            assert (incident["side"], incident["kind"]) == ("source", kind)
            held = contents(shop, source=False)
            if len(statements) == 1:
                for table, rows in before.items():
                    assert set(rows) <= set(held[table]), f"{table} lost rows on the target"
            else:
                assert len(held["thing"]) > 600
            for command in ("check", "once"):
                refused(cli(command), 6)
            time.sleep(1)
            while incident:
                began = time.monotonic()
                done = shop.command("incidents", "restore", incident["id"], "--yes")
                assert done["incidents"][0]["state"] == "restored"
                print(f"{what}: restored in {time.monotonic() - began:.2f} s")
                time.sleep(1)
                waiting = [each for each in shop.incidents() if each["state"] == "held"]
                incident = waiting[0] if waiting else {}
            time.sleep(1)
        now = contents(shop, source=True)
        for table, rows in before.items():
            assert set(rows) <= set(now[table]), f"{table} lost rows on the source"
        assert now['"User"'] == before['"User"']
        assert now["thing"] == before["thing"]
        assert dumped(pair.source_server, pair.source) == schema
        assert running.process.poll() is None
    level(shop, running)


@on_two_pairs
@pytest.mark.parametrize(
    "statement", ["DELETE FROM big", "TRUNCATE big", "UPDATE big SET note = NULL", "DROP TABLE big"]
)
def test_a_million_rows_of_the_source_are_wiped(pair: Pair, cli: Cli, statement: str) -> None:
    """A transaction that is larger than memory should hold is held like any other, and its million rows come back."""
    shop, bench = prepared(cli, pair)
    shop.wipe(
        "CREATE TABLE big (id int PRIMARY KEY, at timestamptz DEFAULT now(), amount numeric, note text)",
        "INSERT INTO big SELECT n, now(), n / 7.0, 'note ' || n FROM generate_series(1, 1000000) AS n",
    )
    shop.once()
    running = shop.start()
    state = "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM big AS t"
    before = pair.on_source().execute(state.encode()).fetchone()
    with bench.running(100):
        began = time.monotonic()
        shop.wipe(statement)
        wiped = time.monotonic()
        incident = shop.held()
        print(f"\n{statement} took {wiped - began:.1f} s, held {time.monotonic() - wiped:.1f} s later")
        assert incident["tables"][0]["rows_lost"] == 1_000_000
        assert pair.on_target().execute(state.encode()).fetchone() == before
        began = time.monotonic()
        done = cli("incidents", "restore", incident["id"], "--yes", timeout=300)
        assert done.returncode == 0, done.stderr
        print(f"restored in {time.monotonic() - began:.1f} s")
        assert pair.on_source().execute(state.encode()).fetchone() == before
    level(shop, running)


@on_two_pairs
def test_the_source_is_wiped_during_its_first_copy(pair: Pair, cli: Cli) -> None:
    """What the copy's snapshot saw is on the target; the wipe that committed meanwhile is held."""
    shop, bench = prepared(cli, pair)
    shop.wipe(
        "CREATE TABLE big (id int PRIMARY KEY, note text)",
        "INSERT INTO big SELECT n, repeat('x', 200) FROM generate_series(1, 1000000) AS n",
    )
    before = contents(shop, source=True)
    with bench.running():
        process = cli.start("run", log=cli.directory / "daemon.log")
        wait_until(
            lambda: (
                pair.on_target().execute("SELECT FROM pg_class WHERE relname = 'big'").rowcount == 1
                and pair.on_source().execute("SELECT FROM pg_replication_slots").rowcount > 0
            ),
            60,
            "the copy to have begun",
        )
        shop.wipe('DELETE FROM "User"', "DELETE FROM thing")
        incident = shop.held()
        assert incident["kind"] == "delete"
        held = contents(shop, source=False)
        assert {table: held[table] for table in ('"User"', "thing", "visit")} == {
            table: before[table] for table in ('"User"', "thing", "visit")
        }
        done = shop.command("incidents", "restore", incident["id"], "--yes")
        assert done["incidents"][0]["state"] == "restored"
        time.sleep(2)
    assert shop.command("check")["links"][0]["verdict"] == "identical"
    assert contents(shop, source=True) == before
    process.terminate()
    assert process.wait(20) == 0


@on_two_pairs
@pytest.mark.parametrize("what", HARMS)
def test_the_target_is_harmed(pair: Pair, cli: Cli, what: str) -> None:
    """It is noticed and put right by itself, while pgbench goes on."""
    shop, bench = prepared(cli, pair)
    shop.once()
    running = shop.start()
    with bench.running(), load(pair.source):
        time.sleep(2)
        began = time.monotonic()
        if HARMS[what]:
            harm(pair, *HARMS[what])
        else:
            drop_database(pair)
        done = time.monotonic()
        wait_until(
            lambda: (found := shop.incidents()) and all(each["state"] == "healed" for each in found),
            60,
            "the target to be healed",
        )
        for each in shop.incidents():
            print(
                f"\n{what}: took {done - began:.2f} s; {each['kind']} noticed after {each['detected_after_seconds']} s, "
                f"healed after {each['healed_after_seconds']} s"
            )
        time.sleep(2)
    level(shop, running)
    for table in ('"User"', "visit", "thing"):
        assert shop.target_rows(table) == shop.source_rows(table)


#: So long, in seconds, nothing may be told of a busy database.
QUIET = 1200


@pytest.mark.timeout(QUIET + 600)
def test_twenty_minutes_without_a_false_alarm(pair: Pair, cli: Cli) -> None:
    """pgbench, a queue of 1,000 jobs a second, purges of a tenth, partitions dropped, an announced purge, maintenance, a heal."""
    shop, bench = prepared(cli, pair, "[links.shop.guard.tables.'public.log_*']\ndrop = \"allow\"\n")
    shop.wipe(
        "CREATE TABLE job (id bigserial PRIMARY KEY, v text)",
        "CREATE TABLE old (id bigserial PRIMARY KEY, at timestamptz DEFAULT now(), v text)",
        "INSERT INTO old (v) SELECT 'x' FROM generate_series(1, 20000)",
        "CREATE TABLE yearly (id int PRIMARY KEY, v text)",
        "INSERT INTO yearly SELECT n, 'x' FROM generate_series(1, 5000) AS n",
        "CREATE TABLE log (day int, v text, PRIMARY KEY (day, v)) PARTITION BY LIST (day)",
        *(f"CREATE TABLE log_{day} PARTITION OF log FOR VALUES IN ({day})" for day in range(30)),
        "INSERT INTO log SELECT n % 30, n::text FROM generate_series(1, 6000) AS n",
    )
    shop.once()
    running = shop.start()
    day, healed = 0, 0
    with bench.running(), bench.queue(), load(pair.source), pair.on_source() as conn:
        end = time.monotonic() + QUIET
        minute = 0
        while time.monotonic() < end:
            time.sleep(1)
            if time.monotonic() < end - QUIET + 60 * minute:
                continue
            minute += 1
            conn.execute(
                "DELETE FROM old WHERE id IN (SELECT id FROM old ORDER BY id LIMIT (SELECT count(*) / 10 FROM old))"
            )
            conn.execute("INSERT INTO old (v) SELECT 'x' FROM generate_series(1, 2000)")
            if day < 30:
                conn.execute(f"DROP TABLE log_{day}".encode())
                day += 1
            for statement in (
                'VACUUM FULL "order"',
                "CLUSTER item USING item_pkey",
                "REINDEX TABLE bench.pgbench_accounts",
                "ANALYZE",
            ):
                for one in (pair.superuser_on_source(), pair.superuser_on_target()):
                    with one:
                        one.execute(statement.encode())
            if minute == 5:
                harm(pair, "DELETE FROM visit")
                wait_until(
                    lambda: [each["state"] for each in shop.incidents()] == ["healed"], 60, "our own heal"
                )
                healed = 1
            if minute == 8:
                shop.command("guard", "allow", "--table", "public.yearly", "--rows", "5000", "--for", "10m")
                conn.execute("DELETE FROM yearly")
            assert len(shop.incidents()) == healed, json.dumps(shop.incidents(), indent=1)
        (jobs,) = conn.execute("SELECT last_value FROM job_id_seq").fetchone() or (0,)
    print(f"\n{jobs} jobs, {day} partitions dropped, no false alarm in {QUIET} s")
    level(shop, running)
    assert [(each["side"], each["state"]) for each in shop.incidents()] == [("target", "healed")]
    assert not shop.target_rows("yearly")
