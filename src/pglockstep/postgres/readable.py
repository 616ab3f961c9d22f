"""Waiting for a socket to have something to read, thousands of times a second.

Registering with the event loop and taking it back again for every wait costs more than the wait: here a socket
stays registered as long as somebody waits for it again and again.
"""

from __future__ import annotations

import asyncio


class Readable:
    """Wakes the one task that waits for `socket`. Close it before the socket."""

    def __init__(self, socket: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket
        self._turn: asyncio.Future[None] | None = None
        self._registered = False

    async def wait(self) -> None:
        """Return as soon as there is something to read."""
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
        if self._registered:
            self._loop.remove_reader(self._socket)
            self._registered = False

    def _wake(self) -> None:
        if self._turn is None:
            # nobody waits: whoever reads from it is at something else, and would be told again and again
            self.close()
        elif not self._turn.done():
            self._turn.set_result(None)
