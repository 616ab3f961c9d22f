"""Putting right what a target lost: its incidents, one heal for all of them, and what has to be remembered for that.

Whoever calls holds the link's lock and the memory's turn, and applies nothing meanwhile. A heal that would leave tables of the
target with far fewer rows than stood there changes nothing: then the source has lost them as well, and a person has to look.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.copy.ends import Ends
from pglockstep.errors import EndError, LockstepError, SourceError, TargetBusy, TargetError
from pglockstep.guard import heal as engine
from pglockstep.guard import reading
from pglockstep.guard.heal import Healed
from pglockstep.link import looking, mending, pinning
from pglockstep.link.balance import Differs
from pglockstep.link.link import Link
from pglockstep.link.looking import Seen
from pglockstep.link.mending import Wanted
from pglockstep.link.noting import DATABASE_GONE, SCHEMA_GONE, heals_itself, noted
from pglockstep.link.states import Event
from pglockstep.observe.incident import Incident, Loss, needs_decision
from pglockstep.postgres.connect import End, ends, translate
from pglockstep.postgres.names import QualifiedName
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
        wanted = Wanted(
            suspects=_suspects(healing, seen), seen=seen, named=_named(healing, seen), compares=compares
        )
        healed, stood = await mending.heal(link, conn, target, wanted)
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
    what = mending.told(healed)
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


def _losses(incident: Incident, healed: Healed, stood: Mapping[QualifiedName, int]) -> tuple[Loss, ...]:
    """What each table turned out to have lost; what was written through a root, its leaves have. Pure."""
    named = {QualifiedName(each.schema, each.table): each for each in incident.tables}
    found = {name: each for name, each in named.items() if each.rows_before is not None}
    for name, done in healed.tables.items():
        if done.put_back or done.removed or name in named:
            found[name] = Loss(*name, stood.get(name), done.put_back)
    return tuple(found[name] for name in sorted(found))
