"""A replication slot as its server has it: whether it still stands, and how much WAL is kept for it.

What follows from it is for others to judge. Read-only, but for `note_transactions`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import class_row

from pglockstep.postgres.catalog import statement
from pglockstep.units import Lsn

#: How long the server may take to note its transactions, in milliseconds.
_PATIENCE = 2000


class Slot(msgspec.Struct, frozen=True):
    """One slot. `retained` and `limit` are bytes of WAL; `limit` is None where the server keeps any amount.

    `invalidation_reason` is PostgreSQL's own word, from 17 on; `written` is how far the server's WAL is flushed.
    """

    name: str
    active: bool
    wal_status: str
    invalidation_reason: str
    confirmed: Lsn | None
    retained: int
    limit: int | None
    written: Lsn

    @property
    def lost(self) -> bool:
        """Whether the server has given it up: nothing can be streamed from it any more."""
        return self.wal_status == "lost"

    @property
    def share(self) -> int | None:
        """How much of what the server would keep it keeps already, in percent; None where it keeps any amount."""
        if self.limit is None:
            return None
        return 100 if self.lost or not self.limit else self.retained * 100 // self.limit


async def read(conn: AsyncConnection[Any], name: str) -> Slot | None:
    """The slot of this name in the database behind `conn`; None where there is none. Raises psycopg's errors."""
    async with conn.cursor(row_factory=class_row(Slot)) as cursor:
        await cursor.execute(statement("slot"), [name])
        return await cursor.fetchone()


async def note_transactions(conn: AsyncConnection[Any], name: str) -> None:
    """Have the server note in its WAL which transactions are open. Raises psycopg's errors; nobody waits for us meanwhile.

    A slot's WAL is let go up to such a note only, and by itself a server writes one every 15 seconds. From 16 on there is a
    function for it, which roles may be granted; making a slot does it as well: `name` is given to one that goes at once,
    and that the server may still be waiting to complete when our patience ends.
    """
    cursor = await conn.execute(
        "SELECT pg_catalog.to_regprocedure('pg_catalog.pg_log_standby_snapshot()') IS NOT NULL AND "
        "pg_catalog.has_function_privilege(pg_catalog.to_regprocedure('pg_catalog.pg_log_standby_snapshot()'), 'EXECUTE')"
    )
    if await cursor.fetchone() == (True,):
        await conn.execute("SELECT pg_catalog.pg_log_standby_snapshot()")
        return
    await conn.execute(f"SET statement_timeout = {_PATIENCE}")
    try:
        await conn.execute(
            "SELECT pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput', true)", [name]
        )
        await conn.execute("SELECT pg_catalog.pg_drop_replication_slot($1)", [name])
    finally:
        await conn.execute("SET statement_timeout = 0")
