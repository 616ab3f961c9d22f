"""A first copy beside writers, beside DDL, and killed at any moment."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fix_copy import answer, check, nothing_left, once, ours_on_source
from fix_servers import Cli, MakeDatabase, Pair, Servers, connect, wait_until
from fix_workload import SCHEMA, workload

pytestmark = pytest.mark.unguarded


@contextlib.contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do something in a thread until the block ends; its failure fails the test."""
    stop, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures, failures[0]


def test_rows_written_meanwhile_arrive_once(pair: Pair, cli: Cli) -> None:
    """All kinds of writes go on while the copy runs: each arrives, by the copy or by the stream, just once."""
    source = pair.on_source()
    source.execute(SCHEMA.encode())
    source.execute("CREATE TABLE heap (n int)")
    source.execute("INSERT INTO heap SELECT generate_series(1, 50000)")

    def write(stop: threading.Event) -> None:
        with connect(pair.source) as conn:
            n = 100_000
            while not stop.wait(0.001):
                n += 1
                conn.execute("INSERT INTO heap VALUES (%s)", [n])

    target = pair.on_target()

    def copied() -> bool:
        if target.execute("SELECT to_regclass('pglockstep.link')").fetchone() == (None,):
            return False
        return target.execute("SELECT phase FROM pglockstep.link").fetchone() == ("streaming",)

    with in_background(write), workload(pair.source):
        process = cli.start("once", "--source", pair.source, "--target", pair.target)
        wait_until(copied, what="the copy to be complete")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert once(cli, pair)["verdict"] == "identical"
    assert check(cli, pair)["verdict"] == "identical"
    doubled = "SELECT n FROM heap GROUP BY n HAVING count(*) > 1"
    assert target.execute(doubled).fetchall() == []


def test_tables_made_and_dropped_meanwhile(pair: Pair, cli: Cli) -> None:
    """Tables come and go while the copy prepares: what stands in the end is copied, the source's users see no error."""
    source = pair.on_source()
    source.execute(
        "CREATE TABLE stays (id int PRIMARY KEY); INSERT INTO stays SELECT generate_series(1, 1000)"
    )
    chance = random.Random(5)

    def churn(stop: threading.Event) -> None:
        with connect(pair.source) as conn:
            for n in range(60):
                if stop.is_set():
                    return
                conn.execute(f"CREATE TABLE passing{n} (v text)".encode())
                conn.execute(f"INSERT INTO passing{n} VALUES ('x')".encode())
                with conn.transaction():
                    conn.execute(f"UPDATE passing{n} SET v = 'y'".encode())
                if n % 2:
                    conn.execute(f"DROP TABLE passing{n}".encode())
                time.sleep(chance.random() * 0.01)

    with in_background(churn):
        # may fail for what goes on, but must leave nothing half done
        cli("once", "--source", pair.source, "--target", pair.target)
    with connect(pair.target) as target:
        copied = target.execute("SELECT to_regclass('pglockstep.link') IS NOT NULL").fetchone() == (True,)
    assert ours_on_source(source) == ((1, 1) if copied else (0, 0))
    if not copied:
        assert once(cli, pair)["verdict"] == "identical"


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_killed_at_any_moment(pair: Pair, cli: Cli, kills: int) -> None:
    """kill -9 in each share of a copy; the next `once` takes back what that one left and ends with two identical ends."""
    source = pair.on_source()
    source.execute("CREATE SCHEMA app; CREATE TABLE app.keyless (v text, n int)")
    source.execute("INSERT INTO app.keyless SELECT md5(n::text), n FROM generate_series(1, 50000) AS n")
    for number in range(4):
        source.execute(
            f"CREATE TABLE app.t{number} (id int PRIMARY KEY, v text, n int REFERENCES app.t0)".encode()
            if number
            else b"CREATE TABLE app.t0 (id int PRIMARY KEY, v text, n int)"
        )
        source.execute(
            f"INSERT INTO app.t{number} SELECT n, repeat('x', n % 50), n FROM generate_series(1, 40000) AS n".encode()
        )
        source.execute(f"CREATE INDEX ON app.t{number} (v, n)".encode())
    began = time.monotonic()
    once(cli, pair)
    whole = time.monotonic() - began
    teardown = ("teardown", "--source", pair.source, "--target", pair.target, "--yes")
    chance = random.Random()
    for kill in range(kills):
        with connect(pair.target) as target:
            done = cli(*teardown)
            assert done.returncode == 0, done.stderr
            target.execute("DROP SCHEMA IF EXISTS app CASCADE")
        process = cli.start("once", "--source", pair.source, "--target", pair.target)
        moment = whole * (kill + chance.random()) / kills
        time.sleep(moment)
        process.kill()
        process.wait()
        said = f"killed after {moment:.2f} s of {whole:.2f} s"
        link = once(cli, pair)
        assert link["verdict"] == "identical", said
        assert sum(table["target_rows"] for table in link["tables"]) == 210_000, said
        assert ours_on_source(source) == (1, 1), said
    identity = "SELECT relreplident::text FROM pg_class WHERE relname = 'keyless'"
    assert cli(*teardown).returncode == 0
    assert source.execute(identity).fetchone() == ("d",)
    assert ours_on_source(source) == (0, 0)


