"""The rows of one table that the target has and the source lacks: found, counted, and put back where they are wanted.

Rows are told apart by what they say, each as often as it occurs, so a table needs no key for it; of a large table only the
rows of buckets that differ travel. A row that only the source has is never touched. A row of the source's that has the key of
one of the target's, and says something else, was written since the source lost its own: it stays, and the target's is told.
Only where the source is an older copy of itself the target's is the newer one, and takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from pglockstep.guard.buckets import Buckets, differing, encoding_of, size_of
from pglockstep.guard.restore_gone import STAGE, GoneRows, in_brackets
from pglockstep.guard.restore_rows import Sides, halved, listing
from pglockstep.guard.restore_taken import TakenTable
from pglockstep.guard.rows import composed, joined, only, same_key
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.connect import translate
from pglockstep.postgres.row_texts import SEEDS, row_text, text_hash


class MissingRows(GoneRows):
    """The rows of one table, `here` as the target has it and `there` as the source does."""

    def __init__(self, sides: Sides, here: Table, there: Table) -> None:
        super().__init__(sides, TakenTable(here, -1, here.data_columns, whole=True), there)
        self.changed = 0

    async def refill(self, *, older: bool) -> None:
        """Put them back; `older`: the source is an older copy of itself."""
        sides, name = self.sides, self.there.name
        columns = self.common(self.taken.table.data_columns)
        every = composed("SELECT {} FROM {}", listing("t", columns), only(self.taken.table, "t"))
        with translate(sides.source_end):
            cursor = await sides.source.execute(composed("SELECT FROM ONLY {} LIMIT 1", name.sql()))
        if not cursor.rowcount and await self._copied(
            every, composed("{}{}", name.sql(), in_brackets(columns))
        ):
            return
        if (staged := await self._missing(columns)) is None:
            return
        with translate(sides.source_end):
            if older:
                await self._renew(staged, columns)
            await self.insert_staged(staged, columns)

    async def lost(self) -> int:
        """How many of the target's rows the source lacks: a row whose key is there is not lost, whatever it says."""
        columns = [
            self.by_name[each.name]
            for each in self.taken.table.data_columns
            if each.name in self.by_name and not self.by_name[each.name].generated
        ]
        if (staged := await self._missing(columns)) is None:
            return 0
        key = self._key(columns)
        with translate(self.sides.source_end):
            if key and staged:
                cursor = await self.sides.source.execute(
                    composed(
                        "SELECT count(*) FROM {} AS s WHERE NOT EXISTS (SELECT FROM {} WHERE {})",
                        STAGE,
                        only(self.there, "t"),
                        self._same_key(key, columns),
                    )
                )
                row = await cursor.fetchone()
                assert row is not None
                staged = int(row[0])
            await self.sides.source.execute(composed("DROP TABLE {}", STAGE))
        return staged

    async def _missing(self, columns: Sequence[Column]) -> int | None:
        """Stage what the source does not have just so, numbered from 1 on; None if no row differs."""
        sides, name = self.sides, self.there.name.sql()
        there, here = (sides.source_end, sides.source), (sides.target_end, sides.target)
        names = [each.name for each in columns]
        size = max(await size_of(there, name), await size_of(here, name))
        buckets = await differing(there, here, name, names, size)
        if buckets is not None and not buckets.numbers:
            return None
        query = composed("SELECT {} FROM {}", listing("t", columns), only(self.taken.table, "t"))
        if buckets is not None:
            query = composed("{} WHERE {}", query, buckets.holds(names, encoding_of(sides.target)))
        staged = await self.staged(query, columns)
        with translate(sides.source_end):
            return staged - await self._leave_out_same(buckets, columns)

    async def _leave_out_same(self, buckets: Buckets | None, columns: Sequence[Column]) -> int:
        """Take what the source has just so out of the stage, as often as it has it; returns how many rows that were."""
        source = self.sides.source
        names, staged = [each.name for each in columns], [f"c{index}" for index, _ in enumerate(columns)]
        where: sql.Composable = sql.SQL("true")
        if buckets is not None:
            where = buckets.holds(names, encoding_of(source))
        cursor = await source.execute(
            composed(
                "DELETE FROM {} WHERE n IN (SELECT s.n FROM ({}) AS s JOIN ({}) AS t USING (hash0, hash1, nth))",
                STAGE,
                _numbered(sql.Identifier("n"), staged, STAGE, sql.SQL("true")),
                _numbered(sql.SQL("0 AS n"), names, self.there.name.sql(), where),
            ),
            prepare=False,
        )
        same = cursor.rowcount
        if same:
            await source.execute(
                composed(
                    "UPDATE {} AS s SET n = r.now FROM (SELECT n, row_number() OVER (ORDER BY n) AS now FROM {}) AS r "
                    "WHERE s.n = r.n",
                    STAGE,
                    STAGE,
                )
            )
        return same

    async def _renew(self, staged: int, columns: Sequence[Column]) -> None:
        """Set the source's rows to what the target has under their keys."""
        key = self._key(columns)
        sets = [
            composed("{} = s.{}", sql.Identifier(each.name), sql.Identifier(f"c{index}"))
            for index, each in enumerate(columns)
            if each not in key and each.identity != "a"
        ]
        if not key or not sets or not staged:
            return
        statement = composed(
            "UPDATE ONLY {} AS t SET {} FROM {} AS s WHERE {} AND s.n BETWEEN $1 AND $2",
            self.there.name.sql(),
            joined(", ", sets),
            STAGE,
            self._same_key(key, columns),
        )

        async def attempt(first: int, last: int) -> bool:
            done = await self.tried(statement, first, last, all_of_them=False)
            self.changed += done or 0
            return done is not None

        await self.sides.source.execute(composed("ANALYZE {}", STAGE))
        # what is refused is told when it cannot be inserted either
        await halved(attempt, 1, staged, [])

    def _key(self, columns: Sequence[Column]) -> list[Column]:
        """The columns of the source's primary key; none if the target lacks one of them."""
        key = [each for each in columns if each.name in self.there.primary_key]
        return key if len(key) == len(self.there.primary_key) else []

    def _same_key(self, key: Sequence[Column], columns: Sequence[Column]) -> sql.Composable:
        places = {column.name: index for index, column in enumerate(columns)}
        return same_key(key, "t", [sql.Identifier("s", f"c{places[each.name]}") for each in key])


def _numbered(
    number: sql.Composable, columns: Sequence[str], table: sql.Composable, where: sql.Composable
) -> sql.Composed:
    """What each row says as two hashes, and which it is of those that say the same. Both tables are of one database."""
    return composed(
        "SELECT n, hash0, hash1, row_number() OVER (PARTITION BY hash0, hash1 ORDER BY n) AS nth "
        'FROM (SELECT n, {} AS hash0, {} AS hash1 FROM (SELECT {}, {} AS "row" FROM ONLY {} WHERE {} OFFSET 0) AS r) AS h',
        text_hash(sql.Identifier("row"), SEEDS[0]),
        text_hash(sql.Identifier("row"), SEEDS[1]),
        number,
        row_text(columns, "UTF8"),
        table,
        where,
    )
