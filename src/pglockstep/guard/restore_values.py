"""Values that were overwritten on the source, set back: only those that still are what the transaction wrote."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from pglockstep.findings import counted, listed
from pglockstep.guard.restore_outcome import Left
from pglockstep.guard.restore_rows import TOLD, TableRows, aliased, halved
from pglockstep.guard.restore_taken import replaced
from pglockstep.guard.rows import composed, joined, names, numbered, only, row_text, same, same_key
from pglockstep.postgres.catalog import Column
from pglockstep.postgres.connect import translate
from pglockstep.postgres.names import quote_if_needed


class Values(TableRows):
    """Sets back, column by column, what still is as the transaction left it."""

    async def put_back(self) -> None:
        """What the transaction set."""
        await (self._update() if self.taken.key else self._update_whole())

    async def _update(self) -> None:
        """Set back, column by column, what still is as the transaction left it."""
        taken, sides = self.taken, self.sides
        count = len(taken.key)
        values = numbered("v", len(taken.columns), "s")
        there = names("t", [each.name for each in taken.columns])
        differs = [
            composed("(substr(s.sent, {}, 1) = '1' AND {} <> {})", sql.Literal(index + 1), row_text([one]), row_text([two]))
            for index, (one, two) in enumerate(zip(there, values, strict=True))
        ]  # fmt: skip
        keys, staged = numbered("k", count), numbered("k", count, "s")
        remains = (
            composed(
                " WHERE NOT EXISTS (SELECT FROM {} AS g WHERE {})",
                replaced(taken),
                same(taken.key_columns, numbered("k", count, "g"), staged),
            )
            if taken.deleted
            else sql.SQL("")
        )
        origin = numbered("o", count)
        if taken.moved:
            # what is updated again under its new key came from an older one all the same
            origin = [
                composed(
                    "first_value({}) OVER (PARTITION BY {} ORDER BY moved DESC, n DESC) AS {}",
                    *(old, joined(", ", keys), old),
                )
                for old in origin
            ]
        last = composed(
            "(SELECT DISTINCT ON ({0}) sent, {1} FROM {2} ORDER BY {0}, n DESC) AS s JOIN {3} ON {4}{5}",
            joined(", ", keys),
            joined(", ", [*origin, *keys, *numbered("v", len(taken.columns))]),
            taken.set,
            only(taken.table, "t"),
            same_key(taken.key_columns, "t", numbered("o", count, "s")),
            remains,
        )
        with translate(sides.target_end):
            ever = [composed("coalesce(bool_or({}), false)", each) for each in differs]
            cursor = await sides.target.execute(
                composed("SELECT ARRAY[{}] FROM {}", joined(", ", ever), last)
            )
            row = await cursor.fetchone()
        assert row is not None
        changed = [
            index for index, was in enumerate(row[0]) if was and taken.columns[index].name in self.by_name
        ]
        if not changed:
            return
        mask = composed(
            "concat({})",
            joined(", ", [composed("CASE WHEN {} THEN 1 ELSE 0 END", differs[i]) for i in changed]),
        )
        query = composed(
            "SELECT {}, {}, {}, {} FROM {} AND ({})"
            if remains.as_string()
            else "SELECT {}, {}, {}, {} FROM {} WHERE {}",
            mask,
            joined(", ", numbered("k", count, "s")),
            joined(", ", [there[index] for index in changed]),
            joined(", ", [values[index] for index in changed]),
            last,
            joined(" OR ", [differs[index] for index in changed]),
        )
        columns = [self.by_name[taken.columns[index].name] for index in changed]
        key = [self.by_name[each.name] for each in taken.key_columns]
        await self._set_back(query, key, columns)

    async def _set_back(
        self, query: sql.Composable, key: Sequence[Column], columns: Sequence[Column]
    ) -> None:
        sides, count = self.sides, len(columns)
        stage = sql.Identifier("pg_temp", "pglockstep_set_back")
        parts = [aliased(key, "k"), aliased(columns, "b"), aliased(columns, "a")]
        with translate(sides.source_end):
            await sides.source.execute(
                composed(
                    "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT ''::text AS d, {} FROM ONLY {} AS t WITH NO DATA",
                    stage, joined(", ", parts), self.there.name.sql(),
                )
            )  # fmt: skip
            await sides.source.execute(
                composed("ALTER TABLE {} ADD COLUMN n bigint GENERATED ALWAYS AS IDENTITY", stage)
            )
        listed_names = [
            sql.Identifier("d"),
            *numbered("k", len(key)),
            *numbered("b", count),
            *numbered("a", count),
        ]
        staged = await sides.carry(query, composed("{} ({})", stage, joined(", ", listed_names)))
        ours = names("t", [each.name for each in columns])
        marked = [composed("substr(s.d, {}, 1) = '1'", sql.Literal(index + 1)) for index in range(count)]
        still = [
            composed("{} AND {} = {}", mark, row_text([one]), row_text([after]))
            for mark, one, after in zip(marked, ours, numbered("a", count, "s"), strict=True)
        ]
        matches = same_key(key, "t", numbered("k", len(key), "s"))
        # GENERATED ALWAYS AS IDENTITY takes no SET
        settable = [index for index, each in enumerate(columns) if each.identity != "a"]
        refused: list[int] = []
        if settable:
            assignments = [
                composed("{} = CASE WHEN {} THEN s.{} ELSE {} END",
                         sql.Identifier(columns[i].name), still[i], sql.Identifier(f"b{i}"), ours[i])
                for i in settable
            ]  # fmt: skip
            statement = composed(
                "UPDATE ONLY {} AS t SET {} FROM {} AS s WHERE {} AND ({}) AND s.n BETWEEN $1 AND $2",
                self.there.name.sql(),
                joined(", ", assignments),
                stage,
                matches,
                joined(" OR ", [still[index] for index in settable]),
            )

            async def attempt(first: int, last: int) -> bool:
                done = await self.tried(statement, first, last, all_of_them=False)
                self.done += done or 0
                return done is not None

            with translate(sides.source_end):
                await sides.source.execute(composed("ANALYZE {}", stage))
                if staged:
                    await halved(attempt, 1, staged, refused)
        with translate(sides.source_end):
            not_so = [
                composed("{} AND {} <> {}", mark, row_text([one]), row_text([before]))
                for mark, one, before in zip(marked, ours, numbered("b", count, "s"), strict=True)
            ]
            by_key = [
                same_key([each], "t", [sql.Identifier("s", f"k{index}")]) for index, each in enumerate(key)
            ]
            moved = {each.name: f"b{index}" for index, each in enumerate(columns)}
            back = same_key(key, "t", [
                sql.Identifier("s", moved.get(each.name, f"k{index}")) for index, each in enumerate(key)
            ])  # fmt: skip
            cursor = await sides.source.execute(
                composed(
                    "SELECT s.n, EXISTS (SELECT FROM {0} WHERE {1}) FROM {2} AS s "
                    "WHERE NOT EXISTS (SELECT FROM {0} WHERE {3} AND NOT ({4})) ORDER BY s.n",
                    only(self.there, "t"), joined(" AND ", by_key), stage, back, joined(" OR ", not_so),
                )
            )  # fmt: skip
            left = {n: there async for n, there in cursor}
            self.left_count += len(left)
            for n, there in list(left.items())[:TOLD]:
                if n in refused and settable:
                    reason = await self.why(statement, n)
                elif there:
                    reason = f"{listed(quote_if_needed(each.name) for each in columns)} changed again since"
                else:
                    reason = "the row is gone, or has another key since"
                await self.tell(stage, key, n, reason, letter="k")
            await sides.source.execute(composed("DROP TABLE {}", stage))

    async def _update_whole(self) -> None:
        """Set rows without a key back, by count: as many of those equal to what was written as were written."""
        taken, sides = self.taken, self.sides
        columns = self.common(taken.columns)
        places = [
            taken.columns.index(each) for each in taken.columns if each.name in {c.name for c in columns}
        ]
        stage = sql.Identifier("pg_temp", "pglockstep_set_back")
        with translate(sides.source_end):
            await sides.source.execute(
                composed(
                    "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {}, {} FROM ONLY {} AS t WITH NO DATA",
                    stage, aliased(columns, "b"), aliased(columns, "a"), self.there.name.sql(),
                )
            )  # fmt: skip
        query = composed(
            "SELECT {}, {} FROM {} AS s ORDER BY s.n",
            joined(", ", [sql.Identifier("s", f"o{index}") for index in places]),
            joined(", ", [sql.Identifier("s", f"v{index}") for index in places]),
            taken.set,
        )
        staged = await sides.carry(query, stage)
        after, ours = (
            row_text(numbered("a", len(columns), "s")),
            row_text(names("t", [each.name for each in columns])),
        )
        sets = [
            composed("{} = s.{}", sql.Identifier(each.name), sql.Identifier(f"b{index}"))
            for index, each in enumerate(columns)
            if each.identity != "a"
        ]
        with translate(sides.source_end):
            cursor = await sides.source.execute(
                composed(
                    "UPDATE ONLY {0} AS t SET {1} FROM "
                    "(SELECT s.*, {2} AS row, pg_catalog.row_number() OVER (PARTITION BY {2}) AS nth FROM {3} AS s) AS s "
                    "JOIN (SELECT t.ctid AS at, {4} AS row, pg_catalog.row_number() OVER (PARTITION BY {4}) AS nth "
                    "FROM ONLY {0} AS t) AS f ON f.row = s.row AND f.nth = s.nth WHERE t.ctid = f.at",
                    self.there.name.sql(),
                    joined(", ", sets),
                    after,
                    stage,
                    ours,
                )
            )  # fmt: skip
            self.done += cursor.rowcount
            await sides.source.execute(composed("DROP TABLE {}", stage))
        if lost := staged - cursor.rowcount:
            self.left_count += lost
            self.left.append(
                Left(*self.there.name, counted(lost, "row"), "changed again, or gone, since the transaction")
            )
