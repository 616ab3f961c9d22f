"""From the net of a run to the few statements that carry it out on the target's table. Pure.

Rows that come are copied straight into the table. Keys of rows that go, and new values of rows that change,
are copied into a temporary table of the session's and joined with the target's. That staging table has the
target's own types and collations, but for domains, which stand as what they are made of: one that forbids NULL
must not mind a value that is not there.

Each step says how many rows it has to touch, so that nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import LiteralString, cast

import msgspec
from psycopg import sql

from pglockstep.apply.encoding import copy_text, wire_last, wire_text
from pglockstep.apply.net import Irregular, Net, net
from pglockstep.apply.runs import Run
from pglockstep.apply.statements import TableWriter, equals, plain
from pglockstep.wal.messages import UNCHANGED, PartialRow, Row

#: Positions of columns.
Positions = tuple[int, ...]

#: More columns than this do not fit into a staging table together with a key (PostgreSQL allows 1,600).
_WIDEST = 1500


class Stage(msgspec.Struct, frozen=True):
    """A temporary table of the session's: its name, and the statement that makes it."""

    name: str
    create: bytes


class Step(msgspec.Struct, frozen=True):
    """One COPY of `data`, and the statement after it, if any, that joins what was copied.

    `rows` is how many rows the last of the two has to touch.
    """

    verb: str
    copy: bytes
    data: bytes
    rows: int
    then: bytes = b""
    stage: Stage | None = None


