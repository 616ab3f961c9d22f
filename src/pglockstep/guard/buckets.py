"""Where two copies of a table differ, without moving its rows: each end sums its rows up in buckets by a hash of their text.

Only rows of buckets whose sums differ have to be looked at. No key is needed, and no order. Reads only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.errors import Inconclusive
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.row_texts import PROBE, PROBE_HASH, SEEDS, row_text, text_hash

#: A table up to this many bytes travels whole: that is sooner done than summing it up.
_SMALL: Final = 1 << 20
#: About so many bytes of a table share a bucket, and there are at most so many buckets.
_BUCKET_BYTES: Final = 32 << 10
_MOST_BUCKETS: Final = 1 << 16
#: From this share of buckets on that differ, the table travels whole.
_MOST_OF_IT: Final = 0.5

#: A session and the end that it leads to.
Place = tuple[End, AsyncConnection[TupleRow]]


class Buckets(msgspec.Struct, frozen=True):
    """Some of `count` buckets, a power of two."""

    count: int
    numbers: tuple[int, ...]

    def holds(self, columns: Sequence[str], encoding: str) -> sql.Composed:
        """The condition that a row is in one of them."""
        return sql.SQL("{} & {} = ANY ({}::bigint[])").format(
            text_hash(row_text(columns, encoding), SEEDS[0]),
            sql.Literal(self.count - 1),
            sql.Literal(list(self.numbers)),
        )


def encoding_of(conn: AsyncConnection[Any]) -> str:
    """The encoding of the database behind `conn`."""
    return conn.info.parameter_status("server_encoding") or "UTF8"


async def size_of(place: Place, name: sql.Identifier) -> int:
    """How many bytes a table takes at that end."""
    end, conn = place
    with translate(end):
        cursor = await conn.execute(
            "SELECT pg_catalog.pg_table_size($1::text::regclass)", [name.as_string(conn)]
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def differing(
    one: Place, other: Place, name: sql.Identifier, columns: Sequence[str], size: int
) -> Buckets | None:
    """The buckets in which the two ends differ; None if the table, of `size` bytes on the larger end, had better travel whole.

    Raises the ends' errors, and `Inconclusive` where a server's hashes mean nothing elsewhere.
    """
    if size <= _SMALL or not columns:
        return None
    count = min(_MOST_BUCKETS, 1 << (size // _BUCKET_BYTES).bit_length())
    both = await asyncio.gather(
        *(_sums(place, name, columns, count) for place in (one, other)), return_exceptions=True
    )
    for each in both:
        if isinstance(each, BaseException):
            raise each
    there, here = (each for each in both if not isinstance(each, BaseException))
    differ = [number for number in there.keys() | here.keys() if there.get(number) != here.get(number)]
    return None if len(differ) > count * _MOST_OF_IT else Buckets(count, tuple(differ))


async def _sums(
    place: Place, name: sql.Identifier, columns: Sequence[str], count: int
) -> dict[int, tuple[Any, ...]]:
    end, conn = place
    query = sql.SQL(
        "SELECT bucket & {mask} AS bucket, count(*), sum(bucket)::text, sum(other)::text "
        "FROM (SELECT {bucket} AS bucket, {other} AS other FROM (SELECT {row} AS row FROM ONLY {table} OFFSET 0) AS r) AS h "
        "GROUP BY 1 UNION ALL SELECT -1, {probe}, NULL, NULL"
    ).format(
        mask=sql.Literal(count - 1),
        bucket=text_hash(sql.Identifier("row"), SEEDS[0]),
        other=text_hash(sql.Identifier("row"), SEEDS[1]),
        row=row_text(columns, encoding_of(conn)),
        table=name,
        probe=text_hash(sql.Literal(PROBE), SEEDS[0]),
    )
    with translate(end):
        cursor = await conn.execute(query, prepare=False)
        found = {number: tuple(rest) async for number, *rest in cursor}
    if found.pop(-1)[0] != PROBE_HASH:
        raise Inconclusive(
            "the server computes other hashes than PostgreSQL 14 to 18 do on a little-endian machine",
            hint="no row of a large table can be healed by what differs there; copy the link anew",
        )
    return found
