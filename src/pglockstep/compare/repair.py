"""Rows of one table put right on one end, each only if it is still what was seen there: nothing else is touched.

Statements take the rows of a portion together, and say which of them they found as expected. A row is its key with the hashes
of what it says; without a key, the hashes, and how many rows there are of them. The transaction is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from pglockstep.compare.content import comparable_type
from pglockstep.compare.pairing import Pairing, RowDifference, RowKey
from pglockstep.compare.readings import Place, Reader, RowValues, unread
from pglockstep.compare.scripts import on_conflict
from pglockstep.postgres.row_texts import SEEDS, text_hash

#: Constraints of a table that may be deferred, and what they are over.
_DEFERRABLE = sql.SQL(
    """SELECT x.relname, i.indisexclusion,
    coalesce((pg_catalog.to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false),
    ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::smallint[]))
FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid
WHERE i.indrelid = $1 AND NOT i.indimmediate"""
)


class Repairer:
    """Writes rows of one table over one session. Raises the end's errors."""

    def __init__(self, place: Place, pairing: Pairing) -> None:
        self._place = place
        self._pairing = pairing
        self.reader = Reader(place, pairing)
        self._table = pairing.at(place.end.side)
        self._key = pairing.key_columns(place.end.side)
        here = {column.name: column for column in self._table.columns}
        #: the columns that are written, with their places among those that are compared
        self._written = [
            (number, here[name]) for number, name in enumerate(pairing.columns) if not here[name].generated
        ]

    async def delete(self, rows: Sequence[RowDifference], seen: Mapping[RowKey, int]) -> set[RowKey]:
        """Delete these rows; `seen` says, without a key, how many there were of each."""
        if not rows:
            return set()
        if not self._key:
            return await self._delete_equal(rows, seen)
        query = sql.SQL("DELETE FROM ONLY {} AS t USING {} WHERE {} RETURNING {}").format(
            self._name, self._known(), self._as_seen(), self._keys()
        )
        return await self._done(query, self._arrays(rows))

    async def update(self, rows: Sequence[RowDifference], values: Mapping[RowKey, RowValues]) -> set[RowKey]:
        """Give these rows, which have a key, the values of the other end."""
        names = {column.name for column in self._key}
        changes = [
            (number, column)
            for number, column in self._written
            if column.name not in names and column.identity != "a"
        ]
        if not changes or not rows:
            return set()
        first = len(self._key) + 3
        sets = [
            sql.SQL("{} = w.{}::{}").format(sql.Identifier(column.name), _value(n), sql.SQL(column.type_name))
            for n, (_, column) in enumerate(changes)
        ]
        query = sql.SQL("UPDATE ONLY {} AS t SET {} FROM {} WHERE {} RETURNING {}").format(
            self._name,
            _listed(sets),
            self._known(range(first, first + len(changes))),
            self._as_seen(),
            self._keys(),
        )
        arrays = self._arrays(rows)
        arrays += [[values[row.key].texts[number] for row in rows] for number, _ in changes]
        return await self._done(query, arrays)

    async def insert(
        self, rows: Sequence[RowDifference], values: Mapping[RowKey, RowValues], seen: Mapping[RowKey, int]
    ) -> set[RowKey]:
        """Insert these rows; a key or a unique value that somebody has taken since leaves a row out."""
        if not self._key:
            now = await self.reader.rows_of([row.key for row in rows])
            rows = [row for row in rows if (now[row.key].says[0] if row.key in now else 0) == seen[row.key]]
        if not rows:
            return set()
        count = len(self._written)
        listed = _listed([sql.Identifier(column.name) for _, column in self._written])
        values_of = _listed(
            [
                sql.SQL("{}::{}").format(_value(n), sql.SQL(column.type_name))
                for n, (_, column) in enumerate(self._written)
            ]
        )
        query = sql.SQL(
            "INSERT INTO {}{} {}SELECT {} FROM unnest({}) AS w ({}), generate_series(1, w.copies){}{}"
        ).format(
            self._name,
            sql.SQL(" ({})").format(listed) if count else sql.SQL(""),
            sql.SQL("OVERRIDING SYSTEM VALUE " if count else ""),
            values_of,
            _listed([*(_array(n + 1, "text") for n in range(count)), _array(count + 1, "bigint")]),
            _listed([*map(_value, range(count)), sql.Identifier("copies")]),
            on_conflict(self._table, [column.name for column in self._key]),
            sql.SQL(" RETURNING {}").format(
                _listed([sql.SQL("{}::text").format(sql.Identifier(column.name)) for column in self._key])
            )
            if self._key
            else sql.SQL(""),
        )
        arrays: list[object] = [
            [values[row.key].texts[number] for row in rows] for number, _ in self._written
        ]
        done = await self._done(query, [*arrays, [row.copies for row in rows]])
        return done if self._key else {row.key for row in rows}

    def sets_what_no_update_may(self, before: RowValues, after: RowValues) -> bool:
        """Whether a column differs that is GENERATED ALWAYS AS IDENTITY: such a row goes and comes."""
        return any(
            before.texts[number] != after.texts[number]
            for number, column in self._written
            if column.identity == "a"
        )

    async def taken_twice(self) -> str | None:
        """A deferrable constraint that does not hold, or may not: for a replica nobody checks it. None if all do."""
        if not self._table.has_deferrable:
            return None
        constraints = await self._rows(_DEFERRABLE, [self._table.oid])
        for name, is_exclusion, nulls_are_equal, columns in constraints:
            names = [sql.Identifier(each) for each in columns]
            filled = [sql.SQL("{} IS NOT NULL").format(each) for each in names]
            twice = sql.SQL("SELECT FROM ONLY {} WHERE {} GROUP BY {} HAVING count(*) > 1 LIMIT 1").format(
                self._name,
                sql.SQL("true") if nulls_are_equal else sql.SQL(" AND ").join(filled),
                _listed(names),
            )
            if is_exclusion or await self._rows(twice, []):
                return str(name)
        return None

    async def _rows(self, query: sql.SQL | sql.Composed, values: Sequence[object]) -> list[TupleRow]:
        try:
            cursor = await self._place.conn.execute(query, values, prepare=False)
            return await cursor.fetchall()
        except psycopg.Error as error:
            raise unread(self._place.end, self._pairing, error) from error

    async def _delete_equal(self, rows: Sequence[RowDifference], seen: Mapping[RowKey, int]) -> set[RowKey]:
        """Of rows that say the same, as many as are too many; if there are still as many as there were."""
        content = self._pairing.content.text(self._place.encoding)
        hashes = [text_hash(sql.Identifier("row"), seed) for seed in SEEDS]
        query = sql.SQL(
            "WITH found AS (SELECT place, hash0, hash1, w.copies, w.seen, "
            "row_number() OVER same AS n, count(*) OVER same AS present "
            "FROM (SELECT place, {} AS hash0, {} AS hash1 "
            'FROM (SELECT t.ctid AS place, {} AS "row" FROM ONLY {} AS t OFFSET 0) AS r) AS t '
            "JOIN unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS w (hash0, hash1, copies, seen) "
            "USING (hash0, hash1) WINDOW same AS (PARTITION BY hash0, hash1)) "
            "DELETE FROM ONLY {} AS t USING found AS f WHERE t.ctid = f.place AND f.n <= f.copies AND f.present = f.seen "
            "RETURNING f.hash0, f.hash1"
        ).format(*hashes, content, self._name, self._name)
        columns = [[row.key[0], row.key[1], row.copies, seen[row.key]] for row in rows]
        return await self._done(query, [list(each) for each in zip(*columns, strict=True)])

    # --- the parts of statements --------------------------------------------------------------------------

    @property
    def _name(self) -> sql.Identifier:
        return self._table.name.sql()

    def _known(self, values: Iterable[int] = ()) -> sql.Composed:
        """The rows that are meant: their keys, two hashes of what they say, and values."""
        keys = len(self._key)
        arrays = [_array(n + 1, "text") for n in range(keys)]
        arrays += [_array(keys + 1, "bigint"), _array(keys + 2, "bigint")]
        numbers = list(values)
        arrays += [_array(number, "text") for number in numbers]
        names = [_known_key(n) for n in range(keys)]
        names += [sql.Identifier("pglockstep h0"), sql.Identifier("pglockstep h1")]
        names += [_value(n) for n in range(len(numbers))]
        return sql.SQL("unnest({}) AS w ({})").format(_listed(arrays), _listed(names))

    def _as_seen(self) -> sql.Composed:
        content = self._pairing.content.text(self._place.encoding)
        parts = [
            sql.SQL("t.{} {} w.{}::{}").format(
                sql.Identifier(column.name),
                sql.SQL(column.equality or "OPERATOR(pg_catalog.=)"),
                _known_key(n),
                sql.SQL(comparable_type(column)),
            )
            for n, column in enumerate(self._key)
        ]
        parts += [
            sql.SQL("{} = w.{}").format(text_hash(content, seed), sql.Identifier(f"pglockstep h{n}"))
            for n, seed in enumerate(SEEDS)
        ]
        return sql.SQL(" AND ").join(parts)

    def _keys(self) -> sql.Composed:
        return _listed([sql.SQL("w.{}").format(_known_key(n)) for n in range(len(self._key))])

    def _arrays(self, rows: Sequence[RowDifference]) -> list[object]:
        said = [self._said(row) for row in rows]
        keys: list[object] = [list(each) for each in zip(*(row.key for row in rows), strict=True)]
        return [*keys, [each[0] for each in said], [each[1] for each in said]]

    def _said(self, row: RowDifference) -> tuple[int, ...]:
        said = row.source if self._place.end.side == "source" else row.target
        assert said is not None
        return said

    async def _done(self, query: sql.Composed, values: Sequence[object]) -> set[RowKey]:
        cursor = self._place.conn.cursor(binary=True)
        try:
            await cursor.execute(query, values, prepare=False)
            return set(await cursor.fetchall()) if cursor.description else set()
        except psycopg.Error as error:
            raise unread(self._place.end, self._pairing, error) from error


def _array(number: int, type_name: str) -> sql.Composed:
    return sql.SQL("{}::{}[]").format(sql.SQL(f"${number}"), sql.SQL(type_name))


def _known_key(number: int) -> sql.Identifier:
    return sql.Identifier(f"pglockstep k{number}")


def _value(number: int) -> sql.Identifier:
    return sql.Identifier(f"pglockstep v{number}")


def _listed(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