#: A table whose index takes a minute to build on the target, for a session that copies.
_SLOW = """
CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
CREATE TABLE keyless (v text);
CREATE FUNCTION slow(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$BEGIN
    IF current_database() ~ '^tgt' AND current_setting('application_name') ~ 'copy'
        AND NOT EXISTS (SELECT FROM pg_database WHERE datname = 'go on')
    THEN PERFORM pg_sleep(60); END IF;
    RETURN n;
END$$;
CREATE INDEX ON t (public.slow(id));
"""
_COPIER = "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^pglockstep copy' AND datname = current_database()"


def halfway(pair: Pair, cli: Cli) -> subprocess.Popen[str]:
    """Start a copy of a slow schema; return when it builds its index."""
    process = cli.start("once", "--source", pair.source, "--target", pair.target)
    target = pair.on_target()

    def sleeping() -> bool:
        return target.execute(_COPIER + " AND wait_event = 'PgSleep'").fetchone() is not None

    wait_until(sleeping, what="the copy to build its index")
    return process


def test_a_dead_copier_in_its_last_statement(pair: Pair, cli: Cli) -> None:
    """A killed copy whose session still builds an index on the target is ended first, not waited for."""
    source = pair.on_source()
    source.execute(_SLOW)
    process = halfway(pair, cli)
    process.kill()
    process.wait()
    with connect(pair.target_server.conninfo()) as conn:
        conn.execute('CREATE DATABASE "go on"')
        try:
            assert once(cli, pair)["verdict"] == "identical"
        finally:
            conn.execute('DROP DATABASE "go on"')
    assert pair.on_target().execute(_COPIER).fetchall() == []
    assert ours_on_source(source) == (1, 1)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(pair: Pair, cli: Cli, sent: signal.Signals) -> None:
    """Ctrl-C and SIGTERM in the midst of a copy end it at once, and both ends are as before."""
    pair.on_source().execute(_SLOW)
    process = halfway(pair, cli)
    process.send_signal(sent)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    nothing_left(pair, {"t": "d", "keyless": "d"})


@pytest.mark.superusers
def test_a_chain_of_links(pair: Pair, cli: Cli, servers: Servers, make_database: MakeDatabase) -> None:
    """A target can be the source of another link: what pglockstep keeps in it is not copied on."""
    pair.on_source().execute(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE TABLE keyless (v text)"
    )
    once(cli, pair)
    last = make_database(pair.source_server)
    done = cli("once", "--source", pair.target, "--target", last, "--json")
    assert answer(done)["verdict"] == "identical"
    assert {table["table"] for table in answer(done)["tables"]} == {"t", "keyless"}
    pair.on_source().execute("INSERT INTO t VALUES (2); INSERT INTO keyless VALUES ('x')")
    once(cli, pair)
    assert answer(cli("once", "--source", pair.target, "--target", last, "--json"))["applied_changes"] == 2
    for ends in ((pair.target, last), (pair.source, pair.target)):
        assert cli("teardown", "--source", ends[0], "--target", ends[1], "--yes").returncode == 0
