"""What the judge asks of the target: how many rows a table holds, and in how many a column would become what it is to be.

Each question is put over sessions that are lent, and changes nothing. Tables are read whole: they are asked about only where
much of them is at stake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import LiteralString

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.guard.answers import Question
from pglockstep.guard.rows import composed, joined, names, numbered, only, text_of
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.names import QualifiedName
from pglockstep.wal.messages import Row, Unchanged, Value

_ASKED = "pglockstep_asked"
#: So many tables are counted in one statement.
_AT_ONCE = 100


async def count(conn: AsyncConnection[TupleRow], table: QualifiedName) -> int:
    """How many rows the table holds by itself; 0 where there is none. Raises psycopg's errors."""
    there = await conn.execute("SELECT pg_catalog.to_regclass($1) IS NOT NULL", [table.sql().as_string()])
    if await there.fetchone() != (True,):
        return 0
    return await _number(conn, composed("SELECT count(*) FROM ONLY {}", table.sql()))


async def count_small(
    conn: AsyncConnection[TupleRow], tables: Sequence[QualifiedName], most: int
) -> dict[QualifiedName, int]:
    """How many rows each of these tables holds, but for those that seem to hold more than `most`. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT n.nspname, c.relname FROM unnest($1::text[], $2::text[]) AS w (schema_name, table_name) "
        "JOIN pg_catalog.pg_namespace AS n ON n.nspname = w.schema_name "
        "JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.table_name "
        "WHERE c.relkind = 'r' AND greatest(c.reltuples, pg_catalog.pg_stat_get_live_tuples(c.oid)) <= $3 "
        "AND c.relpages <= $3",
        [[each.schema for each in tables], [each.name for each in tables], most],
    )
    small = [QualifiedName(schema, name) async for schema, name in cursor]
    found: dict[QualifiedName, int] = {}
    for start in range(0, len(small), _AT_ONCE):
        some = small[start : start + _AT_ONCE]
        counts = joined(" UNION ALL ", [_numbered_count(index, each) for index, each in enumerate(some)])
        async for index, rows in await conn.execute(counts):
            found[some[index]] = rows
    return found


def _numbered_count(index: int, table: QualifiedName) -> sql.Composable:
    return composed("SELECT {}::int, count(*) FROM ONLY {}", sql.Literal(index), table.sql())


async def answer(
    inside: AsyncConnection[TupleRow],
    outside: AsyncConnection[TupleRow],
    tables: Mapping[QualifiedName, Table],
    question: Question,
) -> int:
    """The answer to `question`; `inside` has the transaction's parts open, if it came in parts. Raises psycopg's errors."""
    table = tables[question.shape.name]
    if question.keys is not None:
        column = _column(table, question.name)
        _, becoming = await _becoming(outside, table, question, column)
        return becoming
    return max(0, await holding_now(inside, table, question) - await holding_now(outside, table, question))


async def answer_of_what_is_left(
    conn: AsyncConnection[TupleRow], table: Table, question: Question, *, lacks: int, coming: int
) -> int:
    """As `answer`, of a table that has lost `lacks` rows: those are taken to have been like the ones that are left.

    `conn` is a session at the target. `coming`: in how many rows of the source the column is the value, which is asked where
    the question names no keys. Where nothing is left there is nothing to be taken any more: 0. Raises psycopg's errors.
    """
    column = _column(table, question.name)
    if question.keys is not None:
        found, becoming = await _becoming(conn, table, question, column)
        missing = min(lacks, max(0, len(question.keys) - found))
        return becoming + (-(-becoming * missing // found) if found else 0)
    left = await _number(conn, composed("SELECT count(*) FROM ONLY {}", table.name.sql()))
    if not left:
        return 0
    holding = await holding_now(conn, table, question)
    return max(0, coming - holding * (left + lacks) // left)


async def holding_now(conn: AsyncConnection[TupleRow], table: Table, question: Question) -> int:
    """In how many rows the column that is asked about is the value. Raises psycopg's errors."""
    condition = _is(_column(table, question.name), question.value, "IS NOT DISTINCT FROM")
    return await _number(conn, composed("SELECT count(*) FROM {} WHERE {}", only(table, "t"), condition))


async def _becoming(
    conn: AsyncConnection[TupleRow], table: Table, question: Question, column: Column
) -> tuple[int, int]:
    """How many rows the keys name, and in how many of these the column is something else now."""
    assert question.keys is not None
    shape = question.shape
    # without a key it is the whole row that names a row
    key = [_column(table, shape.columns[index]) for index in shape.key or range(len(shape.columns))]
    async with conn.transaction(force_rollback=True):
        staged = numbered("k", len(key))
        await conn.execute(
            composed(
                "CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP",
                sql.Identifier(_ASKED),
                joined(", ", [composed("{} text", each) for each in staged]),
            )
        )
        await _stage(conn, question.keys, len(key))
        # one row may be named by several keys where there is none: each is looked for
        matches = joined(
            " AND ",
            [
                composed("{} IS NOT DISTINCT FROM {}", text_of(each, "t"), there)
                if not shape.key
                else composed("{} = {}", text_of(each, "t"), there)
                for each, there in zip(key, names(_ASKED, [f"k{i}" for i in range(len(key))]), strict=True)
            ],
        )
        cursor = await conn.execute(
            composed(
                "SELECT count(*), count(*) FILTER (WHERE {}) FROM {} JOIN {} ON {}",
                _is(column, question.value, "IS DISTINCT FROM"),
                only(table, "t"),
                sql.Identifier(_ASKED),
                matches,
            )
        )
        row = await cursor.fetchone()
        assert row is not None
        return row[0], row[1]


async def _stage(conn: AsyncConnection[TupleRow], keys: Sequence[Row], width: int) -> None:
    copy = composed("COPY {} FROM STDIN", sql.Identifier(_ASKED))
    async with conn.cursor().copy(copy) as into:
        for key in keys:
            assert len(key) == width
            await into.write_row([_text(value) for value in key])


def _text(value: Value) -> str | None:
    return None if value is None or isinstance(value, Unchanged) else value.decode()


def _is(column: Column, value: Value, operator: LiteralString) -> sql.Composable:
    """Whether the column, told by its text, is the value (or is not)."""
    return composed("{} {} {}", text_of(column, "t"), sql.SQL(operator), sql.Literal(_text(value)))


def _column(table: Table, name: str) -> Column:
    return next(each for each in table.columns if each.name == name)


async def _number(conn: AsyncConnection[TupleRow], query: sql.Composed) -> int:
    cursor = await conn.execute(query)
    row = await cursor.fetchone()
    assert row is not None
    number: int = row[0]
    return number
