"""A TCP proxy between a client and a real server, which can do to a connection all that networks do.

It runs in a thread of its own. What is sent through it arrives in order, as late and as slowly as it is told to let
it; a connection that was silenced is never heard of again, as one whose other end lost its power.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

import pytest

#: Bytes read at once, and chunks on their way in one direction: whoever sends more waits, as with a full socket.
_CHUNK = 64 << 10
_UNDER_WAY = 64

_Wire = asyncio.Queue[tuple[float, bytes]]


class Proxy:
    """Passes connections to its `port` on to a server. Close it."""

    def __init__(self, host: str, port: int) -> None:
        self._server_at = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self._swallows = False
        self._listening: asyncio.Server | None = None
        #: how much later everything arrives, in seconds, and how many bytes a second pass in each direction; 0: any number
        self.latency = 0.0
        self.rate = 0
        #: how many connections were let in so far
        self.accepted = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._do(self._listen)

    def cut(self) -> None:
        """Close every connection in an orderly way, on both sides."""
        self._do(self._close_all)

    def reset(self) -> None:
        """Break every connection off, on both sides: RST, and what was under way is gone."""
        self._do(self._reset_all)

    def silence(self) -> None:
        """Half-open: from now on what anybody sends is swallowed, new connections are taken and never answered."""
        self._swallows = True
        self._do(self._silence_all)

    def refuse(self) -> None:
        """Take no new connections: they are refused."""
        self._do(self._stop_listening)

    def restore(self) -> None:
        """Be an ordinary network again. What was silenced stays dead, and is broken off."""
        self.latency, self.rate, self._swallows = 0.0, 0, False
        self._do(self._forget_the_silenced)
        self._do(self._listen)

    def close(self) -> None:
        """Stop listening and break everything off."""
        self._do(self._stop_listening)
        self._do(self._reset_all)
        self._do(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Callable[[], Awaitable[None]]) -> None:
        async def done() -> None:
            await work()

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(10)

    async def _listen(self) -> None:
        if self._listening is None:
            self._listening = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = self._listening.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def _close_all(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _reset_all(self) -> None:
        for writer in self._writers | self._silent:
            _break_off(writer)

    async def _silence_all(self) -> None:
        self._silent |= self._writers

    async def _forget_the_silenced(self) -> None:
        for writer in self._silent:
            _break_off(writer)
        self._silent.clear()

    async def _end(self) -> None:
        deadline = self._loop.time() + 5
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            # who was accepted just before we stopped listening, too
            await self._reset_all()
            await asyncio.wait(others, timeout=0.2)
            if self._loop.time() > deadline:
                break

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._swallows:
            self._silent.add(writer)
            await self._swallow(reader)
            return
        self._writers.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._server_at)
        except OSError:
            self._writers.discard(writer)
            _break_off(writer)
            return
        both = {writer, there_writer}
        self._writers.add(there_writer)
        try:
            await asyncio.gather(
                self._pump(reader, there_writer), self._pump(there_reader, writer), return_exceptions=True
            )
        finally:
            self._writers -= both
            for each in both - self._silent:
                each.close()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        try:
            while await reader.read(_CHUNK):
                pass
        except OSError:
            pass

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one direction of a connection until either side ends it."""
        wire: _Wire = asyncio.Queue(_UNDER_WAY)
        sending = asyncio.create_task(self._send(wire, writer))
        try:
            while data := await reader.read(_CHUNK):
                if writer not in self._silent:
                    await wire.put((self._loop.time() + self.latency, data))
        finally:
            await wire.put((0.0, b""))
            await sending
            if writer not in self._silent:
                writer.close()

    async def _send(self, wire: _Wire, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                due, data = await wire.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    return
                if writer in self._silent:
                    continue
                writer.write(data)
                await writer.drain()
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
        except OSError:
            # the other side is gone: what is still on its way has nowhere to go
            while (await wire.get())[1]:
                pass


def _break_off(writer: asyncio.StreamWriter) -> None:
    found: socket.socket | None = writer.get_extra_info("socket")
    if found is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class MakeProxy(Protocol):
    def __call__(self, port: int) -> Proxy: ...


@pytest.fixture
def make_proxy() -> Iterator[MakeProxy]:
    """Makes a proxy before a server on the loopback interface; it is gone after the test."""
    made: list[Proxy] = []

    def make(port: int) -> Proxy:
        made.append(Proxy("127.0.0.1", port))
        return made[-1]

    yield make
    for each in made:
        each.close()
