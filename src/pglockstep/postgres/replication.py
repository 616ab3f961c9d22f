"""The replication connection: making a slot, starting its stream, moving raw frames both ways.

The protocol's text and framing belong to libpq and to `pglockstep.wal`; this room only waits for the socket.
It never decides what to confirm: it sends the status updates that it is given.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import msgspec
import psycopg
from psycopg import AsyncConnection, generators, pq, sql
from psycopg.rows import TupleRow

from pglockstep.errors import SourceError, SourceUnreachable
from pglockstep.postgres import copy_data
from pglockstep.postgres.beside import Beside
from pglockstep.postgres.connect import End, connect, fell_silent, translate
from pglockstep.postgres.readable import Readable
from pglockstep.units import Lsn

#: A frame's bytes handed out at once are bounded: what is not read yet stays in the socket, and the server waits.
_READ_AT_ONCE = 1 << 18
#: So many bytes out of libpq's buffer were all that fitted in: there is more in the socket.
_PILED_UP = 12 << 10


class NewSlot(msgspec.Struct, frozen=True):
    """A slot just made: the stream starts at `lsn`, and `snapshot` shows the database as of exactly then.

    The snapshot can be used as long as the connection that made the slot stays open and unused.
    """

    lsn: Lsn
    snapshot: str


class ReplicationConnection:
    """One connection in replication mode to a source. Use `open`, then `create_slot` or `start`."""

    def __init__(self, end: End, conn: AsyncConnection[TupleRow]) -> None:
        self._end = end
        self._conn = conn
        self._pgconn = conn.pgconn
        self._readable = Readable(conn.pgconn.socket, end.silence_timeout)
        # one of its own: it may be at work for long, and others must not wait for that
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="receive")
        self._beside: Beside | None = None
        # what ended the connection, to be raised once all that had come before has been handed out
        self._lost: SourceError | None = None

    @classmethod
    async def open(cls, end: End) -> ReplicationConnection:
        """Connect; raises the source's errors."""
        return cls(end, await connect(end, "stream", replication=True))

    @property
    def conn(self) -> AsyncConnection[TupleRow]:
        """The connection itself, for plain statements while it neither streams nor has exported a snapshot."""
        return self._conn

    async def create_slot(self, name: str, *, temporary: bool = False) -> NewSlot:
        """Make a logical slot with an exported snapshot; a temporary one goes with this connection.

        Waits for every transaction that is open on the source right now, prepared ones too; cancelling leaves
        no slot behind.
        """
        command = sql.SQL("CREATE_REPLICATION_SLOT {} {}LOGICAL pgoutput EXPORT_SNAPSHOT").format(
            sql.Identifier(name), sql.SQL("TEMPORARY " if temporary else "")
        )
        with translate(self._end):
            result = await self._run(command.as_bytes())
        lsn, snapshot = result.get_value(0, 1), result.get_value(0, 2)
        assert lsn is not None
        assert snapshot is not None
        return NewSlot(Lsn.parse(lsn.decode()), snapshot.decode())

    async def start(self, slot: str, publication: str, lsn: Lsn) -> None:
        """Start streaming: every transaction whose commit record starts at `lsn` or later."""
        names = sql.Literal(sql.Identifier(publication).as_string())
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), sql.SQL(str(lsn)), names)
        with translate(self._end):
            result = await self._run(command.as_bytes())
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise SourceUnreachable(
                f"the source did not start streaming from slot {slot}", hint="see the source's log"
            )

    async def _run(self, command: bytes) -> pq.abc.PGresult:
        self._pgconn.send_query(command)
        results = await self._conn.wait(generators.execute(self._pgconn))
        result: pq.abc.PGresult = results[-1]
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
        return result

    async def read(self) -> list[bytes]:
        """Wait until the source sends something; return the frames at hand, at least one.

        Raises `SourceUnreachable` when the source falls silent for `silence_timeout` or the stream ends; what had come
        before is handed out first, and whoever asks again is told the same.
        """
        while True:
            try:
                if self._beside is not None:
                    if frames := await self._beside.take():
                        return frames
                    await self._alone(self._beside)
                if frames := self._frames():
                    return frames
                if self._lost is not None:
                    raise self._lost
                await self._readable.wait()
            except TimeoutError:
                raise fell_silent(self._end) from None
            self._consume()

    def _frames(self) -> list[bytes]:
        """The frames that have arrived: in libpq's buffer, and in the socket behind it."""
        frames: list[bytes] = []
        left = _READ_AT_ONCE
        with translate(self._end):
            while (size := copy_data.take(self._pgconn, left, frames)) > 0:
                left -= size
                if size >= _PILED_UP and copy_data.beside():
                    # more is on its way
                    self._readable.close()
                    self._beside = Beside(self._pgconn, self._end.silence_timeout, self._thread)
                    return frames
                if size < _PILED_UP or left <= 0 or self._lost is not None:
                    return frames
                self._consume()
        if size < 0 and not frames:
            self._ended()
        return frames

    async def _alone(self, beside: Beside) -> None:
        """From here on we read ourselves again."""
        self._beside = None
        await beside.close()
        self._consume()

    def _consume(self) -> None:
        """Have libpq take what is in the socket; where that fails, what it took before is still to be had."""
        try:
            with translate(self._end):
                self._pgconn.consume_input()
        except SourceError as error:
            # libpq has closed the socket: its number may be another's in a moment
            self._readable.close()
            self._lost = error

    def _ended(self) -> None:
        with translate(self._end):
            result = self._pgconn.get_result()
            if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result)
        raise SourceUnreachable(
            "the source ended the stream", hint="is it shutting down? the link reconnects by itself"
        )

    async def send(self, frame: bytes) -> None:
        """Send one frame, such as a status update."""
        with translate(self._end):
            while not self._sent(frame):
                await self._writable()
            while not self._sent():
                await self._writable()

    def _sent(self, frame: bytes | None = None) -> bool:
        """Hand a frame to libpq, or what that has to the socket; false if there is no room yet."""
        with nullcontext() if self._beside is None else self._beside.sending():
            if frame is not None:
                return self._pgconn.put_copy_data(frame) != 0
            return self._pgconn.flush() != 1

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not turn.done():
                turn.set_result(None)

        loop.add_writer(self._pgconn.socket, wake)
        try:
            await turn
        finally:
            loop.remove_writer(self._pgconn.socket)

    async def close(self) -> None:
        """Close the connection; the slot stays."""
        self._readable.close()
        if self._beside is not None:
            await self._beside.close()
            self._beside = None
        self._thread.shutdown(wait=False)
        await self._conn.close()
