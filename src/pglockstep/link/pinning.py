"""Who the ends of a link are: pinned while all is well, looked at before the first byte moves, and an incident if it changed.

One incident at a time tells of the source, whoever finds it: a daemon that begins or reconnects, ``once``, ``check``. It is
over by itself once the source that is known answers again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from pglockstep.copy.ends import Ends
from pglockstep.errors import (
    JournalDamaged,
    LockstepError,
    SourceError,
    TargetLacks,
    TargetUnreachable,
)
from pglockstep.findings import demand
from pglockstep.guard import database as databases
from pglockstep.guard import identity as identities
from pglockstep.guard import refill
from pglockstep.guard.database import Database
from pglockstep.guard.identity import Changed, Known
from pglockstep.link import session
from pglockstep.observe.incident import Incident, Kind, Loss, needs_decision
from pglockstep.postgres import catalog, identity, privileges
from pglockstep.postgres.connect import End, connect, describe, ends, translate
from pglockstep.postgres.identity import Identity
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.slots import read as read_slot
from pglockstep.progress import generation
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn

if TYPE_CHECKING:
    from pglockstep.link.link import Link

log = logging.getLogger(__name__)

#: How often the ends are pinned anew, in seconds.
_EVERY = 60.0
#: So far polls may have numbered their transactions beyond the WAL of a source that stood still, in bytes.
_POLLED_BEYOND = 64 << 10


class Pinned(msgspec.Struct, frozen=True):
    """Who the ends were when all was well, and what the source's database was made of."""

    source: Identity
    target: Identity
    database: Database


class BeginAgain(LockstepError):
    """What was decided on who answers is carried out before anything else."""


def pinned(link: Link) -> Pinned | None:
    """What was pinned; None if nothing was, or nothing that this version understands."""
    body = link.state.pinned(link.key)
    with suppress(msgspec.MsgspecError):
        return None if body is None else msgspec.json.decode(body, type=Pinned)
    return None


async def pin(link: Link, both: Ends, record: LinkRecord) -> None:
    """Write down who the ends are, and mark both: all is well. Whoever calls holds the lock, or is sure of who does."""
    with translate(both.source):
        source = await identity.read(both.source_conn)
        database = await databases.read(both.source_conn)
        marked = None if link.polls else await generation.on_source(both.source_conn, record.publication)
    with translate(both.target):
        target = await identity.read(both.target_conn)
        number = max(marked or 0, await generation.on_target(both.target_conn)) + 1
    with translate(both.source):
        marks = not link.polls and await generation.mark_source(both.source_conn, record.publication, number)
    if marks:
        with translate(both.target):
            await generation.mark_target(both.target_conn, number)
        link.generation = number
    link.state.pin(link.key, msgspec.json.encode(Pinned(source, target, database)))


async def pin_first(link: Link, both: Ends, *, anew: bool) -> None:
    """Write down who the ends are where that was never done, or the target was copied `anew`."""
    if anew or pinned(link) is None:
        with translate(both.target):
            record = await progress.demand(both.target_conn)
        await pin(link, both, record)


async def watch(link: Link) -> None:
    """Pin the ends again and again while a daemon keeps them level; a copy that is older than that is known by it."""
    while True:
        await asyncio.sleep(_EVERY)
        try:
            if link.open_incidents():
                continue
            async with session.opened(link.config, "pin") as both:
                with translate(both.target):
                    record = await progress.read(both.target_conn)
                if record is None or record.phase != "streaming":
                    continue
                if await changed(link, both.source_conn, both.source, record, record.progress) is None:
                    await pin(link, both, record)
        except LockstepError as error:
            log.debug("the ends were not looked at: %s", error, extra=link.about("identity.pin"))


# --- looking ------------------------------------------------------------------------------------------------


async def changed(
    link: Link, conn: AsyncConnection[TupleRow], source: End, record: LinkRecord, reached: Lsn | None
) -> Changed | None:
    """In what the source behind `conn` is another than the known one; None if it is the same, or nothing is missing there.

    `reached`: up to where something was received from it.
    """
    with translate(source):
        found = await identity.read(conn)
        slot = None if link.polls else await read_slot(conn, record.slot)
        marked = None if link.polls else await generation.on_source(conn, record.publication)
    if link.polls and reached is not None:
        reached = Lsn(max(0, reached - _POLLED_BEYOND))
    seen = pinned(link)
    known = Known(
        record.source_identity,
        None if seen is None else seen.source,
        reached,
        None if seen is None else seen.target,
        link.generation,
    )
    has_slot = link.polls or (slot is not None and not slot.lost)
    answer = identities.changed("source", known, found, has_slot=has_slot, generation=marked)
    if answer is None or not answer.goes_on:
        return answer
    log.warning("%s; the link goes on with it", answer.message, extra=link.about("identity.promoted"))
    if seen is not None:
        link.state.pin(link.key, msgspec.json.encode(msgspec.structs.replace(seen, source=found)))
    return None


