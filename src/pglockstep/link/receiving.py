"""What the source has sent until now, brought into the journal: for whoever has to know of it before anything is applied."""

from __future__ import annotations

import asyncio
import time

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.errors import SourceBusy, first_of
from pglockstep.journal.journal import Journal
from pglockstep.link import pinning, session
from pglockstep.link.intake import Intake
from pglockstep.link.link import Link
from pglockstep.postgres.connect import End
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn


async def received(link: Link, conn: AsyncConnection[TupleRow], source: End, record: LinkRecord) -> Lsn:
    """Return once everything that is committed on the source now is in the journal's files; up to where that is.

    A daemon's own stream is waited for; without one it is received here, by whoever holds the link's lock, and nothing of it is
    confirmed. `conn` is a session at the source. Raises the source's errors, and what says that the stream cannot go on.
    """
    assert record.progress is not None
    if link.polls:
        # whoever applies polls: what is not in the journal has not been looked at
        return await reached(link, record) or record.progress
    barrier = await session.emit_barrier(conn, source, record.id)
    if link.receives is not None:
        await durable_up_to(link.receives, barrier, source)
        return barrier
    async with link.journal(conn, source, record) as journal:
        journal.needs(record.progress)
        intake = Intake(source, record, journal, lambda: Lsn(0))
        try:
            async with asyncio.TaskGroup() as tasks:
                side = [
                    tasks.create_task(journal.run(), name="journal"),
                    tasks.create_task(intake.run(), name="intake"),
                ]
                await durable_up_to(journal, barrier, source)
                for task in side:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise first_of(group) from group
    return barrier


async def reached(link: Link, record: LinkRecord) -> Lsn | None:
    """What a snapshot of a source that is polled counts as later than: all that is written of it. None if it is streamed."""
    if not link.polls:
        return None
    if link.receives is not None:
        assert link.poller is not None
        return max(link.receives.position, link.poller.written)
    return await pinning.reached(link, record)


async def durable_up_to(journal: Journal, barrier: Lsn, source: End) -> None:
    """Wait until the journal has everything before `barrier` on its disk; not for a source that is silent, or a full disk.

    A source that is heard has its reasons: its position stands still in a large transaction, and while it reads again what was
    received before.
    """
    began = time.monotonic()
    while journal.durable < barrier:
        if journal.trouble:
            raise SourceBusy(
                f"what the source has done since cannot be looked at: {journal.trouble}",
                hint="make room there; it is tried again",
            )
        if time.monotonic() - max(began, journal.heard_at) > source.silence_timeout:
            raise SourceBusy(
                f"the source has been sending nothing for {source.silence_timeout:g} s, though it has more",
                hint="pglockstep status says what its stream waits for; it is tried again",
            )
        await asyncio.sleep(0.005)
