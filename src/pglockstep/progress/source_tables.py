"""The source's tables that the target follows, by their OIDs there: a name alone does not tell a table from its successor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from psycopg import AsyncConnection

from pglockstep.postgres.names import QualifiedName


async def read(conn: AsyncConnection) -> dict[QualifiedName, int]:
    """The tables that are followed; empty before any was noted. Raises psycopg's errors."""
    cursor = await conn.execute("SELECT schema_name, table_name, source_oid FROM pglockstep.source_table")
    return {QualifiedName(schema, name): oid async for schema, name, oid in cursor}


async def note(conn: AsyncConnection, tables: Mapping[QualifiedName, int]) -> None:
    """These tables are followed from now on. Raises psycopg's errors."""
    if tables:
        await conn.execute(
            "INSERT INTO pglockstep.source_table (schema_name, table_name, source_oid) "
            "SELECT * FROM unnest($1::text[], $2::text[], $3::oid[]) "
            "ON CONFLICT (schema_name, table_name) DO UPDATE SET source_oid = EXCLUDED.source_oid",
            [[each.schema for each in tables], [each.name for each in tables], list(tables.values())],
        )


async def forget(conn: AsyncConnection, tables: Iterable[QualifiedName]) -> None:
    """These are not followed any more. Raises psycopg's errors."""
    names = list(tables)
    await conn.execute(
        "DELETE FROM pglockstep.source_table AS s USING unnest($1::text[], $2::text[]) AS gone (schema_name, table_name) "
        "WHERE (s.schema_name, s.table_name) = (gone.schema_name, gone.table_name)",
        [[each.schema for each in names], [each.name for each in names]],
    )
