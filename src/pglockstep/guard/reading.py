"""The backstop of the watch: how the target stands, read from its catalog, and what is wrong between two readings.

A reading touches no row but up to a floor. What follows from two of them is pure. Most of it is certain; what rests on
the statistics' estimates, or could have been our own truncate, only says that somebody should look: `sure` tells.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.errors import LockstepError, TargetError
from pglockstep.observe.incident import Kind
from pglockstep.postgres.connect import End, answered, connect, is_gone, translate
from pglockstep.postgres.names import QualifiedName, quote_if_needed
from pglockstep.progress import target as progress

T = TypeVar("T")

#: An estimate below this says nothing, and a fall by less than this share neither.
_FEW_ROWS = 20
_FALL = 0.3


class TableReading(msgspec.Struct, frozen=True):
    """One table as it stands; `oid` is None where there is none. `rows` is the statistics' estimate.

    `fresh`: its file is as TRUNCATE leaves it. `columns`: each one's name, and what it is in the server's numbers.
    `triggers`: how many of the watch's work.
    """

    schema: str
    name: str
    oid: int | None
    file: int | None
    fresh: bool
    rows: int
    columns: tuple[tuple[str, str], ...]
    triggers: int

    @property
    def table(self) -> QualifiedName:
        """Its name."""
        return QualifiedName(self.schema, self.name)


class Reading(msgspec.Struct, frozen=True):
    """The target at one moment. Without its `database` there is nothing else to tell.

    `ours`: our schema is there, and whole; `event_triggers`: how many of the watch's work; `floors`: rows of each table that
    has a floor, counted up to it, as (schema, name, rows, floor).
    """

    database: bool
    database_oid: int = 0
    ours: bool = False
    event_triggers: int = 0
    tables: tuple[TableReading, ...] = ()
    floors: tuple[tuple[str, str, int, int], ...] = ()


class Trouble(msgspec.Struct, frozen=True):
    """One thing that is wrong, in a sentence. `sure`: it is; else it is to be looked at, by comparing the table."""

    kind: Kind
    message: str
    table: QualifiedName | None = None
    sure: bool = True
    rows_before: int | None = None
    rows_lost: int = 0


async def read(
    conn: AsyncConnection[Any], tables: Sequence[QualifiedName], floors: Mapping[QualifiedName, int]
) -> Reading:
    """How these tables stand now. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()), "
        "(SELECT count(*) FROM pg_catalog.pg_event_trigger WHERE evtname IN ('pglockstep_ddl', 'pglockstep_drop') "
        "AND evtenabled = 'O')"
    )
    row = await cursor.fetchone()
    assert row is not None
    ours = await progress.is_whole(conn)
    cursor = await conn.execute(
        _statement(), [[each.schema for each in tables], [each.name for each in tables]]
    )
    here = tuple(
        [
            TableReading(
                schema, name, oid, file, fresh, rows, tuple((each[0], each[1]) for each in columns), triggers
            )
            async for schema, name, oid, file, fresh, rows, columns, triggers in cursor
        ]
    )
    present = {each.table for each in here if each.oid is not None}
    counted = [
        (*table, await _up_to(conn, table, floor) if table in present else 0, floor)
        for table, floor in floors.items()
    ]
    return Reading(True, row[0], ours, row[1], here, tuple(counted))


class Reader:
    """Reads again and again over a session of its own, which it opens when it needs one."""

    def __init__(
        self,
        end: End,
        tables: Sequence[QualifiedName] = (),
        floors: Mapping[QualifiedName, int] | None = None,
    ) -> None:
        self._end = end
        self._tables = tables
        self._floors = floors or {}
        self._conn: AsyncConnection[TupleRow] | None = None

    async def read(self) -> Reading:
        """How the target stands now. That its database is gone is an answer; that it cannot be reached is raised."""
        found = await self.ask(lambda conn: read(conn, self._tables, self._floors))
        return Reading(database=False) if found is None else found

    async def ask(self, question: Callable[[AsyncConnection[TupleRow]], Awaitable[T]]) -> T | None:
        """What is answered over our session; None if the database is gone. Raises why else there is no answer."""
        try:
            return await self._ask(question)
        except TargetError as error:
            # dropped under us, it ends our session first: why shows when we come back
            await self.aclose()
            if not error.transient:
                raise
        try:
            return await self._ask(question)
        except TargetError as error:
            await self.aclose()
            if is_unknown_database(error):
                return None
            raise

    async def aclose(self) -> None:
        """End the session, if there is one."""
        if self._conn is not None:
            await self._conn.close()
        self._conn = None

    async def _ask(self, question: Callable[[AsyncConnection[TupleRow]], Awaitable[T]]) -> T:
        if self._conn is None:
            # it waits for no lock: a table that somebody is changing is read the next time
            self._conn = await connect(self._end, "poll", lock_timeout="200ms")
        with answered(self._end, self._conn), translate(self._end):
            return await question(self._conn)


