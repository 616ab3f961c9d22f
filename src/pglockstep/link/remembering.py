"""Reading what has to be known of a target, while it stands well: everything that it takes to see harm, and to undo it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.guard import heal as engine
from pglockstep.guard import reading
from pglockstep.link import looking
from pglockstep.link.link import Link
from pglockstep.link.memory import Known, after_heal, named_after_heal
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import detached


async def remember(link: Link, conn: AsyncConnection[TupleRow]) -> None:
    """Know the target as it stands now. Raises psycopg's errors."""
    tables = await looking.following(link, conn)
    link.memory.keep(await standing(link, conn, tables, await detached.read(conn)))


async def standing(
    link: Link,
    conn: AsyncConnection[TupleRow],
    tables: Collection[QualifiedName],
    apart: Mapping[QualifiedName, str],
) -> Known:
    """The target as it stands now; `tables` follow the source, those `apart` do not any more. Raises psycopg's errors."""
    found = await engine.remember(conn)
    # how far it is, is said by itself alone
    record = msgspec.structs.replace(found.record, progress=None, commit_time=None, written_at=None)
    watched = [each for each in sorted(tables) if link.rules.of(each).protect_target != "off"]
    now = await reading.read(conn, watched, looking.floors(link, watched))
    detached_by = tuple((*name, incident) for name, incident in sorted(apart.items()))
    return Known(msgspec.structs.replace(found, record=record), now, detached_by)


def remember_healed(link: Link, now: Known, touched: Collection[QualifiedName]) -> None:
    """Know the target as it was `now`, inside of a heal that `touched` these tables."""
    before = link.memory.known()
    if before is not None:
        names = named_after_heal(before.remembered.tables, now.remembered.tables, touched)
        remembered = msgspec.structs.replace(now.remembered, tables=names)
        now = Known(remembered, after_heal(before.reading, now.reading, touched), now.apart)
    link.memory.keep(now)
