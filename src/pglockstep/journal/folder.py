"""The folder of a journal: one process at a time, the room on its disk, and what is said when it cannot be used."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pglockstep.errors import JournalUnusable, LinkHeld


class Room(msgspec.Struct, frozen=True):
    """A file system: its bytes, those that an ordinary user may still take, and how much is in use, in percent."""

    size: int
    free: int
    used_percent: int


def room(folder: Path) -> Room | None:
    """The file system that `folder` is on; None if it cannot be asked."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    used = found.f_blocks - found.f_bfree
    # as df has it: what is set aside for root is neither used nor free, and the last bit counts as a whole percent
    percent = -(-100 * used // max(1, used + found.f_bavail))
    return Room(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, percent)


def lock(folder: Path) -> int:
    """Make the folder if need be, and take its lock, which lasts until the descriptor that is returned is closed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LinkHeld(
            f"another process uses the journal in {folder}",
            hint="pglockstep status shows who runs the link; stop that first",
        ) from None
    return descriptor


def unusable(folder: Path, error: OSError) -> JournalUnusable:
    """What to raise when the journal cannot be read or written at all."""
    return JournalUnusable(
        f"the journal in {folder} cannot be used: {error}",
        hint="see to that disk and its permissions, or name another place with state_dir; the link then goes on where it stopped",
    )


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """A failure of the disk is raised as `JournalUnusable`."""
    try:
        yield
    except OSError as error:
        raise unusable(folder, error) from error
