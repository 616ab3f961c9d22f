"""Both ends as a poll sees them: the source by a snapshot, which shows one moment, the target as it stands while nobody applies.

Nothing is written on the source: an ordinary snapshot is exported there by a session that reads, and shared by as many as read
at once. On a standby that works just as well. A table of the source's is locked as its readers lock it, and for no longer than a
part of it is read; one that was truncated or rewritten behind the snapshot is not read at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from pglockstep.compare.pairing import Pairing
from pglockstep.compare.readings import Place, unread
from pglockstep.compare.texts import Texts
from pglockstep.errors import Inconclusive, TargetBusy
from pglockstep.postgres.connect import End, connect, hang_up, translate
from pglockstep.postgres.moments import Moment, holds, use_snapshot
from pglockstep.progress import target as progress

#: A poll leaves the servers' other work alone: no workers of theirs, and no time spent on compiling.
_QUIET = "SET max_parallel_workers_per_gather = 0; SET jit = off"


class Sight:
    """At most `jobs` pairs of sessions, each for one reader at a time. Use `opened`."""

    def __init__(
        self,
        ends: tuple[End, End],
        link_id: str,
        jobs: int,
        holder: AsyncConnection[TupleRow],
        moment: Moment,
    ) -> None:
        self.ends = ends
        self.holder = holder
        self.moment = moment
        self._link_id = link_id
        self._turns = asyncio.Semaphore(jobs)
        self._free: list[tuple[Place, Place]] = []
        self._stack = AsyncExitStack()
        self._sessions: list[AsyncConnection[TupleRow]] = []

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, ends: tuple[End, End], link_id: str, jobs: int, holder: AsyncConnection[TupleRow], moment: Moment
    ) -> AsyncIterator[Sight]:
        """That of `moment`, which `holder` keeps open; of that link's target, or, without an id, what is left of it."""
        sight = cls(ends, link_id, jobs, holder, moment)
        async with sight._stack:
            yield sight

    def hang_up(self) -> None:
        """End all sessions without a word: whoever waits for an answer hears that there will be none."""
        for conn in (self.holder, *self._sessions):
            hang_up(conn)

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Place, Place]]:
        """Sessions at the source, in a transaction that sees the moment, and at the target."""
        async with self._turns:
            found = self._free.pop() if self._free else await self._opened()
            try:
                yield found
            finally:
                # one that was left in the middle of something is not used again: it is closed with the others
                there, here = (each.conn.info.transaction_status for each in found)
                if (there, here) == (TransactionStatus.INTRANS, TransactionStatus.IDLE):
                    self._free.append(found)

    @asynccontextmanager
    async def table(self, pairing: Pairing) -> AsyncIterator[tuple[Texts, Texts]]:
        """The table as both ends have it, locked on the source as readers lock, until the block ends.

        Raises the ends' errors, and `Inconclusive` where just this table cannot be read now, with the reason.
        """
        async with self.pair() as (there, here):
            try:
                await there.conn.execute("SAVEPOINT table_read")
                if not await holds(there.conn, pairing.source):
                    await there.conn.execute("ROLLBACK TO SAVEPOINT table_read")
                    raise Inconclusive("it was truncated or rewritten on the source meanwhile")
                yield Texts(there, pairing), Texts(here, pairing)
            except psycopg.Error as error:
                raise unread(there.end, pairing, error) from error
            finally:
                # gives the lock back: the source's users may truncate what has been read
                with suppress(psycopg.Error):
                    await there.conn.execute("ROLLBACK TO SAVEPOINT table_read")

    async def _opened(self) -> tuple[Place, Place]:
        source, target = self.ends
        there = await connect(source, "poll")
        self._stack.push_async_callback(there.close)
        here = await connect(target, "poll", default_transaction_read_only="on")
        self._stack.push_async_callback(here.close)
        for end, conn in zip(self.ends, (there, here), strict=True):
            with translate(end):
                await conn.execute(_QUIET, prepare=False)
        with translate(source):
            await there.execute("BEGIN")
            # only the very database that exported it knows it
            await use_snapshot(there, self.moment.snapshot)
        with translate(target):
            record = await progress.demand(here) if self._link_id else None
        if record is not None and record.id != self._link_id:
            raise TargetBusy("the target belongs to another link now", hint="it is looked at again")
        self._sessions += (there, here)
        places = Place(source, there), Place(target, here)
        for each in places:
            await each.demand_same_hashes()
        return places
