"""What a transaction took, staged on the target: keys that it deleted, values that it set, tables that it emptied.

The changes are fed in as the journal has them and leave by COPY into temporary tables of the target's session: a million
rows take no more memory than a few. There the net is taken: a key that was deleted and inserted again is not gone, and one
that only came and went never was there. Nothing of the user's is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.errors import SourceError, TargetLacks
from pglockstep.guard.rows import composed, joined, numbered, plain, same
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.names import QualifiedName, quote_if_needed
from pglockstep.wal.messages import (
    UNCHANGED,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Relation,
    Row,
    Truncate,
    Update,
)

#: Staged bytes that wait at most, of all tables together.
_HELD = 4 << 20


class TakenTable(msgspec.Struct):
    """What of one table was taken: all of it if `whole`; else what its staging tables hold, numbered `number`.

    Without a key, all of it but what the staging table says came back since.

    `columns` are the target's, in the order in which they were sent; `key` those that name a row, none where only the
    whole row does. `restarted`: its sequences began anew. `deleted`, `updated`: whether there is anything of that kind.
    """

    table: Table
    number: int
    columns: tuple[Column, ...] = ()
    key: tuple[int, ...] = ()
    whole: bool = False
    restarted: bool = False
    deleted: bool = False
    #: whether its keys are staged: those that came are, too, so that what only came and went is known
    staged: bool = False
    updated: bool = False
    #: whether a row got another key
    moved: bool = False
    #: positions of values that were left out of some update, as not touched by it
    unsent: set[int] = msgspec.field(default_factory=set)

    @property
    def key_columns(self) -> list[Column]:
        """The columns of `key`."""
        return [self.columns[index] for index in self.key]

    @property
    def gone(self) -> sql.Identifier:
        """Where keys are staged, or whole rows, with +1 for each deletion and -1 for each insertion."""
        return _temporary("gone", self.number)

    @property
    def set(self) -> sql.Identifier:
        """Where updates are staged: n, what was sent, whether the key moved, old key o0, …, new key k0, …, values v0, …

        Without a key: n, old values o0, …, new values v0, …
        """
        return _temporary("set", self.number)


class Taken:
    """Gathers what transactions took, through a session on the target that is in a transaction.

    `only`: of these tables. `is_ours`: whether a transaction that begins with this message has put something back.
    """

    def __init__(
        self,
        conn: AsyncConnection[TupleRow],
        end: End,
        tables: Mapping[QualifiedName, Table],
        only: Iterable[QualifiedName] | None = None,
        is_ours: Callable[[Message], bool] = lambda message: False,
    ) -> None:
        self._is_ours = is_ours
        self._conn = conn
        self._end = end
        self._tables = tables
        self._only = None if only is None else frozenset(only)
        self._shapes: dict[int, TakenTable | None] = {}
        self._missing: dict[int, QualifiedName] = {}
        self._held: dict[tuple[str, int], list[bytes]] = {}
        self._size = 0
        self._updates = 0
        #: whether we are in a transaction by which something was put back
        self._ours = False
        self.found: dict[QualifiedName, TakenTable] = {}

    async def feed(self, messages: Iterable[Message]) -> None:
        """Take the next messages, in their order."""
        for message in messages:
            if isinstance(message, Delete):
                await self._delete(message)
            elif isinstance(message, Insert):
                await self._insert(message)
            elif isinstance(message, Update):
                await self._update(message)
            elif isinstance(message, Truncate):
                for each in message.relation_ids:
                    await self._truncate(self._losing(each), restart=message.restart_identity)
            elif isinstance(message, Relation):
                self._describe(message)
            elif isinstance(message, LogicalMessage):
                self._ours = self._ours or self._is_ours(message)
            elif isinstance(message, Commit):
                self._ours = False
            if self._size >= _HELD:
                await self.flush()

    def whole(self, table: Table) -> TakenTable:
        """All of a table was taken, with its sequences: it was dropped."""
        taken = self._of(table)
        taken.whole = taken.restarted = True
        return taken

    async def finish(self) -> list[TakenTable]:
        """Stage the rest; returns everything that was taken, in the order of names."""
        await self.flush()
        found = [each for _, each in sorted(self.found.items()) if each.whole or each.deleted or each.updated]
        with translate(self._end):
            for each in found:
                if each.updated and not each.whole and each.key and each.unsent:
                    await self._complete(each)
                for staged, there in ((each.gone, each.deleted), (each.set, each.updated)):
                    if there and not each.whole:
                        await self._conn.execute(composed("ANALYZE {}", staged))
        return found

    async def flush(self) -> None:
        """Hand what waits to the target."""
        with translate(self._end):
            for staged, lines in self._held.items():
                async with self._conn.cursor().copy(
                    composed("COPY {} FROM STDIN", _temporary(*staged))
                ) as copy:
                    await copy.write(b"".join(lines))
        self._held.clear()
        self._size = 0

    def _of(self, table: Table) -> TakenTable:
        return self.found.setdefault(table.name, TakenTable(table, len(self.found), table.data_columns))

    def _describe(self, relation: Relation) -> None:
        name = QualifiedName(relation.schema, relation.name)
        if self._only is not None and name not in self._only:
            self._shapes[relation.relation_id] = None
            return
        table = self._tables.get(name)
        self._missing.pop(relation.relation_id, None)
        if table is None:
            # it may be new, and have lost nothing
            self._shapes[relation.relation_id] = None
            self._missing[relation.relation_id] = name
            return
        by_name = {column.name: column for column in table.columns}
        if missing := [column.name for column in relation.columns if column.name not in by_name]:
            raise TargetLacks(
                f"table {name} on the target has no column {quote_if_needed(missing[0])}, which the source's had",
                hint="nothing was changed; make both ends alike (the same DDL on the target), then decide again",
            )
        columns = tuple(by_name[column.name] for column in relation.columns)
        if relation.replica_identity == "f":
            sent = [column.name for column in columns]
            key = tuple(sent.index(each) for each in table.primary_key if each in sent)
            key = key if len(key) == len(table.primary_key) else ()
        else:
            key = tuple(index for index, column in enumerate(relation.columns) if column.in_key)
        taken = self._of(table)
        taken.columns, taken.key = columns, key
        self._shapes[relation.relation_id] = taken

    def _losing(self, relation_id: int) -> TakenTable | None:
        """The table that loses something; None if it is none of those that are asked for."""
        if name := self._missing.get(relation_id):
            raise TargetLacks(
                f"table {name} is not on the target any more: what the transaction took of it cannot be put back",
                hint="nothing was changed; is the target the one that it was? then decide with `reject` or `approve`",
            )
        return self._shapes.get(relation_id)

    async def _delete(self, change: Delete) -> None:
        taken = self._losing(change.relation_id)
        if taken is None or (taken.whole and taken.key):
            return
        taken.deleted = True
        await self._stage_gone(taken)
        self._hold(("gone", taken.number), (b"1", *_named(taken, change.old)))

    async def _insert(self, change: Insert) -> None:
        taken = self._shapes.get(change.relation_id)
        if taken is None or (taken.whole and (taken.key or not self._ours)):
            return
        await self._stage_gone(taken)
        self._hold(("gone", taken.number), (b"-1", *_named(taken, change.new)))

    async def _update(self, change: Update) -> None:
        taken = self._losing(change.relation_id)
        if taken is None or taken.whole:
            return
        if not taken.updated:
            taken.updated = True
            await self._create(taken, taken.set, _set_columns(taken))
        self._updates += 1
        number = b"%d" % self._updates
        if not taken.key:
            if change.old is None or change.old_is_key:
                raise _nameless(taken)
            new = _filled(change.new, change.old)
            self._hold(("set", taken.number), (number, *change.old, *new))
            return
        key = _named(taken, change.new)
        old = key if change.old is None else _named(taken, change.old)
        new = change.new if change.old is None or change.old_is_key else _filled(change.new, change.old)
        missing = [index for index, value in enumerate(new) if value is UNCHANGED]
        taken.unsent.update(missing)
        sent = b"".join(b"0" if value is UNCHANGED else b"1" for value in new)
        if old != key:
            # as if it had gone under one key and come under another
            taken.moved = taken.deleted = True
            await self._stage_gone(taken)
            self._hold(("gone", taken.number), (b"1", *old))
            self._hold(("gone", taken.number), (b"-1", *key))
        values = [None if value is UNCHANGED else value for value in new]
        moved = b"0" if old == key else b"1"
        self._hold(("set", taken.number), (number, sent, moved, *old, *key, *values))

    async def _truncate(self, taken: TakenTable | None, *, restart: bool) -> None:
        if taken is not None:
            taken.whole = True
            taken.restarted |= restart
            self._held.pop(("gone", taken.number), None)
            self._held.pop(("set", taken.number), None)
            if taken.staged:
                with translate(self._end):
                    await self._conn.execute(composed("TRUNCATE {}", taken.gone))

    async def _stage_gone(self, taken: TakenTable) -> None:
        if not taken.staged:
            taken.staged = True
            named = taken.key or range(len(taken.columns))
            columns = [("k", position, index) for position, index in enumerate(named)]
            await self._create(taken, taken.gone, (sql.SQL("0::smallint AS op"), columns))

    async def _create(
        self,
        taken: TakenTable,
        stage: sql.Identifier,
        columns: tuple[sql.Composable, list[tuple[str, int, int]]],
    ) -> None:
        first, rest = columns
        values = [
            composed("{} AS {}", plain(taken.columns[index], "t"), sql.Identifier(f"{letter}{position}"))
            for letter, position, index in rest
        ]
        # CREATE TABLE AS takes over types, modifiers and collations as they are
        with translate(self._end):
            await self._conn.execute(
                composed(
                    "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM ONLY {} AS t WITH NO DATA",
                    stage,
                    joined(", ", [first, *values]),
                    taken.table.name.sql(),
                )
            )

    def _hold(self, stage: tuple[str, int], values: Sequence[object]) -> None:
        line = _line(values)
        self._held.setdefault(stage, []).append(line)
        self._size += len(line)

    async def _complete(self, taken: TakenTable) -> None:
        """Give each update what an earlier one of the same row had set, and it did not touch."""
        key = joined(", ", numbered("k", len(taken.key)))
        await self._conn.execute(composed("CREATE INDEX ON {} ({}, n)", taken.set, key))
        matches = same(
            taken.key_columns, numbered("k", len(taken.key), "p"), numbered("k", len(taken.key), "s")
        )
        for index in sorted(taken.unsent):
            value, place = sql.Identifier(f"v{index}"), sql.Literal(index + 1)
            await self._conn.execute(
                composed(
                    "UPDATE {} AS s SET {} = f.{}, sent = overlay(s.sent PLACING '1' FROM {}) FROM ("
                    "SELECT s.n, p.{} FROM {} AS s CROSS JOIN LATERAL (SELECT p.{} FROM {} AS p "
                    "WHERE {} AND p.n < s.n AND substr(p.sent, {}, 1) = '1' ORDER BY p.n DESC LIMIT 1) AS p "
                    "WHERE substr(s.sent, {}, 1) = '0') AS f WHERE f.n = s.n",
                    *(
                        taken.set,
                        value,
                        value,
                        place,
                        value,
                        taken.set,
                        value,
                        taken.set,
                        matches,
                        place,
                        place,
                    ),
                )
            )


def _temporary(kind: str, number: int) -> sql.Identifier:
    return sql.Identifier("pg_temp", f"pglockstep_{kind}{number}")


def net_gone(taken: TakenTable) -> sql.Composable:
    """The keys that are gone, net of those that came back: k0, k1, …"""
    return _having(taken, sql.SQL("> 0"))


def replaced(taken: TakenTable) -> sql.Composable:
    """The keys under which the transaction left no row of before, though it may have left another: k0, k1, …"""
    return _having(taken, sql.SQL(">= 0"))


def _having(taken: TakenTable, net: sql.SQL) -> sql.Composable:
    key = joined(", ", numbered("k", len(taken.key)))
    return composed("(SELECT {} FROM {} GROUP BY {} HAVING sum(op) {})", key, taken.gone, key, net)


def _set_columns(taken: TakenTable) -> tuple[sql.Composable, list[tuple[str, int, int]]]:
    """The columns of the staging table for updates: letter, number, and the column whose type it takes."""
    values = [("v", index, index) for index in range(len(taken.columns))]
    if not taken.key:
        return sql.SQL("0::bigint AS n"), [*(("o", index, index) for _, index, _ in values), *values]
    keys = [(letter, position, index) for letter in "ok" for position, index in enumerate(taken.key)]
    return sql.SQL("0::bigint AS n, ''::text AS sent, false AS moved"), [*keys, *values]


def _named(taken: TakenTable, row: Row) -> Row:
    """The values that name a row."""
    if not taken.key:
        if len(row) != len(taken.columns):
            raise _nameless(taken)
        return row
    named = tuple([row[index] for index in taken.key])
    if UNCHANGED in named:
        raise _nameless(taken)
    return named


def _filled(new: Row, old: Row) -> Row:
    """The new row with what was not sent of it taken from the old one."""
    return tuple([was if value is UNCHANGED else value for value, was in zip(new, old, strict=True)])


def _nameless(taken: TakenTable) -> SourceError:
    name = taken.table.name
    return SourceError(
        f"a change of {name} does not say which row it was: the table has no replica identity",
        hint=f"nothing was changed; on the source: ALTER TABLE {name} REPLICA IDENTITY FULL, for the next time",
    )


def _line(values: Sequence[object]) -> bytes:
    """A line of COPY's text format."""
    return b"\t".join([_field(value) for value in values]) + b"\n"


def _field(value: object) -> bytes:
    if not isinstance(value, bytes):
        return b"\\N"
    for special, escaped in ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n"), (b"\r", b"\\r")):
        if special in value:
            value = value.replace(special, escaped)
    return value
