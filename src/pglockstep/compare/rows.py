"""How many rows two tables differ in, once their fingerprints have shown that they do.

Both ends send the hashes of their rows in one and the same order, and the two streams are matched up as they
come: memory stays constant on our side, and the servers sort on disk what does not fit theirs. No value of a
user's travels. Nothing is written, and each end is read in a single snapshot.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from psycopg import AsyncConnection, AsyncServerCursor, sql
from psycopg.pq import TransactionStatus

from pglockstep.postgres.catalog import Table
from pglockstep.postgres.row_texts import SEEDS, row_texts, text_hash

#: Rows asked of a server at a time.
_BATCH = 20_000

#: Two hashes of the row's key, which order the stream; a hash of its content; how many such rows there are.
Row = tuple[int, int, int, int]


class Differences(msgspec.Struct, frozen=True):
    """How many rows are `missing` on the target, `extra` on the target, or `changed` under the same key."""

    missing: int = 0
    extra: int = 0
    changed: int = 0

    def __add__(self, other: Differences) -> Differences:
        return Differences(
            self.missing + other.missing, self.extra + other.extra, self.changed + other.changed
        )


async def count_differences(
    source_conn: AsyncConnection[Any],
    target_conn: AsyncConnection[Any],
    source_table: Table,
    target_table: Table,
    columns: Sequence[str],
) -> Differences:
    """Match the rows of two tables, compared by `columns`, and count those that differ.

    Rows are matched by primary key where both ends have the same one; otherwise by their whole content, each
    as often as it occurs, and then none counts as changed. A transaction that is open on a connection is read
    in, and is the caller's to make repeatable; where there is none, one is opened and ended. Raises psycopg's
    errors.
    """
    key: Sequence[str] = source_table.primary_key
    if set(key) != set(target_table.primary_key):
        key = ()
    async with snapshot(source_conn), snapshot(target_conn):
        source = _Stream(source_conn, source_table, columns, key)
        target = _Stream(target_conn, target_table, columns, key)
        async with source.cursor, target.cursor:
            return await _match(source, target)


@asynccontextmanager
async def snapshot(conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """See one unchanging state of the database inside; joins a transaction that is already open."""
    if conn.info.transaction_status != TransactionStatus.IDLE:
        yield
        return
    await conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        if not conn.closed:
            await conn.rollback()


def count(source: Sequence[Row], target: Sequence[Row]) -> Differences:
    """What differs between two stretches of rows that hold every row of each key in them."""
    if source == target:
        return Differences()
    source_rows, target_rows = _counted(source), _counted(target)
    source_keys, target_keys = _keys(source_rows - target_rows), _keys(target_rows - source_rows)
    changed = (source_keys & target_keys).total()
    return Differences(
        missing=source_keys.total() - changed, extra=target_keys.total() - changed, changed=changed
    )


def _counted(rows: Sequence[Row]) -> Counter[tuple[int, int, int]]:
    counted: Counter[tuple[int, int, int]] = Counter()
    for key0, key1, content, copies in rows:
        counted[key0, key1, content] += copies
    return counted


def _keys(rows: Counter[tuple[int, int, int]]) -> Counter[tuple[int, int]]:
    keys: Counter[tuple[int, int]] = Counter()
    for (key0, key1, _), copies in rows.items():
        keys[key0, key1] += copies
    return keys


class _Stream:
    """One end's rows in the order of their keys: those that have come and wait for a match, and the rest."""

    def __init__(
        self, conn: AsyncConnection[Any], table: Table, columns: Sequence[str], key: Sequence[str]
    ) -> None:
        self.cursor: AsyncServerCursor[Row] = conn.cursor("pglockstep_rows", binary=True)
        self.pending: list[Row] = []
        self.exhausted = False
        self._query = _query(conn, table, columns, key)
        self._opened = False

    @property
    def last_key(self) -> tuple[int, int]:
        return self.pending[-1][:2]

    async def fetch(self) -> None:
        if not self._opened:
            await self.cursor.execute(self._query)
            self._opened = True
        rows = await self.cursor.fetchmany(_BATCH)
        self.pending += rows
        self.exhausted = len(rows) < _BATCH

    def take(self, bound: tuple[int, int] | None) -> list[Row]:
        """Hand out the pending rows whose key is below `bound`, or all."""
        end = len(self.pending) if bound is None else bisect_left(self.pending, bound)
        taken, self.pending = self.pending[:end], self.pending[end:]
        return taken


async def _match(source: _Stream, target: _Stream) -> Differences:
    found = Differences()
    bound: tuple[int, int] | None = None
    while True:
        # The end that set the bound has nothing left to match; the other may be asked ahead of its need.
        asked = [
            stream
            for stream in (source, target)
            if not stream.exhausted and (len(stream.pending) < _BATCH or stream.last_key == bound)
        ]
        await _fetch(asked)
        # Beyond the last key of an end that has more to send, nothing is known yet.
        bound = min((stream.last_key for stream in (source, target) if not stream.exhausted), default=None)
        found += count(source.take(bound), target.take(bound))
        if bound is None:
            return found


async def _fetch(streams: Sequence[_Stream]) -> None:
    """Ask several ends at the same time; where one fails, the others are called off."""
    try:
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(stream.fetch())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _query(
    conn: AsyncConnection[Any], table: Table, columns: Sequence[str], key: Sequence[str]
) -> sql.Composed:
    texts = {"content": columns, "key": key} if key else {"content": columns}
    content, identity = sql.Identifier("content"), sql.Identifier("key" if key else "content")
    # Without a key a row can occur a million times: equal rows travel as one, with their number.
    query = (
        """
        SELECT {key0} AS key0, {key1} AS key1, {content}, 1::bigint
        FROM ({rows}) AS rows
        ORDER BY key0, key1
    """
        if key
        else """
        SELECT {key0} AS key0, {key1} AS key1, {key0}, count(*)
        FROM ({rows}) AS rows
        GROUP BY key0, key1
        ORDER BY key0, key1
    """
    )
    return sql.SQL(query).format(
        key0=text_hash(identity, SEEDS[0]),
        key1=text_hash(identity, SEEDS[1]),
        content=text_hash(content, SEEDS[0]),
        rows=row_texts(conn, table, texts),
    )
