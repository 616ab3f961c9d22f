"""Receiving in a thread, beside whatever else there is to do: a source that has much to send is not kept waiting.

Only where there is a compiled half (`copy_data.beside`). While this is open nobody else reads from the connection, and who
sends over it does so inside of `sending`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from psycopg import pq

from pglockstep.postgres import copy_data
from pglockstep.postgres.readable import Readable
from pglockstep.threads import in_thread

#: So many bytes are received ahead.
_KEPT = 2 << 20


class Beside:
    """Receives in `thread` until the source has little to send, or the connection is at its end. Close it."""

    def __init__(self, pgconn: pq.abc.PGconn, patience: float, thread: ThreadPoolExecutor) -> None:
        self._bell = os.pipe()
        for each in self._bell:
            os.set_blocking(each, False)
        self._receiver = copy_data.Receiver(pgconn, self._bell, _KEPT)
        self._readable = Readable(self._bell[0], patience)
        self._running = asyncio.ensure_future(
            in_thread(self._receiver.run, executor=thread, hurry=self._receiver.stop)
        )

    async def take(self) -> list[bytes]:
        """What has arrived; waits for it, and is empty at the end. Raises `TimeoutError` when patience ends."""
        while not (messages := self._receiver.take()):
            if self._receiver.ended:
                # what came just before that
                return self._receiver.take()
            await self._readable.wait()
        return messages

    @contextmanager
    def sending(self) -> Iterator[None]:
        """The connection is the caller's inside."""
        self._receiver.hold()
        try:
            yield
        finally:
            self._receiver.release()

    async def close(self) -> None:
        """Leave the connection alone."""
        self._readable.close()
        self._receiver.stop()
        try:
            await self._running
        finally:
            for each in self._bell:
                os.close(each)
