"""Putting right what a target lost: its incidents, one heal for all of them, and what has to be remembered for that.

Whoever calls holds the link's lock and the memory's turn, and applies nothing meanwhile. A heal that would leave tables of the
target with far fewer rows than stood there changes nothing: then the source has lost them as well, and a person has to look.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.copy.ends import Ends
from pglockstep.copy.source import published_tables
from pglockstep.errors import EndError, LockstepError, SourceError, TargetBusy, TargetError
from pglockstep.findings import counted
from pglockstep.guard import heal as engine
from pglockstep.guard import reading, watch
from pglockstep.guard.heal import Healed, Remembered, Wish
from pglockstep.guard.mend import Mended
from pglockstep.guard.watch import Mode
from pglockstep.link import looking, pinning, session
from pglockstep.link.balance import Balance, Differs, Intact, lost_on_both
from pglockstep.link.link import Link
from pglockstep.link.looking import Seen
from pglockstep.link.memory import Known
from pglockstep.link.noting import DATABASE_GONE, SCHEMA_GONE, heals_itself, noted
from pglockstep.link.remembering import remember_healed, standing
from pglockstep.link.states import Event
from pglockstep.observe.incident import Incident, Loss, needs_decision
from pglockstep.postgres import catalog, privileges
from pglockstep.postgres.connect import End, connect, ends, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import copying, detached
from pglockstep.progress import target as progress

log = logging.getLogger(__name__)

#: How often a heal that was refused is tried before a person has to look: somebody may be at it still.
_ATTEMPTS = 4


# --- a target that has nothing of ours any more -------------------------------------------------------------


async def made_again(link: Link, error: TargetError) -> bool:
    """Whether `error` says that a database is gone that was our target, and it has been made again, empty.

    Raises `IncidentOpen` where that waits for a decision, or cannot be done.
    """
    if not reading.is_unknown_database(error):
        return False
    known = link.memory.known()
    if known is None:
        return False
    incident = noted(link, DATABASE_GONE)
    if incident.state == "held":
        _take_back_what_needs_it(link, incident)
        raise needs_decision(incident)
    try:
        conn = await engine.open_again(ends(link.config)[1], known.remembered)
    except EndError as failure:
        if failure.transient:
            raise
        _give_up(link, [incident], failure)
        raise needs_decision(link.incidents.get(incident.id)) from failure
    await conn.close()
    return True


def _take_back_what_needs_it(link: Link, gone: Incident) -> None:
    """Whatever was decided about the source's incidents takes a target: whoever waits for it is told that there is none."""
    for each in link.open_incidents():
        if each.side == "source" and each.decision is not None:
            why = f"the target's database is gone (incident {gone.id}): nothing can be done about this one before that"
            link.incidents.undecided(each.id, why)
            log.error("incident %s: %s", each.id, why, extra=link.about("guard.undecided"))


@asynccontextmanager
async def opened_ends(link: Link, purpose: str) -> AsyncIterator[Ends]:
    """Both ends, as `session.opened` has them; a database that is gone and was our target is made again first."""
    async with AsyncExitStack() as stack:
        try:
            both = await stack.enter_async_context(pinning.opened(link, purpose))
        except TargetError as error:
            if link.state.daemon_pid(link.key) not in (None, os.getpid()):
                # the daemon sees to it
                if reading.is_unknown_database(error) and (found := link.open_incidents()):
                    raise needs_decision(found[0]) from error
                raise
            if not await made_again(link, error):
                raise
            both = await stack.enter_async_context(pinning.opened(link, purpose))
        yield both


async def stand_again(link: Link, conn: AsyncConnection[TupleRow], target: End) -> None:
    """Heal a target that was ours and has nothing of ours any more; raises `IncidentOpen` where that waits for a decision.

    Whoever calls has the lock: what looks like an empty target must not be taken for a new one.
    """
    async with link.memory.turn:
        with translate(target):
            if await progress.is_whole(conn) or link.memory.known() is None:
                return
            record = None if await _has_no_record(conn) else await progress.read(conn)
            if record is not None and record.phase == "copying":
                return
            seen = await looking.look(link, conn)
        incident = noted(link, seen.harm if seen is not None and seen.harm else SCHEMA_GONE)
        if incident.state == "held":
            raise needs_decision(incident)
        await settle(link, conn, target, seen)
        with translate(target):
            if not await progress.is_whole(conn):
                raise needs_decision(link.incidents.get(incident.id))


