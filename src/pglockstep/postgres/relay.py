"""One COPY relayed from server to server: bytes as they come, never looked into, never held in bulk.

libpq's own calls are used directly: per row they cost a tenth of what the driver's copy objects do. What the target
has not taken yet stays in the source's socket, so memory is bounded by a few chunks. A relay that fails leaves both
sessions in the midst of their COPY: whoever called it closes them, and neither server keeps anything.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

import psycopg
from psycopg import AsyncConnection, generators, pq
from psycopg.rows import TupleRow

from pglockstep.errors import SourceUnreachable, TargetUnreachable
from pglockstep.postgres import copy_data
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.readable import Readable

#: Rows are gathered up to so many bytes before they are handed on: one call a row would cost more than the row.
_CHUNK = 1 << 18

_OK = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_IN)


async def relay(
    source: AsyncConnection[TupleRow],
    target: AsyncConnection[TupleRow],
    ends: tuple[End, End],
    statements: tuple[bytes, bytes],
    moved: Callable[[int], None] = lambda size: None,
) -> int:
    """Run the statements for either end, the COPY in the second fed by the first; returns how many rows both counted.

    `source` and `target` are where the rows come from and where they go, whichever ends of the link those are. What
    stands before and after the COPY in a text of statements runs with it. `moved` is told of bytes.
    """
    with translate(ends[1]):
        await _start(target, statements[1], pq.ExecStatus.COPY_IN)
    with translate(ends[0]):
        await _start(source, statements[0], pq.ExecStatus.COPY_OUT)
    objections = _Objections(target)
    readable = Readable(source.pgconn.socket)
    try:
        await _hand_on(source, target, ends, moved, objections, readable)
    finally:
        readable.close()
    with translate(ends[0]):
        sent = await _finish(source)
    with translate(ends[1]):
        await _end(target)
        taken = await _finish(target)
    if sent != taken:
        kind = TargetUnreachable if ends[1].side == "target" else SourceUnreachable
        raise kind(
            f"the {ends[0].side} sent {sent} rows and the {ends[1].side} took {taken}",
            hint="the rows are rolled back; is something between us and it changing what is sent?",
        )
    return taken


async def _hand_on(
    source: AsyncConnection[TupleRow],
    target: AsyncConnection[TupleRow],
    ends: tuple[End, End],
    moved: Callable[[int], None],
    objections: _Objections,
    readable: Readable,
) -> None:
    """Hand the source's rows on to the target until they end."""
    ended = False
    while not ended:
        with translate(ends[0]):
            chunk, ended = copy_data.gather(source.pgconn, _CHUNK)
        if chunk:
            with translate(ends[1]):
                if not await _put(target.pgconn, chunk, objections):
                    # it drops whatever follows: why is in its answer, and the rest of the table need not travel
                    await _end(target, b"the server had spoken")
                    await _finish(target)
            moved(len(chunk))
        if not ended and len(chunk) < _CHUNK:
            await readable.wait()
            with translate(ends[0]):
                source.pgconn.consume_input()


class _Objections:
    """Notices that a server in the midst of a COPY refuses it: libpq itself says so only when all has been sent."""

    def __init__(self, conn: AsyncConnection[TupleRow]) -> None:
        self._pgconn = conn.pgconn
        self._poll = select.poll()
        self._poll.register(conn.pgconn.socket, select.POLLIN)

    def heard(self) -> bool:
        """Whether the server has said something else than a notice."""
        if not self._poll.poll(0):
            return False
        notices = 0

        def count(_: pq.abc.PGresult) -> None:
            nonlocal notices
            notices += 1

        handler, self._pgconn.notice_handler = self._pgconn.notice_handler, count
        try:
            self._pgconn.consume_input()
            # reads what has come, as far as it is a notice
            self._pgconn.is_busy()
        finally:
            self._pgconn.notice_handler = handler
        return notices == 0


async def _end(conn: AsyncConnection[TupleRow], error: bytes | None = None) -> None:
    while conn.pgconn.put_copy_end(error) == 0:
        await _ready(conn.pgconn.socket, writing=True)
        conn.pgconn.consume_input()


async def _start(conn: AsyncConnection[TupleRow], statements: bytes, wanted: pq.ExecStatus) -> None:
    conn.pgconn.send_query(statements)
    await conn.wait(generators.send(conn.pgconn))
    while (result := await conn.wait(generators.fetch(conn.pgconn))) is not None:
        await _demand(conn, result)
        if result.status == wanted:
            return
    raise psycopg.OperationalError("the server did not start to copy")


async def _finish(conn: AsyncConnection[TupleRow]) -> int:
    """The rows that the COPY counted, with everything after it run to its end."""
    rows = -1
    await conn.wait(generators.send(conn.pgconn))
    while (result := await conn.wait(generators.fetch(conn.pgconn))) is not None:
        await _demand(conn, result)
        if rows < 0:
            rows = result.command_tuples or 0
    return rows


async def _demand(conn: AsyncConnection[TupleRow], result: pq.abc.PGresult) -> None:
    """Raise what the server refused, with the session ready for its next statement."""
    if result.status in _OK:
        return
    while await conn.wait(generators.fetch(conn.pgconn)) is not None:
        pass
    raise psycopg.errors.error_from_result(result, encoding="utf-8")


async def _put(pgconn: pq.abc.PGconn, chunk: bytes, objections: _Objections) -> bool:
    """Hand a chunk on; false if the server does not want it."""
    # asked before libpq gets to read: it keeps what it has read to itself
    if objections.heard():
        return False
    while pgconn.put_copy_data(chunk) == 0:
        await _ready(pgconn.socket, writing=True)
        if objections.heard():
            return False
    while pgconn.flush() == 1:
        await _ready(pgconn.socket, writing=True)
        if objections.heard():
            return False
    return True


async def _ready(socket: int, *, writing: bool = False) -> bool:
    """Wait until there is something to read, or until there is room to write; true if there is something to read."""
    loop = asyncio.get_running_loop()
    turn: asyncio.Future[bool] = loop.create_future()

    def wake(readable: bool) -> None:
        if not turn.done():
            turn.set_result(readable)

    loop.add_reader(socket, wake, True)
    if writing:
        loop.add_writer(socket, wake, False)
    try:
        return await turn
    finally:
        loop.remove_reader(socket)
        if writing:
            loop.remove_writer(socket)
