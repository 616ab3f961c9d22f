"""What would fire in a database for rows that we write there: triggers, foreign keys, rules."""

from __future__ import annotations

from typing import NamedTuple

from psycopg import AsyncConnection

from pglockstep.postgres.catalog import statement
from pglockstep.postgres.names import QualifiedName


class Firing(NamedTuple):
    """A table, and a trigger, foreign key or rule that would fire for its rows."""

    table: QualifiedName
    kind: str
    trigger: str


async def would_fire(conn: AsyncConnection, *, replica: bool) -> list[Firing]:
    """All of them in the database behind `conn`. Raises psycopg's errors.

    `replica`: whether we write under ``session_replication_role = replica``, where most stay quiet.
    """
    cursor = await conn.execute(statement("firing"), [replica])
    return [Firing(QualifiedName(schema, name), *what) async for schema, name, *what in cursor]
