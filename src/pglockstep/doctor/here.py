"""Judging this machine's own part of a link: the state directory, and the disk that it is on. Looks only.

`look` reads, and creates nothing; the judgement is pure.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from pglockstep.errors import ConfigError
from pglockstep.findings import HERE, Finding
from pglockstep.journal.folder import Room, room
from pglockstep.units import human_bytes

_error = partial(Finding, side="here", severity="error")
_warning = partial(Finding, side="here", severity="warning")
_info = partial(Finding, side="here", severity="info")

#: With less than so many bytes, or so many percent, the disk will soon be full.
_LITTLE = 2 << 30
_LITTLE_PERCENT = 5


class StatePlace(msgspec.Struct, frozen=True):
    """Where the state is, or would be: the directory, whether we may write there, its file system."""

    path: Path
    exists: bool
    writable: bool
    file_system: str
    room: Room | None


def user() -> str:
    """Who we are on this machine, by name if there is one."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def look(path: Path) -> StatePlace:
    """The state directory as it is; where it does not exist yet, the directory that it would be made in."""
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    writable = there.is_dir() and os.access(there, os.R_OK | os.W_OK | os.X_OK)
    return StatePlace(path, there == path, writable, _file_system(there), room(there))


def _file_system(path: Path) -> str:
    """Type and mount point of what `path` is on, as the system tells them; empty where it does not."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found, where = "", ""
    real = path.resolve()
    for line in mounts.splitlines():
        _, mounted, kind, *_ = line.split(" ")
        # a blank in a name is written as its octal number
        point = re.sub(r"\\([0-7]{3})", lambda number: chr(int(number[1], 8)), mounted)
        if real.is_relative_to(point) and len(point) >= len(where):
            found, where = f"{kind} at {point}", point
    return found


def state_findings(found: StatePlace, user: str) -> Iterator[Finding]:
    """Whether `user` can keep state and journal there, and for how long."""
    on = f" (on {found.file_system})" if found.file_system else ""
    if not found.writable:
        name = shlex.quote(str(found.path))
        yield _error(
            code="state_not_writable",
            message=f"the state directory {found.path}{on} cannot be {'written' if found.exists else 'made'} by user {user}: "
            "the journal has to be kept there",
            fix=f"sudo install -d -m 700 -o {shlex.quote(user)} {name}",
            where=HERE,
            otherwise="or name another place with state_dir",
            raises=ConfigError,
        )
        return
    if found.room is None:
        return
    free_percent = 100 - found.room.used_percent
    free = f"{human_bytes(found.room.free)} ({free_percent} %) free"
    if found.room.free < _LITTLE or free_percent < _LITTLE_PERCENT:
        yield _warning(
            code="state_little_room",
            message=f"the disk of the state directory {found.path}{on} has no more than {free}: when no room is left for the "
            "journal, receiving waits and the source keeps its WAL",
            fix="make room there, or name another place with state_dir",
            otherwise="what the journal keeps that nobody needs is keep_size under [links.NAME.journal]",
        )
        return
    yield _info(
        code="state_directory",
        message=f"the state directory is {found.path}{on}, with {free}: all that the target has not got yet is kept there",
        fix="nothing to do, if that is more than the source writes while the target may be away",
    )
