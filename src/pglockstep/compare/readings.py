"""What one end says of a table's rows: sums of chunks, sums of their parts, the rows of parts, rows by their keys.

Two multisets of rows have the same sums exactly when they are equal, but for a chance of about one in 2**64. Physical order,
layout and indexes make no difference. Hashes are computed where the rows are, and hashes travel, and keys. Each reading is
one statement, sees one moment, writes nothing and takes no lock beyond a reader's own. Inheritance children and partitions
are tables of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.compare.content import comparable_type
from pglockstep.compare.pairing import Pairing, RowKey
from pglockstep.compare.ranges import WHOLE, Key, Range, Size
from pglockstep.compare.suspects import Says, Seen
from pglockstep.errors import Inconclusive, LockstepError, UsageProblem, one_line
from pglockstep.postgres.connect import End, is_gone, translate, translated
from pglockstep.postgres.moments import holds, use_snapshot
from pglockstep.postgres.row_texts import PROBE, PROBE_HASH, SEEDS, row_text, text_hash

_ROW = sql.Identifier("row")


class Sums(msgspec.Struct, frozen=True):
    """The content of a table or of a part of it: how many rows there are, and the sum of their hashes under each seed."""

    rows: int = 0
    sum0: int = 0
    sum1: int = 0


class RowValues(msgspec.Struct, frozen=True):
    """A row: two hashes of what it says, and the texts of the columns that are compared, in their order."""

    says: Says
    texts: tuple[str | None, ...]


class Place(msgspec.Struct, frozen=True):
    """A session, and the end that it leads to."""

    end: End
    conn: AsyncConnection[TupleRow]

    @property
    def encoding(self) -> str:
        """The encoding of the database."""
        return self.conn.info.parameter_status("server_encoding") or "UTF8"

    async def demand_same_hashes(self) -> None:
        """Raise `Inconclusive` where this server's hashes mean nothing elsewhere."""
        query = sql.SQL("SELECT {}").format(text_hash(sql.Literal(PROBE), SEEDS[0]))
        with translate(self.end):
            cursor = await self.conn.execute(query)
            row = await cursor.fetchone()
        if row != (PROBE_HASH,):
            raise Inconclusive(
                "the server computes other hashes than PostgreSQL 14 to 18 do on a little-endian machine",
                hint="compare this link with pg_dump's output of both ends",
            )


