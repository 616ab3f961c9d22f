"""The frames of the streaming replication protocol: what stands around pgoutput's messages.

Pure: bytes to values and back. Times are microseconds since 2000-01-01 UTC, as on the wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from struct import error as StructError

import msgspec

from pglockstep.errors import ProtocolViolation

#: 2000-01-01 UTC, PostgreSQL's epoch, in seconds of Unix time.
POSTGRES_EPOCH = 946_684_800

_wal_data = Struct("!cQQq")
_keepalive = Struct("!cQqB")
_status = Struct("!cQQQqB")
_DATA = ord("w")
_HEADER = _wal_data.size


class WalData(msgspec.Struct, frozen=True, gc=False):
    """One message of the output plugin. `wal_end` is how far the server has decoded."""

    wal_start: int
    wal_end: int
    payload: bytes


class Keepalive(msgspec.Struct, frozen=True, gc=False):
    """The server has nothing older than `wal_end` to send; it may want an answer at once."""

    wal_end: int
    reply_requested: bool


def parse(data: bytes) -> WalData | Keepalive:
    """The frame in one CopyData of the stream; raises `ProtocolViolation` for anything else."""
    try:
        if data[:1] == b"w":
            _kind, wal_start, wal_end, _time = _wal_data.unpack_from(data)
            return WalData(wal_start, wal_end, data[_HEADER:])
        if data[:1] == b"k":
            _kind, wal_end, _time, reply = _keepalive.unpack(data)
            return Keepalive(wal_end, bool(reply))
    except StructError:
        pass
    raise ProtocolViolation(
        f"the source sent an unknown frame of kind {data[:1]!r} and {len(data)} bytes",
        hint="does a proxy stand between? the link resumes from its last progress when it is started again",
    )


def payloads(frames: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The messages of the output plugin in `frames`, in order; and those frames that carry none, for `parse`."""
    carried: list[bytes] = []
    others: list[bytes] = []
    for frame in frames:
        size = len(frame)
        # the compiler slices this one without a detour
        view = frame
        if size > _HEADER and view[0] == _DATA:
            carried.append(view[_HEADER:size])
        else:
            others.append(frame)
    return carried, others


def status_update(*, written: int, flushed: int, applied: int, now: float, reply: bool = False) -> bytes:
    """The standby status update: LSNs up to which the stream is received, durable and applied.

    The server may forget everything before `flushed`. `now` is Unix time in seconds; with `reply` the server
    answers at once, which proves that it is there.
    """
    microseconds = round((now - POSTGRES_EPOCH) * 1_000_000)
    return _status.pack(b"r", written, flushed, applied, microseconds, reply)


def unix_time(microseconds: int) -> float:
    """Unix time in seconds for a time of the wire."""
    return POSTGRES_EPOCH + microseconds / 1_000_000
