"""Faults: our own disk is full, or the target's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fix_faults import Link, Survived, large_transaction
from fix_servers import Cli, Pair, connect, wait_until
from pglockstep.demo.servers import server_user

pytestmark = pytest.mark.unguarded

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")


@contextmanager
def small(path: Path, megabytes: int) -> Iterator[None]:
    """A file system of so many megabytes at `path` while the block runs."""
    path.mkdir(exist_ok=True)
    options = f"size={megabytes}m"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def resize(path: Path, megabytes: int) -> None:
    """Make a `small` file system larger."""
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(path)], check=True)


def small_transactions(pair: Pair, megabytes: int) -> None:
    """So much that cannot be compressed, in many transactions."""
    for number in range(megabytes):
        large_transaction(pair.source, 1, first=1 + 1000 * number)


@as_root
@pytest.mark.parametrize("way_out", [pytest.param("room", marks=pytest.mark.soak), "target"])
def test_no_room_for_the_journal(cli: Cli, pair: Pair, survived: Survived, way_out: str) -> None:
    """Receiving waits, status says so, nothing is torn; with room, or once the target has taken it all, it goes on by itself."""
    link = Link(cli, pair, pair.source, pair.target, {})
    with small(link.state, 8):
        link.copied()
        link.start()
        link.level()
        pair.target_server.stop()
        try:
            link.becomes("waiting")
            small_transactions(pair, 16)

            def full() -> bool:
                status = link.status()
                return "no room for the journal" in status["reason"] and status["code"] == 1

            wait_until(full, 30, f"status to say that there is no room; {link.said[-2000:]}")
            if way_out == "room":
                resize(link.state, 64)
                wait_until(
                    lambda: "no room" not in link.status()["reason"], 30, "the journal to have room again"
                )
        finally:
            pair.target_server.start()
        link.level()
        assert link.becomes("streaming")["code"] == 0
        link.kill()
        link.proven()
    survived(f"our disk full, then {way_out}")


@pytest.mark.soak
@as_root
def test_started_on_a_full_disk(cli: Cli, pair: Pair, survived: Survived) -> None:
    """A daemon that finds no room at all says so in one line, not as a bug; with room it starts."""
    link = Link(cli, pair, pair.source, pair.target, {})
    with small(link.state, 8):
        link.copied()
        ballast = link.state / "ballast"
        with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        link.start(ready=False)
        assert link.ended() == 3
        assert "cannot be written" in link.said
        assert "No space left" in link.said
        ballast.unlink()
        link.start()
        link.level()
        link.proven()
    survived("started on a full disk")


@pytest.mark.soak
@as_root
@pytest.mark.superusers
def test_no_room_on_the_target(link: Link, survived: Survived) -> None:
    """A target without room takes nothing and loses nothing: the link waits, says so, and goes on when there is room."""
    place = Path(f"{link.pair.target_server.directory}-small")
    with small(place, 4):
        server_user().owns(place)
        with connect(link.pair.target) as target:
            target.execute(f"CREATE TABLESPACE small LOCATION '{place}'".encode())
            target.execute("ALTER TABLE bulk SET TABLESPACE small")
            try:
                link.start()
                small_transactions(link.pair, 8)
                status = link.becomes("waiting")
                assert "No space left" in status["reason"]
                assert status["lag_bytes"] > 0
                resize(place, 64)
                link.level()
                link.proven()
            finally:
                if link.process is not None and link.process.poll() is None:
                    link.kill()
                target.execute("DROP TABLE bulk")
                target.execute("DROP TABLESPACE small")
    place.rmdir()
    survived("target's disk full")
