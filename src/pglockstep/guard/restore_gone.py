"""Rows that are gone from the source, put back: from the target's intact copy, or from the images that it kept.

A row whose key or unique value was taken since stays away, and is told.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from pglockstep.guard.restore_rows import ROW_REFUSED, TOLD, TableRows, aliased, halved, listing
from pglockstep.guard.restore_taken import net_gone
from pglockstep.guard.rows import composed, joined, names, numbered, only, row_text, same, same_key
from pglockstep.postgres.catalog import Column
from pglockstep.postgres.connect import translate
from pglockstep.units import Lsn

#: Rows on their way back, in the source's session.
STAGE = sql.Identifier("pg_temp", "pglockstep_back")


class GoneRows(TableRows):
    """Inserts what is missing."""

    async def put_back(self) -> None:
        """What the transaction deleted, or all of the table."""
        if not self.taken.whole:
            await self._insert_gone()
            return
        columns = self.common(self.taken.table.data_columns)
        await self._insert(composed("SELECT {} FROM {}", listing("t", columns), self._not_back()), columns)

    def _not_back(self) -> sql.Composable:
        """The rows of a table of which all was taken, as t: but for those that are said to have come back since."""
        taken = self.taken
        if taken.key or not taken.staged:
            return only(taken.table, "t")
        text = row_text(names("t", [each.name for each in taken.columns]))
        return composed(
            "(SELECT t.* FROM (SELECT t.*, {} AS pglockstep_row, "
            "pg_catalog.row_number() OVER (PARTITION BY {}) AS pglockstep_nth FROM {}) AS t "
            "LEFT JOIN (SELECT {} AS back, -pg_catalog.sum(g.op) AS times FROM {} AS g GROUP BY 1) AS g "
            "ON g.back = t.pglockstep_row WHERE t.pglockstep_nth > coalesce(g.times, 0)) AS t",
            *(
                text,
                text,
                only(taken.table, "t"),
                row_text(numbered("k", len(taken.columns), "g")),
                taken.gone,
            ),
        )

    async def put_back_images(self, since: Lsn, *, staged_only: bool) -> None:
        """Rows that the target deleted after `since`, from their images; `staged_only`: just those that are staged.

        Without a key what is staged are whole rows, which are back already.
        """
        if staged_only and not self.taken.key:
            return
        with translate(self.sides.target_end):
            cursor = await self.sides.target.execute(
                composed("SELECT DISTINCT columns FROM pglockstep.deleted AS d WHERE {}", self._images(since))
            )
            shapes = [row[0] async for row in cursor]
        for shape in shapes:
            await self._put_back_shape(since, shape, staged_only=staged_only)

    # --- rows that are gone ------------------------------------------------------------------------

    async def _insert_gone(self) -> None:
        taken = self.taken
        if not taken.key:
            columns = self.common(taken.columns)
            places = {column.name: index for index, column in enumerate(taken.columns)}
            every = numbered("k", len(taken.columns), "g")
            wanted = [every[places[column.name]] for column in columns]
            text = row_text(every)
            query = composed(
                "SELECT {} FROM (SELECT g.*, pg_catalog.row_number() OVER (PARTITION BY {} ORDER BY g.op DESC) AS nth, "
                "pg_catalog.sum(g.op) OVER (PARTITION BY {}) AS net FROM {} AS g) AS g WHERE g.nth <= g.net",
                *(joined(", ", wanted), text, text, taken.gone),
            )
            await self._insert(query, columns)
            return
        columns = self.common(taken.columns)
        query = composed(
            "SELECT {} FROM {} AS g JOIN {} ON {}",
            listing("t", columns),
            net_gone(self.taken),
            only(taken.table, "t"),
            same_key(taken.key_columns, "t", numbered("k", len(taken.key), "g")),
        )
        await self._insert(query, columns)

    def _images(self, since: Lsn) -> sql.Composable:
        name = self.taken.table.name
        return composed(
            "d.lsn > {}::pg_lsn AND d.schema_name = {} AND d.table_name = {}",
            *(sql.Literal(str(since)), sql.Literal(name.schema), sql.Literal(name.name)),
        )

    async def _put_back_shape(self, since: Lsn, shape: Sequence[str], *, staged_only: bool) -> None:
        """Images with the same columns."""
        taken = self.taken
        columns = [self.by_name[each] for each in shape if each in self.by_name]
        columns = [each for each in columns if not each.generated]

        def value(name: str) -> sql.Composable:
            return composed("d.image[{}]", sql.Literal(list(shape).index(name) + 1))

        images = composed("SELECT d.*, d.ctid AS place FROM pglockstep.deleted AS d WHERE {} AND d.columns = {}::text[]",
                          self._images(since), sql.Literal(list(shape)))  # fmt: skip
        key = taken.key_columns or [
            each for each in taken.table.columns if each.name in taken.table.primary_key
        ]
        if not key or any(each.name not in shape for each in key):
            await self._insert(
                composed(
                    "SELECT {} FROM ({}) AS d", joined(", ", [value(each.name) for each in columns]), images
                ),
                columns,
            )
            return
        texts = [value(each.name) for each in key]
        typed = [
            composed("CAST({} AS {})", text, sql.SQL(each.type_name))
            for text, each in zip(texts, key, strict=True)
        ]
        staged = (
            composed(
                "EXISTS (SELECT FROM {} AS g WHERE {})",
                net_gone(self.taken),
                same(key, numbered("k", len(key), "g"), typed),
            )
            if staged_only
            else sql.SQL("true")
        )
        # the last image of each key, and only of those that have not come back by the time of the transaction
        query = composed(
            "SELECT {} FROM (SELECT DISTINCT ON ({}) d.* FROM ({}) AS d ORDER BY {}, d.lsn DESC, d.place DESC) AS d "
            "WHERE NOT EXISTS (SELECT FROM {} WHERE {}) AND {}",
            joined(", ", [value(each.name) for each in columns]),
            joined(", ", texts),
            images,
            joined(", ", texts),
            only(taken.table, "t"),
            same_key(key, "t", typed),
            staged,
        )
        await self._insert(query, columns)

    async def _insert(self, query: sql.Composable, columns: Sequence[Column]) -> None:
        """Insert what `query` gives on the target, unless a key or unique value is taken."""
        sides, name = self.sides, self.there.name
        with translate(sides.source_end):
            cursor = await sides.source.execute(composed("SELECT FROM ONLY {} LIMIT 1", name.sql()))
            empty = not cursor.rowcount
        if empty and await self._copied(query, composed("{}{}", name.sql(), in_brackets(columns))):
            return
        staged = await self.staged(query, columns)
        with translate(sides.source_end):
            await self.insert_staged(staged, columns)

    async def staged(self, query: sql.Composable, columns: Sequence[Column]) -> int:
        """Bring what `query` gives on the target to the source, as n, c0, c1, …; returns how many rows that are."""
        sides = self.sides
        with translate(sides.source_end):
            await sides.source.execute(
                composed(
                    "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM ONLY {} AS t WITH NO DATA",
                    STAGE,
                    aliased(columns, "c"),
                    self.there.name.sql(),
                )
            )
            await sides.source.execute(
                composed("ALTER TABLE {} ADD COLUMN n bigint GENERATED BY DEFAULT AS IDENTITY", STAGE)
            )
        into = composed("{} ({})", STAGE, joined(", ", numbered("c", len(columns)))) if columns else STAGE
        return await sides.carry(query, into)

    async def insert_staged(self, staged: int, columns: Sequence[Column]) -> None:
        """Insert the staged rows, numbered from 1 on, unless a key or unique value is taken. Raises psycopg's errors."""
        sides = self.sides
        insert = composed(
            "INSERT INTO {}{} OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s WHERE s.n BETWEEN $1 AND $2",
            self.there.name.sql(), in_brackets(columns), joined(", ", numbered("c", len(columns), "s")), STAGE,
        )  # fmt: skip
        quiet = composed("{} ON CONFLICT DO NOTHING", insert)
        exactly = not self.there.primary_key
        refused: list[int] = []
        before = self.done

        async def attempt(first: int, last: int) -> bool:
            done = await self.tried(quiet, first, last, all_of_them=exactly)
            self.done += done or 0
            return done is not None

        await sides.source.execute(composed("CREATE INDEX ON {} (n)", STAGE))
        await sides.source.execute(composed("ANALYZE {}", STAGE))
        if staged:
            await halved(attempt, 1, staged, refused)
        if not exactly and self.done - before < staged:
            refused += await self._not_there(columns)
        self.left_count += len(set(refused))
        for n in sorted(set(refused))[:TOLD]:
            await self.tell(STAGE, columns, n, await self.why(insert, n))
        await sides.source.execute(composed("DROP TABLE {}", STAGE))

    async def _copied(self, query: sql.Composable, into: sql.Composable) -> bool:
        """Copy straight into an empty table; false if one of its rows does not fit after all."""
        sides = self.sides
        with translate(sides.source_end):
            await sides.source.execute("SAVEPOINT pglockstep")
        try:
            rows = await sides.carry(query, into)
        except Exception as error:
            if not isinstance(error.__cause__, ROW_REFUSED):
                raise
            with translate(sides.source_end):
                await sides.source.execute("ROLLBACK TO SAVEPOINT pglockstep")
            return False
        self.done += rows
        return True

    async def _not_there(self, columns: Sequence[Column]) -> list[int]:
        """The staged rows that the table does not hold just so."""
        key = [each for each in self.there.columns if each.name in self.there.primary_key]
        places = {column.name: index for index, column in enumerate(columns)}
        cursor = await self.sides.source.execute(
            composed(
                "SELECT s.n FROM {} AS s WHERE NOT EXISTS (SELECT FROM {} WHERE {} AND {} = {})",
                STAGE,
                only(self.there, "t"),
                same_key(key, "t", [sql.Identifier("s", f"c{places[each.name]}") for each in key]),
                row_text(names("t", [each.name for each in columns])),
                row_text(numbered("c", len(columns), "s")),
            )
        )
        return [row[0] async for row in cursor]


def in_brackets(columns: Sequence[Column]) -> sql.Composed:
    """The columns as an INSERT or a COPY names them; nothing where there are none. Pure."""
    if not columns:
        return sql.Composed([])
    return composed(" ({})", joined(", ", [sql.Identifier(each.name) for each in columns]))
