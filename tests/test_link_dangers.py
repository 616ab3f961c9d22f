"""What would lose, double or bend rows if the link were not careful: each is brought about for real."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from fix_servers import (
    INSTALLED,
    Cli,
    MakeDatabase,
    Pair,
    Servers,
    connect,
    majors,
    on_all_pairs,
    wait_until,
)
from pglockstep.demo.servers import ThrowawayServer
from test_run import Daemon, daemon, ends_identical

pytestmark = pytest.mark.unguarded


def test_nothing_is_confirmed_that_the_target_could_forget(cli: Cli, pair: Pair) -> None:
    """A target that crashes before its WAL is flushed, with a daemon killed in between: the source still has the rows."""
    slow = {"wal_writer_delay": "10s", "wal_writer_flush_after": "0"}
    with ThrowawayServer(INSTALLED[max(INSTALLED)], name="lazy", settings=slow, durable=True) as target:
        lazy = Pair(pair.source, target.conninfo(), pair.source_server, target)
        pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        first = Daemon(cli, lazy)
        for number in range(2, 30):
            pair.on_source().execute("INSERT INTO t VALUES (%s)", [number])
        with connect(lazy.target) as conn:
            wait_until(lambda: conn.execute("SELECT FROM t").rowcount == 29, 10, "the rows to be visible")
        first.kill()
        second = Daemon(cli, lazy)
        time.sleep(1.5)
        target.kill()
        target.start()
        second.kill()
        ends_identical(cli, lazy)


@on_all_pairs
def test_a_column_altered_on_both_ends_keeps_its_values(cli: Cli, pair: Pair) -> None:
    """Types changed under a running daemon: values arrive as the source has them, not through a type of before."""
    ddl = "CREATE TABLE t (id int PRIMARY KEY, f real, d date, c char(4), n numeric(6, 1))"
    pair.on_source().execute(ddl.encode())
    with daemon(cli, pair) as running:
        source, target = pair.on_source(), pair.on_target()
        source.execute("INSERT INTO t VALUES (1, 1.5, '2020-01-01', 'b', 1.5)")
        assert running.run("check")["verdict"] == "identical"
        alter = "ALTER TABLE t ALTER f TYPE float8, ALTER d TYPE timestamp, ALTER c TYPE text, ALTER n TYPE numeric(9, 4)"
        for conn in (target, source):
            conn.execute(alter.encode())
        source.execute("INSERT INTO t VALUES (2, 0.123456789012345, '2020-01-01 12:34:56', 'b  ', 1.2345)")
        source.execute("UPDATE t SET f = 0.123456789012345, c = 'a  ' WHERE id = 1")
        assert running.run("check")["verdict"] == "identical"


def test_what_a_killed_copy_still_had_under_way(cli: Cli, pair: Pair) -> None:
    """A copy killed while the source works on its last statement: that statement never lands on the next one's work.

    It would publish tables that the next copy knows nothing of, and the source's users would be refused their
    updates as soon as the replica identity is set back.
    """
    source = pair.on_source()
    source.execute("CREATE TABLE keyless (v text); CREATE TABLE t (id int PRIMARY KEY)")
    source.execute("INSERT INTO keyless VALUES ('x')")
    waiting = (
        "SELECT FROM pg_stat_activity WHERE query LIKE 'CREATE PUBLICATION%' AND wait_event_type = 'Lock'"
    )
    with connect(pair.source) as blocker:
        with blocker.transaction():
            blocker.execute("LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
            first = cli.start("once", "--source", pair.source, "--target", pair.target)
            wait_until(lambda: source.execute(waiting.encode()).rowcount == 1, 10, "the copy to wait")
            first.kill()
            first.wait()
            second = cli.start("once", "--source", pair.source, "--target", pair.target)
            # before the server looks whether the first one's client is still there
            time.sleep(1.2)
        said, _ = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert source.execute("SELECT FROM pg_publication").rowcount == 1
    source.execute("UPDATE keyless SET v = 'y'")
    assert cli("teardown", "--yes", "--source", pair.source, "--target", pair.target).returncode == 0
    assert source.execute("SELECT FROM pg_publication").rowcount == 0
    source.execute("UPDATE keyless SET v = 'z'")


def test_a_narrower_target_is_refused(cli: Cli, pair: Pair) -> None:
    """A target column that would round a value in silence stops the link with its name; nothing is bent."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY, n numeric)")
    ends = ("--source", pair.source, "--target", pair.target)
    assert cli("once", *ends).returncode == 0
    pair.on_target().execute("ALTER TABLE t ALTER n TYPE numeric(6, 1)")
    pair.on_source().execute("INSERT INTO t VALUES (1, 1.25)")
    done = cli("once", *ends)
    assert done.returncode == 5
    assert "public.t" in done.stderr
    assert "numeric(6,1)" in done.stderr
    assert pair.on_target().execute("SELECT count(*) FROM t").fetchone() == (0,)
    pair.on_target().execute("ALTER TABLE t ALTER n TYPE numeric")
    ends_identical(cli, pair)


