"""A first copy that is cut off goes on where it stopped: killed, or with either server stopped, beside busy writers."""

from __future__ import annotations

import random
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

import psycopg
import pytest

from fix_copy import check, identities, nothing_left, once, only_on_the_source, ours_on_source, refused
from fix_servers import Cli, Connection, Pair, connect, wait_until
from fix_workload import SCHEMA, workload

pytestmark = pytest.mark.unguarded

#: Tables of several kinds and sizes; `big` is cut into parts. Foreign keys go from early to late tables and back.
TABLES = """
CREATE SCHEMA app;
CREATE TABLE app.big (id int PRIMARY KEY, v text, n int);
INSERT INTO app.big SELECT n, repeat('x', 400), n FROM generate_series(1, 170000) AS n;
CREATE INDEX big_n ON app.big (n);
CREATE TABLE app.parent (id int PRIMARY KEY, v text);
INSERT INTO app.parent SELECT n, md5(n::text) FROM generate_series(1, 60000) AS n;
CREATE TABLE app.child (
    id int PRIMARY KEY, parent int NOT NULL REFERENCES app.parent ON DELETE CASCADE, big int REFERENCES app.big);
INSERT INTO app.child SELECT n, n, n FROM generate_series(1, 50000) AS n;
ALTER TABLE app.parent ADD child int REFERENCES app.child;
CREATE TABLE app.keyless (v text, n int);
INSERT INTO app.keyless SELECT md5(n::text), n FROM generate_series(1, 30000) AS n;
CREATE TABLE app.cleared (id int PRIMARY KEY, v text);
INSERT INTO app.cleared SELECT n, 'old' FROM generate_series(1, 20000) AS n;
CREATE TABLE app.empty (id int PRIMARY KEY);
"""

#: What the source's users go on doing: each touches tables that have arrived and tables that have not.
WRITES = [
    "INSERT INTO app.parent VALUES (1000000 + {r}, 'new', NULL) ON CONFLICT (id) DO UPDATE SET v = app.parent.v || 'x'",
    "INSERT INTO app.child SELECT 1000000 + {r}, 1 + {r}, 1 + {r} ON CONFLICT DO NOTHING",
    "UPDATE app.big SET v = 'changed {r}' WHERE id BETWEEN {r} AND {r} + 20",
    "UPDATE app.keyless SET n = n + 1 WHERE n = {r}",
    "DELETE FROM app.keyless WHERE ctid = (SELECT min(ctid) FROM app.keyless)",
    "DELETE FROM app.child WHERE id = 20000 + {r}",
    "UPDATE app.parent SET id = id + 2000000 WHERE id = 55000 + {r}",
    "UPDATE app.cleared SET v = v || '{r}' WHERE id % 100 = {r} % 100",
    "TRUNCATE app.cleared; INSERT INTO app.cleared SELECT n, 'new {r}' FROM generate_series(1, 500) AS n",
    "INSERT INTO app.empty VALUES ({r}) ON CONFLICT DO NOTHING",
]


@dataclass(frozen=True)
class Arrived:
    """A table that had arrived when the copy was cut off: as of which LSN, and in which file with which first rows."""

    lsn: str
    rows: int
    file: int


def arrived(target: Connection) -> dict[str, Arrived]:
    """The tables whose parts are all there."""
    with suppress(psycopg.errors.UndefinedTable):
        rows = target.execute(
            "SELECT table_name, min(lsn)::text, sum(row_count)::bigint, "
            "pg_relation_filenode(format('%I.%I', schema_name, table_name)::regclass) "
            "FROM pglockstep.copied GROUP BY schema_name, table_name HAVING count(*) = min(parts)"
        )
        return {name: Arrived(lsn, count, file) for name, lsn, count, file in rows}
    return {}


def write(conn: Connection, chance: random.Random) -> None:
    """One of `WRITES`."""
    with conn.transaction():
        conn.execute(chance.choice(WRITES).format(r=chance.randrange(3000)).encode())


def emptied(cli: Cli, pair: Pair) -> None:
    """Take the link down and the target's tables with it."""
    done = cli("teardown", "--source", pair.source, "--target", pair.target, "--yes")
    assert done.returncode == 0, done.stderr
    pair.on_target().execute("DROP SCHEMA IF EXISTS app CASCADE")


def start(cli: Cli, pair: Pair) -> subprocess.Popen[str]:
    return cli.start("once", "--source", pair.source, "--target", pair.target)


