"""Moving rows and large objects under the source's snapshot: a relay of COPY's own text.

Text travels unread from one server to the other; both sessions have the same pinned settings, so each value
means the same on both ends.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress

from psycopg import AsyncConnection, sql

from pglockstep.errors import SourceBusy
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, translate

#: Rows gathered before they are handed on, and a large object's pieces, in bytes.
_CHUNK = 1 << 16
_PIECE = 1 << 20


async def copy_table(
    source: AsyncConnection, target: AsyncConnection, ends: tuple[End, End], table: Table
) -> int:
    """Copy one table's own rows (not its children's); returns how many. Generated columns compute themselves."""
    columns: sql.Composable = sql.SQL("")
    if table.data_columns:
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.data_columns)
        columns = sql.SQL(" ({})").format(names)
    copy_out = sql.SQL("COPY {}{} TO STDOUT").format(table.name.sql(), columns)
    copy_in = sql.SQL("COPY {}{} FROM STDIN").format(table.name.sql(), columns)
    with translate(ends[1]):
        async with target.cursor() as into:
            chunks = _chunks(source, ends[0], copy_out)
            try:
                async with into.copy(copy_in) as sink:
                    async for chunk in chunks:
                        await sink.write(chunk)
            finally:
                # left half way, the source's COPY is cancelled: that must not hide why
                with suppress(SourceBusy):
                    await chunks.aclose()
            return into.rowcount


async def _chunks(source: AsyncConnection, end: End, copy_out: sql.Composed) -> AsyncGenerator[bytes, None]:
    """The rows of a COPY, many to a chunk: one call a row would cost more than the row."""
    gathered = bytearray()
    with translate(end):
        async with source.cursor() as cursor, cursor.copy(copy_out) as rows:
            async for row in rows:
                gathered += row
                if len(gathered) >= _CHUNK:
                    yield bytes(gathered)
                    gathered.clear()
    if gathered:
        yield bytes(gathered)


async def copy_large_objects(source: AsyncConnection, target: AsyncConnection, ends: tuple[End, End]) -> int:
    """Copy every large object under its own OID, in pieces; returns how many."""
    with translate(ends[0]):
        cursor = await source.execute("SELECT oid FROM pg_catalog.pg_largeobject_metadata ORDER BY oid")
        oids = [row[0] async for row in cursor]
    for oid in oids:
        with translate(ends[1]):
            await target.execute("SELECT pg_catalog.lo_create($1::bigint::oid)", [oid])
        offset = 0
        while True:
            with translate(ends[0]):
                cursor = await source.execute(
                    "SELECT pg_catalog.lo_get($1::bigint::oid, $2::bigint, $3::integer)",
                    [oid, offset, _PIECE],
                )
                row = await cursor.fetchone()
            piece = row[0] if row else b""
            if piece:
                with translate(ends[1]):
                    await target.execute(
                        "SELECT pg_catalog.lo_put($1::bigint::oid, $2::bigint, $3::bytea)",
                        [oid, offset, piece],
                    )
            if len(piece) < _PIECE:
                break
            offset += len(piece)
    return len(oids)
