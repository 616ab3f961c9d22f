"""One heal of the target's tables, judged before its commit, and what has to be remembered for the next one.

Whoever calls holds the link's lock and the memory's turn, and applies nothing meanwhile. Nothing passes a heal that the stream
would not let pass: what the source has done to its tables since the target's progress is judged as the stream will judge it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.copy.source import published_tables
from pglockstep.errors import JournalDamaged, NotInJournal, SourceLacks
from pglockstep.findings import counted
from pglockstep.guard import heal as engine
from pglockstep.guard import watch
from pglockstep.guard.heal import Healed, Remembered, Wish
from pglockstep.guard.mend import Mended
from pglockstep.guard.watch import Mode
from pglockstep.link import looking, pinning
from pglockstep.link import session as sessions
from pglockstep.link.balance import Balance, Intact, lost_on_both
from pglockstep.link.link import Link
from pglockstep.link.looking import Seen
from pglockstep.link.memory import Known
from pglockstep.link.receiving import reached
from pglockstep.link.remembering import remember_healed, standing
from pglockstep.link.survey import Unapplied
from pglockstep.postgres import catalog, privileges
from pglockstep.postgres.connect import End, connect, ends, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.snapshots import exported
from pglockstep.progress import copying, detached
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import LAST_LSN, Lsn

log = logging.getLogger(__name__)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be healed.

    `suspects`: these tables, or all if that is None. `seen`: what is dealt with by it. Tables beyond the `named`, which are the
    suspects if that is None, are left to the stream where only the source has lost them. `again`: tables that were detached and
    are to follow; of them so many rows may be gone or changed as a person has `confirmed`. `compares`: nothing is to be changed.
    `settled`: what the source did to a table before that was dealt with.
    """

    suspects: frozenset[QualifiedName] | None
    seen: Seen | None = None
    named: Collection[QualifiedName] | None = None
    again: frozenset[QualifiedName] = frozenset()
    confirmed: int = 0
    compares: bool = False
    settled: Mapping[QualifiedName, Lsn] = {}


async def heal(
    link: Link, conn: AsyncConnection[TupleRow], target: End, wanted: Wanted
) -> tuple[Healed, Mapping[QualifiedName, int]]:
    """Make tables of the target what they are on the source, exactly; the stream then skips what they hold.

    Returns what was done, and how many rows each table held before it was harmed. Raises `TooMuchLost`, with nothing changed,
    where tables would lose more than the rules allow; else the ends' errors.
    """
    source = ends(link.config)[0]
    session = await connect(source, "heal")
    try:
        async with AsyncExitStack() as kept:
            return await _heal(link, (source, target), (session, conn), wanted, kept)
    finally:
        await session.close()


async def _heal(
    link: Link,
    both: tuple[End, End],
    opened: tuple[AsyncConnection[TupleRow], AsyncConnection[TupleRow]],
    wanted: Wanted,
    kept: AsyncExitStack,
) -> tuple[Healed, Mapping[QualifiedName, int]]:
    (source, target), (session, conn) = both, opened
    suspects, seen, again = wanted.suspects, wanted.seen, wanted.again
    known = link.memory.known()
    with translate(target):
        stands = await progress.is_whole(conn)
        if stands:
            await progress.upgrade(conn)
            fresh = await engine.remember(conn)
            apart = await detached.read(conn)
            followed = set(await looking.following(link, conn))
            remembered = fresh
            if known is not None and (
                seen is None or seen.reading.database_oid == known.reading.database_oid
            ):
                # what was renamed is known by the names that tables had when all was well
                remembered = msgspec.structs.replace(fresh, tables=known.remembered.tables)
        else:
            assert known is not None
            # numbers of another database say nothing here; what was there is known by its names
            same = seen is not None and seen.reading.database_oid == known.reading.database_oid
            tables = known.remembered.tables
            renamed = tables if same else tuple((schema, name, 0) for schema, name, _ in tables)
            remembered = msgspec.structs.replace(known.remembered, tables=renamed)
            followed = {each.table for each in known.reading.tables}
            apart = {QualifiedName(schema, name): incident for schema, name, incident in known.apart}
    there, time = await _on_source(link, session, source, remembered, followed | again if stands else None)
    detach = apart.keys() - again
    mine = {QualifiedName(schema, name) for schema, name, _ in remembered.tables}
    left_out = {name for name, published in there.items() if not published and name not in mine}
    left_out |= {name for name in there if not link.selection.carries(*name)} | detach
    named = suspects or frozenset() if wanted.named is None else wanted.named
    _demand_on_either(
        link,
        (set(named) | followed) - there.keys() - detach,
        await _missing(conn, target, followed | set(named)),
    )
    dealt_with = {**wanted.settled, **dict.fromkeys(again, LAST_LSN)}
    if stands:
        unapplied: Unapplied | None = await _looked_at(link, both, opened, fresh.record, dealt_with, kept)
    else:
        unapplied = await _looked_at_from_memory(link, both, opened, remembered.record, dealt_with, kept)
    moment = None if unapplied is None else unapplied.moment
    if link.polls and moment is None:
        _, shown, _ = await kept.enter_async_context(exported(source, "heal"))
        beyond = await reached(link, remembered.record)
        moment = msgspec.structs.replace(shown, lsn=max(shown.lsn, beyond or shown.lsn))
    # nothing can be left to a stream that does not know any more how far it was
    balanced = named if stands else there.keys()
    aside: set[QualifiedName] = set()
    after: list[Known] = []
    stays_apart = {name: apart[name] for name in detach}

    async def judge(mended: Mapping[QualifiedName, Mended]) -> None:
        wiped = {} if unapplied is None else await unapplied.wiped(counts=False)
        await balance.judge(mended, wiped)
        # before the commit: what is done to it behind that is to be seen
        after[:] = [await standing(link, conn, (followed | again) - detach, stays_apart)]

    while True:
        balance = Balance(
            link, conn, balanced, time, again=again, confirmed=wanted.confirmed, compares=wanted.compares
        )
        chosen = None if suspects is None else suspects - aside
        mode = _one_mode(link, there.keys() - left_out)
        wish = Wish(frozenset(left_out | aside), chosen, mode, _stood(known, again), judge, moment)
        try:
            healed = await engine.heal(source, target, conn, remembered, wish)
            break
        except Intact as error:
            aside |= error.tables
            log.warning("left to the stream: %s", error, extra=link.about("guard.aside"))
    balance.commit()
    remember_healed(link, after[0], healed.tables.keys())
    for name in healed.tables:
        link.memory.doubts.pop(name, None)
    with translate(target):
        if not stands:
            for name, incident in apart.items():
                await detached.detach(conn, [name], incident)
        await detached.attach(conn, again)
        if seen is not None and stands:
            await watch.dealt_with(conn, seen.pending)
        record = await progress.demand(conn)
        assert record.progress is not None
        ahead = await copying.ahead(conn, record.progress)
        link.gate.begin(record.progress, ahead)
        link.gate.seed(balance.rows, {name: ahead.get(name, record.progress) for name in balance.rows}, time)
    balance.note_lost()
    return healed, balance.stood