def cut_off(cli: Cli, pair: Pair, tables: int) -> dict[str, Arrived]:
    """Kill a copy as soon as so many tables have arrived; what had."""
    process, target = start(cli, pair), pair.on_target()
    wait_until(lambda: process.poll() is not None or len(arrived(target)) >= tables, what="tables to arrive")
    process.kill()
    process.wait()
    # its sessions' last commits may still come
    return wait_until(lambda: arrived(target), what="what has arrived")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_killed_at_random_moments(pair: Pair, cli: Cli, kills: int) -> None:
    """kill -9 in each share of a copy, writers at work all the while: identical, and what had arrived is not copied again."""
    source = pair.on_source()
    source.execute(TABLES.encode())
    before = identities(source)
    began = time.monotonic()
    once(cli, pair)
    whole = time.monotonic() - began
    chance = random.Random()
    for kill in range(kills):
        emptied(cli, pair)
        process = start(cli, pair)
        moment = whole * (kill + chance.random()) / kills
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline:
            write(source, chance)
            time.sleep(0.005)
        process.kill()
        process.wait()
        for _ in range(30):
            write(source, chance)
        target = pair.on_target()
        there = arrived(target)
        link = once(cli, pair)
        said = f"killed after {moment:.2f} s of {whole:.2f} s with {sorted(there)} there"
        assert link["verdict"] == "identical", said
        now = arrived(target)
        assert len(now) == 6, said
        assert {name: (each.lsn, each.rows) for name, each in there.items()} == {
            name: (now[name].lsn, now[name].rows) for name in there
        }, said
        for _ in range(10):
            write(source, chance)
        assert once(cli, pair)["verdict"] == "identical", said
        assert ours_on_source(source) == (1, 1), said
    assert cli("teardown", "--source", pair.source, "--target", pair.target, "--yes").returncode == 0
    assert identities(source) == before


def test_what_has_arrived_is_not_copied_again(pair: Pair, cli: Cli) -> None:
    """The files and rows of finished tables are the very same after going on; only the rest comes as of a later LSN."""
    source, target = pair.on_source(), pair.on_target()
    source.execute(TABLES.encode())
    there = cut_off(cli, pair, 3)
    assert 3 <= len(there) <= 6
    link = once(cli, pair)
    assert link["verdict"] == "identical"
    now = arrived(target)
    assert {name: now[name] for name in there} == there
    assert link["copied_rows"] == sum(each.rows for name, each in now.items() if name not in there)
    later = {each.lsn for name, each in now.items() if name not in there}
    assert later.isdisjoint(each.lsn for each in there.values())
    assert target.execute("SELECT count(*) FROM pglockstep.restored").fetchone() == (0,)
    assert source.execute("SELECT count(*) FROM pg_replication_slots WHERE temporary").fetchone() == (0,)


@pytest.mark.parametrize(
    ("end", "mode"),
    [
        ("source", "immediate"),
        ("target", "fast"),
        pytest.param("source", "fast", marks=pytest.mark.soak),
        pytest.param("target", "immediate", marks=pytest.mark.soak),
    ],
)
def test_a_server_stopped_in_the_midst(pair: Pair, cli: Cli, end: str, mode: str) -> None:
    """Either server stopped, or crashed, in the midst of the rows: one line and a hint; the next `once` goes on."""
    source = pair.on_source()
    source.execute(TABLES.encode())
    server = pair.source_server if end == "source" else pair.target_server
    process, target = start(cli, pair), pair.on_target()
    wait_until(lambda: arrived(target) or process.poll() is not None, what="a table to arrive")
    server.stop("fast" if mode == "fast" else "immediate")
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        server.start()
    assert process.returncode == (4 if end == "source" else 5), said
    assert "HINT: " in said
    assert "Traceback" not in said
    target = pair.on_target()
    there = arrived(target)
    with connect(pair.source) as conn:
        chance = random.Random(3)
        for _ in range(40):
            write(conn, chance)
    assert once(cli, pair)["verdict"] == "identical"
    if end == "source" or mode == "fast":
        # a target that crashed may have forgotten what had not reached its disk: rows and their note alike
        assert there
    now = arrived(target)
    assert {name: now[name] for name in there} == there


def test_the_daemon_goes_on_by_itself(pair: Pair, cli: Cli) -> None:
    """`run` survives a source that goes away in the midst of the copy, and streams in the end."""
    source = pair.on_source()
    source.execute(TABLES.encode())
    process = cli.start("run", "--source", pair.source, "--target", pair.target)
    target = pair.on_target()
    wait_until(lambda: arrived(target), what="a table to arrive")
    pair.source_server.restart("immediate")
    query = "SELECT phase FROM pglockstep.link"
    wait_until(lambda: target.execute(query).fetchone() == ("streaming",), 60, "the copy to be complete")
    pair.on_source().execute("INSERT INTO app.empty VALUES (-1)")
    assert check(cli, pair)["verdict"] == "identical"
    assert process.poll() is None


def test_a_service_that_is_stopped_keeps_what_stands(pair: Pair, cli: Cli) -> None:
    """SIGTERM ends a daemon in the midst of its first copy with 0; started again, it copies just what was left."""
    source, target = pair.on_source(), pair.on_target()
    source.execute(TABLES.encode())
    process = cli.start("run", "--source", pair.source, "--target", pair.target)
    wait_until(lambda: arrived(target), 30, "the first table")
    process.terminate()
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0, said
    there = arrived(target)
    assert there
    assert target.execute("SELECT phase FROM pglockstep.link").fetchone() == ("copying",)
    assert once(cli, pair)["verdict"] == "identical"
    now = arrived(target)
    assert {name: now[name] for name in there} == there


