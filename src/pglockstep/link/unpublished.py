"""Tables of the source that the stream says nothing of: told, so that nobody takes them to be followed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.copy.source import published_tables
from pglockstep.errors import LockstepError
from pglockstep.link.link import Link
from pglockstep.postgres import catalog
from pglockstep.postgres.connect import ends, translate
from pglockstep.progress.target import LinkRecord

log = logging.getLogger(__name__)

#: How often the source is asked, in seconds.
_EVERY = 30.0


async def watch(
    link: Link, record: LinkRecord, source: Callable[[], AsyncConnection[TupleRow] | None]
) -> None:
    """Say which tables do not follow, now and whenever there are others; over the session that there is, if any."""
    if link.polls:
        # whoever compares sees them
        return
    said: list[str] = []
    while True:
        try:
            conn = source()
            silent = await _silent(link, conn, record) if conn else said
        except LockstepError as error:
            log.debug("the catalog was not read: %s", error, extra=link.about("unpublished.failed"))
        else:
            if silent and silent != said:
                log.warning(
                    "not in the stream, so the target does not follow them: %s (unlogged, taken out, or made after the copy: "
                    "those come in by pglockstep resync)",
                    ", ".join(silent[:10]),
                    extra=link.about("stream.unpublished"),
                )
            said = silent
        await asyncio.sleep(_EVERY)


async def _silent(link: Link, conn: AsyncConnection[TupleRow], record: LinkRecord) -> list[str]:
    source, _ = ends(link.config)
    with translate(source):
        tables = [table for table in await catalog.tables(conn) if link.selection.carries(*table.name)]
    published = await published_tables(conn, source, record.publication)
    return [str(table.name) for table in tables if table.name not in published]
