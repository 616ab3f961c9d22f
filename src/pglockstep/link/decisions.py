"""What becomes of a decision that was written down: a live daemon carries it out, or whoever works on the link next.

Whoever has the link's lock settles its open incidents before anything is applied. One that nobody has decided stops the
link: that is what *held* means. An approval is carried out by the stream itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.errors import DecisionRefused, EndError, LinkHeld, LockstepError, NotInJournal, TooMuchLost
from pglockstep.guard import restore_journal, watch
from pglockstep.guard.restore import Order, restore
from pglockstep.guard.restore_outcome import told
from pglockstep.link import healing, looking, mending, pinning, remembering, resync, session, survey, takeover
from pglockstep.link.drops import follow
from pglockstep.link.link import Link
from pglockstep.link.mending import Wanted
from pglockstep.link.noting import noted
from pglockstep.link.receiving import received
from pglockstep.link.states import Event
from pglockstep.observe.incident import Incident, needs_decision
from pglockstep.observe.incidents import Incidents
from pglockstep.observe.requests import Resync
from pglockstep.postgres.connect import End, answered, connect, ends, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import copying, detached, held
from pglockstep.progress import source_tables as followed
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn
from pglockstep.wal.messages import Begin, Message, Relation

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How often what is still being wiped is restored before a person has to look.
_ATTEMPTS = 5
#: How often a command looks whether the daemon has carried its decision out, in seconds.
_LOOK = 0.1


async def settled(link: Link, incident: Incident) -> Incident:
    """The decided `incident` as it is once the decision has been carried out; raises `DecisionRefused` if it could not be.

    A daemon on this machine is waited for as long as it lives; without one it is done here. Whoever is interrupted leaves the
    decision standing.
    """
    store = Incidents(link.state)
    found = await _from_daemon(link, lambda: _outcome(store, incident))
    return found or await carry_out(link, store.get(incident.id))


async def _from_daemon(link: Link, outcome: Callable[[], T | None]) -> T | None:
    """What comes of something while a daemon lives; None if none lives and nothing has come of it."""
    while link.state.daemon_pid(link.key) is not None:
        if (found := outcome()) is not None:
            return found
        await asyncio.sleep(_LOOK)
    # it may have been the last thing that it did
    return outcome()


def _outcome(store: Incidents, decided: Incident) -> Incident | None:
    """What came of the decision; None while it is being carried out."""
    found = store.get(decided.id)
    if not found.is_open:
        return found
    if found.decision == decided.decision:
        return None
    # undecided, and perhaps decided anew
    since = "; ".join(each.what for each in found.audit[len(decided.audit) :])
    raise DecisionRefused(
        f"incident {decided.id} is {found.state} again: {since}",
        hint=f"pglockstep incidents show {decided.id} tells all of it, and what can be decided",
    )


def undecided(incidents: Iterable[Incident]) -> Incident | None:
    """The first of these that keeps the link from going on until somebody decides. Pure."""
    return next((each for each in incidents if each.state == "held" and each.decision is None), None)


def must_wait(incidents: Sequence[Incident]) -> bool:
    """Whether there is nothing to be done about these incidents before somebody decides. Pure."""
    return undecided(incidents) is not None and not any(
        each.state == "healing" or (each.decision is not None and each.decision.verb != "approve")
        for each in incidents
    )


def is_healing(link: Link) -> bool:
    """Whether the target is being put right, or is to be."""
    return any(each.side == "target" and each.state == "healing" for each in link.open_incidents())


def demand_decided(link: Link) -> None:
    """Raise `IncidentOpen` if an incident of the link waits for a decision."""
    if (found := undecided(link.open_incidents())) is not None:
        raise needs_decision(found)


async def settle(link: Link, conn: AsyncConnection[TupleRow], target: End) -> None:
    """Carry out what was decided, over the session that holds the link's lock; raises `IncidentOpen` for what was not.

    What has been approved is left to the stream. An end that is away is raised, and the decision stands; what else goes wrong
    takes it back.
    """
    if any(map(pinning.concerns, link.open_incidents())):
        demand_decided(link)
        raise pinning.BeginAgain
    async with link.memory.turn:
        with answered(target, conn), translate(target):
            await _prepare(conn)
            await link.learn(conn)
            seen = await looking.look(link, conn)
        if seen is not None and seen.harm:
            noted(link, seen.harm, seen.at)
        if seen is not None and not seen.stands:
            # nothing can be decided on a target that has nothing of ours
            await healing.settle(link, conn, target, seen)
            demand_decided(link)
            seen = None
        for incident in link.open_incidents():
            if incident.decision is not None:
                await _carry_out(link, conn, target, incident)
        await healing.settle(link, conn, target, seen)
        demand_decided(link)
        if await resync.carry_out(link, conn, target):
            # how the target stands has changed since it was looked at
            seen = None
        if seen is not None:
            with answered(target, conn), translate(target):
                await looking.forget_what_is_harmless(link, conn, seen)
                if link.memory.is_due:
                    await remembering.remember(link, conn)


async def _prepare(conn: AsyncConnection[TupleRow]) -> None:
    """Bring our schema up to date, if it is there, and have the watch know this session. Raises psycopg's errors."""
    if await progress.is_whole(conn):
        await watch.act_as_replica(conn)
        await progress.upgrade(conn)
        await watch.be_ours(conn)


