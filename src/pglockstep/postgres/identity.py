"""Who a server is, as far as it tells: what stays the same for as long as it is the same database with the same history.

Reads only.
"""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import class_row

from pglockstep.postgres.catalog import statement
from pglockstep.units import Lsn


class Identity(msgspec.Struct, frozen=True):
    """One database. `written` is how far its server's WAL is flushed; `tables` how many of users' it has."""

    system: str
    timeline: int
    database_oid: int
    database: str
    written: str
    tables: int

    @property
    def pin(self) -> str:
        """What tells this database from every other one: its cluster's system identifier and its OID."""
        return f"{self.system}/{self.database_oid}"

    @property
    def position(self) -> Lsn:
        """`written` as what it is."""
        return Lsn.parse(self.written)


async def read(conn: AsyncConnection[Any]) -> Identity:
    """Who the database behind `conn` is. Raises psycopg's errors."""
    async with conn.cursor(row_factory=class_row(Identity)) as cursor:
        await cursor.execute(statement("identity"))
        found = await cursor.fetchone()
    assert found is not None
    return found