class Reader:
    """Reads one table over one session.

    Raises the end's errors, and `Inconclusive` with the reason where just this table could not be read.
    """

    def __init__(self, place: Place, pairing: Pairing) -> None:
        self._place = place
        self._pairing = pairing
        self._table = pairing.at(place.end.side)
        self._key = pairing.key_columns(place.end.side)
        self._names = [sql.Identifier(each.name) for each in self._key]
        # enums and other types of a user's come with a user's operators, which no search_path finds
        self._equality = [each.equality or "OPERATOR(pg_catalog.=)" for each in self._key]
        self._types = [comparable_type(each) for each in self._key]

    async def sums(self, within: Range = WHOLE) -> Sums:
        """The sums of the rows in a range."""
        query = sql.SQL("SELECT {} FROM ({}) AS r").format(_SUMS, self._texts(self._in(within)))
        [row] = await self._fetch(query)
        return _sums(row)

    async def sums_of_values(self, within: Range = WHOLE) -> Sums:
        """As `sums`, of the rows' values: quicker, and the same for what the types call equal."""
        rows = sql.SQL('SELECT {} AS "row" FROM ONLY {} AS t{} OFFSET 0').format(
            self._pairing.content.record(), self._table.name.sql(), where_of(self._in(within))
        )
        hashes = [sql.SQL("hash_record_extended({}, {})").format(_ROW, sql.Literal(seed)) for seed in SEEDS]
        [row] = await self._fetch(sql.SQL("SELECT {} FROM ({}) AS r").format(_summed(*hashes), rows))
        return _sums(row)

    async def parts(self, within: Range, parts: int) -> Mapping[int, Sums]:
        """The sums of each of `parts` parts of a range, a power of two; rows go by a hash of what they are known by."""
        query = sql.SQL('SELECT {} AS "part", {} FROM ({}) AS r GROUP BY "part"').format(
            self._part(parts), _SUMS, self._texts(self._in(within), keyed=True)
        )
        return {row[0]: _sums(row[1:]) for row in await self._fetch(query)}

    async def rows(self, within: Range, parts: int, chosen: Sequence[int]) -> Mapping[RowKey, Seen]:
        """The rows of the `chosen` parts of a range."""
        if self._key:
            # so no text is made of rows that are not asked for
            part = text_hash(row_text(self._pairing.key, self._place.encoding), SEEDS[1])
            mine = sql.SQL("({} & {}) = ANY ($1::bigint[])").format(part, sql.Literal(parts - 1))
            source = sql.SQL("FROM ({}) AS r").format(self._texts([*self._in(within), mine], keyed=True))
        else:
            source = sql.SQL("FROM ({}) AS r WHERE {} = ANY ($1::bigint[])").format(
                self._texts(self._in(within), keyed=True), self._part(parts)
            )
        return self._reading(await self._fetch(self._seen(source), [list(chosen)]))

    async def rows_of(self, keys: Sequence[RowKey]) -> Mapping[RowKey, Seen]:
        """The rows of these keys, as far as they are there."""
        if not keys:
            return {}
        if not self._key:
            query = self._seen(
                sql.SQL("FROM ({}) AS r WHERE {} = ANY ($1::bigint[])").format(
                    self._texts([*self._filter()], keyed=True), text_hash(_ROW, SEEDS[0])
                )
            )
            found = self._reading(await self._fetch(query, [[each[0] for each in keys]]))
            wanted = set(keys)
            return {key: seen for key, seen in found.items() if key in wanted}
        query = self._seen(
            # whether they are selected or not: where only one end selects a row, the other has it all the same
            sql.SQL("FROM ({}) AS r").format(self._texts([], keyed=True, join=self._join()))
        )
        return self._reading(await self._fetch(query, [list(each) for each in zip(*keys, strict=True)]))

    async def values_of(self, keys: Sequence[RowKey]) -> Mapping[RowKey, RowValues]:
        """What the rows of these keys say, as far as they are there; of equal rows without a key, one."""
        if not keys:
            return {}
        names = [sql.Identifier(f"value{n}") for n in range(len(self._pairing.columns))]
        # what its type writes, whatever cast to text a user has defined
        texts = [
            sql.SQL("CASE WHEN {0} IS NOT NULL THEN concat({0}) END AS {1}").format(
                sql.SQL("t.{}").format(sql.Identifier(column)), name
            )
            for column, name in zip(self._pairing.columns, names, strict=True)
        ]
        known_by: list[sql.Composable] = [text_hash(_ROW, seed) for seed in SEEDS]
        if self._key:
            rows = self._texts([], keyed=True, join=self._join(), more=texts)
            keys_of = [self._as_text(n, _key_name(n)) for n in range(len(self._key))]
            query = sql.SQL("SELECT {} FROM ({}) AS r").format(_listed([*keys_of, *known_by, *names]), rows)
            values: list[object] = [list(each) for each in zip(*keys, strict=True)]
        else:
            query = sql.SQL(
                "SELECT DISTINCT ON (1, 2) {} FROM ({}) AS r WHERE {} = ANY ($1::bigint[])"
            ).format(
                _listed([*known_by, *names]), self._texts(self._filter(), keyed=True, more=texts), known_by[0]
            )
            values = [[each[0] for each in keys]]
        width, wanted = len(self._key), set(keys)
        found = {}
        for row in await self._fetch(query, values):
            says = row[width : width + 2]
            key = row[:width] or says
            if key in wanted:
                found[key] = RowValues(says, row[width + 2 :])
        return found

    async def rows_as_of(self, snapshot: str, keys: Sequence[RowKey]) -> Mapping[RowKey, Seen] | None:
        """As `rows_of`, as a snapshot shows them; None if the table was truncated or rewritten since."""
        conn = self._place.conn
        await conn.execute("BEGIN")
        try:
            try:
                await use_snapshot(conn, snapshot)
            except psycopg.Error as error:
                if is_gone(error):
                    raise
                raise Inconclusive("the moment was gone before all of it was read") from error
            return await self.rows_of(keys) if await holds(conn, self._table) else None
        except psycopg.Error as error:
            raise unread(self._place.end, self._pairing, error) from error
        finally:
            if not conn.closed:
                await conn.rollback()

    async def size(self) -> Size:
        """How large the table is, as the server estimates it."""
        query = sql.SQL(
            "SELECT reltuples, pg_catalog.pg_relation_size(oid) FROM pg_catalog.pg_class WHERE oid = {}"
        ).format(sql.Literal(self._table.oid))
        rows = await self._fetch(query)
        if not rows:
            return Size()
        tuples, size = rows[0]
        # never counted: as many as there would be of a hundred bytes
        return Size(tuples if tuples >= 0 else (size or 0) / 100, size or 0)

    async def sample(self, percent: float, wanted: int) -> list[Key]:
        """About `wanted` keys of the table, evenly spread, sorted, from so much of its pages."""
        query = sql.SQL(
            "SELECT {texts} FROM (SELECT {names}, row_number() OVER (ORDER BY {names}) AS n, count(*) OVER () AS total "
            "FROM ONLY {table} TABLESAMPLE SYSTEM ({percent})) AS s WHERE n % greatest(total / {wanted}, 1) = 0"
        ).format(
            texts=self._key_texts(),
            names=_listed(self._names),
            table=self._table.name.sql(),
            percent=sql.Literal(percent),
            wanted=sql.Literal(wanted),
        )
        return [tuple(row) for row in await self._fetch(query)]

    async def sorted(self, keys: Iterable[Key]) -> list[Key]:
        """These keys in this server's order."""
        columns = list(zip(*keys, strict=True))
        if not columns:
            return []
        names = [sql.Identifier(f"pglockstep k{index}") for index in range(len(columns))]
        # in the collation of the column itself, which the ranges go by
        casts = [
            sql.SQL("coalesce(u.{}::{}, (SELECT {} FROM ONLY {} LIMIT 0))").format(
                name, sql.SQL(type_), column, self._table.name.sql()
            )
            for name, type_, column in zip(names, self._types, self._names, strict=True)
        ]
        query = sql.SQL("SELECT {0} FROM unnest({1}) AS u ({0}) ORDER BY {2}").format(
            _listed(names), self._arrays(), _listed(casts)
        )
        return [tuple(row) for row in await self._fetch(query, [list(each) for each in columns])]

    # --- the parts of statements --------------------------------------------------------------------------

    def _texts(
        self,
        conditions: Sequence[sql.Composable],
        *,
        keyed: bool = False,
        join: sql.Composable | None = None,
        more: Sequence[sql.Composable] = (),
    ) -> sql.Composed:
        """A query for the text of each row, and what it is known by; and for `more`."""
        columns: list[sql.Composable] = [
            sql.SQL("{} AS {}").format(self._pairing.content.text(self._place.encoding), _ROW)
        ]
        if keyed:
            columns.append(sql.SQL("t.xmin::text || ' ' || t.ctid::text AS \"version\""))
            columns += [
                sql.SQL("t.{0} AS {1}").format(name, _key_name(n)) for n, name in enumerate(self._names)
            ]
            if self._key:
                text = row_text(self._pairing.key, self._place.encoding, "t")
                columns.append(sql.SQL('{} AS "key"').format(text))
        columns += more
        # OFFSET 0 keeps the planner from computing a text anew for each use of it
        return sql.SQL("SELECT {} FROM ONLY {} AS t{}{} OFFSET 0").format(
            _listed(columns), self._table.name.sql(), join or sql.SQL(""), where_of(conditions)
        )

    def _filter(self) -> list[sql.Composable]:
        # on lines of its own: what a person wrote may end in a comment
        where = self._pairing.where
        return [sql.SQL("(\n{}\n)").format(sql.SQL(where))] if where else []

    def _in(self, within: Range) -> list[sql.Composable]:
        conditions = self._filter()
        for sign, end in ((">=", within.low), ("<", within.high)):
            if end is not None:
                values = [
                    sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(type_))
                    for value, type_ in zip(end, self._types, strict=True)
                ]
                conditions.append(
                    sql.SQL("ROW({}) {} ROW({})").format(_listed(self._names), sql.SQL(sign), _listed(values))
                    if len(values) > 1
                    else sql.SQL("{} {} {}").format(self._names[0], sql.SQL(sign), values[0])
                )
        return conditions

    def _join(self) -> sql.Composed:
        names = [sql.Identifier(f"pglockstep k{index}") for index in range(len(self._key))]
        alike = [
            sql.SQL("t.{} {} w.{}::{}").format(column, sql.SQL(equality), name, sql.SQL(type_))
            for column, equality, name, type_ in zip(
                self._names, self._equality, names, self._types, strict=True
            )
        ]
        return sql.SQL(" JOIN unnest({}) AS w ({}) ON {}").format(
            self._arrays(), _listed(names), sql.SQL(" AND ").join(alike)
        )

    def _arrays(self) -> sql.Composed:
        return _listed([sql.SQL(f"${index + 1}::text[]") for index in range(len(self._key))])

    def _part(self, parts: int) -> sql.Composed:
        known_by = sql.Identifier("key") if self._key else _ROW
        return sql.SQL("({} & {})").format(text_hash(known_by, SEEDS[1]), sql.Literal(parts - 1))

    def _key_texts(self) -> sql.Composed:
        return _listed([self._as_text(n, name) for n, name in enumerate(self._names)])

    def _as_text(self, number: int, name: sql.Composable) -> sql.Composed:
        # a type of a user's may have a cast to text that makes two values one; every type's own output does not
        return sql.SQL("concat({})" if "." in self._types[number] else "{}::text").format(name)

    def _seen(self, source: sql.Composed) -> sql.Composed:
        hashes = [text_hash(_ROW, seed) for seed in SEEDS]
        if self._key:
            keys = _listed([self._as_text(n, _key_name(n)) for n in range(len(self._key))])
            return sql.SQL('SELECT {}, {}, "version" {}').format(keys, _listed(hashes), source)
        version = text_hash(sql.SQL('"version"'), SEEDS[0])
        return sql.SQL("SELECT {}, count(*), sum({})::text {} GROUP BY 1, 2").format(
            _listed(hashes), version, source
        )

    def _reading(self, rows: Sequence[TupleRow]) -> Mapping[RowKey, Seen]:
        width = len(self._key)
        if width:
            return {row[:width]: Seen(row[width : width + 2], row[-1]) for row in rows}
        return {row[:2]: Seen(row[2:3], row[3]) for row in rows}

    async def _fetch(self, query: sql.Composed, values: Sequence[object] = ()) -> list[TupleRow]:
        cursor = self._place.conn.cursor(binary=True)
        try:
            await cursor.execute(query, values, prepare=False)
            return await cursor.fetchall()
        except psycopg.Error as error:
            raise unread(self._place.end, self._pairing, error) from error


