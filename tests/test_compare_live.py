"""Two ends in use are proven identical, and a difference between them is found: never a guess, and never given up."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from fix_pgbench import Pgbench
from fix_servers import Cli, Connection, Pair, on_all_pairs, wait_until
from fix_workload import writing
from test_run import daemon

pytestmark = pytest.mark.unguarded

HOT = """
CREATE TABLE hot (id int PRIMARY KEY, n bigint NOT NULL); INSERT INTO hot SELECT n, 0 FROM generate_series(1, 3) AS n;
CREATE TABLE bare (id int, n bigint); INSERT INTO bare SELECT n, 0 FROM generate_series(1, 3) AS n;
CREATE TABLE queue (id bigserial PRIMARY KEY, v text);
CREATE TABLE quiet (id int PRIMARY KEY, v text); INSERT INTO quiet SELECT n, 'v' FROM generate_series(1, 500) AS n;
"""

LARGE = """
CREATE TABLE large (id int PRIMARY KEY, v text);
INSERT INTO large SELECT n, repeat('x', 500) FROM generate_series(1, 200000) AS n;
"""


@contextmanager
def hammer(conninfo: str) -> Iterator[None]:
    """Rows that never stand still, with a key and without one, and a queue that is never twice the same."""

    def work(conn: Connection, number: int) -> None:
        conn.execute("UPDATE hot SET n = n + 1 WHERE id = %s", [number + 1])
        conn.execute("UPDATE bare SET n = n + 1 WHERE id = %s", [number + 1])
        conn.execute("INSERT INTO queue (v) VALUES ('job')")
        conn.execute("DELETE FROM queue WHERE id < (SELECT max(id) - 20 FROM queue)")

    with writing(work, conninfo, 2, 0):
        yield


@contextmanager
def meddling(conninfo: str, function: str) -> Iterator[None]:
    """Call this function on whoever reads table `large` there to compare it, until it has met one."""
    query = (
        f"SELECT {function}(pid) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
        "AND application_name LIKE 'pglockstep compare%' AND query LIKE '%hashtextextended%large%'"
    )
    met = threading.Event()

    def work(conn: Connection, _: int) -> None:
        if not met.is_set() and conn.execute(query.encode()).rowcount:
            met.set()

    with writing(work, conninfo, 1, 0):
        yield
    assert met.is_set()


def copied(cli: Cli, pair: Pair, schema: str) -> None:
    pair.on_source().execute(schema.encode())
    done = cli("once", "--source", pair.source, "--target", pair.target)
    assert done.returncode == 0, done.stderr


def checked(cli: Cli, pair: Pair, code: int = 0, *more: str) -> dict[str, Any]:
    done = cli("check", "--source", pair.source, "--target", pair.target, "--json", *more)
    assert done.returncode == code, done.stdout + done.stderr
    link: dict[str, Any] = json.loads(done.stdout)["links"][0]
    return link


def of(link: dict[str, Any], table: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in link["tables"] if each["table"] == table)
    return found


@on_all_pairs
def test_rows_that_never_stand_still_are_proven_identical(pair: Pair, cli: Cli) -> None:
    """Beside a daemon, and in `once`: rows that change all the time are seen at one moment on both ends."""
    pair.on_source().execute(HOT.encode())
    with daemon(cli, pair) as running, hammer(pair.source):
        for _ in range(2):
            assert checked(cli, pair)["verdict"] == "identical"
        assert running.run("once")["verdict"] == "identical"
        # the snapshots that it took are let go, and so are the slots
        slots = "SELECT FROM pg_replication_slots WHERE temporary AND database = current_database()"
        wait_until(lambda: pair.on_source().execute(slots).rowcount == 0, 10, "the slots to go")


def test_once_proves_it_by_itself(pair: Pair, cli: Cli) -> None:
    """Without a daemon `once` is the one that applies, and stops for a moment."""
    pair.on_source().execute(HOT.encode())
    with hammer(pair.source):
        for _ in range(2):
            done = cli("once", "--source", pair.source, "--target", pair.target, "--json")
            assert done.returncode == 0, done.stdout + done.stderr
            assert json.loads(done.stdout)["links"][0]["verdict"] == "identical"


def test_a_difference_among_rows_that_never_stand_still_is_found(pair: Pair, cli: Cli) -> None:
    """A row that is wrong on the target and that nobody touches, in a table that everybody else writes to."""
    pair.on_source().execute(HOT.encode())
    with daemon(cli, pair), hammer(pair.source):
        assert checked(cli, pair)["verdict"] == "identical"
        target = pair.on_target()
        target.execute("UPDATE hot SET n = -1 WHERE id = 3; UPDATE bare SET n = -1 WHERE id = 3")
        target.execute("INSERT INTO queue VALUES (-5, 'never')")
        link = checked(cli, pair, 1)
        assert link["verdict"] == "different"
        counts = {
            name: tuple(of(link, name)[each] for each in ("missing", "extra", "changed"))
            for name in ("hot", "bare", "queue", "quiet")
        }
        assert counts == {"hot": (0, 0, 1), "bare": (1, 1, 0), "queue": (0, 1, 0), "quiet": (0, 0, 0)}


def test_what_cannot_be_seen_at_one_moment_is_inconclusive(pair: Pair, cli: Cli) -> None:
    """A transaction that stays open on the source allows of no moment: then it says so, and the link goes on."""
    pair.on_source().execute(HOT.encode())
    with daemon(cli, pair), hammer(pair.source):
        assert checked(cli, pair)["verdict"] == "identical"
        with psycopg.connect(pair.source) as conn:
            conn.execute("INSERT INTO quiet VALUES (1000, 'open')")
            for _ in range(30):
                done = cli("check", "--source", pair.source, "--target", pair.target, "--json")
                if done.returncode == 7:
                    break
                # by chance a row stood still when it was looked at
                assert done.returncode == 0, done.stdout + done.stderr
            link = json.loads(done.stdout)["links"][0]
            assert of(link, "quiet")["verdict"] == "identical"
            moving = [each for each in link["tables"] if each["verdict"] != "identical"]
            assert {each["verdict"] for each in moving} == {"inconclusive"}
            assert "for transactions that are open there" in moving[0]["reason"]
            conn.rollback()
        assert checked(cli, pair)["verdict"] == "identical"


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_locked_table_is_inconclusive(pair: Pair, cli: Cli, side: str) -> None:
    """Whoever holds a lock is not waited for without end, and the other tables are compared all the same."""
    copied(cli, pair, HOT)
    settings = cli.directory / "pglockstep.toml"
    settings.write_text(
        f"[links.main]\nsource = {json.dumps(pair.source)}\ntarget = {json.dumps(pair.target)}\nlock_timeout = '300ms'\n"
    )
    with psycopg.connect(pair.source if side == "source" else pair.target) as conn:
        conn.execute("LOCK TABLE quiet IN ACCESS EXCLUSIVE MODE")
        done = cli("check")
        assert done.returncode == 7, done.stdout + done.stderr
        assert f"quiet was not compared to the end: it is locked on the {side}" in done.stdout
        conn.rollback()
    assert cli("check").returncode == 0


def test_a_statement_that_is_cancelled_proves_nothing(pair: Pair, cli: Cli) -> None:
    """An administrator's pg_cancel_backend ends the comparison of that table, with the reason."""
    copied(cli, pair, LARGE)
    with meddling(pair.target, "pg_cancel_backend"):
        done = cli("check", "--source", pair.source, "--target", pair.target)
    assert done.returncode == 7, done.stdout + done.stderr
    assert "a statement was cancelled on the target" in done.stdout