def is_unknown_database(error: LockstepError) -> bool:
    """Whether it says that there is no database of that name. Pure."""
    return error.finding is not None and error.finding.code == "unknown_database"


def judge(before: Reading, now: Reading, truncated: Collection[QualifiedName] = ()) -> list[Trouble]:
    """What is wrong now that was not `before`; `truncated` by ourselves were these in between. Pure."""
    return list(_troubles(before, now, truncated))


def _troubles(before: Reading, now: Reading, truncated: Collection[QualifiedName]) -> Iterator[Trouble]:
    if not now.database:
        yield Trouble("missing_database", "the target's database is gone")
        return
    if before.database_oid and before.database_oid != now.database_oid:
        yield Trouble("missing_database", "the target's database was dropped, and one of its name made anew")
    if before.ours and not now.ours:
        yield Trouble("drop", "schema pglockstep is gone from the target, and with it how far it was")
    if now.event_triggers < before.event_triggers and now.ours:
        yield Trouble("foreign_write", "the watch's event trigger is gone or disabled on the target")
    known = {each.table: each for each in before.tables}
    for each in now.tables:
        if each.table in known:
            yield from _of_table(known[each.table], each, now, own=each.table in truncated)
    below = {(schema, name) for schema, name, rows, floor in before.floors if rows < floor}
    for schema, name, rows, floor in now.floors:
        if rows < floor and (schema, name) not in below:
            table = QualifiedName(schema, name)
            # the source may have been allowed to go below it
            message = f"table {table} holds {rows} rows on the target, and its floor is {floor}"
            yield Trouble("floor", message, table, False, None, floor - rows)


def _of_table(before: TableReading, now: TableReading, reading: Reading, *, own: bool) -> Iterator[Trouble]:
    table = now.table
    if before.oid is None:
        return
    if now.oid is None:
        yield Trouble("drop", f"table {table} is gone from the target", table, True, before.rows, before.rows)
        return
    if now.oid != before.oid:
        yield Trouble(
            "drop", f"table {table} was dropped on the target and made anew", table, True, before.rows
        )
        return
    if now.columns != before.columns:
        lost = [name for name in dict(before.columns) if name not in dict(now.columns)]
        if lost:
            names = ", ".join(map(quote_if_needed, lost))
            yield Trouble("drop", f"table {table} has lost column {names} on the target", table)
        else:
            yield Trouble("foreign_write", f"the columns of table {table} were changed on the target", table)
    if now.triggers < before.triggers and reading.ours:
        yield Trouble("foreign_write", f"the watch of table {table} is gone or disabled on the target", table)
    if own:
        return
    if now.fresh and not before.fresh and now.file != before.file:
        yield Trouble(
            "truncate", f"table {table} was truncated on the target", table, False, before.rows, before.rows
        )
    elif before.rows >= _FEW_ROWS and now.rows < before.rows * (1 - _FALL):
        message = f"table {table} holds about {now.rows} rows on the target, where there were {before.rows}"
        yield Trouble("delete", message, table, False, before.rows, before.rows - now.rows)


async def _up_to(conn: AsyncConnection[Any], table: QualifiedName, floor: int) -> int:
    query = sql.SQL("SELECT count(*) FROM (SELECT FROM ONLY {} LIMIT {}) AS some").format(
        table.sql(), sql.Literal(floor)
    )
    try:
        cursor = await conn.execute(query)
    except psycopg.Error as error:
        if is_gone(error) or error.sqlstate is None:
            raise
        # locked by whoever is at it, or gone since a moment ago: the next reading tells
        return floor
    row = await cursor.fetchone()
    assert row is not None
    rows: int = row[0]
    return rows


@cache
def _statement() -> bytes:
    return files("pglockstep.guard").joinpath("sql", "reading.sql").read_bytes()