async def _carry_out(link: Link, conn: AsyncConnection[TupleRow], target: End, incident: Incident) -> None:
    """Carry out what was decided on the source's side, or that tables of the target's are to be left alone."""
    assert incident.decision is not None
    verb = incident.decision.verb
    if incident.side == "target" and verb != "reject":
        return
    with translate(target):
        record = await progress.demand(conn)
        assert record.progress is not None
        link.gate.begin(record.progress, await copying.ahead(conn, record.progress))
    if verb == "approve":
        link.gate.let_through(incident, record.progress)
        return
    try:
        if verb == "restore":
            await _restore(link, conn, target, record, incident)
        else:
            await _reject(link, conn, target, incident)
    except EndError as error:
        if error.transient:
            raise
        _take_back(link, incident, error)
    except LockstepError as error:
        _take_back(link, incident, error)


def _take_back(link: Link, incident: Incident, error: LockstepError) -> None:
    """The decision could not be carried out: the incident is held again, and says why."""
    link.incidents.undecided(incident.id, f"{error.message} ({error.hint})" if error.hint else error.message)
    log.error("incident %s: %s", incident.id, error, extra=link.about("guard.undecided"))


async def _reject(link: Link, conn: AsyncConnection[TupleRow], target: End, incident: Incident) -> None:
    tables = _tables(incident)
    with translate(target):
        if incident.side == "target":
            # what was written through a root is in its leaves
            tables = sorted({*tables, *await watch.leaves(conn, tables)})
        await detached.detach(conn, tables, incident.id)
        if incident.side == "target":
            # it may stay as others made it
            await watch.dealt_with(conn, await watch.pending(conn))
            await remembering.remember(link, conn)
        elif incident.kind == "drop":
            await followed.forget(conn, tables)
    await _let_go(conn, target, incident)
    link.gate.forget(tables)
    names = ", ".join(map(str, tables))
    link.incidents.concluded(
        incident.id, "rejected", f"{names}: not followed any more until pglockstep resync"
    )
    log.warning(
        "incident %s was rejected: %s not followed any more",
        incident.id,
        names,
        extra=link.about("guard.rejected"),
    )


async def _let_go(conn: AsyncConnection[TupleRow], target: End, incident: Incident) -> None:
    """What the incident held is dealt with: nobody is to hold it any more."""
    if incident.lsn is not None:
        with translate(target):
            await held.forget(conn, Lsn.parse(incident.lsn))


async def _restore(
    link: Link, conn: AsyncConnection[TupleRow], target: End, record: LinkRecord, incident: Incident
) -> None:
    """Put back on the source what the incident took; then bring its tables level, whatever has happened to them since."""
    link.standing.move(Event.HEAL_STARTED, f"incident {incident.id} is being restored on the source")
    source, tables = ends(link.config)[0], _tables(incident)
    for attempt in range(1, _ATTEMPTS + 1):
        if incident.kind == "drop":
            order = await _dropped(conn, target, record, incident)
            settled: Mapping[QualifiedName, Lsn] = {}
        else:
            # what a wipe that goes on has taken belongs to it, and so does what was put back already
            async with await connect(source, "restore") as there:
                await received(link, there, source, record)
                order, upto = await _wiped(link, (there, conn), target, record, incident)
            settled = dict.fromkeys(tables, upto)
        outcome = await restore(source, target, msgspec.structs.replace(order, again=attempt > 1))
        if incident.kind == "drop":
            await follow(conn, target, source, tables)
        try:
            await mending.heal(link, conn, target, Wanted(suspects=frozenset(tables), settled=settled))
            break
        except TooMuchLost:
            if attempt == _ATTEMPTS:
                raise
            await asyncio.sleep(attempt)
    await _let_go(conn, target, incident)
    link.incidents.concluded(incident.id, "restored", told(outcome))
    log.info("incident %s: %s", incident.id, told(outcome), extra=link.about("guard.restored"))


