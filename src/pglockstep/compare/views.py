"""Which materialised views hold something on the source and nothing on the target."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from pglockstep.postgres.catalog import statement
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.names import QualifiedName


async def not_populated(
    source: AsyncConnection[Any], target: AsyncConnection[Any], ends: tuple[End, End]
) -> list[QualifiedName]:
    """Those that both ends have, and that can be queried on the source alone, sorted. Raises the ends' errors.

    What one that is filled holds is nobody's difference: each end refreshes its own. One that is not refuses every query.
    """
    filled = await _views(source, ends[0], every=False)
    return sorted(
        filled & (await _views(target, ends[1], every=True)) - await _views(target, ends[1], every=False)
    )


async def _views(conn: AsyncConnection[Any], end: End, *, every: bool) -> set[QualifiedName]:
    with translate(end):
        cursor = await conn.execute(statement("materialized_views"), [every])
        return {QualifiedName(schema, name) async for schema, name in cursor}
