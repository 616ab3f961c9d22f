"""The doctor looks at the state directory: may it be written, on what disk is it, how much is free."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pglockstep.doctor.here import StatePlace, look, state_findings
from pglockstep.journal.folder import Room, room

GB = 1 << 30


def found(**changed: object) -> StatePlace:
    """A state directory without fault, but for what is `changed`."""
    fields = {
        "path": Path("/var/lib/it"),
        "exists": True,
        "writable": True,
        "file_system": "ext4 at /var",
        "room": Room(100 * GB, 50 * GB, 50),
    }
    return StatePlace(**(fields | changed))  # type: ignore[arg-type]


def test_a_good_place_is_told() -> None:
    """Where it is, on which file system, and how much is free."""
    (told,) = state_findings(found(), "me")
    assert (told.code, told.severity, told.side) == ("state_directory", "info", "here")
    assert "/var/lib/it (on ext4 at /var), with 50 GB (50 %) free" in told.message


@pytest.mark.parametrize("little", [Room(100 * GB, GB, 50), Room(1000 * GB, 40 * GB, 96)])
def test_little_room(little: Room) -> None:
    """Few bytes, or few percent: what will happen, and what to do."""
    (told,) = state_findings(found(room=little), "me")
    assert (told.code, told.severity) == ("state_little_room", "warning")
    assert "receiving waits" in told.message
    assert "keep_size" in told.hint


def test_a_place_that_may_not_be_written() -> None:
    """The command that makes it right, quoted, for this user."""
    (told,) = state_findings(found(path=Path("/var/lib/a b"), writable=False, exists=False), "me")
    assert (told.code, told.severity) == ("state_not_writable", "error")
    assert "cannot be made by user me" in told.message
    assert told.fix == "sudo install -d -m 700 -o me '/var/lib/a b'"
    assert told.error().exit_code == 3


def test_looking_creates_nothing(tmp_path: Path) -> None:
    """A place that is not there yet is judged by where it would be made."""
    place = look(tmp_path / "a" / "b")
    assert (place.exists, place.writable) == (False, True)
    assert place.file_system
    assert place.room is not None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert not look(tmp_path / "file").writable
    assert not look(tmp_path / "file" / "below").writable
    assert look(tmp_path).exists


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_file_system_of_its_own(tmp_path: Path) -> None:
    """Type, mount point (with a blank in it) and room of a small one, as df tells them; a read-only one cannot be written."""
    point = tmp_path / "a b"
    point.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", point], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (point / "ballast").write_bytes(b"x" * 600_000)
        place = look(point / "state")
        assert place.file_system == f"tmpfs at {point}"
        df = subprocess.run(
            ["df", "--output=pcent,avail", "-B1", point], capture_output=True, text=True, check=True
        )
        percent, free = df.stdout.split()[-2:]
        assert place.room == room(point)
        assert place.room is not None
        assert (f"{place.room.used_percent}%", place.room.free) == (percent, int(free))
        assert [each.code for each in state_findings(place, "me")] == ["state_little_room"]
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        assert not look(point / "state").writable
    finally:
        subprocess.run(["umount", point], check=True)
