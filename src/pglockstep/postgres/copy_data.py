"""Taking what has arrived out of libpq, message by message. Waits for nothing, and knows nothing of what it takes.

A stream, like a table, is millions of small messages: where there is a compiler, the loop over them is compiled.
"""

from __future__ import annotations

import ctypes
import os
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
        addresses = [
            ctypes.cast(each, ctypes.c_void_p).value for each in (library.PQgetCopyData, library.PQfreemem)
        ]
    except (ImportError, OSError, AttributeError):
        return None
    ours.use(*addresses)
    return ours


_fast = _compiled()
