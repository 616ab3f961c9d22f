"""Faults: clocks that jump. Nothing that is decided depends on the time of day, here or on either server."""

from __future__ import annotations

import ast
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

import pglockstep
from fix_faults import Link, Survived, writing
from pglockstep.observe.state import LinkStatus

SOURCE = Path(pglockstep.__file__).parent

#: Who may look at the time of day, and what for: to show it to people, but for how long the journal keeps what nobody needs.
LOOKS_AT_THE_CLOCK = {
    "apply/applier.py": "when something was last applied",
    "cli/guard.py": "until when a purge that is announced now may pass",
    "cli/incidents.py": "when something was decided",
    "cli/resync.py": "when something was asked for",
    "journal/journal.py": "how old a segment is that nobody needs any more",
    "journal/segments.py": "when a segment was begun",
    "link/gate.py": "until when an announced purge may pass",
    "link/held_back.py": "when an incident was opened",
    "link/balance.py": "until when an announced purge may pass",
    "link/noting.py": "when an incident was opened",
    "link/pinning.py": "when an incident was opened",
    "link/intake.py": "a field of the protocol that the server puts into pg_stat_replication",
    "link/overview.py": "how long ago something was",
    "link/standing.py": "how long the target has been behind",
    "link/diff.py": "when the ends were compared",
    "link/level.py": "when a poll was asked for",
    "link/poller.py": "when a table was compared",
    "link/matching.py": "when a moment was asked for",
    "link/repair.py": "the name of a file",
    "link/rolling.py": "when a table was compared",
    "link/verify.py": "when the ends were compared, and how old progress is",
    "observe/incidents.py": "when an incident was opened, changed or decided",
    "observe/state.py": "when a state was written down",
}


def looks_at_the_clock(path: Path) -> bool:
    """Whether a module asks for the time of day: `time.time` or `datetime.now`."""
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("time", "time"), ("datetime", "now"), ("datetime", "utcnow")}
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_only_who_shows_the_time_looks_at_the_clock() -> None:
    """Patience, silence, pauses and rates are measured by the monotonic clock; positions order everything else."""
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if looks_at_the_clock(path) and "demo" not in path.parts
    }
    assert found == set(LOOKS_AT_THE_CLOCK)


@pytest.mark.soak
def test_a_state_from_the_future(link: Link, survived: Survived) -> None:
    """What was written down by a clock that has been set back since: lag is never negative, and the link goes on."""
    link.start()
    link.level()
    link.kill()
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    with sqlite3.connect(link.state / "state.sqlite") as state:
        ((key, blob),) = state.execute("SELECT key, status FROM link").fetchall()
        status = msgspec.json.decode(blob, type=LinkStatus)
        status.updated_at = status.level_at = status.last_applied_at = tomorrow
        state.execute("UPDATE link SET status = ? WHERE key = ?", [msgspec.json.encode(status), key])
    state.close()
    link.pair.target_server.stop()
    try:
        lag = link.status()["lag_seconds"]
        assert lag is None or lag >= 0
        link.start(ready=False)
        assert link.becomes("waiting")["lag_seconds"] >= 0
    finally:
        link.pair.target_server.start()
    with writing(link.pair.source):
        link.level()
    link.proven()
    survived("clock set back")