def test_a_table_dropped_while_it_is_compared_is_never_identical(pair: Pair, cli: Cli) -> None:
    """Whatever moment it goes at: different, inconclusive or an error, and never identical."""
    copied(cli, pair, HOT)
    for pause in (0.0, 0.1, 0.2, 0.4):
        pair.on_target().execute("CREATE TABLE IF NOT EXISTS quiet (id int PRIMARY KEY, v text)")
        drop = threading.Timer(pause, lambda: pair.on_target().execute("DROP TABLE quiet"))
        with psycopg.connect(pair.target) as conn:
            # it is there, and locked, until it is gone
            conn.execute("LOCK TABLE quiet IN ACCESS SHARE MODE")
            drop.start()
            done = cli("check", "--source", pair.source, "--target", pair.target)
            conn.rollback()
        drop.join()
        assert done.returncode in (1, 7), done.stdout + done.stderr


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_server_that_stops_is_an_error(pair: Pair, cli: Cli, side: str) -> None:
    """Sessions that are ended in the middle: the end's own exit code, and nothing is called identical."""
    copied(cli, pair, LARGE)
    with meddling(pair.source if side == "source" else pair.target, "pg_terminate_backend"):
        done = cli("check", "--source", pair.source, "--target", pair.target)
    assert done.returncode == (4 if side == "source" else 5), done.stdout + done.stderr
    assert f"the {side} went away" in done.stderr


