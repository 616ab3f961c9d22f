"""Moving large objects under the source's snapshot, in pieces, each under its own OID."""

from __future__ import annotations

from psycopg import AsyncConnection

from pglockstep.postgres.connect import End, translate

#: A large object's pieces, in bytes.
_PIECE = 1 << 20


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