async def _looked_at(
    link: Link,
    both: tuple[End, End],
    opened: tuple[AsyncConnection[TupleRow], AsyncConnection[TupleRow]],
    record: LinkRecord,
    dealt_with: Mapping[QualifiedName, Lsn],
    kept: AsyncExitStack,
) -> Unapplied:
    """What the source has done up to now, judged, while nothing is locked."""
    found = await Unapplied.of(link, both, opened, record, dealt_with)
    found.kept = kept
    await found.wiped(counts=True)
    return found


async def _looked_at_from_memory(
    link: Link,
    both: tuple[End, End],
    opened: tuple[AsyncConnection[TupleRow], AsyncConnection[TupleRow]],
    record: LinkRecord,
    dealt_with: Mapping[QualifiedName, Lsn],
    kept: AsyncExitStack,
) -> Unapplied | None:
    """As `_looked_at`, of a target that has nothing of ours: since it was judged last. None where nobody knows when that was."""
    reached = link.gate.reached()
    if reached is None:
        return None
    try:
        since = msgspec.structs.replace(record, progress=reached)
        return await _looked_at(link, both, opened, since, dealt_with, kept)
    except (NotInJournal, JournalDamaged, SourceLacks) as error:
        log.warning(
            "what the source has done meanwhile is judged by numbers alone: %s",
            error,
            extra=link.about("guard.unjudged"),
        )
        return None


async def _on_source(
    link: Link,
    conn: AsyncConnection[TupleRow],
    source: End,
    remembered: Remembered,
    followed: Collection[QualifiedName] | None,
) -> tuple[dict[QualifiedName, bool], int]:
    """The source's tables, and whether each is published; and its clock. Raises unless it is the source that it was.

    Where the source is polled nothing is published there: then it is those that are `followed`, or all if that is not known.
    """
    with translate(source):
        sessions.demand_identity(source, await privileges.facts(conn), remembered.record)
    # an older copy of itself has the same name
    await pinning.demand_known(link, conn, source, remembered.record, remembered.record.progress)
    with translate(source):
        tables = await catalog.tables(conn)
        if not link.polls:
            published = await published_tables(conn, source, remembered.record.publication)
        else:
            published = {each.name for each in tables if followed is None or each.name in followed}
        return {each.name: each.name in published for each in tables}, await sessions.source_clock(conn)


async def _missing(
    conn: AsyncConnection[TupleRow], target: End, tables: Collection[QualifiedName]
) -> set[QualifiedName]:
    """Those of these tables that are not on the target."""
    with translate(target):
        here = {each.name for each in await catalog.tables(conn)}
    return set(tables) - here


def _demand_on_either(
    link: Link, gone: Collection[QualifiedName], missing: Collection[QualifiedName]
) -> None:
    """Raise `TooMuchLost` if tables that held rows are neither on the source nor on the target."""
    rows = {name: link.gate.stood(name) or 0 for name in sorted(set(gone) & set(missing))}
    if lost := {
        name: f"table {name} of {counted(held, 'row')} is gone from the target"
        for name, held in rows.items()
        if held
    }:
        raise lost_on_both(lost)


def _one_mode(link: Link, tables: Collection[QualifiedName]) -> Mode | None:
    """How all of these tables are watched, if all are in one way; else the watch is put on after the heal. Pure."""
    modes = {link.rules.of(each).protect_target for each in tables}
    if len(modes) != 1:
        return None
    (mode,) = modes
    return None if mode == "off" else mode


def _stood(known: Known | None, again: Collection[QualifiedName]) -> frozenset[tuple[str, str, str]]:
    """The columns that the target had when all was well, but for tables that are read anew. Pure."""
    tables = known.reading.tables if known is not None else ()
    return frozenset(
        (*each.table, name) for each in tables if each.table not in again for name, _ in each.columns
    )


def told(healed: Healed) -> str:
    """What came of a heal, in a sentence. Pure."""
    parts = [f"{counted(healed.put_back, 'row')} put back"]
    if healed.removed:
        parts.append(f"{counted(healed.removed, 'row')} that the source does not have taken away")
    if healed.made:
        parts.append(f"{counted(len(healed.made), 'object')} made again")
    return ", ".join(parts)
