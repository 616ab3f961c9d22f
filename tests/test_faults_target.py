"""Faults: a target that holds the link up: locks, time-outs, deadlocks, recovery, one setting or another."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from fix_faults import Link, Survived, large_transaction, writing
from fix_servers import INSTALLED, Cli, Pair, connect, majors, wait_until
from pglockstep.demo.servers import ThrowawayServer

pytestmark = pytest.mark.unguarded


@pytest.fixture
def impatient(cli: Cli, pair: Pair) -> Link:
    """A link that waits a second for a lock, its first copy made."""
    made = Link(cli, pair, pair.source, pair.target, {"lock_timeout": "1s"})
    made.copied()
    return made


def test_a_table_locked_for_longer_than_lock_timeout(impatient: Link, survived: Survived) -> None:
    """No wait is longer than lock_timeout; status says what is in the way; the source goes on being received."""
    link = impatient
    link.start()
    link.level()
    with connect(link.pair.target) as other, connect(link.pair.target) as looker:
        other.execute("BEGIN; LOCK TABLE line IN ACCESS EXCLUSIVE MODE")
        with writing(link.pair.source):
            status = link.becomes("waiting")
            assert "lock timeout" in status["reason"]
            assert status["code"] == 1
            assert status["lag_bytes"] > 0
            waited = []
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                found = looker.execute(
                    "SELECT extract(epoch FROM clock_timestamp() - query_start) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' AND application_name LIKE 'pglockstep%'"
                )
                waited += [float(seconds) for (seconds,) in found.fetchall()]
                time.sleep(0.05)
            assert waited
            assert max(waited) < 2
            before = link.status()["received_lsn"]
            wait_until(lambda: link.status()["received_lsn"] != before, 20, "the source to be received")
        other.execute("ROLLBACK")
    link.becomes("streaming")
    link.level()
    link.proven()
    survived("target's table locked")


@pytest.mark.superusers
def test_a_deadlock_with_somebody_else(link: Link, survived: Survived) -> None:
    """Ours is the transaction that has to give way: it arrives all the same, once, and whole."""
    link.start()
    link.level()

    def cross(other: psycopg.Connection[tuple[object, ...]]) -> None:
        other.execute("UPDATE counter SET n = n WHERE id = 2")
        other.execute("ROLLBACK")

    with connect(link.pair.target) as other, connect(link.pair.source) as source:
        other.execute("SET deadlock_timeout = '10s'")
        other.execute("BEGIN; UPDATE counter SET n = n WHERE id = 1")
        with source.transaction():
            source.execute("UPDATE counter SET n = n + 1 WHERE id = 2")
            source.execute("UPDATE counter SET n = n + 1 WHERE id = 1")
        waiting = "SELECT FROM pg_locks WHERE NOT granted"
        with connect(link.pair.target) as looker:
            wait_until(lambda: looker.execute(waiting).rowcount, 20, "the apply to wait")
        crossing = threading.Thread(target=cross, args=[other])
        crossing.start()
        crossing.join(30)
    wait_until(lambda: "deadlock detected" in link.said, 10, "the daemon to tell of it")
    link.level()
    link.proven()
    survived("deadlock on the target")


@pytest.mark.soak
def test_time_outs_of_the_targets_own(link: Link, survived: Survived) -> None:
    """What the target's administrators set for everybody's statements does not end ours."""
    settings = {
        "statement_timeout": "50ms",
        "lock_timeout": "50ms",
        "idle_in_transaction_session_timeout": "50ms",
        "default_transaction_read_only": "on",
    }
    target = link.pair.superuser_on_target()
    database = sql.Identifier(target.info.dbname)
    for name, value in settings.items():
        setting = sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        target.execute(sql.SQL("ALTER DATABASE {} SET {}").format(database, setting))
    link.start()
    with writing(link.pair.source):
        large_transaction(link.pair.source, 8)
    link.level()
    assert "trying again" not in link.said
    target.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(database))
    link.proven()
    survived("target's own time-outs")


def test_a_target_in_recovery(cli: Cli, pair: Pair, survived: Survived) -> None:
    """A target that has become a standby takes nothing: the link waits, says so, and goes on when it is promoted."""
    with ThrowawayServer(INSTALLED[majors[-1]], name="standby") as server:
        changing = Pair(pair.source, server.conninfo(), pair.source_server, server)
        link = Link(cli, changing, changing.source, changing.target, {})
        link.copied()
        link.start()
        link.level()
        server.stop()
        signal = Path(server.data, "standby.signal")
        signal.touch()
        server.user.owns(signal)
        server.start()
        with writing(changing.source):
            status = link.becomes("waiting")
            wait_until(lambda: "takes no writes" in link.status()["reason"], 20, "status to say why")
            assert status["code"] == 1
            with connect(changing.target) as target:
                target.execute("SELECT pg_promote()")
            link.becomes("streaming")
        link.level()
        link.proven()
        changing.close()
    survived("target read-only")


@pytest.mark.soak
def test_sessions_ended_by_an_administrator(link: Link, survived: Survived) -> None:
    """Sessions of ours that are ended on either end, again and again: they are made anew."""
    link.start()
    with writing(link.pair.source):
        for end in (link.pair.source, link.pair.target) * 3:
            with connect(end) as conn:
                ended = conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name LIKE 'pglockstep %' AND datname = current_database()"
                )
                assert ended.rowcount
            link.level()
    link.proven()
    survived("sessions ended by an administrator", 6)
