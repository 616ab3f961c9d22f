"""The sessions that a comparison reads over: a few pairs of them, one at each end, opened when they are first needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from psycopg.pq import TransactionStatus

from pglockstep.compare.pace import UNHURRIED, Pace
from pglockstep.compare.readings import Place
from pglockstep.postgres.connect import End, connect

T = TypeVar("T")
U = TypeVar("U")

#: A comparison leaves the servers' other work alone: no workers of theirs, and no time spent on compiling.
_SETTINGS = {"max_parallel_workers_per_gather": "0", "jit": "off", "default_transaction_read_only": "on"}


class Sessions:
    """At most `most` pairs of sessions, each for one reader at a time; `pace` says how much of the time they work."""

    def __init__(self, ends: tuple[End, End], most: int, pace: Pace = UNHURRIED) -> None:
        self._ends = ends
        self._free: list[tuple[Place, Place]] = []
        self._turns = asyncio.Semaphore(most)
        self._stack = AsyncExitStack()
        self._pace = pace

    async def __aenter__(self) -> Sessions:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Place, Place]]:
        """A pair at the source and at the target, for the time being. Raises the ends' errors."""
        async with self._turns:
            pair = self._free.pop() if self._free else await self._opened()
            try:
                async with self._pace.kept():
                    yield pair
            finally:
                # one that was left in the middle of something is not used again: it is closed with the others
                if all(each.conn.info.transaction_status == TransactionStatus.IDLE for each in pair):
                    self._free.append(pair)

    async def _opened(self) -> tuple[Place, Place]:
        places = []
        for end in self._ends:
            conn = await connect(end, "compare", replication=False, **_SETTINGS)
            self._stack.push_async_callback(conn.close)
            places.append(Place(end, conn))
            await places[-1].demand_same_hashes()
        return places[0], places[1]


async def both(here: Awaitable[T], there: Awaitable[U]) -> tuple[T, U]:
    """Ask both ends at the same time; where one fails, the other is called off."""
    try:
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(_of(here)), group.create_task(_of(there))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return first.result(), second.result()


async def _of(awaitable: Awaitable[T]) -> T:
    return await awaitable