async def _has_no_record(conn: AsyncConnection[TupleRow]) -> bool:
    cursor = await conn.execute(
        "SELECT pg_catalog.to_regclass('pglockstep.format') IS NULL OR pg_catalog.to_regclass('pglockstep.link') IS NULL "
        "OR pg_catalog.to_regclass('pglockstep.progress') IS NULL"
    )
    return await cursor.fetchone() == (True,)


# --- the heal -----------------------------------------------------------------------------------------------


async def settle(link: Link, conn: AsyncConnection[TupleRow], target: End, seen: Seen | None) -> None:
    """Heal what is to be healed, or compare what may be wrong. An end that is away is raised, and it is tried again; what else
    goes wrong is held.
    """
    of_target = [each for each in link.open_incidents() if each.side == "target"]
    healing = [each for each in of_target if each.state == "healing"]
    unclear = seen is not None and seen.unclear and not of_target
    if not healing and not unclear:
        return
    compares = not healing and seen is not None and not heals_itself(link, seen.suspicion.tables)
    if compares and seen is not None and seen.vague:
        # to find out whether it took anything would be to put it back
        raise needs_decision(noted(link, seen.suspicion, seen.at))
    if healing:
        reason = "; ".join(each.message for each in healing)
        link.standing.move(Event.HEAL_STARTED, f"being put right from the source: {reason}")
    try:
        healed, stood = await heal(
            link,
            conn,
            target,
            _suspects(healing, seen),
            seen=seen,
            named=_named(healing, seen),
            compares=compares,
        )
    except Differs as error:
        assert seen is not None
        raise needs_decision(noted(link, seen.suspicion, seen.at)) from error
    except LockstepError as error:
        if isinstance(error, EndError) and error.transient:
            raise
        if await _may_pass(link, conn, error, stood=seen is None or seen.stands):
            raise TargetBusy(f"the heal is tried again: {error.message}", hint=error.hint) from error
        if not healing:
            assert seen is not None
            healing = [noted(link, seen.suspicion, seen.at)]
        _give_up(link, healing, error)
        return
    if not healing and (healed.made or healed.put_back or healed.removed):
        assert seen is not None
        healing = [noted(link, seen.suspicion, seen.at)]
    link.memory.failures = 0
    what = told(healed)
    for each in healing:
        link.incidents.concluded(each.id, "healed", what, tables=_losses(each, healed, stood))
    if healing:
        link.standing.move(Event.RELEASED)
        log.info("the target is healed: %s", what, extra=link.about("guard.healed"))


async def _may_pass(
    link: Link, conn: AsyncConnection[TupleRow], error: LockstepError, *, stood: bool
) -> bool:
    """Whether a heal may have failed because the target, or the source, was changed under it."""
    if type(error) not in (TargetError, SourceError):
        return False
    with suppress(psycopg.Error):
        if stood and not await progress.is_whole(conn):
            return True
    # nobody but a daemon comes back by itself
    link.memory.failures += 1
    return link.memory.failures < _ATTEMPTS and link.state.daemon_pid(link.key) == os.getpid()


def _give_up(link: Link, healing: Sequence[Incident], error: LockstepError) -> None:
    link.memory.failures = 0
    for each in healing:
        why = f"{error.message} ({error.hint})" if error.hint else error.message
        link.incidents.undecided(each.id, why)
        log.error("incident %s is not healed: %s", each.id, error, extra=link.about("guard.undecided"))


def _suspects(incidents: Sequence[Incident], seen: Seen | None) -> frozenset[QualifiedName] | None:
    """The tables to look at; None for all."""
    found = frozenset(QualifiedName(each.schema, each.table) for one in incidents for each in one.tables)
    if any(each.kind in ("missing_database", "identity") for each in incidents):
        return None
    if any(each.kind == "drop" and not each.tables and not each.statements for each in incidents):
        return None
    if seen is None:
        return found or None
    suspects = seen.suspicion.suspects(seen.tables)
    return None if suspects is None else suspects | found


def _named(incidents: Sequence[Incident], seen: Seen | None) -> set[QualifiedName]:
    """The tables of which it is known that they were harmed."""
    named = {QualifiedName(each.schema, each.table) for one in incidents for each in one.tables}
    return named | (seen.suspicion.tables if seen is not None else set())