def test_the_fast_tier_says_so(pair: Pair, cli: Cli) -> None:
    """Equal by value is enough for it, and told as that; what differs by value is compared exactly, and counted."""
    copied(
        cli,
        pair,
        """CREATE TABLE t (id int PRIMARY KEY, n numeric, f float8, v text, j json, b bpchar(9));
           INSERT INTO t SELECT n, 1.5, 0, 'v', '{"a":1}', 'b' FROM generate_series(1, 50) AS n;
           CREATE TABLE bare (a numeric); INSERT INTO bare VALUES (1.0), (1.0)""",
    )
    target = pair.on_target()
    target.execute(
        "UPDATE t SET n = 1.50 WHERE id = 3; UPDATE t SET f = '-0' WHERE id = 4; UPDATE bare SET a = 1.00"
    )
    link = checked(cli, pair, 0, "--fast")
    assert (link["verdict"], link["tier"]) == ("identical", "fast")
    link = checked(cli, pair, 1)
    assert (of(link, "t")["changed"], of(link, "bare")["extra"], link["tier"]) == (2, 2, "exact")
    target.execute("UPDATE t SET v = NULL WHERE id = 5; UPDATE t SET j = '{\"a\": 1}' WHERE id = 6")
    # then it is looked at closely
    assert of(checked(cli, pair, 1, "--fast"), "t")["changed"] == 4
    said = cli("check", "--source", pair.source, "--target", pair.target, env={"PGLOCKSTEP_CHECK_FAST": "1"})
    assert "compared by value" in said.stdout


def test_it_waits_for_a_target_that_is_behind(pair: Pair, cli: Cli) -> None:
    """`--pace` and `--max-lag` change how long it takes, and not what is found; what is no size is refused."""
    pair.on_source().execute(HOT.encode())
    with daemon(cli, pair), hammer(pair.source):
        assert checked(cli, pair, 0, "--pace", "0.2", "--max-lag", "1MB")["verdict"] == "identical"
    for wrong in (("--pace", "0"), ("--pace", "1.5"), ("--max-lag", "10"), ("--max-lag", "soon")):
        done = cli("check", "--source", pair.source, "--target", pair.target, *wrong)
        assert done.returncode == 2, done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 2


@pytest.mark.soak
def test_fifty_checks_under_pgbench(pair: Pair, cli: Cli) -> None:
    """pgbench at full speed, 50 checks: never different, never inconclusive; and a planted difference is found each time."""
    bench = Pgbench(pair)
    target = pair.on_target()
    with daemon(cli, pair), bench.running(None):
        for number in range(50):
            link = checked(cli, pair)
            assert link["verdict"] == "identical"
            print(f"check {number + 1}: {link['seconds']} s", flush=True)
        for number in range(10):
            target.execute(
                "UPDATE bench.pgbench_accounts SET filler = 'planted' WHERE aid = %s", [100_000 + number]
            )
            link = checked(cli, pair, 1)
            assert of(link, "pgbench_accounts")["changed"] >= 1
            assert [each["table"] for each in link["tables"] if each["verdict"] != "identical"] == [
                "pgbench_accounts"
            ]
