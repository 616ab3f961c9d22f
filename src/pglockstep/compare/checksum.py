"""One number for the content of a table, computed where the rows are.

Two tables hold the same multiset of rows exactly when their fingerprints are equal, but for a chance of
about one in 2**64. Physical order, layout, indexes and statistics make no difference. What is compared is
what a client would read, the text that each type's own output function writes: 1.0 and 1.00, 0 and -0, NULL
and '' are different values, and two ends whose columns differ in type but not in text are the same.

A fingerprint reads every row once, on the server; three numbers travel. It never writes, never takes a lock
beyond a reader's own, and never looks into inheritance children or partitions: those are tables of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from psycopg import AsyncConnection, sql

from pglockstep.errors import Inconclusive
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.row_texts import PROBE, PROBE_HASH, SEEDS, row_texts, text_hash


class Fingerprint(msgspec.Struct, frozen=True):
    """The content of one table: how many rows there are, and the sum of their hashes under each seed."""

    rows: int
    sum0: int
    sum1: int


def comparable_columns(source: Table, target: Table) -> tuple[str, ...]:
    """The columns to compare two tables by: those that both ends store, in the source's order.

    A virtual generated column stores nothing: it follows from the others.
    """
    stored = {column.name for column in target.columns if column.generated != "v"}
    return tuple(
        column.name for column in source.columns if column.generated != "v" and column.name in stored
    )


async def fingerprint(conn: AsyncConnection[Any], table: Table, columns: Sequence[str]) -> Fingerprint:
    """The fingerprint of `table` over `columns`, which must be the same names in the same order on both ends.

    Raises psycopg's errors, and :class:`Inconclusive` where this server's hashes mean nothing elsewhere.
    """
    query = sql.SQL(
        """
        SELECT {probe}, count(*), coalesce(sum({hash0}), 0)::text, coalesce(sum({hash1}), 0)::text
        FROM ({rows}) AS rows
        """
    ).format(
        probe=text_hash(sql.Literal(PROBE), SEEDS[0]),
        hash0=text_hash(sql.Identifier("content"), SEEDS[0]),
        hash1=text_hash(sql.Identifier("content"), SEEDS[1]),
        rows=row_texts(conn, table, {"content": columns}),
    )
    cursor = await conn.execute(query, prepare=False)
    [(probe, rows, sum0, sum1)] = await cursor.fetchall()
    if probe != PROBE_HASH:
        raise Inconclusive(
            "the server computes other hashes than PostgreSQL 14 to 18 do on a little-endian machine",
            hint="compare this link with pg_dump's output of both ends",
        )
    return Fingerprint(rows=rows, sum0=int(sum0), sum1=int(sum1))


async def stamp(conn: AsyncConnection[Any], table: Table) -> Fingerprint:
    """Which versions of its rows a table holds, and where: no row was written between two readings that agree.

    Means nothing between two servers. Raises psycopg's errors.
    """
    version = sql.SQL("xmin::text || ' ' || ctid::text")
    query = sql.SQL(
        "SELECT count(*), coalesce(sum({}), 0)::text, coalesce(sum({}), 0)::text FROM ONLY {}"
    ).format(
        text_hash(sql.SQL("({})").format(version), SEEDS[0]),
        text_hash(sql.SQL("({})").format(version), SEEDS[1]),
        table.name.sql(),
    )
    cursor = await conn.execute(query, prepare=False)
    [(rows, sum0, sum1)] = await cursor.fetchall()
    return Fingerprint(rows=rows, sum0=int(sum0), sum1=int(sum1))
