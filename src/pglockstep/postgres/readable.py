"""Waiting for a socket to have something to read, thousands of times a second.

Registering with the event loop and taking it back again for every wait costs more than the wait: here a socket
stays registered as long as somebody waits for it again and again.
"""

from __future__ import annotations

import asyncio


class Readable:
    """Wakes the one task that waits for `socket`, or tells it that nothing came for `patience` seconds, if any are given.

    Close it before the socket.
    """

    def __init__(self, socket: int, patience: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        # one timer that moves on behind the waits: one for each of them would cost more than they do
        self._timer: asyncio.TimerHandle | None = None
        self._waits_since = 0.0
        self._socket = socket
        self._turn: asyncio.Future[None] | None = None
        self._registered = False

    async def wait(self) -> None:
        """Return as soon as there is something to read. Raises `TimeoutError` when patience ends."""
        self._waits_since = self._loop.time()
        if self._patience is not None and self._timer is None:
            self._timer = self._loop.call_later(self._patience, self._look)
        self._turn = self._loop.create_future()
        if not self._registered:
            self._loop.add_reader(self._socket, self._wake)
            self._registered = True
        try:
            await self._turn
        finally:
            self._turn = None

    def close(self) -> None:
        """Leave the socket alone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._leave()

    def _look(self) -> None:
        self._timer = None
        if self._turn is None or self._turn.done():
            return
        assert self._patience is not None
        left = self._waits_since + self._patience - self._loop.time()
        if left <= 0:
            self._turn.set_exception(TimeoutError())
        else:
            self._timer = self._loop.call_later(left, self._look)

    def _leave(self) -> None:
        if self._registered:
            self._loop.remove_reader(self._socket)
            self._registered = False

    def _wake(self) -> None:
        if self._turn is None:
            # nobody waits: whoever reads from it is at something else, and would be told again and again
            self._leave()
        elif not self._turn.done():
            self._turn.set_result(None)
