"""What a repair does, or undoes, as SQL for a person to read and to run with psql. Pure.

A statement names its row by the key and by what it says, so that it does nothing to one that was changed since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from psycopg import sql

from pglockstep.compare.pairing import Pairing, RowDifference
from pglockstep.errors import Side
from pglockstep.postgres.catalog import Column, Table

#: Texts of values mean the same whatever the role's settings; and nothing of the application's fires.
HEAD = """\\set ON_ERROR_STOP on
SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET extra_float_digits = 3;
SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmloption = 'content'; SET search_path = ''; SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SET session_replication_role = replica;
BEGIN;
"""
TAIL = "COMMIT;\n"

Texts = Sequence[str | None]


class Writer:
    """Writes the statements for one table on one end; values are texts in the order of the pairing's columns."""

    def __init__(self, pairing: Pairing, side: Side) -> None:
        self._pairing = pairing
        self._table: Table = pairing.at(side)
        here = {column.name: column for column in self._table.columns}
        self._columns = [here[name] for name in pairing.columns]
        self._key = {column.name for column in pairing.key_columns(side)}

    def of(self, row: RowDifference, giver: Texts | None, receiver: Texts | None) -> Iterator[str]:
        """What makes this end's row, `receiver`, what the other end has, `giver`; None where there is no such row."""
        for _ in range(row.copies):
            if receiver is None:
                assert giver is not None
                yield self.insert(giver)
            elif giver is None:
                yield self.delete(receiver)
            elif not (changed := self._changed(receiver, giver)):
                # nothing but what follows from other columns
                return
            elif any(column.identity == "a" for column, _ in changed):
                # which no UPDATE may set
                yield self.delete(receiver)
                yield self.insert(giver)
            else:
                yield self.update(receiver, changed)

    def insert(self, texts: Texts) -> str:
        """The INSERT of a row; one that is there already is left."""
        written = [
            (column, text) for column, text in zip(self._columns, texts, strict=True) if not column.generated
        ]
        if not written:
            return self._text("INSERT INTO {} DEFAULT VALUES", self._name)
        return self._text(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({}){}",
            self._name,
            _listed(sql.Identifier(column.name) for column, _ in written),
            _listed(_literal(column, text) for column, text in written),
            on_conflict(self._table, self._pairing.key),
        )

    def update(self, old: Texts, changed: Iterable[tuple[Column, str | None]]) -> str:
        """The UPDATE of the columns that are `changed`."""
        changes = [
            sql.SQL("{} = {}").format(sql.Identifier(column.name), _literal(column, text))
            for column, text in changed
        ]
        return self._text("UPDATE ONLY {} SET {} WHERE {}", self._name, _listed(changes), self._says(old))

    def _changed(self, old: Texts, new: Texts) -> list[tuple[Column, str | None]]:
        return [
            (column, text)
            for column, before, text in zip(self._columns, old, new, strict=True)
            if before != text and not column.generated
        ]

    def delete(self, texts: Texts) -> str:
        """The DELETE of exactly one row."""
        if self._key:
            return self._text("DELETE FROM ONLY {} WHERE {}", self._name, self._says(texts))
        return self._text(
            "DELETE FROM ONLY {0} WHERE ctid = (SELECT ctid FROM ONLY {0} WHERE {1} LIMIT 1)",
            self._name,
            self._says(texts),
        )

    @property
    def _name(self) -> sql.Identifier:
        return self._table.name.sql()

    def _says(self, texts: Texts) -> sql.Composable:
        """The key, for its index, and the text of every other column."""
        parts: list[sql.Composable] = []
        for column, text in zip(self._columns, texts, strict=True):
            name = sql.Identifier(column.name)
            if column.generated:
                # it follows from the others
                continue
            if text is None:
                parts.append(sql.SQL("{} IS NULL").format(name))
            elif column.name in self._key:
                operator = sql.SQL(column.equality or "OPERATOR(pg_catalog.=)")
                parts.append(sql.SQL("{} {} {}").format(name, operator, _literal(column, text)))
            else:
                # not every type has an equality, and some call values equal that read differently
                parts.append(sql.SQL('concat({}) = {} COLLATE "C"').format(name, sql.Literal(text)))
        return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true")

    def _text(self, template: str, *parts: sql.Composable) -> str:
        return sql.SQL(template).format(*parts).as_string() + ";"


def on_conflict(table: Table, key: Sequence[str]) -> sql.Composable:
    """What an INSERT does where the row, or a unique value of it, is there already: nothing. Pure."""
    if not table.has_deferrable:
        return sql.SQL(" ON CONFLICT DO NOTHING")
    # PostgreSQL does not look at what may be deferred there, and refuses unless told where to look
    if not key:
        return sql.SQL("")
    return sql.SQL(" ON CONFLICT ({}) DO NOTHING").format(_listed(map(sql.Identifier, key)))


def _literal(column: Column, text: str | None) -> sql.Composable:
    if text is None:
        return sql.SQL("NULL")
    return sql.SQL("{}::{}").format(sql.Literal(text), sql.SQL(column.type_name))


def _listed(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
