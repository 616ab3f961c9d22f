"""One look at a target: what others have done to it since it was known to stand well, whoever was there to see it.

Everything is read from the target each time: nothing depends on what a former look has seen. What is only likely, by estimates
or because it could be our own doing, is first counted, and then still no more than a reason to compare.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.findings import listed
from pglockstep.guard import questions, reading, watch
from pglockstep.guard.harm import Harm, is_harmless
from pglockstep.guard.reading import Reading, Trouble
from pglockstep.guard.watch import ForeignWrite, Pending
from pglockstep.link.link import Link
from pglockstep.postgres import catalog
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import detached
from pglockstep.progress import source_tables as followed
from pglockstep.progress import target as progress

log = logging.getLogger(__name__)

#: A table that holds this share less than it should is not as it was.
_FALL = 0.3


class Seen(msgspec.Struct, frozen=True):
    """What one look came to, at `at` by the target's clock.

    `stands`: our schema is there and whole. `pending`: what was written down, to be forgotten once it is dealt with.
    `vague`: DDL that names none of our tables, and `doubtful`: what may be wrong with tables: only a compare can tell.
    """

    at: datetime
    stands: bool
    tables: tuple[QualifiedName, ...]
    reading: Reading
    harm: Harm
    pending: Pending
    vague: tuple[ForeignWrite, ...] = ()
    doubtful: tuple[Trouble, ...] = ()

    @property
    def unclear(self) -> bool:
        """Whether there is nothing certain, and something to be looked at by comparing."""
        return not self.harm and bool(self.vague or self.doubtful)

    @property
    def suspicion(self) -> Harm:
        """What is certain, and what is not, as if it were."""
        writes = sorted((*self.harm.writes, *self.vague), key=lambda each: each.number)
        return Harm(tuple(writes), (*self.harm.troubles, *self.doubtful), self.harm.more)


async def look(
    link: Link, conn: AsyncConnection[TupleRow], truncated: Collection[QualifiedName] = ()
) -> Seen | None:
    """Look once; None if this never was our target, as far as we know. Raises psycopg's errors.

    `truncated` by ourselves were these a moment ago. Whoever calls has the memory's turn.
    """
    known = link.memory.known()
    stands = await progress.is_whole(conn)
    if not stands and known is None:
        return None
    if stands:
        tables = await following(link, conn)
    else:
        assert known is not None
        tables = tuple(each.table for each in known.reading.tables)
    cursor = await conn.execute("SELECT pg_catalog.clock_timestamp()")
    row = await cursor.fetchone()
    assert row is not None
    protected = [name for name in tables if link.rules.of(name).protect_target != "off"]
    now = await reading.read(conn, protected, floors(link, protected))
    pending = await watch.pending(conn) if stands else Pending((), False, 0)
    named, vague = await _harmful(conn, pending.writes, set(protected))
    troubles: list[Trouble] = []
    if known is not None:
        found = reading.judge(known.reading, now, truncated)
        troubles = [each for each in found if each.table is None or each.table in set(protected)]
    harm = Harm(named, tuple(each for each in troubles if each.sure), pending.more and bool(protected))
    if harm:
        # then it is part of the same
        harm = msgspec.structs.replace(
            harm, writes=tuple(sorted((*named, *vague), key=lambda each: each.number))
        )
        vague = ()
    doubtful = [
        each
        for each in troubles
        if not each.sure and each.table not in harm.tables and await _stays_doubtful(link, conn, each)
    ]
    doubtful += [
        Trouble("foreign_write", message, name, False)
        for name, message in link.memory.doubts.items()
        if name in protected and name not in harm.tables
    ]
    return Seen(row[0], stands, tables, now, harm, pending, vague, tuple(doubtful))


async def following(link: Link, conn: AsyncConnection[TupleRow]) -> tuple[QualifiedName, ...]:
    """The target's tables that follow the source, sorted. Raises psycopg's errors."""
    names: Collection[QualifiedName] = await followed.read(conn)
    if not names:
        names = {each.name for each in await catalog.tables(conn)}
    apart = await detached.read(conn)
    return tuple(sorted(each for each in names if link.selection.carries(*each) and each not in apart))


def floors(link: Link, tables: Collection[QualifiedName]) -> dict[QualifiedName, int]:
    """Those of these tables that have a floor, with it."""
    named = {QualifiedName(*name): floor for name, floor in link.config.guard.floors.items()}
    return {name: floor for name, floor in named.items() if name in tables}


async def forget_what_is_harmless(link: Link, conn: AsyncConnection[TupleRow], seen: Seen) -> None:
    """Say once what others built beside our tables, and forget that it was written down. Raises psycopg's errors."""
    if not seen.pending or seen.harm or seen.vague:
        return
    ddl = [each for each in seen.pending.writes if each.is_ddl]
    if ddl:
        what = dict.fromkeys(f"{each.operation} of {each.object or each.table}" for each in ddl)
        log.info(
            "others changed the target, and nothing that follows the source: %s",
            listed(what, 5),
            extra=link.about("watch.harmless"),
        )
    await watch.dealt_with(conn, seen.pending)


async def _harmful(
    conn: AsyncConnection[TupleRow], writes: Sequence[ForeignWrite], tables: set[QualifiedName]
) -> tuple[tuple[ForeignWrite, ...], tuple[ForeignWrite, ...]]:
    """Those of these writes that concern the `tables`, and those that may, as they name no table at all."""
    likely = [each for each in writes if not is_harmless(each)]
    strangers = {each.table for each in likely if each.table is not None and each.table not in tables}
    # written through a root, what follows are its leaves
    roots = {name for name in strangers if await watch.leaves(conn, {name}) & tables}
    named = tuple(each for each in likely if each.table is not None and each.table in tables | roots)
    return named, tuple(each for each in likely if each.table is None) if tables else ()


async def _stays_doubtful(link: Link, conn: AsyncConnection[TupleRow], trouble: Trouble) -> bool:
    """Whether a table really holds fewer rows than the stream left there, or than it was thought to.

    What is judged is ahead of what is applied, and a queue is empty at one moment and full at the next: a table that holds no
    fewer rows than the stream itself has left there lately is as it should be.
    """
    assert trouble.table is not None
    # what the statistics said when all was well may have been out of date already
    stood = link.gate.stood(trouble.table)
    if stood is None:
        stood = trouble.rows_before
    if stood is None:
        return True
    lowest = link.gate.lowest(trouble.table)
    least = stood * (1 - _FALL)
    return await questions.count(conn, trouble.table) < (least if lowest is None else min(least, lowest))
