"""Moving what COPY sends out of libpq and into it, message by message, knowing nothing of what it is.

A stream, like a table, is millions of small messages: where there is a compiler, the loop over them is compiled. `Receiver`
and `put` are there in that form alone (`beside`): they wait, in a
thread of their own, while others run Python.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import psycopg
from psycopg import pq

from pglockstep.compiled import INTERPRETED


def take(pgconn: pq.abc.PGconn, most: int, messages: list[bytes]) -> int:
    """Put the messages at hand behind `messages`, until they are `most` bytes or more.

    Returns how many bytes they are; if there is none: 0 for now, or -1 at the end. Raises `psycopg.OperationalError`.
    """
    if _fast is not None:
        size: int = _fast.take(_address(pgconn), most, messages)
        if size < -1:
            raise _failed(pgconn)
        return size
    size = 0
    while size < most:
        length, data = pgconn.get_copy_data(1)
        if length <= 0:
            return size or length
        messages.append(bytes(data))
        size += length
    return size


def beside() -> bool:
    """Whether there are `Receiver` and `put`."""
    return _fast is not None


class Receiver:
    """Takes messages in a thread, beside everything else, until little has come for a while or the connection is at its end.

    Call `run` in the thread. `bell` is a pipe, not blocking, which is written to when there is something to `take`, and in
    the end; about `most` bytes are kept. Whoever sends over the connection meanwhile does it between `hold` and `release`.
    After the end the connection is the caller's again, and says itself why it ended.
    """

    def __init__(self, pgconn: pq.abc.PGconn, bell: tuple[int, int], most: int) -> None:
        assert _fast is not None
        self._fast = _fast.Receiver(_address(pgconn), bell, most)
        self.run: Callable[[], None] = self._fast.run
        self.take: Callable[[], list[bytes]] = self._fast.take
        self.hold: Callable[[], None] = self._fast.hold
        self.release: Callable[[], None] = self._fast.release
        self.stop: Callable[[], None] = self._fast.stop

    @property
    def ended(self) -> bool:
        """Whether `run` has ended; there may be something to take."""
        ended: bool = self._fast.ended
        return ended


def put(pgconn: pq.abc.PGconn, data: memoryview | bytes, chunk: int) -> bool:
    """Send all of it as COPY's data, in chunks, waiting until the socket has taken it; false if the connection is lost.

    The connection is nobody else's meanwhile; only hanging up ends it early.
    """
    assert _fast is not None
    done: bool = _fast.put(_address(pgconn), pgconn.socket, data, chunk)
    return done


def gather(pgconn: pq.abc.PGconn, most: int) -> tuple[bytes, bool]:
    """The messages at hand as one, up to `most` bytes or a little more; and whether they were the last.

    Raises `psycopg.OperationalError`.
    """
    if _fast is not None:
        chunk, length = _fast.gather(_address(pgconn), most)
        if length < -1:
            raise _failed(pgconn)
        return chunk, length < 0
    messages: list[memoryview | bytes] = []
    size = 0
    while size < most:
        length, data = pgconn.get_copy_data(1)
        if length <= 0:
            return b"".join(messages), length < 0
        messages.append(data)
        size += length
    return b"".join(messages), False


def _address(pgconn: pq.abc.PGconn) -> int:
    found: int = pgconn.pgconn_ptr  # type: ignore[attr-defined]  # psycopg's own protocol leaves it out
    return found


def _failed(pgconn: pq.abc.PGconn) -> psycopg.OperationalError:
    return psycopg.OperationalError(
        f"getting copy data failed: {pgconn.error_message.decode(errors='replace')}"
    )


def _compiled() -> ModuleType | None:
    """The compiled half, calling the libpq that psycopg has loaded; None where there is none, or it cannot be found."""
    if os.environ.get(INTERPRETED) or pq.__impl__ not in ("binary", "c"):
        return None
    try:
        ours = import_module("pglockstep.postgres.libpq")
        theirs = import_module(f"psycopg_{pq.__impl__}.pq")
        library = ctypes.CDLL(theirs.__file__)
        functions = (
            library.PQgetCopyData,
            library.PQputCopyData,
            library.PQconsumeInput,
            library.PQflush,
            library.PQfreemem,
        )
        addresses = [ctypes.cast(each, ctypes.c_void_p).value for each in functions]
    except (ImportError, OSError, AttributeError):
        return None
    ours.use(*addresses)
    return ours


_fast = _compiled()