async def heal(
    link: Link,
    conn: AsyncConnection[TupleRow],
    target: End,
    suspects: frozenset[QualifiedName] | None,
    *,
    seen: Seen | None = None,
    named: Collection[QualifiedName] | None = None,
    follow_again: Collection[QualifiedName] = (),
    compares: bool = False,
    confirmed: int = 0,
) -> tuple[Healed, Mapping[QualifiedName, int]]:
    """Make these tables, or all, what they are on the source, exactly; the stream then skips what they hold.

    Returns what was done, and how many rows each table held before it was harmed. `seen`: what is dealt with by it. Tables beyond
    the `named` that only the source has lost are left to the stream. `follow_again`: tables that were detached; of them so
    many rows may be gone or changed as a person has `confirmed`. Raises
    `TooMuchLost`, with nothing changed, where tables would end with fewer rows than the rules allow; else the ends' errors.
    """
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
    there, time = await _on_source(link, remembered)
    detach = apart.keys() - set(follow_again)
    mine = {QualifiedName(schema, name) for schema, name, _ in remembered.tables}
    left_out = {name for name, published in there.items() if not published and name not in mine}
    left_out |= {name for name in there if not link.selection.carries(*name)} | detach
    named = suspects or frozenset() if named is None else named
    _demand_on_either(
        link,
        (set(named) | followed) - there.keys() - detach,
        await _missing(conn, target, followed | set(named)),
    )
    aside: set[QualifiedName] = set()
    after: list[Known] = []
    stays_apart = {name: apart[name] for name in detach}

    async def judge(mended: Mapping[QualifiedName, Mended]) -> None:
        await balance.judge(mended)
        # before the commit: what is done to it behind that is to be seen
        after[:] = [await standing(link, conn, (followed | set(follow_again)) - detach, stays_apart)]

    while True:
        balance = Balance(link, conn, named, time, again=follow_again, confirmed=confirmed, compares=compares)
        chosen = None if suspects is None else suspects - aside
        mode = _one_mode(link, there.keys() - left_out)
        wish = Wish(frozenset(left_out | aside), chosen, mode, _stood(known, follow_again), judge)
        try:
            healed = await engine.heal(ends(link.config)[0], target, conn, remembered, wish)
            break
        except Intact as error:
            if not stands:
                # how far the stream was is lost, and with it what it would say of these
                raise
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
        await detached.attach(conn, follow_again)
        if seen is not None and stands:
            await watch.dealt_with(conn, seen.pending)
        record = await progress.read(conn)
        assert record is not None
        assert record.progress is not None
        ahead = await copying.ahead(conn, record.progress)
        link.gate.begin(record.progress, ahead)
        link.gate.seed(balance.rows, {name: ahead.get(name, record.progress) for name in balance.rows}, time)
    balance.note_lost()
    return healed, balance.stood


async def _on_source(link: Link, remembered: Remembered) -> tuple[dict[QualifiedName, bool], int]:
    """The source's tables, and whether each is published; and its clock. Raises unless it is the source that it was."""
    source = ends(link.config)[0]
    conn = await connect(source, "heal")
    try:
        with translate(source):
            session.demand_identity(source, await privileges.facts(conn), remembered.record)
        # an older copy of itself has the same name
        await pinning.demand_known(link, conn, source, remembered.record, remembered.record.progress)
        with translate(source):
            published = await published_tables(conn, source, remembered.record.publication)
            tables = await catalog.tables(conn)
            return {each.name: each.name in published for each in tables}, await session.source_clock(conn)
    finally:
        await conn.close()


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


def _losses(incident: Incident, healed: Healed, stood: Mapping[QualifiedName, int]) -> tuple[Loss, ...]:
    """What each table turned out to have lost; what was written through a root, its leaves have. Pure."""
    named = {QualifiedName(each.schema, each.table): each for each in incident.tables}
    found = {name: each for name, each in named.items() if each.rows_before is not None}
    for name, done in healed.tables.items():
        if done.put_back or done.removed or name in named:
            found[name] = Loss(*name, stood.get(name), done.put_back)
    return tuple(found[name] for name in sorted(found))


def told(healed: Healed) -> str:
    """What came of a heal, in a sentence. Pure."""
    parts = [f"{counted(healed.put_back, 'row')} put back"]
    if healed.removed:
        parts.append(f"{counted(healed.removed, 'row')} that the source does not have taken away")
    if healed.made:
        parts.append(f"{counted(len(healed.made), 'object')} made again")
    return ", ".join(parts)