def unread(end: End, pairing: Pairing, error: psycopg.Error) -> LockstepError:
    """Why a table could not be read, which says nothing about what is in it. Pure."""
    if is_gone(error):
        return translated(end, error)
    said, side, name = one_line(str(error)), end.side, pairing.at(end.side).name
    if pairing.where and (error.sqlstate or "").startswith(("42", "22")):
        return UsageProblem(
            f"the condition cannot be asked of {name} on the {side}: {said}", hint="correct --where"
        )
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return Inconclusive(f"it is locked on the {side}: {said}", hint=f"see pg_locks on the {side}")
    if isinstance(error, psycopg.errors.QueryCanceled):
        return Inconclusive(f"a statement was cancelled on the {side}: {said}", hint="the same command again")
    if isinstance(error, _ALTERED):
        return Inconclusive(
            f"it was dropped or altered on the {side} meanwhile: {said}", hint="the same command again"
        )
    known = translated(end, error)
    return Inconclusive(known.message, hint=known.hint) if known.transient else known


#: What a statement fails with that was written for a table as it was a moment ago.
_ALTERED = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedObject,
    psycopg.errors.WrongObjectType,
)


def _summed(hash0: sql.Composable, hash1: sql.Composable) -> sql.Composed:
    return sql.SQL("count(*), coalesce(sum({}), 0)::text, coalesce(sum({}), 0)::text").format(hash0, hash1)


_SUMS = _summed(text_hash(_ROW, SEEDS[0]), text_hash(_ROW, SEEDS[1]))


def where_of(conditions: Sequence[sql.Composable]) -> sql.Composable:
    """The WHERE of a statement under all of these conditions. Pure."""
    return sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL("")


def _sums(row: TupleRow) -> Sums:
    rows, sum0, sum1 = row
    return Sums(rows, int(sum0), int(sum1))


def _key_name(number: int) -> sql.Identifier:
    return sql.Identifier(f"key{number}")


def _listed(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
