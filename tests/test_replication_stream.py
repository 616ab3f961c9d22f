"""The stream of a real source, received in turns and beside everything else: the same messages, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from socket import MSG_DONTWAIT, MSG_PEEK
from socket import socket as Socket

import psycopg
import pytest
from psycopg import sql

from fix_faults import through
from fix_proxy import MakeProxy
from fix_servers import MakeDatabase, Servers, connect, majors, wait_until
from pglockstep import compiled
from pglockstep.errors import SourceUnreachable
from pglockstep.postgres import copy_data
from pglockstep.postgres.connect import End
from pglockstep.postgres.replication import ReplicationConnection
from pglockstep.units import Lsn
from pglockstep.wal.frames import payloads, status_update
from pglockstep.wal.messages import Commit, Insert
from pglockstep.wal.pgoutput import decode

#: Rows of a backlog that takes a while to send.
MANY = 60_000
SLOT = "received"


@pytest.fixture
def source(servers: Servers, make_database: MakeDatabase) -> str:
    """A source with a slot that has seen nothing yet of a backlog of one large transaction and a few small ones."""
    database = make_database(servers.source(majors[-1]))
    with connect(database) as conn:
        conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        conn.execute(sql.SQL("CREATE PUBLICATION {} FOR TABLE t").format(sql.Identifier(SLOT)))
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [SLOT])
        conn.execute("INSERT INTO t SELECT n, repeat('x', n %% 300) FROM generate_series(1, %s) AS n", [MANY])
        conn.execute("INSERT INTO t VALUES (0, repeat('y', 3000000))")
    return database


@asynccontextmanager
async def streaming(database: str) -> AsyncIterator[ReplicationConnection]:
    """A stream from the slot's beginning."""
    stream = await ReplicationConnection.open(End("source", "test", database, silence_timeout=5.0))
    try:
        await stream.start(SLOT, SLOT, Lsn(0))
        yield stream
    finally:
        await stream.close()


async def rows(stream: ReplicationConnection, commits: int, pause: float = 0.0) -> list[int]:
    """The ids of the rows until so many transactions have ended; with a `pause` before each reading."""
    found = []
    while commits:
        if pause:
            # a reader that is busy with something else, and lets nobody else run
            time.sleep(pause)  # noqa: ASYNC251
        frames = await stream.read()
        for message in map(decode, payloads(frames)[0]):
            if isinstance(message, Insert):
                assert isinstance(message.new[0], bytes)
                found.append(int(message.new[0]))
            commits -= isinstance(message, Commit)
    return found


