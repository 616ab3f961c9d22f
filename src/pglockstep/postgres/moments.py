"""Moments of a source: a snapshot that shows it as of exactly one LSN, which comes from making a slot."""

from __future__ import annotations

import asyncio

import msgspec
from psycopg import AsyncConnection, sql

from pglockstep.errors import SourceError, SourceLacks
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End
from pglockstep.postgres.replication import NewSlot, ReplicationConnection
from pglockstep.units import Lsn

#: How many lock_timeouts a slot may wait for the source's open transactions; it holds up nobody meanwhile.
_SLOT_PATIENCE = 6


class Moment(msgspec.Struct, frozen=True):
    """A snapshot of the source as of `lsn`, for as long as it is open."""

    lsn: Lsn
    snapshot: str


async def use_snapshot(conn: AsyncConnection, snapshot: str) -> None:
    """Let the transaction just begun see what `snapshot` shows."""
    await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    # SET TRANSACTION SNAPSHOT takes a literal only; the name is the server's own
    await conn.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode())


async def holds(conn: AsyncConnection, table: Table) -> bool:
    """Lock a table in the transaction that sees a moment, and tell whether it still holds what the moment shows of it.

    TRUNCATE and rewrites are not MVCC-safe: to an older snapshot the new file is empty. Raises psycopg's errors.
    """
    name = table.name.sql()
    check = sql.SQL(
        "LOCK TABLE ONLY {} IN ACCESS SHARE MODE; "
        "SELECT FROM pg_catalog.pg_class WHERE oid = {} AND oid = pg_catalog.to_regclass({}) "
        "AND relfilenode = pg_catalog.pg_relation_filenode(oid)"
    ).format(name, sql.Literal(table.oid), sql.Literal(name.as_string()))
    cursor = await conn.execute(check, prepare=False)
    cursor.nextset()
    return cursor.rowcount == 1


def slot_patience(end: End) -> float:
    """How long making a slot waits for the source's open transactions, in seconds."""
    return end.lock_timeout * _SLOT_PATIENCE


async def create_slot(
    stream: ReplicationConnection, conn: AsyncConnection, end: End, name: str, *, temporary: bool = False
) -> NewSlot:
    """Make the slot, or say who keeps it waiting: it needs every transaction open now to end first."""
    patience = slot_patience(end)
    try:
        async with asyncio.timeout(patience):
            return await stream.create_slot(name, temporary=temporary)
    except TimeoutError:
        waited_for = await _open_transactions(conn)
        raise SourceLacks(
            f"making a replication slot waited {patience:.0f} s for transactions that are open on the source{waited_for}",
            hint="let them end (COMMIT, ROLLBACK PREPARED '…', or pg_terminate_backend(pid)), then try again",
        ) from None
    except SourceError as error:
        if "all replication slots are in use" in error.message:
            raise SourceLacks(
                "the source has no free replication slot",
                hint="drop one that nobody needs, or raise max_replication_slots and restart that server",
            ) from error
        raise


async def _open_transactions(conn: AsyncConnection) -> str:
    cursor = await conn.execute(
        "SELECT 'pid ' || pid || coalesce(' (' || nullif(application_name, '') || ')', '') || ', open for ' "
        "|| round(extract(epoch FROM pg_catalog.clock_timestamp() - xact_start)) || ' s' "
        "FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() "
        "UNION ALL SELECT 'prepared transaction ' || quote_literal(gid) || ' in database ' || database "
        "FROM pg_catalog.pg_prepared_xacts LIMIT 5"
    )
    found = [row[0] async for row in cursor]
    return ": " + "; ".join(found) if found else ""
