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

#: What two hashes of one text are seeded with: texts that collide under one do not under the other.
SEEDS = (5577006791947779410, 8674665223082153551)

# PostgreSQL promises its hashes to nobody: they follow the machine's byte order, and a new major version may
# change them. A server that answers otherwise cannot be compared this way.
_PROBE = "pglockstep"
_PROBE_HASH = 3058436515578806207

# SQL_ASCII means bytes as they are; everything else is brought to UTF-8 before it is hashed.
_HASHED_AS_IS = ("UTF8", "SQL_ASCII")


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
        probe=text_hash(sql.Literal(_PROBE), SEEDS[0]),
        hash0=text_hash(sql.Identifier("content"), SEEDS[0]),
        hash1=text_hash(sql.Identifier("content"), SEEDS[1]),
        rows=row_texts(conn, table, {"content": columns}),
    )
    cursor = await conn.execute(query, prepare=False)
    [(probe, rows, sum0, sum1)] = await cursor.fetchall()
    if probe != _PROBE_HASH:
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


def row_texts(conn: AsyncConnection[Any], table: Table, columns: dict[str, Sequence[str]]) -> sql.Composed:
    """The query for the texts of every row of `table`: one for each entry of `columns`, named after it."""
    encoding = conn.info.parameter_status("server_encoding") or "UTF8"
    texts = [
        sql.SQL("{} AS {}").format(_row_text(names, encoding), sql.Identifier(name))
        for name, names in columns.items()
    ]
    # OFFSET 0 keeps the planner from computing a text anew for each use of it.
    return sql.SQL("SELECT {} FROM ONLY {} OFFSET 0").format(sql.SQL(", ").join(texts), table.name.sql())


def _row_text(columns: Sequence[str], encoding: str) -> sql.Composed:
    # No two different rows share this text: it quotes what needs it and tells NULL from ''. It comes from
    # the types' output functions, so that no cast to text hides a difference, be it char's, which drops
    # blanks, or one that a user has defined. Any number of columns that a table can have will do.
    text = sql.SQL("ROW({})::text").format(sql.SQL(", ").join(map(sql.Identifier, columns)))
    if encoding in _HASHED_AS_IS:
        return text
    # The bytes of the UTF-8 form, taken for text of this database: right for every single-byte encoding.
    return sql.SQL("convert_from(convert_to({}, 'UTF8'), {})").format(text, sql.Literal(encoding))


def text_hash(text: sql.Composable, seed: int) -> sql.Composed:
    """The 64-bit hash of an SQL text, byte by byte whatever its collation."""
    return sql.SQL('hashtextextended({} COLLATE "C", {})').format(text, sql.Literal(seed))
