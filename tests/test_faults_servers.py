"""Faults: either server, or both, stopped, crashed and started again; the target away for long."""

from __future__ import annotations

import signal
import time

import pytest

from fix_faults import Link, Survived, large_transaction, writing
from fix_servers import connect, wait_until
from pglockstep.demo.servers import ThrowawayServer


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


@pytest.mark.parametrize("away", ["start", "later"])
def test_a_quiet_source_while_the_target_is_away(link: Link, survived: Survived, away: str) -> None:
    """The source works elsewhere and forgets what held nothing for us: no gap, though the daemon dies before the target is back."""
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


def test_a_busy_neighbour_and_a_lost_state_directory(link: Link, survived: Survived) -> None:
    """With the target level the source is told no more than the target has too, however much goes on: the journal may be lost."""
    import shutil

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
