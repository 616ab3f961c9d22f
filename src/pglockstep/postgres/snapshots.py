"""A snapshot of a source that costs it nothing: an ordinary one, exported by a session that only reads. No slot is made for it.

Its LSN is no exact one, as a slot's is: everything before it is shown, and something behind it may be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.moments import Moment
from pglockstep.units import Lsn

_POSITION = (
    "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() "
    "ELSE pg_catalog.pg_current_wal_flush_lsn() END, "
    "(extract(epoch FROM pg_catalog.clock_timestamp() - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint, "
    "pg_catalog.pg_current_snapshot()::text"
)


class Position(msgspec.Struct, frozen=True):
    """Where a source stands: how far its WAL is flushed, or replayed; its clock, in microseconds since 2000-01-01 UTC; and which
    transactions it takes for over (`seen`): where that is the same, nothing was committed in between.
    """

    lsn: Lsn
    time: int
    seen: str


async def position(conn: AsyncConnection[TupleRow], source: End) -> Position:
    """Where the source behind `conn` stands, as its session or its open snapshot sees it."""
    with translate(source):
        cursor = await conn.execute(_POSITION)
        row = await cursor.fetchone()
    assert row is not None
    return Position(*row)


@asynccontextmanager
async def exported(
    source: End, purpose: str
) -> AsyncIterator[tuple[AsyncConnection[TupleRow], Moment, Position]]:
    """A snapshot of the source's, and the session that holds it open; its LSN is one that it shows everything before."""
    conn = await connect(source, purpose)
    try:
        before = await position(conn, source)
        with translate(source):
            await conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor = await conn.execute("SELECT pg_catalog.pg_export_snapshot()")
            row = await cursor.fetchone()
        assert row is not None
        shown = await position(conn, source)
        yield conn, Moment(before.lsn, row[0]), Position(before.lsn, before.time, shown.seen)
    finally:
        await conn.close()
