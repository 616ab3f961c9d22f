"""From a change of the source to the statement that repeats it on the target. Pure.

One `TableWriter` stands for one table as the stream describes it and as the target has it. Values stay the
text that the source sent. Rows are found

* by the replica identity's key, or by the primary key where the identity is FULL;
* without either by the whole row, compared as text (1.0 is not 1.00, and json has no ``=``), and then just
  one of several equal rows is touched.

A value that the source did not send is left as it is; a key that it did not send is an error, never a guess.
Partitions and children are addressed by ``ONLY``; columns always by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import LiteralString
from zlib import crc32

import msgspec
from psycopg import sql

from pglockstep.errors import ApplyRefused
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.names import QualifiedName, quote_if_needed
from pglockstep.wal.messages import (
    UNCHANGED,
    Delete,
    Insert,
    Relation,
    RelationColumn,
    Row,
    Unchanged,
    Update,
    Value,
)

#: OIDs below belong to types that are built in, and mean the same on every server.
_FIRST_ASSIGNED_OID = 10_000
#: How many statements of one table are kept for reuse.
_SHAPES = 200


class Statement(msgspec.Struct, frozen=True, gc=False):
    """One statement for the target. It must touch exactly one row if `one_row`. `emptied`: the tables of a TRUNCATE."""

    query: bytes
    parameters: tuple[bytes | None, ...]
    verb: str
    table: QualifiedName
    key: tuple[tuple[str, bytes | None], ...] = ()
    one_row: bool = True
    #: what to run in its place where PostgreSQL does not support it, although it did on the source
    instead: tuple[bytes, ...] = ()
    emptied: tuple[QualifiedName, ...] = ()

    def __str__(self) -> str:
        """What it does and to which row, for a person."""
        parts = [f"{quote_if_needed(name)} = {_shown(value)}" for name, value in self.key]
        return f"{self.verb} of {self.table}" + (f" where {', '.join(parts)}" if parts else "")


def _shown(value: bytes | None) -> str:
    if value is None:
        return "NULL"
    text = value.decode(errors="replace")
    return f"'{text[:60]}…'" if len(text) > 60 else f"'{text}'"


#: Makes of a DELETE one that keeps what it deletes: the statement, its table, and the name that it has there.
Keeping = Callable[[sql.Composable, Table, str], sql.Composable]


class TableWriter:
    """Makes the statements for the changes of one table; `keeping` is applied to each that deletes rows.

    `columns` are the target's, in the order in which the stream carries them; `key` has the positions of those
    that name a row, none where only the whole row does; `always` those of GENERATED ALWAYS AS IDENTITY columns.
    Raises `ApplyRefused` if the target's table does not have just the columns that the stream carries.
    """

    def __init__(self, relation: Relation, table: Table, keeping: Keeping | None = None) -> None:
        self.relation = relation
        self.table = table
        self._keeping = keeping
        by_name = {column.name: column for column in table.columns}
        sent = [column.name for column in relation.columns]
        if missing := [name for name in sent if name not in by_name]:
            raise _shape(table, f"the target's table has no column {quote_if_needed(missing[0])}")
        if extra := [c.name for c in table.data_columns if c.name not in sent]:
            raise _shape(table, f"the source's table has no column {quote_if_needed(extra[0])}")
        if computed := [name for name in sent if by_name[name].generated]:
            raise _shape(table, f"column {quote_if_needed(computed[0])} is generated on the target only")
        self.columns: tuple[Column, ...] = tuple(by_name[name] for name in sent)
        for theirs, ours in zip(relation.columns, self.columns, strict=True):
            if _bends(theirs, ours):
                raise _shape(
                    table, f"column {quote_if_needed(ours.name)} is {ours.type_name} on the target only"
                )
        if relation.replica_identity == "f":
            positions = [sent.index(name) for name in table.primary_key if name in sent]
            whole = not table.primary_key or len(positions) < len(table.primary_key)
            self.key: tuple[int, ...] = () if whole else tuple(positions)
        else:
            self.key = tuple(index for index, column in enumerate(relation.columns) if column.in_key)
        self.always = tuple(index for index, column in enumerate(self.columns) if column.identity == "a")
        self._updates: dict[tuple[object, ...], bytes] = {}
        # a statement stays prepared with the types that its parameters once had: with other types it is another one
        types = [(each.type_oid, each.type_modifier) for each in relation.columns]
        types += [(each.type_oid, each.type_modifier) for each in self.columns]
        self._mark = b"/* %08x */ " % crc32(repr(types).encode())

    def statement(self, change: Insert | Update | Delete) -> Statement:
        """The statement that repeats `change`."""
        if isinstance(change, Insert):
            return self.insert(change)
        return self.update(change) if isinstance(change, Update) else self.delete(change)

    def insert(self, change: Insert) -> Statement:
        """The INSERT that repeats `change`."""
        values = self._sent(change.new, "INSERT")
        return Statement(self._insert_query, values, "INSERT", self.table.name, self._named(change.new))

    def update(self, change: Update) -> Statement:
        """The UPDATE that repeats `change`, keeping what was not sent."""
        old = self._identified_by(
            change.old if change.old is not None else change.new,
            full=not change.old_is_key and change.old is not None,
        )
        settable = tuple(
            index
            for index, value in enumerate(change.new)
            if value is not UNCHANGED and index not in self.always
        )
        replaced = self._replaces(change)
        nulls = tuple(value is None for _, value in old)
        shape = (
            "update",
            settable,
            replaced,
            nulls,
            tuple(v is UNCHANGED for v in change.new) if replaced else (),
        )
        query = self._updates.get(shape)
        if query is None:
            query = self._replace_query(change.new, old) if replaced else self._update_query(settable, old)
            self._remember(shape, query)
        new = change.new if replaced else tuple(change.new[index] for index in settable)
        values = tuple(value for value in new if not isinstance(value, Unchanged))
        key = tuple(value for _, value in old if value is not None)
        return Statement(query, values + key, "UPDATE", self.table.name, self._shown_key(old))

    def delete(self, change: Delete) -> Statement:
        """The DELETE that repeats `change`."""
        old = self._identified_by(change.old, full=not change.old_is_key)
        shape = ("delete", tuple(value is None for _, value in old))
        query = self._updates.get(shape)
        if query is None:
            delete = sql.SQL("DELETE FROM ONLY {} WHERE {}").format(self._name, self._condition(old, 1))
            query = self._text("{}", self.kept(delete))
            self._remember(shape, query)
        values = tuple(value for _, value in old if value is not None)
        return Statement(query, values, "DELETE", self.table.name, self._shown_key(old))

    def kept(self, delete: sql.Composable, alias: str = "") -> sql.Composable:
        """`delete`, which calls the table `alias`, as a statement that keeps what it deletes, if that is wanted."""
        return delete if self._keeping is None else self._keeping(delete, self.table, alias)

    def _text(self, template: LiteralString, *parts: sql.Composable) -> bytes:
        return self._mark + sql.SQL(template).format(*parts).as_bytes()

    def _remember(self, shape: tuple[object, ...], query: bytes) -> None:
        # a wide table without a key has as many shapes as its rows have patterns of NULLs
        if len(self._updates) >= _SHAPES:
            self._updates.clear()
        self._updates[shape] = query

    @property
    def _name(self) -> sql.Identifier:
        return self.table.name.sql()

    @cached_property
    def _insert_query(self) -> bytes:
        if not self.columns:
            return self._text("INSERT INTO {} DEFAULT VALUES", self._name)
        values = sql.SQL(", ").join(map(_placeholder, range(1, len(self.columns) + 1)))
        return self._text(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
            self._name,
            self._list(self.columns),
            values,
        )

    def _update_query(self, settable: Sequence[int], old: Sequence[tuple[int, bytes | None]]) -> bytes:
        if not settable:
            # nothing but an unchanged identity was sent; the row has to be there all the same
            return self._text("SELECT FROM ONLY {} WHERE {}", self._name, self._condition(old, 1))
        assignments = [
            sql.SQL("{} = {}").format(sql.Identifier(self.columns[index].name), _placeholder(position))
            for position, index in enumerate(settable, start=1)
        ]
        condition = self._condition(old, len(settable) + 1)
        return self._text(
            "UPDATE ONLY {} SET {} WHERE {}", self._name, sql.SQL(", ").join(assignments), condition
        )

    def _replace_query(self, new: Row, old: Sequence[tuple[int, bytes | None]]) -> bytes:
        """A GENERATED ALWAYS AS IDENTITY column takes no SET: the row is taken out and put back in one statement."""
        taken: list[sql.Composable] = []
        position = 1
        for column, value in zip(self.columns, new, strict=True):
            if value is UNCHANGED:
                taken.append(sql.Identifier("gone", column.name))
            else:
                # gives the parameter the column's type; a CAST would cut off silently what is too long for it
                same_type = sql.SQL("CASE WHEN true THEN {} ELSE {} END")
                taken.append(same_type.format(_placeholder(position), sql.Identifier("gone", column.name)))
                position += 1
        return self._text(
            "WITH gone AS (DELETE FROM ONLY {} WHERE {} RETURNING *) "
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM gone",
            self._name,
            self._condition(old, position),
            self._name,
            self._list(self.columns),
            sql.SQL(", ").join(taken),
        )

    def _replaces(self, change: Update) -> bool:
        """Whether a GENERATED ALWAYS AS IDENTITY column may have a new value."""
        for index in self.always:
            if change.old is None:
                if index not in self.key:
                    return True
            elif not change.old_is_key or index in self.key:
                if change.new[index] is not UNCHANGED and change.old[index] != change.new[index]:
                    return True
            else:
                return True
        return False

    def _identified_by(self, row: Row, *, full: bool) -> list[tuple[int, bytes | None]]:
        """The columns and values that name the old row."""
        if not self.key and not full:
            raise ApplyRefused(
                f"a change of {self.table.name} does not say which row it was: the table has no replica identity",
                hint=f"on the source: ALTER TABLE {self.table.name} REPLICA IDENTITY FULL; then copy the table again",
            )
        named: list[tuple[int, bytes | None]] = []
        for index in self.key or range(len(self.columns)):
            value = row[index]
            if isinstance(value, Unchanged):
                raise ApplyRefused(
                    f"a change of {self.table.name} came without the old value of column "
                    f"{quote_if_needed(self.columns[index].name)}, which names the row",
                    hint=f"on the source: ALTER TABLE {self.table.name} REPLICA IDENTITY FULL; then copy the table again",
                )
            named.append((index, value))
        return named

    def _condition(self, old: Sequence[tuple[int, bytes | None]], position: int) -> sql.Composable:
        """The WHERE clause for an old row whose values start at parameter `position`."""
        cheap: list[sql.Composable] = []
        exact: list[sql.Composable] = []
        for index, value in old:
            column = self.columns[index]
            name = sql.Identifier(column.name)
            if value is None:
                # not "IS NULL", which a composite of nothing but NULLs fulfils as well
                exact.append(sql.SQL("{}::text IS NULL").format(name))
                continue
            if self.key:
                cheap.append(
                    sql.SQL("{} {} {}").format(
                        plain(column), equals(column), _compared(_placeholder(position), column)
                    )
                )
            else:
                if column.equality and _is_built_in(column) and not _names_object(column):
                    cheap.append(sql.SQL("{} {} {}").format(name, equals(column), _placeholder(position)))
                # the sub-select is evaluated once, not for each row
                exact.append(
                    sql.SQL('{}::text COLLATE "C" = (SELECT {}::text COLLATE "C")').format(
                        name, _cast(_placeholder(position), column)
                    )
                )
            position += 1
        # where no index helps, the cheap comparisons rule out most rows before a text is made of anything
        clause = sql.SQL(" AND ").join([*cheap, *exact] or [sql.SQL("true")])
        if self.key:
            return clause
        return sql.SQL("ctid = (SELECT ctid FROM ONLY {} WHERE {} LIMIT 1)").format(self._name, clause)

    def _list(self, columns: Sequence[Column]) -> sql.Composable:
        return sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)

    def _sent(self, row: Row, verb: str) -> tuple[bytes | None, ...]:
        for value in row:
            if isinstance(value, Unchanged):
                raise ApplyRefused(f"an {verb} into {self.table.name} came with a value left out")
        return row  # type: ignore[return-value]

    def _named(self, row: Row) -> tuple[tuple[str, bytes | None], ...]:
        return tuple((self.columns[index].name, _known(row[index])) for index in self.key)

    def _shown_key(self, old: Sequence[tuple[int, bytes | None]]) -> tuple[tuple[str, bytes | None], ...]:
        return tuple((self.columns[index].name, value) for index, value in old) if self.key else ()


def truncate(tables: Sequence[QualifiedName], *, restart_identity: bool) -> Statement:
    """One TRUNCATE for a group, as the source did it: never CASCADE beyond the group.

    The source may have truncated more than the stream names (a partitioned root, an unlogged child) and so have
    pleased foreign keys that forbid it here; then the group is emptied row by row.
    """
    names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(name.sql()) for name in tables)
    restart = sql.SQL("RESTART IDENTITY") if restart_identity else sql.SQL("CONTINUE IDENTITY")
    query = sql.SQL("TRUNCATE {} {}").format(names, restart).as_bytes()
    instead = tuple(sql.SQL("DELETE FROM ONLY {}").format(name.sql()).as_bytes() for name in tables)
    return Statement(query, (), "TRUNCATE", tables[0], one_row=False, instead=instead, emptied=tuple(tables))


def _placeholder(position: int) -> sql.Composable:
    return sql.SQL(f"${position}")


def equals(column: Column) -> sql.Composable:
    """The ``=`` of the column's type, as it is written between two values."""
    return sql.SQL(column.equality or "OPERATOR(pg_catalog.=)")


