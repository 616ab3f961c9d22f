"""One table's rows on their way back to the source: what putting back missing rows and overwritten values share.

Rows travel as text from server to server, into temporary tables of the source's session, and from there set-wise. What the
source refuses of a set is halved until it is single rows; those are counted, and the first ones told with the reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.errors import SourceLacks, one_line
from pglockstep.guard.restore_outcome import Left
from pglockstep.guard.restore_taken import TakenTable
from pglockstep.guard.rows import composed, joined, names
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.connect import End
from pglockstep.postgres.names import quote_if_needed
from pglockstep.postgres.relay import relay

#: How many of the rows that are left are told of, a table.
TOLD = 20

#: What a row's own values can make a server refuse.
ROW_REFUSED = (psycopg.errors.IntegrityError, psycopg.errors.DataError)


class Sides(msgspec.Struct, frozen=True):
    """The sessions between which rows travel: the target's, that reads, and the source's, that writes."""

    target: AsyncConnection[TupleRow]
    source: AsyncConnection[TupleRow]
    target_end: End
    source_end: End

    async def carry(self, query: sql.Composable, into: sql.Composable) -> int:
        """What a query gives on the target, into a table of the source; returns how many rows."""
        statements = (
            composed("COPY ({}) TO STDOUT", query).as_bytes(),
            composed("COPY {} FROM STDIN", into).as_bytes(),
        )
        return await relay(self.target, self.source, (self.target_end, self.source_end), statements)


class TableRows:
    """Puts rows of one table back. `there` is the source's table, `taken` what it lost."""

    def __init__(self, sides: Sides, taken: TakenTable, there: Table) -> None:
        self.sides = sides
        self.taken = taken
        self.there = there
        self.by_name = {column.name: column for column in there.columns}
        self.left: list[Left] = []
        self.left_count = 0
        self.done = 0

    async def tried(self, statement: sql.Composed, first: int, last: int, *, all_of_them: bool) -> int | None:
        """Run a statement for a range of staged rows; None if it was refused, or had not `all_of_them` where that is wanted."""
        conn = self.sides.source
        await conn.execute("SAVEPOINT pglockstep")
        try:
            cursor = await conn.execute(statement, [first, last])
        except ROW_REFUSED:
            await conn.execute("ROLLBACK TO SAVEPOINT pglockstep")
            return None
        if all_of_them and cursor.rowcount <= last - first:
            await conn.execute("ROLLBACK TO SAVEPOINT pglockstep")
            return None
        await conn.execute("RELEASE SAVEPOINT pglockstep")
        return int(cursor.rowcount)

    async def why(self, insert: sql.Composed, n: int) -> str:
        """What the source says to a row that it would not take."""
        conn = self.sides.source
        await conn.execute("SAVEPOINT pglockstep")
        try:
            await conn.execute(insert, [n, n])
        except ROW_REFUSED as error:
            return said(error)
        finally:
            await conn.execute("ROLLBACK TO SAVEPOINT pglockstep")
        return "what stood in its way just now is gone"

    def common(self, columns: Sequence[Column]) -> list[Column]:
        """Those of the target's columns that the source has and that take values, as the source has them."""
        missing = [each.name for each in columns if each.name not in self.by_name]
        if missing:
            raise SourceLacks(
                f"table {self.there.name} on the source has no column {quote_if_needed(missing[0])} any more: its values "
                "would be lost",
                hint="nothing was changed; add it again (ALTER TABLE … ADD COLUMN), then decide again",
            )
        return [self.by_name[each.name] for each in columns if not self.by_name[each.name].generated]

    async def tell(
        self, stage: sql.Identifier, columns: Sequence[Column], n: int, reason: str, letter: str = "c"
    ) -> None:
        key = [i for i, each in enumerate(columns) if each.name in self.there.primary_key or letter == "k"]
        shown = key or range(len(columns))
        values = joined(", ", [composed("{}::text", sql.Identifier(f"{letter}{index}")) for index in shown])
        cursor = await self.sides.source.execute(
            composed("SELECT {} FROM {} WHERE n = $1", values, stage), [n]
        )
        row = await cursor.fetchone()
        assert row is not None
        parts = [
            f"{quote_if_needed(columns[index].name)} = {'NULL' if value is None else repr(value[:60])}"
            for index, value in zip(shown, row, strict=True)
        ]
        self.left.append(Left(*self.there.name, ", ".join(parts), reason))


async def halved(
    attempt: Callable[[int, int], Awaitable[bool]], first: int, last: int, refused: list[int]
) -> None:
    """Have everything from `first` to `last` attempted, halving what is refused down to the single rows that are."""
    waiting = [(first, last)]
    while waiting:
        first, last = waiting.pop()
        if await attempt(first, last):
            continue
        if first == last:
            refused.append(first)
            continue
        middle = (first + last) // 2
        waiting += [(middle + 1, last), (first, middle)]


def said(error: psycopg.Error) -> str:
    return one_line(error.diag.message_detail or error.diag.message_primary or str(error))


def listing(table: str, columns: Sequence[Column]) -> sql.Composable:
    return joined(", ", names(table, [each.name for each in columns]))


def aliased(columns: Sequence[Column], letter: str) -> sql.Composable:
    return joined(
        ", ",
        [
            composed("{} AS {}", sql.Identifier("t", each.name), sql.Identifier(f"{letter}{index}"))
            for index, each in enumerate(columns)
        ],
    )
