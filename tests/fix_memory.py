"""Room in memory for the servers of a test run, where the machine has plenty.

To make a database is to make three hundred files, and what the system needs for that on a disk, 0.15 s of processor
time, is ten times what it needs in memory. The servers do not wait for the disk either way (`fsync = off`): what they
answer and in which order, what survives when one is killed, and what their clients see, is the same. Files that are
ours, such as a journal, stay where pytest puts them; so do servers that a test makes for itself.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: What a server may come to, in bytes: a third of that is usual.
A_SERVER = 512 << 20

SHARED_MEMORY = Path("/dev/shm")


def is_plenty(needed: int, *, at: Path = SHARED_MEMORY, system: Path = Path("/proc/meminfo")) -> bool:
    """Whether so many bytes can be had in memory: the file system there has them free, and the machine has."""
    try:
        lines = dict(line.split(":") for line in system.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) << 10
        free = shutil.disk_usage(at).free
    except (OSError, KeyError):
        return False
    return min(available, free) >= needed and os.access(at, os.W_OK)


@contextmanager
def room(at: Path = SHARED_MEMORY) -> Iterator[Path]:
    """A directory that all may enter, and that goes with us; what runs left behind that were killed goes first."""
    ours = at / f"pglockstep-tests-{os.getuid()}"
    with suppress(FileExistsError):
        ours.mkdir()
    ours.chmod(0o755)
    # who lives holds the lock of its directory; looking for those who do not, and making one's own, is done one by one
    with _locked(ours):
        for each in ours.iterdir():
            with suppress(BlockingIOError), _locked(each, fcntl.LOCK_NB):
                shutil.rmtree(each)
        directory = Path(tempfile.mkdtemp(dir=ours))
        directory.chmod(0o755)
        lock = _locked(directory)
        lock.__enter__()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
        lock.__exit__(None, None, None)


@contextmanager
def _locked(directory: Path, how: int = 0) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)