def test_every_kind_of_table(pair: Pair, cli: Cli) -> None:
    """Killed and gone on with three times beside random writers: partitions, keys deferred and missing, generated columns."""
    source = pair.on_source()
    source.execute(SCHEMA.encode())
    source.execute("""
        CREATE TABLE filler (id int PRIMARY KEY, v text); CREATE TABLE "an ""other"" one" (LIKE filler INCLUDING ALL);
        INSERT INTO filler SELECT n, repeat('y', 300) FROM generate_series(1, 60000) AS n;
        INSERT INTO "an ""other"" one" SELECT * FROM filler;
        CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
        CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY); INSERT INTO fleeting VALUES (1);
        CREATE TABLE parent (id int); CREATE TABLE heir (more text) INHERITS (parent);
        INSERT INTO parent VALUES (1); INSERT INTO heir VALUES (2, 'x');
    """)
    chance = random.Random(11)
    with workload(pair.source, seed=5):
        for _ in range(3):
            process = start(cli, pair)
            time.sleep(chance.uniform(0.4, 1.2))
            process.kill()
            process.wait()
        process = start(cli, pair)
        said, _ = process.communicate(timeout=100)
    assert process.returncode in (0, 7), said
    link = once(cli, pair)
    assert link["verdict"] == "identical"


def test_truncated_before_it_was_read(pair: Pair, cli: Cli) -> None:
    """A table updated and truncated after the snapshot, before its turn, is copied as of a later moment: no change is missed."""
    source = pair.on_source()
    source.execute(TABLES.encode())
    target = pair.on_target()
    process = start(cli, pair)

    def restored() -> bool:
        return target.execute("SELECT to_regclass('app.cleared')").fetchone() != (None,)

    wait_until(restored, what="the schema")
    source.execute("UPDATE app.cleared SET v = 'between' WHERE id < 100")
    source.execute("TRUNCATE app.cleared; INSERT INTO app.cleared VALUES (1, 'after')")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert once(cli, pair)["verdict"] == "identical"
    assert target.execute("SELECT * FROM app.cleared").fetchall() == [(1, "after")]


def test_a_schema_that_has_changed(pair: Pair, cli: Cli) -> None:
    """A source altered between two attempts: nothing is guessed, nothing thrown away, and the hint starts over."""
    source = pair.on_source()
    source.execute(TABLES.encode())
    before = identities(source)
    there = cut_off(cli, pair, 1)
    source.execute("ALTER TABLE app.parent ADD more int")
    ends = ("--source", pair.source, "--target", pair.target)
    message, hint = refused(cli("once", *ends), 4)
    assert "schema" in message
    assert "teardown" in hint
    assert arrived(pair.on_target()) == there
    done = cli("teardown", *ends, "--yes")
    assert done.returncode == 0, done.stderr
    assert "half-made" in done.stdout
    assert identities(source) == before
    pair.on_target().execute("DROP SCHEMA app CASCADE")
    nothing_left(pair, before)
    assert once(cli, pair)["verdict"] == "identical"


def test_a_slot_that_is_gone(pair: Pair, cli: Cli) -> None:
    """Without the slot what was written meanwhile is lost: one line and a hint, and what has arrived stays."""
    source = pair.on_source()
    source.execute(TABLES.encode())
    there = cut_off(cli, pair, 1)

    def dropped() -> bool:
        with suppress(psycopg.errors.ObjectInUse):
            source.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                "WHERE database = current_database() AND NOT temporary"
            )
            return True
        return False

    wait_until(dropped, what="the slot to be free")
    message, hint = refused(cli("once", "--source", pair.source, "--target", pair.target), 4)
    assert "slot" in message
    assert "teardown" in hint
    assert arrived(pair.on_target()) == there


def refused_at_last(pair: Pair) -> Connection:
    """A source with a table that the target refuses, a while after it has begun with that one."""
    source = pair.on_source()
    source.execute(TABLES.encode())
    only_on_the_source(source, pause=2)
    source.execute(
        "CREATE TABLE last (id int PRIMARY KEY, CHECK (public.here())); INSERT INTO last VALUES (1)"
    )
    return source


def test_a_lasting_failure_takes_everything_back(pair: Pair, cli: Cli) -> None:
    """A row that the target refuses, met after going on: the target is as empty as it was, the source as it was."""
    source = refused_at_last(pair)
    source.execute("SELECT lo_from_bytea(0, 'x')")
    before = identities(source)
    cut_off(cli, pair, 2)
    message, _ = refused(cli("once", "--source", pair.source, "--target", pair.target), 5)
    assert "not here" in message
    nothing_left(pair, before)


def test_what_others_made_stays(pair: Pair, cli: Cli) -> None:
    """Taking back never cascades: a view of somebody's on a half-made table keeps it, and is named."""
    refused_at_last(pair)
    cut_off(cli, pair, 2)
    target = pair.on_target()
    target.execute("CREATE VIEW mine AS SELECT * FROM app.parent")
    done = cli("once", "--source", pair.source, "--target", pair.target)
    assert done.returncode == 5
    assert "could not be taken back" in done.stderr
    assert "mine" in done.stderr
    assert target.execute("SELECT count(*) FROM mine").rowcount == 1