def _compared(value: sql.Composable, column: Column) -> sql.Composable:
    """A key's value: its parameter takes the type that ``=`` wants, which for some types cannot read their text."""
    is_composite = not column.equality and not column.type_name.endswith("[]")
    return _cast(value, column) if is_composite or _names_object(column) else value


def plain(column: Column, *table: str) -> sql.Composable:
    """The column; if its type is a domain, as what that is made of, which has the operators."""
    name = sql.Identifier(*table, column.name)
    if not column.base_type:
        return name
    # format_type's spelling comes from the server, quoted and qualified by it
    return sql.SQL("{}::{}").format(name, sql.SQL(column.base_type))


def _is_built_in(column: Column) -> bool:
    """Whether the type is PostgreSQL's own: a domain over an enum, for one, has no ``=`` of its own."""
    return column.type_oid < _FIRST_ASSIGNED_OID


def _names_object(column: Column) -> bool:
    """Whether the type is regclass or one of its kin, which compare as numbers but are written as names."""
    return _is_built_in(column) and column.type_name.startswith("reg")


def _cast(value: sql.Composable, column: Column) -> sql.Composable:
    # format_type's spelling comes from the server, quoted and qualified by it
    return sql.SQL("CAST({} AS {})").format(value, sql.SQL(column.type_name))


def _known(value: Value) -> bytes | None:
    return None if isinstance(value, Unchanged) else value


#: Types, as (source, target), where the target's holds every value of the source's: a column being widened.
_WIDER = {(21, 23), (21, 20), (23, 20), (21, 1700), (23, 1700), (20, 1700), (1043, 25)}
#: numeric, time, timestamp, with their zones, and interval: a modifier rounds instead of refusing.
_ROUNDED = {1700, 1083, 1266, 1114, 1184, 1186}


def _bends(theirs: RelationColumn, ours: Column) -> bool:
    """Whether the target's column would take a value of the source's in silence and hold another."""
    if theirs.type_oid >= _FIRST_ASSIGNED_OID or ours.type_oid >= _FIRST_ASSIGNED_OID:
        return False
    if theirs.type_oid != ours.type_oid:
        return (theirs.type_oid, ours.type_oid) not in _WIDER or ours.type_modifier != -1
    return ours.type_oid in _ROUNDED and ours.type_modifier not in (-1, theirs.type_modifier)


def _shape(table: Table, difference: str) -> ApplyRefused:
    return ApplyRefused(
        f"table {table.name} differs between the ends: {difference}",
        hint="make both ends alike (the same DDL on the target), then start the link again; nothing was skipped",
    )
