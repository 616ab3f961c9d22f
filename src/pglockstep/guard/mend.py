"""The rows of one table put right: what is missing or changed comes from the source, what is extra goes.

Rows are told apart by what they say, each as often as it occurs, so a table needs no key for it, and nothing has to be
in any order. An empty table is copied whole. A large one is first summed up on both ends in buckets by a hash of each
row's text: only the rows of buckets that differ travel, into a table of the session's own, and from there only those
that differ are written. A changed row is one that goes and one that comes. Both transactions are the caller's: the
source's shows one moment throughout, the target's is rolled back if anything fails.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.guard.buckets import Buckets, differing, encoding_of, size_of
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.extents import Extent, is_binary
from pglockstep.postgres.relay import relay
from pglockstep.postgres.row_texts import SEEDS, row_text, text_hash

#: The session's own tables: the source's rows in question, and where each row stands on either side, with what it says.
_STAGE = sql.Identifier("pg_temp", "pglockstep_mend")
_HERE = sql.Identifier("pg_temp", "pglockstep_here")
_THERE = sql.Identifier("pg_temp", "pglockstep_there")


class Mended(msgspec.Struct, frozen=True):
    """How many rows were put back, and how many were taken away; `sent` is what travelled, in bytes."""

    put_back: int = 0
    removed: int = 0
    sent: int = 0

    def __add__(self, other: Mended) -> Mended:
        return Mended(self.put_back + other.put_back, self.removed + other.removed, self.sent + other.sent)


class Mender:
    """Puts tables right, one after another, over a session at each end with a transaction open in it."""

    def __init__(
        self,
        ends: tuple[End, End],
        source: AsyncConnection[TupleRow],
        target: AsyncConnection[TupleRow],
        *,
        same_major: bool,
    ) -> None:
        self._ends = ends
        self._source = source
        self._target = target
        self._same_major = same_major
        self._sent = 0

    async def mend(self, table: Table, extent: Extent) -> Mended:
        """Put one table right, `table` and `extent` as the source has them.

        Others may read it meanwhile, not write. Raises the ends' errors; a relay that fails leaves both sessions unusable.
        """
        self._sent = 0
        name = table.name.sql()
        with translate(self._ends[1]):
            cursor = await self._target.execute(
                sql.SQL(
                    "LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE; SELECT NOT EXISTS (SELECT FROM ONLY {}), "
                    "EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = {}::regclass AND indisprimary AND indisvalid)"
                ).format(name, name, sql.Literal(name.as_string())),
                prepare=False,
            )
            cursor.nextset()
            row = await cursor.fetchone()
        assert row is not None
        empty, has_key = row
        binary = is_binary(extent.types, same_major=self._same_major)
        columns = [column.name for column in table.data_columns]
        if empty:
            rows = await self._relay(_copy_out(name, columns, binary), _copy_in(name, columns, binary))
            return Mended(rows, 0, self._sent)
        there, here = zip(self._ends, (self._source, self._target), strict=True)
        size = max(extent.bytes, await size_of(here, name))
        buckets = await differing(there, here, name, columns, size)
        if buckets is not None and not buckets.numbers:
            return Mended()
        # no two rows with one key say the same
        unique = has_key and bool(table.primary_key)
        return await self._exchange(name, columns, binary, buckets, unique=unique)

    async def _exchange(
        self,
        name: sql.Identifier,
        columns: Sequence[str],
        binary: bool,
        buckets: Buckets | None,
        *,
        unique: bool,
    ) -> Mended:
        """Fetch the rows in question, and write those that differ."""
        listed = _listed(columns)
        with translate(self._ends[1]):
            await self._target.execute(
                sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM ONLY {} WITH NO DATA").format(
                    _STAGE, listed, name
                )
            )
        query = _copy_out(name, columns, binary)
        if buckets is not None:
            rows = sql.SQL("SELECT {} FROM ONLY {} WHERE {}").format(
                listed, name, buckets.holds(columns, encoding_of(self._source))
            )
            query = sql.SQL("COPY ({}) TO STDOUT{}").format(rows, _format(binary))
        await self._relay(query, _copy_in(_STAGE, columns, binary))
        encoding = encoding_of(self._target)
        where = None if buckets is None else buckets.holds(columns, encoding)
        here = _numbered(name, columns, encoding, where, unique=unique)
        there = _numbered(_STAGE, columns, encoding, None, unique=unique)
        with translate(self._ends[1]):
            for kept, query in ((_HERE, here), (_THERE, there)):
                await self._target.execute(
                    sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS {}").format(kept, query), prepare=False
                )
            await self._target.execute(sql.SQL("ANALYZE {}, {}").format(_HERE, _THERE))
            gone = await self._target.execute(
                sql.SQL("DELETE FROM ONLY {} WHERE ctid IN ({})").format(name, _without(_HERE, _THERE))
            )
            back = await self._target.execute(
                sql.SQL("INSERT INTO {}{}{} SELECT {} FROM {} WHERE ctid IN ({})").format(
                    name,
                    _in_brackets(columns),
                    sql.SQL(" OVERRIDING SYSTEM VALUE" if columns else ""),
                    listed,
                    _STAGE,
                    _without(_THERE, _HERE),
                )
            )
            await self._target.execute(sql.SQL("DROP TABLE {}, {}, {}").format(_STAGE, _HERE, _THERE))
        return Mended(back.rowcount, gone.rowcount, self._sent)

    async def _relay(self, out: sql.Composed, into: sql.Composed) -> int:
        def moved(count: int) -> None:
            self._sent += count

        statements = (out.as_bytes(), into.as_bytes())
        return await relay(self._source, self._target, self._ends, statements, moved)


def _numbered(
    table: sql.Composable,
    columns: Sequence[str],
    encoding: str,
    where: sql.Composable | None,
    *,
    unique: bool,
) -> sql.Composed:
    """Where each row stands, what it says as two hashes, and which it is of those that say the same."""
    return sql.SQL(
        "SELECT place, hash0, hash1, {} AS nth FROM (SELECT ctid AS place, {} AS hash0, {} AS hash1 "
        'FROM (SELECT ctid, {} AS "row" FROM ONLY {}{} OFFSET 0) AS r) AS n'
    ).format(
        sql.SQL("1" if unique else "row_number() OVER (PARTITION BY hash0, hash1)"),
        text_hash(sql.Identifier("row"), SEEDS[0]),
        text_hash(sql.Identifier("row"), SEEDS[1]),
        row_text(columns, encoding),
        table,
        sql.SQL("") if where is None else sql.SQL(" WHERE {}").format(where),
    )


def _without(these: sql.Identifier, others: sql.Identifier) -> sql.Composed:
    """The places of those rows that are not among the others."""
    return sql.SQL(
        "SELECT t.place FROM {} AS t LEFT JOIN {} AS o USING (hash0, hash1, nth) WHERE o.nth IS NULL"
    ).format(these, others)


def _copy_out(name: sql.Identifier, columns: Sequence[str], binary: bool) -> sql.Composed:
    """The COPY of a table's own rows out of a server."""
    return sql.SQL("COPY {}{} TO STDOUT{}").format(name, _in_brackets(columns), _format(binary))


def _copy_in(name: sql.Identifier, columns: Sequence[str], binary: bool) -> sql.Composed:
    return sql.SQL("COPY {}{} FROM STDIN{}").format(name, _in_brackets(columns), _format(binary))


def _format(binary: bool) -> sql.SQL:
    return sql.SQL(" (FORMAT binary)" if binary else "")


def _listed(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _in_brackets(columns: Sequence[str]) -> sql.Composable:
    return sql.SQL(" ({})").format(_listed(columns)) if columns else sql.SQL("")
