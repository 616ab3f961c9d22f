"""Moments of the source that a copy can be made of: the link's own, and later ones for what could not be copied then.

The first moment is where the link's slot starts; its publication and the replica identities that it needs are made
before it. A later one comes from a slot that goes with its session: the link's own slot keeps everything from the
first moment on, so a table copied later only skips what it holds already.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from psycopg import AsyncConnection

from pglockstep.copy import source as ours
from pglockstep.copy.ends import Ends
from pglockstep.copy.selection import Selection
from pglockstep.errors import SourceBusy, SourceError, SourceLacks
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.moments import Moment, create_slot, use_snapshot
from pglockstep.postgres.replication import NewSlot, ReplicationConnection
from pglockstep.postgres.snapshots import exported
from pglockstep.progress import target as progress
from pglockstep.progress.target import ChangedIdentity, LinkRecord

#: How often the set of tables may change under our hands while slot and publication are made.
_ATTEMPTS = 5


@asynccontextmanager
async def first(
    ends: Ends, record: LinkRecord, selection: Selection, *, polls: bool = False
) -> AsyncIterator[tuple[Moment, list[Table]]]:
    """Make the link's identities, publication and slot; the moment is where the slot starts, with what there is then.

    Where the source is polled nothing is made there, and the moment is an ordinary snapshot.
    """
    if polls:
        async with later(ends, record, polls=True) as moment:
            yield moment, await carried(ends.source_conn, ends.source, selection, moment.snapshot)
        return
    stream = await _open(ends)
    try:
        await mark(ends, record, stream.conn)
        slot, tables = await _prepare_source(ends, record, selection, stream)
        yield Moment(slot.lsn, slot.snapshot), tables
    finally:
        await stream.close()


@asynccontextmanager
async def later(ends: Ends, record: LinkRecord, *, polls: bool = False) -> AsyncIterator[Moment]:
    """A moment after the first one. That it cannot be had right now passes by itself."""
    if polls:
        async with exported(ends.source, "copy") as (conn, moment, _):
            await mark(ends, record, conn)
            yield moment
        return
    stream = await _open(ends)
    try:
        await mark(ends, record, stream.conn)
        try:
            slot = await create_slot(
                stream, ends.source_conn, ends.source, f"{record.slot}_later", temporary=True
            )
        except SourceLacks as error:
            raise SourceBusy(error.message, hint=error.hint) from error
        yield Moment(slot.lsn, slot.snapshot)
    finally:
        await stream.close()


async def mark(ends: Ends, record: LinkRecord, *conns: AsyncConnection) -> None:
    """Mark sessions of the source's as at work on this link: whoever takes over ends them first."""
    with translate(ends.source):
        for conn in (ends.source_conn, *conns):
            await ours.mark_at_work(conn, record.id)


async def _open(ends: Ends) -> ReplicationConnection:
    # making the slot has a patience of its own
    return await ReplicationConnection.open(msgspec.structs.replace(ends.source, lock_timeout=0.0))


async def _prepare_source(
    ends: Ends, record: LinkRecord, selection: Selection, stream: ReplicationConnection
) -> tuple[NewSlot, list[Table]]:
    """Identities, publication, slot, in this order; again if a table came or went meanwhile."""
    conn, end = ends.source_conn, ends.source
    for _ in range(_ATTEMPTS):
        tables = await carried(conn, end, selection)
        keyless = ours.without_identity(tables)
        with translate(ends.target):
            await progress.remember_identities(
                ends.target_conn,
                record.id,
                [ChangedIdentity(table.name, table.replica_identity) for table in keyless],
            )
        await ours.set_full_identity(conn, end, [table.name for table in keyless])
        await ours.create_publication(conn, end, record.publication, tables)
        slot = await create_slot(stream, conn, end, record.slot)
        seen = await carried(conn, end, selection, slot.snapshot)
        same = [(table.oid, table.name) for table in seen] == [(table.oid, table.name) for table in tables]
        if same and not ours.without_identity(seen):
            return slot, seen
        await ours.drop_slot(conn, end, record.slot)
        await ours.drop_publication(conn, end, record.publication)
    raise SourceError(
        "tables keep coming and going on the source; no moment was found at which to start",
        hint="try again when no DDL is running there",
    )


async def carried(
    conn: AsyncConnection, end: End, selection: Selection, snapshot: str | None = None
) -> list[Table]:
    """The source's tables that a link carries, now or as a snapshot shows them."""
    with translate(end):
        async with conn.transaction():
            if snapshot:
                await use_snapshot(conn, snapshot)
            return [table for table in await catalog.tables(conn) if selection.carries(*table.name)]
