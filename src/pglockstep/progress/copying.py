"""How far a first copy is, as its target remembers it: what was restored, which parts have arrived, what was built.

Each record is written in the very commit that it speaks of, so whoever comes after a crash can go on from it.
"""

from __future__ import annotations

import msgspec
from psycopg import AsyncConnection, sql

from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn


class Restored(msgspec.Struct, frozen=True):
    """The schema on the target: `digest` tells of which schema it is, `removal` drops it, `lsn` is the link's start."""

    lsn: Lsn
    digest: str
    removal: str


class Part(msgspec.Struct, frozen=True):
    """A part of a table, `part` of `parts`, that has arrived as of `lsn`."""

    table: QualifiedName
    part: int
    parts: int
    lsn: Lsn
    rows: int
    bytes: int


async def restored(conn: AsyncConnection) -> Restored | None:
    """What an unfinished copy restored; None if it did not come that far. Raises psycopg's errors."""
    cursor = await conn.execute("SELECT lsn, digest, removal FROM pglockstep.restored")
    row = await cursor.fetchone()
    return None if row is None else Restored(*row)


async def note_restored(conn: AsyncConnection, link: str, made: Restored) -> None:
    """Belongs into the transaction that restores. Raises psycopg's errors."""
    await conn.execute(
        "INSERT INTO pglockstep.restored (link, lsn, digest, removal) VALUES ($1, $2, $3, $4)",
        [link, made.lsn, made.digest, made.removal],
    )


def note_part(conn: AsyncConnection, link: str, done: Part) -> bytes:
    """The statement for `conn` that notes an arrived part; belongs into the transaction that copied it."""
    values = (link, *done.table, done.part, done.parts, done.lsn, done.rows, done.bytes)
    return (
        sql.SQL("INSERT INTO pglockstep.copied VALUES ({})")
        .format(sql.SQL(", ").join(map(sql.Literal, values)))
        .as_bytes(conn)
    )


async def note_again(conn: AsyncConnection, link: str, table: QualifiedName, lsn: Lsn, rows: int) -> None:
    """Note that a table shows what it held as of `lsn`, whatever was noted before. Raises psycopg's errors."""
    await conn.execute(
        "DELETE FROM pglockstep.copied WHERE schema_name = $1 AND table_name = $2", [table.schema, table.name]
    )
    await conn.execute(note_part(conn, link, Part(table, 0, 1, lsn, rows, 0)))


async def ahead(conn: AsyncConnection, progress: Lsn) -> dict[QualifiedName, Lsn]:
    """The tables that hold more than `progress` says, and as of when: the stream skips what each has. Raises psycopg's errors."""
    return {table: lsn for table, lsn in finished(await parts(conn)).items() if lsn > progress}


def note_built(link: str, index: QualifiedName) -> bytes:
    """The statement that notes an index; belongs into the transaction that built it."""
    return (
        sql.SQL("INSERT INTO pglockstep.built VALUES ({}, {}, {})")
        .format(sql.Literal(link), sql.Literal(index.schema), sql.Literal(index.name))
        .as_bytes()
    )


async def parts(conn: AsyncConnection) -> list[Part]:
    """Every part that has arrived. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT schema_name, table_name, part, parts, lsn, row_count, bytes FROM pglockstep.copied ORDER BY 1, 2, 3"
    )
    return [
        Part(QualifiedName(schema, name), part, count, lsn, rows, size)
        async for schema, name, part, count, lsn, rows, size in cursor
    ]


async def built(conn: AsyncConnection) -> set[QualifiedName]:
    """Every index that was built. Raises psycopg's errors."""
    cursor = await conn.execute("SELECT schema_name, index_name FROM pglockstep.built")
    return {QualifiedName(schema, name) async for schema, name in cursor}


async def start_over(conn: AsyncConnection, table: QualifiedName) -> None:
    """Empty a table of which only some parts arrived: all of them must show one moment. Raises psycopg's errors."""
    async with conn.transaction():
        await conn.execute(sql.SQL("TRUNCATE ONLY {}").format(table.sql()))
        await conn.execute(
            "DELETE FROM pglockstep.copied WHERE schema_name = $1 AND table_name = $2",
            [table.schema, table.name],
        )


def finished(arrived: list[Part]) -> dict[QualifiedName, Lsn]:
    """The tables of which every part has arrived, each with the LSN that it shows. Pure."""
    counted: dict[QualifiedName, list[Part]] = {}
    for part in arrived:
        counted.setdefault(part.table, []).append(part)
    return {name: found[0].lsn for name, found in counted.items() if len(found) == found[0].parts}


def rows_of(arrived: list[Part]) -> dict[QualifiedName, int]:
    """How many rows each table was copied with. Pure."""
    rows: dict[QualifiedName, int] = {}
    for part in arrived:
        rows[part.table] = rows.get(part.table, 0) + part.rows
    return rows