def test_an_older_source_is_no_truth_to_copy(cli: Cli, pair: Pair) -> None:
    """A file-level restore of the source to before what the target has: exit 6, and nothing moves."""
    with ThrowawayServer(INSTALLED[max(INSTALLED)], name="restored") as source:
        older = Pair(source.conninfo(), pair.target, source, pair.target_server)
        with connect(older.source) as conn:
            conn.execute("CREATE TABLE t (id int PRIMARY KEY)")
        ends = ("--source", older.source, "--target", older.target)
        assert cli("once", *ends).returncode == 0
        source.stop()
        backup = Path(f"{source.data}.backup")
        shutil.copytree(source.data, backup, symlinks=True, copy_function=_copy_with_owner)
        source.start()
        with connect(older.source) as conn:
            conn.execute("INSERT INTO t SELECT generate_series(1, 5000)")
        assert cli("once", *ends).returncode == 0
        source.stop()
        for each in source.data.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        shutil.copytree(
            backup, source.data, symlinks=True, copy_function=_copy_with_owner, dirs_exist_ok=True
        )
        for each in (source.data, *source.data.rglob("*")):
            shutil.chown(each, *_owner(backup / "PG_VERSION"))
        source.start()
        done = cli("once", *ends)
        assert done.returncode == 6, done.stderr
        assert "older" in done.stderr
        with connect(older.target) as conn:
            assert conn.execute("SELECT count(*) FROM t").fetchone() == (5000,)


def _owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


def _copy_with_owner(source: str, target: str) -> str:
    shutil.copy2(source, target)
    shutil.chown(target, *_owner(Path(source)))
    return target


TRIGGER = """
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO public.audit VALUES (NEW.id); RETURN NEW; END$$;
CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()
"""
RULE = "CREATE RULE x AS ON INSERT TO t DO ALSO INSERT INTO audit VALUES (NEW.id)"


@pytest.mark.parametrize(
    ("kind", "made", "word"),
    [("trigger", TRIGGER, "ALWAYS"), ("trigger", TRIGGER, "REPLICA"), ("rule", RULE, "ALWAYS")],
)
def test_what_fires_for_a_replica_is_refused(cli: Cli, pair: Pair, kind: str, made: str, word: str) -> None:
    """Triggers and rules that fire for a replica would double their effects on the target: refused with the fix.

    Ordinary ones stay quiet there, and what they did on the source comes as rows.
    """
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE audit (id int)")
    source.execute(made.encode())
    source.execute(f"ALTER TABLE t ENABLE {word} {kind} x".encode())
    ends = ("--source", pair.source, "--target", pair.target)
    done = cli("once", *ends)
    assert done.returncode == 5, done.stderr
    assert f"{kind} x of public.t" in done.stderr
    assert f"ALTER TABLE public.t ENABLE {kind.upper()} x" in done.stderr
    source.execute(f"ALTER TABLE t ENABLE {kind} x".encode())
    assert cli("once", *ends).returncode == 0
    source.execute("INSERT INTO t VALUES (1), (2)")
    ends_identical(cli, pair)
    assert pair.on_target().execute("SELECT count(*) FROM audit").fetchone() == (2,)


