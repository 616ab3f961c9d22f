"""Last images of deleted rows, as a link's configuration wants them kept and forgotten."""

from __future__ import annotations

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.apply.applier import UPTO
from pglockstep.config.sections import GuardConfig
from pglockstep.guard import images
from pglockstep.guard.policy import Rulebook
from pglockstep.postgres.catalog import Table

#: So many are forgotten at once.
_PRUNED = 10_000


class LastImages:
    """What becomes of deleted rows by `guard`; `rules`: what it has for each table."""

    def __init__(self, guard: GuardConfig, rules: Rulebook) -> None:
        self._guard = guard
        self._rules = rules

    def keeping(self, delete: sql.Composable, table: Table, alias: str) -> sql.Composable:
        """`delete` as a statement that keeps the images of what it deletes, where that is wanted for the table."""
        if not self._rules.of(table.name).keep_deleted:
            return delete
        return images.keeping(delete, table, UPTO, alias)

    async def prune(self, conn: AsyncConnection[TupleRow]) -> None:
        """Forget images that are older than any table's are to become. Raises psycopg's errors."""
        own = (each.keep_deleted for each in self._guard.tables.values())
        keep = max([self._guard.keep_deleted, *(each for each in own if each is not None)])
        while True:
            cursor = await conn.execute(images.pruning(keep, _PRUNED))
            if cursor.rowcount < _PRUNED:
                return
