"""Last images of deleted rows, as a link's configuration wants them kept and forgotten."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.apply.applier import UPTO
from pglockstep.config.sections import LinkConfig
from pglockstep.guard import images
from pglockstep.guard.policy import Rulebook
from pglockstep.postgres.catalog import Table
from pglockstep.units import Lsn, human_bytes

log = logging.getLogger(__name__)

#: So many are forgotten at once.
_PRUNED = 10_000
#: Of a table that takes more bytes a TRUNCATE leaves no images: it would wait for them for longer than a few seconds.
_LARGEST: Final = 100 << 20


class LastImages:
    """What becomes of deleted rows by the guard of `config`; `rules`: what it has for each table."""

    def __init__(self, config: LinkConfig, rules: Rulebook) -> None:
        self._link = config.name
        self._guard = config.guard
        self._rules = rules

    def keeping(self, delete: sql.Composable, table: Table, alias: str) -> sql.Composable:
        """`delete` as a statement that keeps the images of what it deletes, where that is wanted for the table."""
        if not self._rules.of(table.name).keep_deleted:
            return delete
        return images.keeping(delete, table, UPTO, alias)

    async def keep_all(self, conn: AsyncConnection[TupleRow], tables: Sequence[Table], upto: Lsn) -> None:
        """Keep the images of all rows of these tables, where that is wanted and they are not too large.

        They are about to be emptied in the transaction that `conn` is in; `upto` as in `images.keeping`. Raises psycopg's
        errors.
        """
        for table in tables:
            if not self._rules.of(table.name).keep_deleted:
                continue
            cursor = await conn.execute(
                "SELECT pg_catalog.pg_table_size($1::text::regclass)", [table.name.sql().as_string()]
            )
            row = await cursor.fetchone()
            assert row is not None
            if row[0] > _LARGEST:
                log.warning(
                    "no last images were kept of %s, which was truncated: it takes %s, and up to %s are kept",
                    table.name,
                    human_bytes(row[0]),
                    human_bytes(_LARGEST),
                    extra={"action": "images.left_out", "link": self._link},
                )
                continue
            await conn.execute(images.keeping_all(table, sql.Literal(str(upto))), prepare=False)

    async def prune(self, conn: AsyncConnection[TupleRow]) -> None:
        """Forget images that are older than any table's are to become. Raises psycopg's errors."""
        own = (each.keep_deleted for each in self._guard.tables.values())
        keep = max([self._guard.keep_deleted, *(each for each in own if each is not None)])
        while True:
            cursor = await conn.execute(images.pruning(keep, _PRUNED))
            if cursor.rowcount < _PRUNED:
                return
