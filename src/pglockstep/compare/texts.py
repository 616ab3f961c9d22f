"""The rows themselves, as the texts that a stream would carry: by their keys, or all of a range.

Values are what their types' own output functions write, in UTF-8; None is NULL. Each reading is one statement, writes nothing
and takes no lock beyond a reader's own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import psycopg
from psycopg import pq, sql

from pglockstep.compare.pairing import Pairing, RowKey
from pglockstep.compare.ranges import WHOLE, Key, Range
from pglockstep.compare.readings import Place, Reader, unread, where_of
from pglockstep.postgres.row_texts import SEEDS, text_hash

#: The values of a row, in the order of the pairing's columns.
Values = tuple[bytes | None, ...]

#: So many rows of a range are fetched at once.
_FETCHED = 2_000
_CURSOR = sql.Identifier("pglockstep_rows")


class Texts(Reader):
    """A `Reader` that also gives the values of the pairing's columns, in their order."""

    def __init__(self, place: Place, pairing: Pairing) -> None:
        super().__init__(place, pairing)
        self._values = sql.SQL(", ").join(
            sql.SQL("t.{}").format(sql.Identifier(each)) for each in pairing.columns
        )

    async def of(self, keys: Sequence[RowKey]) -> dict[RowKey, Values]:
        """The rows of these keys, as far as they are there; of equal rows without a key, one."""
        if not keys:
            return {}
        if not self._key:
            query = sql.SQL("SELECT {}, r.* FROM ({}) AS r WHERE {} = ANY ($1::bigint[])").format(
                sql.SQL(", ").join(text_hash(sql.Identifier("pglockstep row"), seed) for seed in SEEDS),
                self._rows([], beside=self._content()),
                text_hash(sql.Identifier("pglockstep row"), SEEDS[0]),
            )
            found = await self._texts_of(query, [[each[0] for each in keys]])
            wanted = set(keys)
            # behind the hashes stands what they are of
            rows = {tuple(int(each or 0) for each in row[:2]): row[3:] for row in found}
            return {key: row for key, row in rows.items() if key in wanted}
        texts = sql.SQL(", ").join(
            self._as_text(n, sql.SQL("t.{}").format(name)) for n, name in enumerate(self._names)
        )
        query = self._rows(self._filter(), beside=texts, join=self._join())
        width = len(self._key)
        rows_of = await self._texts_of(query, [list(each) for each in zip(*keys, strict=True)])
        return {tuple((each or b"").decode() for each in row[:width]): row[width:] for row in rows_of}

    async def all(self, within: Range = WHOLE) -> AsyncGenerator[list[Values]]:
        """Every row of a range, some at a time, as one moment shows them."""
        async for rows in self._fetched(self._rows(self._in(within))):
            yield rows

    async def marks(self, within: Range, every: int) -> list[Key]:
        """The keys of each so many rows of a range."""
        query = sql.SQL(
            "SELECT {texts} FROM (SELECT {names}, row_number() OVER (ORDER BY {names}) AS n FROM ONLY {table} AS t{where}) AS s "
            "WHERE n % {every} = 0"
        ).format(
            texts=self._key_texts(),
            names=sql.SQL(", ").join(self._names),
            table=self._table.name.sql(),
            where=where_of(self._in(within)),
            every=sql.Literal(every),
        )
        return [tuple((each or b"").decode() for each in row) for row in await self._texts_of(query)]

    async def keys(self, within: Range = WHOLE) -> AsyncGenerator[list[RowKey]]:
        """The key of every row of a range, some at a time, as one moment shows them."""
        query = sql.SQL("SELECT {} FROM ONLY {} AS t{}").format(
            self._key_texts(), self._table.name.sql(), where_of(self._in(within))
        )
        async for rows in self._fetched(query):
            yield [tuple((each or b"").decode() for each in row) for row in rows]

    def _content(self) -> sql.Composed:
        return sql.SQL('{} AS "pglockstep row"').format(self._pairing.content.text(self._place.encoding))

    def _rows(
        self,
        conditions: Sequence[sql.Composable],
        beside: sql.Composable | None = None,
        join: sql.Composable | None = None,
    ) -> sql.Composed:
        columns = [
            each for each in (beside, self._values if self._pairing.columns else None) if each is not None
        ]
        return sql.SQL("SELECT {} FROM ONLY {} AS t{}{}{}").format(
            sql.SQL(", ").join(columns),
            self._table.name.sql(),
            join or sql.SQL(""),
            where_of(conditions),
            # the planner would compute a row's text anew for each use of it
            sql.SQL(" OFFSET 0" if beside is not None and join is None else ""),
        )

    async def _fetched(self, query: sql.Composed) -> AsyncGenerator[list[Values]]:
        conn = self._place.conn
        # inside of a transaction a savepoint is as good
        async with conn.transaction(force_rollback=True):
            await self._texts_of(sql.SQL("DECLARE {} NO SCROLL CURSOR FOR {}").format(_CURSOR, query))
            fetch = sql.SQL("FETCH {} FROM {}").format(sql.Literal(_FETCHED), _CURSOR)
            while rows := await self._texts_of(fetch):
                yield rows
                if len(rows) < _FETCHED:
                    return

    async def _texts_of(self, query: sql.Composed, values: Sequence[object] = ()) -> list[Values]:
        cursor = self._place.conn.cursor(binary=False)
        try:
            await cursor.execute(query, values, prepare=False)
        except psycopg.Error as error:
            raise unread(self._place.end, self._pairing, error) from error
        return [] if cursor.pgresult is None else _texts(cursor.pgresult)


def _texts(result: pq.abc.PGresult) -> list[Values]:
    columns = range(result.nfields)
    return [
        tuple(
            None if (value := result.get_value(row, column)) is None else bytes(value) for column in columns
        )
        for row in range(result.ntuples)
    ]