@pytest.mark.parametrize("pause", [0.0, 0.01], ids=["eager", "busy"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside", "in turns"])
def test_every_message_once_and_in_order(
    source: str, monkeypatch: pytest.MonkeyPatch, beside: bool, pause: float
) -> None:
    """A backlog, a value of megabytes, and single rows afterwards, by an eager reader and a busy one, in both ways."""
    if not beside:
        monkeypatch.setattr(copy_data, "beside", lambda: False)

    async def receive() -> list[int]:
        async with streaming(source) as stream:
            found = await rows(stream, 2, pause)
            assert copy_data.beside() is beside or not compiled.is_compiled()
            for number in range(MANY + 1, MANY + 4):
                with connect(source) as conn:
                    conn.execute("INSERT INTO t VALUES (%s, 'z')", [number])
                found += await rows(stream, 1)
                await asyncio.sleep(0.03)
            return found

    assert asyncio.run(receive()) == [*range(1, MANY + 1), 0, *range(MANY + 1, MANY + 4)]


def test_what_is_sent_meanwhile_arrives(source: str) -> None:
    """Status updates in the middle of a backlog reach the server, and disturb nothing."""

    async def receive() -> list[int]:
        async with streaming(source) as stream:

            async def tell() -> None:
                while True:
                    await stream.send(status_update(written=1, flushed=1, applied=1, now=time.time()))
                    await asyncio.sleep(0)

            telling = asyncio.create_task(tell())
            found = await rows(stream, 2)
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling
            with connect(source) as conn:
                query = "SELECT write_lsn::text FROM pg_stat_replication WHERE pid = %s"
                for _ in range(250):
                    if conn.execute(query, [stream.conn.info.backend_pid]).fetchone() == ("0/1",):
                        return found
                    await asyncio.sleep(0.02)
            pytest.fail("the server never heard of it")

    assert asyncio.run(receive()) == [*range(1, MANY + 1), 0]


def test_a_source_that_ends_in_the_middle(source: str) -> None:
    """What had arrived comes first, then the error of an end that is gone; the slot's beginning is there again afterwards."""

    async def receive() -> list[int]:
        found: list[int] = []
        async with streaming(source) as stream:
            with connect(source) as conn:
                killed = False
                while True:
                    found += _ids(await stream.read())
                    if not killed and len(found) > 1000:
                        conn.execute("SELECT pg_terminate_backend(%s)", [stream.conn.info.backend_pid])
                        killed = True

    found: list[int] = []

    async def until_it_ends() -> None:
        with pytest.raises(SourceUnreachable):
            found.extend(await receive())

    asyncio.run(until_it_ends())

    async def again() -> list[int]:
        for _ in range(100):
            try:
                async with streaming(source) as stream:
                    return await rows(stream, 2)
            except (SourceUnreachable, psycopg.Error):
                await asyncio.sleep(0.05)
        pytest.fail("the slot did not become free")

    assert asyncio.run(again()) == [*range(1, MANY + 1), 0]


@pytest.mark.parametrize("way", ["compiled", "interpreted"])
def test_the_end_lies_behind_what_piled_up(
    servers: Servers, source: str, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The end is met while more is fetched: all that had arrived comes first, then the error, now and when asked again.

    How much is fetched at once is libpq's matter: with one or another of these numbers of rows there is much in the end.
    """
    if way == "interpreted":
        monkeypatch.setattr(copy_data, "_fast", None)
    server = servers.source(majors[-1])
    proxy = make_proxy(server.port)

    async def receive(rows: int) -> list[int]:
        async with streaming(through(proxy, server, source)) as stream:
            socket = stream.conn.pgconn.socket
            _arrived(socket, b"%d" % (-1001 * rows))
            proxy.cut()
            _hung_up(socket)
            found: list[int] = []
            while len(found) < rows:
                found += _ids(await stream.read())
            with _taken(socket):
                for _ in range(2):
                    with pytest.raises(SourceUnreachable, match="closed the connection"):
                        await stream.read()
        return found

    with connect(source) as conn:
        free = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND NOT active"
        for rows in range(200, 250, 5):
            wait_until(lambda: conn.execute(free, [SLOT]).rowcount == 1, 10, "the slot to become free")
            conn.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_insert_lsn())", [SLOT])
            conn.execute(
                "INSERT INTO t SELECT -1000 * %s - n, repeat('x', 300) FROM generate_series(1, %s) AS n",
                [rows, rows],
            )
            assert asyncio.run(receive(rows)) == [-1000 * rows - n for n in range(1, rows + 1)]


@contextmanager
def _taken(number: int) -> Iterator[None]:
    """If a file was closed, its number is another's inside, who never has anything to read."""
    others: list[int] = []
    try:
        while not _is_open(number):
            others += os.pipe()
        yield
    finally:
        for each in others:
            os.close(each)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _arrived(number: int, last: bytes) -> None:
    """Wait until the row with this id is in the socket, and so all that come before it."""
    with Socket(fileno=os.dup(number)) as same:

        def there() -> bool:
            with suppress(BlockingIOError):
                return last in same.recv(1 << 20, MSG_PEEK | MSG_DONTWAIT)
            return False

        wait_until(there, 10, "the source to send")


def _hung_up(socket: int) -> None:
    """Wait until the other side's end of the socket is closed."""
    poll = select.poll()
    poll.register(socket, select.POLLRDHUP)
    assert poll.poll(10_000)


def _ids(frames: list[bytes]) -> list[int]:
    """The ids of the rows inserted."""
    found = []
    for message in map(decode, payloads(frames)[0]):
        if isinstance(message, Insert):
            assert isinstance(message.new[0], bytes)
            found.append(int(message.new[0]))
    return found


def test_left_in_the_middle(source: str) -> None:
    """Cancelled while a thread receives: nothing hangs, and the connection closes."""

    async def receive() -> None:
        async with streaming(source) as stream:
            task = asyncio.create_task(rows(stream, 1000))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(receive(), 10))
