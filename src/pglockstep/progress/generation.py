"""A number that is counted up on both ends while all is well: an end that has a lower one than the other is an older copy.

LSNs do not tell: a copy of yesterday's that is written to comes past every position that was ever reached. The source is
marked first, by a comment on the link's publication, and the target afterwards: so the source's number is never the lower one
unless it was put back.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

_COMMENT = "pglockstep counts here, so that an older copy of this database is known: {}"


async def on_target(conn: AsyncConnection[Any]) -> int:
    """The target's number; 0 before there was any. Raises psycopg's errors."""
    cursor = await conn.execute("SELECT pg_catalog.to_regclass('pglockstep.generation') IS NOT NULL")
    if await cursor.fetchone() != (True,):
        return 0
    cursor = await conn.execute("SELECT number FROM pglockstep.generation")
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def on_source(conn: AsyncConnection[Any], publication: str) -> int | None:
    """The source's number; None where it was never marked, or somebody has changed the mark. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication WHERE pubname = $1",
        [publication],
    )
    row = await cursor.fetchone()
    found = re.search(r": (\d{1,18})$", row[0]) if row is not None and row[0] is not None else None
    return int(found[1]) if found else None


async def mark_source(conn: AsyncConnection[Any], publication: str, number: int) -> bool:
    """Mark the source, so that it is on its disk; false where it cannot be. Raises psycopg's errors."""
    async with conn.transaction():
        await conn.execute("SET LOCAL synchronous_commit = on")
        try:
            async with conn.transaction():
                await conn.execute(
                    sql.SQL("COMMENT ON PUBLICATION {} IS {}").format(
                        sql.Identifier(publication), sql.Literal(_COMMENT.format(number))
                    )
                )
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject):
            # somebody else's by now, or gone: whoever streams will say so
            return False
    return True


async def mark_target(conn: AsyncConnection[Any], number: int) -> None:
    """Mark the target, once the source is. Raises psycopg's errors."""
    await conn.execute("UPDATE pglockstep.generation SET number = $1", [number])
