"""SQL for rows as data: how they are told apart, compared and named. Pure.

Values are compared by what their types write out, inside of a row: nothing but NULL looks like NULL there, 1.0 is not
1.00, and json, which has no ``=``, compares as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import LiteralString

from psycopg import sql

from pglockstep.postgres.catalog import Column, Table


def composed(template: LiteralString, *parts: sql.Composable) -> sql.Composed:
    """A statement of these parts."""
    return sql.SQL(template).format(*parts)


def joined(separator: LiteralString, parts: Iterable[sql.Composable]) -> sql.Composed:
    """The parts with `separator` between them."""
    return sql.SQL(separator).join(list(parts))


def names(table: str, columns: Iterable[str]) -> list[sql.Composable]:
    """Columns by their names, of the table that goes by this one."""
    return [sql.Identifier(table, name) for name in columns]


def numbered(letter: str, count: int, *table: str) -> list[sql.Composable]:
    """Columns of a staging table: k0, k1, … No name of a user's can clash with another of ours there."""
    return [sql.Identifier(*table, f"{letter}{index}") for index in range(count)]


def plain(column: Column, *table: str) -> sql.Composable:
    """The column; if its type is a domain, as what that is made of: one that forbids NULL must not mind a missing value."""
    name = sql.Identifier(*table, column.name)
    # the type's spelling comes from the server, quoted and qualified by it
    return composed("{}::{}", name, sql.SQL(column.base_type)) if column.base_type else name


def same_key(key: Sequence[Column], table: str, staged: Sequence[sql.Composable]) -> sql.Composable:
    """Whether a row of `table` has the key that stands in the staging table."""
    return same(key, [plain(column, table) for column in key], staged)


def same(
    key: Sequence[Column], ones: Sequence[sql.Composable], others: Sequence[sql.Composable]
) -> sql.Composable:
    """Whether two keys are one."""
    return joined(
        " AND ",
        [
            # the operator's spelling comes from the server, quoted and qualified by it
            composed("{} {} {}", one, sql.SQL(column.equality or "OPERATOR(pg_catalog.=)"), other)
            for column, one, other in zip(key, ones, others, strict=True)
        ],
    )


def row_text(values: Iterable[sql.Composable]) -> sql.Composable:
    """A text that two rows share only if all of their values do."""
    return composed('ROW({})::text COLLATE "C"', joined(", ", values))


def text_of(column: Column, *table: str) -> sql.Composable:
    """The column's value as text that reads back as just this value."""
    name = sql.Identifier(*table, column.name)
    stands_on = column.base_type or column.type_name
    if stands_on.startswith(("character(", "bpchar")) and not stands_on.endswith("[]"):
        # its cast to text drops blanks at the end, which are there where there is no length to fill up to
        return composed("pg_catalog.textin(pg_catalog.bpcharout({}))", name)
    return composed("{}::text", name)


def only(table: Table, alias: str) -> sql.Composable:
    """The table by itself, without its children, under another name."""
    return composed("ONLY {} AS {}", table.name.sql(), sql.Identifier(alias))