class TableSets:
    """Makes the steps for one table, as its writer knows it. `number` tells its staging tables from others'."""

    def __init__(self, writer: TableWriter, number: int) -> None:
        self.writer = writer
        self._name = writer.table.name.sql()
        self._columns = writer.columns
        self._key = writer.key
        self._number = number
        self._always = frozenset(writer.always)

    @property
    def fits(self) -> bool:
        """Whether the table's rows fit into a staging table."""
        return len(self._columns) + len(self._key) <= _WIDEST

    def of(self, run: Run) -> list[Step]:
        """The steps that a run comes to. Raises `Irregular` where no set stands for it, and what `decode` raises."""
        step = self._as_sent(run)
        return self.steps(net(run.changes, self._key)) if step is None else [step]

    def _as_sent(self, run: Run) -> Step | None:
        """The one step that changes all of one kind come to, without a look into them; None if they need one."""
        width = len(self._columns)
        if not run.rows:
            return None
        if run.inserted:
            text = wire_text(run.rows, width, range(width))
            return None if text is None else self.come(text, len(run.rows))
        if not self._key or (run.updated and self._always):
            return None
        last = wire_last(run.rows, width, self._key)
        if last is None:
            return None
        if run.updated:
            text = wire_text(last, width, range(width))
            return None if text is None else self._update(range(width), text, len(last))
        # the same row twice is for the net to judge
        key = sorted(self._key)
        text = wire_text(last, width, key) if len(last) == len(run.rows) else None
        return (
            None if text is None else self._delete(text, len(last), [self._key.index(each) for each in key])
        )

    def steps(self, comes_to: Net) -> list[Step]:
        """The steps that carry out what a run `comes_to`, in order. Raises `Irregular` where no set can."""
        deleted, updated, moved, inserted = (
            comes_to.deleted,
            comes_to.updated,
            comes_to.moved,
            comes_to.inserted,
        )
        if self._always:
            # GENERATED ALWAYS AS IDENTITY takes no SET: the row is taken out and put back
            again, moved = list(moved), ()
            if not self._always.issubset(self._key):
                key_of = _row_getter(self._key)
                again += [(key_of(row), row) for row in updated]
                updated = ()
            if any(type(row) is PartialRow for _, row in again):
                raise Irregular
            deleted = [*deleted, *(origin for origin, _ in again)]
            inserted = [*inserted, *(row for _, row in again)]
        steps = []
        if comes_to.removed:
            steps.append(self._remove(comes_to.removed))
        if deleted:
            steps.append(self._delete(copy_text(deleted), len(deleted), range(len(self._key))))
        steps += [self._update(sent, copy_text(rows), len(rows)) for sent, rows in _by_shape(updated)]
        by_shape: dict[Positions, list[Row]] = {}
        for origin, row in moved:
            sent = _sent(row)
            by_shape.setdefault(sent, []).append(origin + _row_getter(sent)(row))
        steps += [self._move(sent, copy_text(rows), len(rows)) for sent, rows in by_shape.items()]
        if inserted:
            steps.append(self.come(copy_text(inserted), len(inserted)))
        return steps

    def come(self, text: bytes, rows: int) -> Step:
        """The step that brings so many new rows, which COPY's `text` holds."""
        return Step("INSERT", self._copy(self._name, [column.name for column in self._columns]), text, rows)

    def _delete(self, keys: bytes, rows: int, order: Sequence[int]) -> Step:
        """`order`: which of the key's columns each of the text's is."""
        stage = self._stage("d", self._key, ())
        names = [f"k{position}" for position in range(len(self._key))]
        delete = sql.SQL("DELETE FROM ONLY {} AS t USING {} AS s WHERE {}").format(
            self._name, _temporary(stage), self._matches(names)
        )
        then = self.writer.kept(delete, "t").as_bytes()
        copy = self._copy(_temporary(stage), [names[position] for position in order])
        return Step("DELETE", copy, keys, rows, then=then, stage=stage)

    def _update(self, sent: Sequence[int], text: bytes, rows: int) -> Step:
        """Rows of the values at `sent`, of which the key's name the row and the others are set."""
        names = [f"v{index}" for index in sent]
        settable = [index for index in sent if index not in self._key]
        return self._set(names, [f"v{index}" for index in self._key], settable, text, rows)

    def _move(self, sent: Positions, text: bytes, rows: int) -> Step:
        """Rows of the key that names the row, and the values at `sent`, which are set."""
        key = [f"k{position}" for position in range(len(self._key))]
        return self._set([*key, *(f"v{index}" for index in sent)], key, sent, text, rows)

    def _set(
        self, names: Sequence[str], key: Sequence[str], settable: Sequence[int], text: bytes, rows: int
    ) -> Step:
        stage = self._stage("u", self._key, range(len(self._columns)))
        matches = self._matches(key)
        if settable:
            assignments = sql.SQL(", ").join(
                sql.SQL("{} = s.{}").format(
                    sql.Identifier(self._columns[index].name), sql.Identifier(f"v{index}")
                )
                for index in settable
            )
            then = self._format(
                "UPDATE ONLY {} AS t SET {} FROM {} AS s WHERE {}",
                self._name,
                assignments,
                _temporary(stage),
                matches,
            )
        else:
            # nothing but unchanged keys: the rows have to be there all the same
            then = self._format(
                "SELECT FROM ONLY {} AS t, {} AS s WHERE {}", self._name, _temporary(stage), matches
            )
        copy = self._copy(_temporary(stage), names)
        return Step("UPDATE", copy, text, rows, then=then, stage=stage)

    def _remove(self, rows: Sequence[tuple[Row, int]]) -> Step:
        """Take out as many of several equal rows as are wanted, and no more; rows are told apart by their text."""
        stage = self._stage("r", (), range(len(self._columns)), counted=True)
        names = [f"v{index}" for index in range(len(self._columns))]
        ours = [sql.Identifier("t", column.name) for column in self._columns]
        theirs = [sql.Identifier("s", name) for name in names]
        delete = sql.SQL(
            "DELETE FROM ONLY {} WHERE ctid = ANY (ARRAY("
            "SELECT f.at FROM (SELECT t.ctid AS at, s.n, pg_catalog.row_number() OVER (PARTITION BY s.row) AS nth "
            "FROM ONLY {} AS t JOIN (SELECT s.n, {} AS row FROM {} AS s) AS s ON {} = s.row) AS f "
            "WHERE f.nth <= f.n))"
        ).format(self._name, self._name, _as_text(theirs), _temporary(stage), _as_text(ours))
        then = self.writer.kept(delete).as_bytes()
        data = copy_text([(*row, str(count).encode()) for row, count in rows])
        wanted = sum(count for _, count in rows)
        return Step(
            "DELETE", self._copy(_temporary(stage), [*names, "n"]), data, wanted, then=then, stage=stage
        )

    def _matches(self, key: Sequence[str]) -> sql.Composable:
        """The join of the target's table t with a staging table s that has the key in these columns."""
        return sql.SQL(" AND ").join(
            sql.SQL("{} {} s.{}").format(
                plain(self._columns[index], "t"),
                equals(self._columns[index]),
                sql.Identifier(name),
            )
            for index, name in zip(self._key, key, strict=True)
        )

    def _stage(self, kind: str, key: Sequence[int], values: Sequence[int], *, counted: bool = False) -> Stage:
        """A staging table for keys k0, k1, …, and values v0, v1, … of the columns at these positions."""
        named = [(f"k{position}", index) for position, index in enumerate(key)]
        named += [(f"v{index}", index) for index in values]
        columns: list[sql.Composable] = [
            sql.SQL("{} AS {}").format(plain(self._columns[index], "t"), sql.Identifier(name))
            for name, index in named
        ]
        if counted:
            columns.append(sql.SQL("0::bigint AS n"))
        name = f"pglockstep_{kind}{self._number}"
        # CREATE TABLE AS takes over types, modifiers and collations as they are
        create = self._format(
            "CREATE TEMPORARY TABLE {} ON COMMIT DELETE ROWS AS SELECT {} FROM ONLY {} AS t WITH NO DATA",
            sql.Identifier(name),
            sql.SQL(", ").join(columns),
            self._name,
        )
        return Stage(name, create)

    def _copy(self, table: sql.Composable, names: Sequence[str]) -> bytes:
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        listed = sql.SQL(" ({})").format(columns) if names else sql.SQL("")
        return self._format("COPY {}{} FROM STDIN", table, listed)

    def _format(self, template: LiteralString, *parts: sql.Composable) -> bytes:
        return sql.SQL(template).format(*parts).as_bytes()


def _by_shape(rows: Sequence[Row]) -> list[tuple[Positions, Sequence[Row]]]:
    """Rows with the same values left out together: where the others stand, and they alone."""
    whole = [row for row in rows if type(row) is not PartialRow]
    by_shape: dict[Positions, list[Row]] = {}
    if len(whole) < len(rows):
        for row in rows:
            if type(row) is PartialRow:
                sent = _sent(row)
                by_shape.setdefault(sent, []).append(_row_getter(sent)(row))
    return [*([(_sent(whole[0]), whole)] if whole else []), *by_shape.items()]


def _sent(row: Row) -> Positions:
    return tuple(index for index, value in enumerate(row) if value is not UNCHANGED)


def _row_getter(positions: Sequence[int]) -> Callable[[Row], Row]:
    """What takes the values at these positions out of a row."""
    if len(positions) > 1:
        return cast(Callable[[Row], Row], itemgetter(*positions))
    return lambda row: tuple(row[index] for index in positions)


def _temporary(stage: Stage) -> sql.Identifier:
    return sql.Identifier("pg_temp", stage.name)


def _as_text(columns: Sequence[sql.Composable]) -> sql.Composable:
    """A text that two rows share only if all of their values do."""
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(column) for column in columns)
    return sql.SQL('ROW({})::text COLLATE "C"').format(texts)
