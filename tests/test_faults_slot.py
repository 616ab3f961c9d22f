"""Faults: the replication slot is dropped or invalidated in mid-stream, or somebody else wants it."""

from __future__ import annotations

import pytest

from fix_faults import Link, Survived, writing
from fix_servers import INSTALLED, Cli, Pair, connect, majors, wait_until
from pglockstep.demo.servers import ThrowawayServer

pytestmark = pytest.mark.unguarded

SLOT = b"SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = current_database()"


def demand_told(link: Link, *words: str) -> None:
    """The daemon ended with 4: one line that says so, one hint; and ``status`` says the same, unhealthily."""
    assert link.ended() == 4, link.said[-3000:]
    lines = [line for line in link.said.splitlines() if line.startswith(("pglockstep: ", "HINT: "))]
    assert len(lines) == 2, lines
    for word in words:
        assert word in lines[0]
    assert "pglockstep once" in lines[1]
    status = link.status()
    assert (status["state"], status["code"], status["daemon_alive"]) == ("stopped", 1, False)
    assert words[0] in status["reason"]


def contents_of_line(link: Link) -> list[tuple[object, ...]]:
    """The target's lines, twins too."""
    with connect(link.pair.target) as target:
        return target.execute("SELECT n, v FROM line ORDER BY 1, 2").fetchall()


def test_the_slot_is_dropped_in_mid_stream(link: Link, survived: Survived) -> None:
    """Whoever drops the slot stops the link, with a sentence: what was written since cannot be had, nothing of it is made up."""
    link.start()
    with writing(link.pair.source):
        link.level()
        with connect(link.pair.source) as source:

            def dropped() -> bool:
                for name, pid in source.execute(SLOT).fetchall():
                    if pid is not None:
                        source.execute("SELECT pg_terminate_backend(%s, 1000)", [pid])
                    try:
                        source.execute("SELECT pg_drop_replication_slot(%s)", [name])
                    except Exception:
                        return False
                return True

            wait_until(dropped, 20, "the slot to be dropped")
        demand_told(link, "replication slot", "is gone from the source")
        before = contents_of_line(link)
        done = link.run("once")
        assert done.returncode == 4, done.stderr
        assert contents_of_line(link) == before
    survived("slot dropped in mid-stream")


@pytest.mark.soak
def test_the_slot_is_invalidated(cli: Cli, pair: Pair, survived: Survived) -> None:
    """A daemon that was held up for too long finds its slot invalidated: it says so, and applies nothing that has a gap."""
    settings = {"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "48MB"}
    with ThrowawayServer(INSTALLED[majors[-1]], name="forgetful", settings=settings) as server:
        forgetful = Pair(server.conninfo(), pair.target, server, pair.target_server)
        link = Link(cli, forgetful, forgetful.source, forgetful.target, {})
        link.copied()
        link.start()
        link.level()
        link.kill()
        with connect(forgetful.source) as source:

            def lost() -> bool:
                for _ in range(8):
                    source.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 4000000))")
                source.execute("INSERT INTO line VALUES (1, 'never seen')")
                source.execute("CHECKPOINT")
                found = source.execute("SELECT wal_status FROM pg_replication_slots").fetchone()
                return found == ("lost",)

            wait_until(lost, 60, "the slot to be invalidated")
        before = contents_of_line(link)
        link.start(ready=False)
        demand_told(link, "was invalidated by the source")
        assert contents_of_line(link) == before
    survived("slot invalidated")


@pytest.mark.parametrize(
    "elsewhere",
    [pytest.param(False, marks=pytest.mark.soak), True],
    ids=["same-state", "other-state"],
)
def test_a_second_daemon_does_not_disturb_the_first(link: Link, survived: Survived, elsewhere: bool) -> None:
    """A second daemon of the same link ends with 8; the first one's sessions on both ends are the same as before."""
    link.start()
    link.level()

    def sessions() -> list[object]:
        found: list[object] = []
        for end in (link.pair.source, link.pair.target):
            with connect(end) as conn:
                found += conn.execute(
                    """SELECT pid, backend_start FROM pg_stat_activity
                       WHERE application_name ~ '^pglockstep (run|stream|watch)' AND datname = current_database()
                       ORDER BY 1"""
                ).fetchall()
        return found

    before = sessions()
    other = ["--state-dir", str(link.log.parent / "other")] if elsewhere else []
    done = link.run("run", *other)
    assert done.returncode == 8, done.stderr
    assert "HINT: " in done.stderr
    assert sessions() == before
    assert len(before) >= 4
    link.level()
    assert "waiting" not in link.said
    link.proven()
    survived("two daemons on one link")


def test_a_second_daemon_while_the_target_is_away(link: Link, survived: Survived) -> None:
    """With the target away its lock cannot be asked for: still nobody takes the first one's slot, or its journal."""
    link.start()
    link.level()
    link.pair.target_server.stop()
    try:
        link.becomes("waiting")
        with connect(link.pair.source) as source:
            before = source.execute(SLOT).fetchall()
        done = link.run("run")
        assert done.returncode == 8, done.stderr
        other = link.run("run", "--state-dir", link.log.parent / "other")
        assert other.returncode == 5, other.stderr
        with connect(link.pair.source) as source:
            assert source.execute(SLOT).fetchall() == before
    finally:
        link.pair.target_server.start()
    link.becomes("streaming")
    link.level()
    link.proven()
    survived("two daemons on one link, target away")
