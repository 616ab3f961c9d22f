"""Faults: either server, or both, stopped, crashed and started again; the target away for long."""

from __future__ import annotations

import shutil
import time
from typing import Any

import pytest

from fix_faults import Link, Survived, large_transaction, under_way, writing
from fix_servers import connect, wait_until
from pglockstep.demo.servers import ThrowawayServer

pytestmark = pytest.mark.unguarded

#: What `make test` does of the combinations; `make soak` does all.
QUICK = [("both", "immediate")]


def elsewhere(server: ThrowawayServer, megabytes: int) -> None:
    """Write so much WAL in another database of that server."""
    with connect(server.conninfo()) as conn:
        for _ in range(megabytes):
            conn.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1048576))")


def behind(link: Link) -> int:
    """How many bytes of WAL the source's end is ahead of what it was told is durable."""
    with connect(link.pair.source) as source:
        row = source.execute(
            "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("away", ["start", pytest.param("later", marks=pytest.mark.soak)])
def test_a_quiet_source_while_the_target_is_away(link: Link, survived: Survived, away: str) -> None:
    """The source works elsewhere and forgets what held nothing for us: no gap, though the daemon dies meanwhile."""
    link.start()
    link.level()
    link.pair.target_server.stop()
    try:
        link.becomes("waiting")
        elsewhere(link.pair.source_server, 20)
        wait_until(lambda: behind(link) < 1_000_000, 30, "the source to be told")
        link.kill()
        if away == "start":
            link.start(ready=False)
            link.becomes("waiting")
    finally:
        link.pair.target_server.start()
    if away == "start":
        link.becomes("streaming")
    link.proven()
    survived("target away, source quiet, daemon killed")


@pytest.mark.soak
def test_a_busy_neighbour_and_a_lost_state_directory(link: Link, survived: Survived) -> None:
    """With the target level the source is told no more than the target has too: the journal may be lost at any time."""
    link.start()
    deadline = time.monotonic() + 12
    with writing(link.pair.source), connect(link.pair.source_server.conninfo()) as other:
        while time.monotonic() < deadline:
            other.execute("SELECT pg_create_restore_point('elsewhere')")
            time.sleep(0.05)
        link.kill()
    shutil.rmtree(link.state)
    link.start()
    link.proven()
    survived("state directory lost under load")


# --- stopped and started ---------------------------------------------------------------------------


def end(server: ThrowawayServer, how: str) -> None:
    """Stop a server in one of PostgreSQL's ways, or kill it."""
    if how == "kill":
        server.kill()
    else:
        server.stop("fast" if how == "fast" else "immediate")


@pytest.mark.parametrize(
    ("which", "how"),
    [
        pytest.param(which, how, marks=[] if (which, how) in QUICK else pytest.mark.soak)
        for which in ("source", "target", "both")
        for how in ("fast", "immediate", "kill")
    ],
)
def test_servers_stopped_and_started(link: Link, survived: Survived, which: str, how: str) -> None:
    """Stopped in order, at once, or killed, in the middle of a load: the daemon waits, says for whom, and goes on by itself."""
    chosen = {"source": link.pair.source_server, "target": link.pair.target_server}
    servers = [server for name, server in chosen.items() if which in (name, "both")]
    link.start()
    with writing(link.pair.source):
        link.level()
        large_transaction(link.pair.source, 3)
        for server in servers:
            end(server, how)
        try:
            away = {name for name in chosen if which in (name, "both")}
            link.becomes("waiting")

            def told() -> dict[str, Any] | None:
                status = link.status()
                named = {name for name in chosen if f"the {name}" in status["reason"]}
                return status if named == away else None

            status = wait_until(told, 30, f"status to name {' and '.join(away)}")
            assert status is not None
            assert (status["state"], status["code"]) == ("waiting", 1)
            assert {name for name in chosen if not status[name]["reachable"]} == away
        finally:
            for server in servers:
                server.start()
        link.becomes("streaming")
    link.level()
    link.proven()
    survived(f"{which} stopped: {how}")


def test_the_target_away_while_the_source_writes(link: Link, survived: Survived) -> None:
    """Receiving goes on, the source is told to forget and keeps little; with the target back all of it is applied."""
    link.start()
    link.level()
    link.pair.target_server.stop()
    try:
        before = link.becomes("waiting")
        with writing(link.pair.source):
            for number in range(4):
                large_transaction(link.pair.source, 8, first=1 + number * 100_000)
        wait_until(lambda: behind(link) < 1_000_000, 30, "the source to be told")
        status = link.status()
        assert status["received_lsn"] > before["received_lsn"]
        assert status["applied_lsn"] == before["applied_lsn"]
        assert status["lag_bytes"] > 32_000_000
        assert status["lag_seconds"] > before["lag_seconds"]
        # it keeps whole files of 16 MB, from its last restart point of the slot's on
        with connect(link.pair.source_server.conninfo()) as source:
            source.execute("CHECKPOINT")
        wait_until(lambda: link.status()["source"]["slot_retained_wal_bytes"] < 32_000_000, 30, "WAL to go")
    finally:
        link.pair.target_server.start()
    link.becomes("streaming")
    link.level()
    link.proven()
    survived("target away while the source writes")


@pytest.mark.soak
@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.parametrize("how", ["immediate", "kill"])
def test_crashed_in_the_middle_of_a_large_transaction(
    link: Link, survived: Survived, which: str, how: str
) -> None:
    """An end crashes while a large transaction is being applied: it arrives once, whole."""
    server = link.pair.source_server if which == "source" else link.pair.target_server
    link.start()
    with under_way(link, 50):
        end(server, how)
    link.becomes("waiting", "catching_up")
    server.start()
    link.becomes("streaming", within=90)
    link.level()
    link.proven()
    survived(f"{which} stopped: {how}, in a large transaction")
