"""Tables that do not follow their source any more: what it did to them was rejected, and nothing has undone that since."""

from __future__ import annotations

from collections.abc import Iterable

from psycopg import AsyncConnection

from pglockstep.postgres.names import QualifiedName


async def read(conn: AsyncConnection) -> dict[QualifiedName, str]:
    """The tables, each with the incident by which it came to that. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT schema_name, table_name, incident FROM pglockstep.detached ORDER BY 1, 2"
    )
    return {QualifiedName(schema, name): incident async for schema, name, incident in cursor}


async def listed(conn: AsyncConnection) -> list[QualifiedName]:
    """The tables, also where our schema is of an older version, or is not whole. Raises psycopg's errors."""
    cursor = await conn.execute("SELECT pg_catalog.to_regclass('pglockstep.detached') IS NOT NULL")
    return list(await read(conn)) if await cursor.fetchone() == (True,) else []


async def detach(conn: AsyncConnection, tables: Iterable[QualifiedName], incident: str) -> None:
    """Let these tables not follow any more. Raises psycopg's errors."""
    async with conn.transaction():
        for schema, name in tables:
            await conn.execute(
                "INSERT INTO pglockstep.detached (schema_name, table_name, incident) VALUES ($1, $2, $3) "
                "ON CONFLICT (schema_name, table_name) DO UPDATE SET incident = EXCLUDED.incident",
                [schema, name, incident],
            )


async def attach(conn: AsyncConnection, tables: Iterable[QualifiedName]) -> None:
    """Let these tables follow again; belongs into the commit that has brought them level. Raises psycopg's errors."""
    for schema, name in tables:
        await conn.execute(
            "DELETE FROM pglockstep.detached WHERE schema_name = $1 AND table_name = $2", [schema, name]
        )