async def stranger(link: Link, both: Ends) -> str | None:
    """In what the source is another than it was when all was well, where the target cannot tell; None if it is the same.

    A target that has lost what is ours there must not be filled from a source that is somebody else.
    """
    seen = pinned(link)
    if seen is None:
        return None
    with translate(both.target):
        here = await identity.read(both.target_conn)
    if here.pin == seen.source.pin:
        return "the source answers where the target was: the ends were swapped"
    with translate(both.source):
        found = await identity.read(both.source_conn)
    known = Known(seen.source.pin, seen.source, None, seen.target)
    answer = identities.changed("source", known, found, has_slot=True)
    return None if answer is None or answer.goes_on else answer.message


async def reached(link: Link, record: LinkRecord) -> Lsn | None:
    """Up to where something was received from the source, by the target or by the journal here."""
    extent = None
    with suppress(JournalDamaged):
        journal = await link.open_journal(record)
        try:
            extent = await journal.extent()
        finally:
            await journal.close()
    return max((each for each in (record.progress, extent and extent[1]) if each), default=None)


def concerns(incident: Incident) -> bool:
    """Whether an incident tells of who the source is. Pure."""
    return incident.side == "source" and incident.kind in ("identity", "missing_database")


def open_incident(link: Link) -> Incident | None:
    """The open incident that tells of who the source is."""
    return next(filter(concerns, link.open_incidents()), None)


def is_decided(incident: Incident) -> bool:
    """Whether there is something to be carried out. Pure."""
    return incident.state == "healing" or incident.decision is not None


async def demand_known(
    link: Link, conn: AsyncConnection[TupleRow], source: End, record: LinkRecord, up_to: Lsn | None
) -> None:
    """Raise `IncidentOpen` unless the source is the known one, and `BeginAgain` if it is decided what becomes of that.

    A standby is nobody yet: that is raised as what it is.
    """
    with translate(source):
        facts = await privileges.facts(conn)
    if facts.in_recovery:
        demand(privileges.source_findings(facts, needs_slot=False, polls=link.polls))
    incident = open_incident(link)
    if incident is not None and is_decided(incident):
        raise BeginAgain
    found = await changed(link, conn, source, record, up_to)
    if found is None:
        if incident is not None:
            came_back(link, incident)
        return
    if incident is None:
        incident = opened_for(link, "identity", found.message)
        incident = await measured(link, incident)
    raise BeginAgain() if is_decided(incident) else needs_decision(incident)


async def look_again(link: Link, up_to: Lsn | None = None) -> None:
    """Let an incident that nobody has decided be over if the known source answers again; `up_to` as in `demand_known`."""
    incident = open_incident(link)
    if incident is None or is_decided(incident):
        return
    with suppress(LockstepError):
        async with session.opened(link.config, "look") as both:
            with translate(both.target):
                record = await progress.read(both.target_conn)
                if record is None or record.phase != "streaming":
                    return
                link.generation = await generation.on_target(both.target_conn)
            up_to = up_to or await reached(link, record)
            if await changed(link, both.source_conn, both.source, record, up_to) is None:
                came_back(link, incident)


def came_back(link: Link, incident: Incident) -> None:
    """The known source answers again, and nobody had to decide anything."""
    link.incidents.concluded(incident.id, "healed", "the known source answers again")
    log.info(
        "incident %s is over: the known source answers again", incident.id, extra=link.about("identity.back")
    )


# --- opening ------------------------------------------------------------------------------------------------


def opened_for(link: Link, kind: Kind, message: str) -> Incident:
    """Write the incident down. Where the configuration restores a source by itself it begins as being healed."""
    now = datetime.now(UTC)
    heals = link.config.guard.on_source_wipe == "restore"
    incident = link.incidents.open(
        link.key,
        Incident(
            link=link.config.name,
            side="source",
            kind=kind,
            message=message,
            tables=(),
            state="healing" if heals else "held",
            opened_at=now,
        ),
    )
    log.error(
        "incident %s: %s; %s",
        incident.id,
        message,
        "it is being filled from the target"
        if heals
        else "nothing was copied from it, the target stays as it is",
        extra=link.about("identity.changed"),
    )
    return incident