async def _dropped(
    conn: AsyncConnection[TupleRow], target: End, record: LinkRecord, incident: Incident
) -> Order:
    """To put tables back that are gone: by the catalogs."""
    with translate(target):
        known = await followed.read(conn)
    return Order(
        link=record,
        incident=incident.id,
        dropped=tuple(_tables(incident)),
        known=known,
        expected=_lost(incident),
    )


async def _wiped(
    link: Link,
    sessions: tuple[AsyncConnection[TupleRow], AsyncConnection[TupleRow]],
    target: End,
    record: LinkRecord,
    incident: Incident,
) -> tuple[Order, Lsn]:
    """To put rows back: by what the journal has of those who took them; and up to where those are."""
    tables = _tables(incident)
    only = tuple(tables)
    assert incident.lsn is not None
    lsn = Lsn.parse(incident.lsn)
    folder = link.state.journal(record.id)
    belonging = await survey.belonging(link, sessions, target, record, lsn, tables)
    upto = Lsn(belonging[-1] + 1)
    since = Lsn.parse(incident.since_lsn) if incident.since_lsn else None
    if since is not None:
        try:
            await asyncio.to_thread(_whole, restore_journal.transactions(folder, since, belonging[-1]))
        except NotInJournal:
            # older than what the journal keeps: then it is every image of that time
            pass
        else:
            order = Order(
                link=record,
                incident=incident.id,
                messages=restore_journal.transactions(folder, since, belonging[-1]),
                only=only,
                images_since=since,
                spanned=True,
            )
            return order, upto
    messages: Iterable[Sequence[Message]] = restore_journal.transactions(folder, lsn, belonging[-1])
    if since is None:
        messages = _only(messages, frozenset(belonging))
    # what came behind it took more
    expected = {} if len(belonging) > 1 else _lost(incident)
    order = Order(
        link=record, incident=incident.id, messages=messages, only=only, expected=expected, images_since=since
    )
    return order, upto


def _lost(incident: Incident) -> dict[QualifiedName, int]:
    """How many rows the incident says that each table lost. Pure."""
    return {
        QualifiedName(each.schema, each.table): each.rows_lost for each in incident.tables if not each.columns
    }


def _whole(batches: Iterable[Sequence[Message]]) -> None:
    for _ in batches:
        pass


def _only(batches: Iterable[Sequence[Message]], commits: frozenset[Lsn]) -> Iterator[list[Message]]:
    """Of these messages those of transactions whose commit records start there, and what describes tables. Pure."""
    inside = False
    for messages in batches:
        kept = []
        for message in messages:
            if isinstance(message, Begin):
                inside = message.final_lsn in commits
            if inside or isinstance(message, Relation):
                kept.append(message)
        if kept:
            yield kept


def _tables(incident: Incident) -> list[QualifiedName]:
    return sorted({QualifiedName(each.schema, each.table) for each in incident.tables})


async def carry_out(link: Link, incident: Incident) -> Incident:
    """Carry the decision on `incident` out while no daemon runs; the incident as it is then."""
    try:
        await _work_off(link)
    except LinkHeld as error:
        # whoever has the link comes to it
        raise needs_decision(incident) from error
    except LockstepError:
        found = _outcome(link.incidents, incident)
        if found is None:
            raise
        return found
    return _outcome(link.incidents, incident) or link.incidents.get(incident.id)


async def resynced(link: Link, request: Resync) -> Resync:
    """The request once it has been carried out; raises `DecisionRefused` if it could not be.

    A daemon on this machine is waited for as long as it lives; without one it is done here. Whoever is interrupted leaves the
    request standing.
    """
    found = await _from_daemon(link, lambda: resync.outcome(link, request))
    if found is None:
        await _work_off(link)
        found = resync.outcome(link, request)
    assert found is not None
    return found


async def _work_off(link: Link) -> None:
    """Do what was decided and asked for, while no daemon runs. Raises `LinkHeld` if somebody else has the lock."""
    async with healing.opened_ends(link, "decide") as both:
        await session.demand_lock(both.target_conn, both.target)
        await takeover.settle(link, both)
        await healing.stand_again(link, both.target_conn, both.target)
        await settle(link, both.target_conn, both.target)
        link.gate.save()