@on_all_pairs
def test_truncates_that_only_the_source_may_do(cli: Cli, pair: Pair) -> None:
    """TRUNCATE of partitioned tables with a foreign key between them, and with an unlogged child."""
    source = pair.on_source()
    source.execute(
        "CREATE TABLE r (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE k (id int PRIMARY KEY, r int REFERENCES r) PARTITION BY RANGE (id);"
        "CREATE TABLE k1 PARTITION OF k FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE p (id serial PRIMARY KEY); CREATE UNLOGGED TABLE c (id int REFERENCES p)"
    )
    ends = ("--source", pair.source, "--target", pair.target)
    assert cli("once", *ends).returncode == 0
    source.execute("INSERT INTO r VALUES (1), (2); INSERT INTO k VALUES (1, 1); INSERT INTO p DEFAULT VALUES")
    ends_identical(cli, pair)
    source.execute("TRUNCATE r, k")
    source.execute("TRUNCATE p CASCADE")
    source.execute("INSERT INTO r VALUES (3)")
    ends_identical(cli, pair)


def test_sigterm_is_heard_while_everything_fails(cli: Cli, pair: Pair) -> None:
    """SIGTERM that meets a failure of an end still ends the daemon, and with 0."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    running = Daemon(cli, pair)
    pair.source_server.stop("immediate")
    try:
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(15) == 0
    finally:
        pair.source_server.start()


def test_an_interrupted_once_is_no_success(cli: Cli, pair: Pair) -> None:
    """SIGTERM and Ctrl-C during the first copy: exit 130, and both ends as they were."""
    source = pair.on_source()
    source.execute("CREATE TABLE t AS SELECT n, repeat('x', 300) FROM generate_series(1, 300000) AS n")
    slots = b"SELECT FROM pg_replication_slots WHERE database = current_database()"
    for number in (signal.SIGTERM, signal.SIGINT):
        process = cli.start("once", "--source", pair.source, "--target", pair.target)
        wait_until(lambda: source.execute(slots).rowcount, 20, "the copy to begin")
        process.send_signal(number)
        assert process.wait(30) == 130
        assert source.execute(slots).rowcount == 0
        assert source.execute("SELECT FROM pg_publication").rowcount == 0
        assert source.execute("SELECT relreplident::text FROM pg_class WHERE relname = 't'").fetchone() == (
            "d",
        )
        assert pair.on_target().execute("SELECT FROM pg_namespace WHERE nspname = 'pglockstep'").rowcount == 0


def test_a_lost_target_leaves_no_slot_behind(cli: Cli, pair: Pair) -> None:
    """With our schema gone from the target, teardown still removes the slot that this machine knows of."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    ends = ("--source", pair.source, "--target", pair.target)
    assert cli("once", *ends).returncode == 0
    pair.on_target().execute("DROP SCHEMA pglockstep CASCADE")
    assert cli("teardown", "--yes", *ends).returncode == 0
    left = b"SELECT FROM pg_replication_slots WHERE database = current_database()"
    assert pair.on_source().execute(left).rowcount == 0
    assert pair.on_source().execute("SELECT FROM pg_publication").rowcount == 0


def test_a_lost_state_directory_costs_nothing(cli: Cli, pair: Pair) -> None:
    """What matters is on the target: without the state directory the next `once` streams on."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    ends = ("--source", pair.source, "--target", pair.target)
    assert cli("once", *ends).returncode == 0
    shutil.rmtree(cli.directory / "state")
    pair.on_source().execute("INSERT INTO t VALUES (1)")
    link = json.loads(cli("once", *ends, "--json").stdout)["links"][0]
    assert (link["verdict"], link["copied_rows"], link["applied_transactions"]) == ("identical", 0, 1)


def test_the_sources_users_never_feel_us(cli: Cli, servers: Servers, make_database: MakeDatabase) -> None:
    """From 18 on a published table refuses updates if its identity holds a generated column: refused before that."""
    for major in majors:
        source, target = make_database(servers.source(major)), make_database(servers.target(major))
        with connect(source) as conn:
            conn.execute(
                "CREATE TABLE t (v int, twice int GENERATED ALWAYS AS (v * 2) STORED); INSERT INTO t VALUES (1)"
            )
            done = cli("once", "--source", source, "--target", target)
            conn.execute("UPDATE t SET v = 2")
            if major < 18:
                assert done.returncode == 0, done.stderr
                assert cli("once", "--source", source, "--target", target).returncode == 0
            else:
                assert done.returncode == 4, done.stderr
                assert "public.t" in done.stderr
                assert conn.execute("SELECT FROM pg_publication").rowcount == 0