async def measured(link: Link, incident: Incident) -> Incident:
    """The incident with how many rows of each table the source lacks now, as far as that can be told."""
    source, target = ends(link.config)
    try:
        found = await refill.losses(source, target, await not_carried(link, target))
    except LockstepError as error:
        log.warning("what the source lacks is not known: %s", error, extra=link.about("identity.measure"))
        return incident
    return note_losses(link, incident, found)


def note_losses(link: Link, incident: Incident, found: dict[QualifiedName, tuple[int, int]]) -> Incident:
    """Write down what the source lacks."""
    tables = tuple(Loss(*name, stood, lost) for name, (stood, lost) in sorted(found.items()) if lost)
    if tables == incident.tables:
        return incident
    lost = sum(each.rows_lost for each in tables)
    return link.incidents.change(
        incident.id, f"of what the target holds, {lost} rows are not there", tables=tables
    )


async def not_carried(link: Link, target: End) -> frozenset[QualifiedName]:
    """The target's relations that the link does not carry."""
    conn = await connect(target, "catalog")
    try:
        with translate(target):
            cursor = await conn.execute(catalog.statement("holdings"))
            names = [QualifiedName(schema, name) async for schema, name, kind in cursor if kind != "sequence"]
        return frozenset(link.selection.left_out(names))
    finally:
        await conn.close()


# --- a database that is gone --------------------------------------------------------------------------------


@asynccontextmanager
async def opened(link: Link, purpose: str) -> AsyncIterator[Ends]:
    """Both ends, as `session.opened` has them; a source's database that is gone is made again if that is decided.

    Raises `IncidentOpen` while it is not.
    """
    async with AsyncExitStack() as stack:
        try:
            both = await stack.enter_async_context(session.opened(link.config, purpose))
        except SourceError as error:
            if not await _made_again(link, error):
                raise
            both = await stack.enter_async_context(session.opened(link.config, purpose))
        yield both


@asynccontextmanager
async def noticing(link: Link) -> AsyncIterator[None]:
    """Where a source's database turns out inside to be gone, raise `IncidentOpen`, or `BeginAgain` if that is decided."""
    try:
        yield
    except SourceError as error:
        incident = notice_missing(link, error)
        if incident is None:
            raise
        raise (BeginAgain() if is_decided(incident) else needs_decision(incident)) from error


def notice_missing(link: Link, error: SourceError) -> Incident | None:
    """The incident of a source's database that is gone, if that is what `error` says of one that was known."""
    if error.finding is None or error.finding.code != "unknown_database" or pinned(link) is None:
        return None
    source = describe(ends(link.config)[0].conninfo)
    return open_incident(link) or opened_for(
        link, "missing_database", f"the source's database is gone from its server ({source})"
    )


async def _made_again(link: Link, error: SourceError) -> bool:
    """Whether `error` says that the source's database is gone, and it has been made again, empty."""
    incident = notice_missing(link, error)
    if incident is None:
        return False
    if not is_decided(incident):
        raise needs_decision(incident)
    source, target = ends(link.config)
    try:
        await _demand_target(link, target)
        known = pinned(link)
        assert known is not None
        name = conninfo_to_dict(source.conninfo).get("dbname") or known.database.name
        await databases.make_again(source, msgspec.structs.replace(known.database, name=str(name)))
    except LockstepError as failure:
        if failure.transient and not isinstance(failure, TargetUnreachable):
            raise
        take_back(link, incident, failure)
        raise
    log.warning("the source's database was made again, empty", extra=link.about("identity.database"))
    return True


async def _demand_target(link: Link, target: End) -> None:
    """Raise the target's errors unless it has what the source is to be filled from."""
    conn = await connect(target, "refill")
    try:
        with translate(target):
            record = await progress.read(conn)
    finally:
        await conn.close()
    if record is None or record.phase != "streaming":
        raise TargetLacks(
            f"the target ({describe(target.conninfo)}) remembers no link any more: there is nothing to fill the source from",
            hint="nothing was changed; restore one of the two from a backup",
        )


def take_back(link: Link, incident: Incident, error: LockstepError) -> None:
    """What was decided could not be carried out: the incident is held again, and says why."""
    link.incidents.undecided(incident.id, f"{error.message} ({error.hint})" if error.hint else error.message)
    log.error("incident %s: %s", incident.id, error, extra=link.about("guard.undecided"))
