"""Servers in memory: only where there is plenty, and nothing of a killed run's stays there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fix_memory import is_plenty, room

HELD = """
import sys
from pathlib import Path
from fix_memory import room
with room(Path(sys.argv[1])) as made:
    (made / "server").mkdir()
    print(made, flush=True)
    sys.stdin.read()
"""


def test_only_where_there_is_plenty(tmp_path: Path) -> None:
    """As many bytes as the file system has free and the machine available; none where that is not told."""
    system = tmp_path / "meminfo"
    system.write_text("MemTotal:  9000 kB\nMemAvailable:   1000 kB\n")
    assert is_plenty(1000 << 10, at=tmp_path, system=system)
    assert not is_plenty((1000 << 10) + 1, at=tmp_path, system=system)
    assert not is_plenty(1, at=tmp_path / "nowhere", system=system)
    assert not is_plenty(1, at=tmp_path, system=tmp_path / "nowhere")
    system.write_text(f"MemAvailable: {1 << 60} kB\n")
    assert not is_plenty(1 << 60, at=tmp_path, system=system)


@pytest.mark.parametrize("killed", [True, False])
def test_what_is_left_behind(tmp_path: Path, killed: bool) -> None:
    """A run that lives keeps its directory beside others; one that was killed loses it to the next."""
    with subprocess.Popen(
        [sys.executable, "-c", HELD, tmp_path],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with room(tmp_path) as ours:
            assert ours != theirs
            assert theirs.joinpath("server").exists()
        assert not ours.exists()
        if killed:
            other.kill()
        else:
            other.communicate("")
        other.wait()
        assert theirs.exists() == killed
    with room(tmp_path) as ours:
        assert list(ours.parent.iterdir()) == [ours]
