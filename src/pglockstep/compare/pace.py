"""How much of the time a comparison works, and what it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Pace:
    """Works for `share` of the time, rests for the other; `ready` is awaited before each piece of work."""

    def __init__(self, share: float = 1.0, ready: Callable[[], Awaitable[None]] | None = None) -> None:
        self._share = share
        self._ready = ready

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """A piece of work, with the rest behind it."""
        if self._ready is not None:
            await self._ready()
        began = time.monotonic()
        yield
        if self._share < 1.0:
            await asyncio.sleep((time.monotonic() - began) * (1.0 / self._share - 1.0))


UNHURRIED = Pace()
