"""A replication slot as its server has it: whether it still stands, and how much WAL is kept for it.

Read-only. What follows from it is for others to judge.
"""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import class_row

from pglockstep.postgres.catalog import statement
from pglockstep.units import Lsn


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
