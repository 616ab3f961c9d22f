"""Bringing tables back that do not follow: exactly what the source has, and followed from there.

After an incident was rejected its tables are detached; one that was made on the source after the copy was never followed. The
heal does the work: the rows are read as of an LSN, and the stream skips what they hold already. How many rows of the target's
may go is counted beforehand and confirmed by a person; if it turns out to be more, nothing is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.compare.pairing import Pairing, Server
from pglockstep.compare.sessions import Sessions
from pglockstep.compare.table import compare
from pglockstep.copy.ends import Ends
from pglockstep.copy.source import publish, published_tables
from pglockstep.errors import DecisionRefused, EndError, LockstepError, LookAgain, TargetLacks, UsageProblem
from pglockstep.findings import counted, listed
from pglockstep.guard import questions, watch
from pglockstep.link import identities, mending, pinning, remembering
from pglockstep.link.drops import follow
from pglockstep.link.link import Link
from pglockstep.link.mending import Wanted
from pglockstep.link.outlet import Outlet
from pglockstep.link.states import Event
from pglockstep.observe.incident import needs_decision
from pglockstep.observe.requests import Requests, Resync
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, connect, ends, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import target as progress

log = logging.getLogger(__name__)

#: How often it is looked whether something was asked for, in seconds.
_LOOK_EVERY = 0.5


class Planned(msgspec.Struct, frozen=True):
    """What a resync would do to one table; rows as they are counted while the source is in use.

    `lost`: rows of the target's that the source does not have, or has otherwise. `missing`: rows that the target would get.
    """

    table: QualifiedName
    source_rows: int
    target_rows: int
    lost: int
    missing: int


async def planned(link: Link, names: Sequence[QualifiedName]) -> list[Planned]:
    """What it would do to these tables, a partitioned one by its leaves. Changes nothing.

    Raises `UsageProblem` for a table that cannot be brought back, `IncidentOpen` while there is an incident.
    """
    if found := link.open_incidents():
        raise needs_decision(found[0])
    async with pinning.opened(link, "resync") as both:
        with translate(both.target):
            record = await progress.read(both.target_conn)
        if record is None or record.phase != "streaming":
            raise TargetLacks(
                f"link {link.config.name!r} has not been copied yet",
                hint="pglockstep once makes the first copy",
            )
        with translate(both.source):
            there = {each.name: each for each in await catalog.tables(both.source_conn)}
            wanted = [name for one in names for name in await _leaves(link, both, one, there)]
        with translate(both.target):
            here = {each.name: each for each in await catalog.tables(both.target_conn)}
        return [await _planned(both, there[name], here.get(name)) for name in dict.fromkeys(wanted)]


async def _leaves(
    link: Link, both: Ends, name: QualifiedName, there: Collection[QualifiedName]
) -> list[QualifiedName]:
    found = sorted(each for each in await watch.leaves(both.source_conn, [name]) if each in there)
    if not found:
        close = [each for each in there if each.name.lower() == name.name.lower()]
        raise UsageProblem(
            f"there is no table {name} on the source",
            hint=f"did you mean {listed(close)}?"
            if close
            else "if it was meant to be dropped, drop it on the target by hand; it is not followed any more",
        )
    if left_out := [each for each in found if not link.selection.carries(*each)]:
        raise UsageProblem(
            f"link {link.config.name} does not carry table {left_out[0]}",
            hint="its configuration leaves it out: see include and exclude",
        )
    return found


async def _planned(both: Ends, there: Table, here: Table | None) -> Planned:
    if here is None:
        with translate(both.source):
            rows = await questions.count(both.source_conn, there.name)
        return Planned(there.name, rows, 0, 0, rows)
    servers = [Server.of(conn) for conn in (both.source_conn, both.target_conn)]
    async with Sessions(both.both, 1) as sessions:
        # the target's table stands still, as it does not follow
        found = await compare(Pairing.of(there, here, servers), sessions, None)
    return Planned(
        there.name,
        found.source_rows,
        found.target_rows,
        found.extra + found.changed,
        found.missing + found.changed,
    )


def outcome(link: Link, request: Resync) -> Resync | None:
    """The request if it has been carried out, None until then; raises `DecisionRefused` if it could not be."""
    found = Requests(link.state).get(request.id)
    if found.refused:
        raise DecisionRefused(f"not done, and nothing was changed: {found.outcome}")
    return None if found.outcome is None else found


async def carry_out(link: Link, conn: AsyncConnection[TupleRow], target: End) -> bool:
    """Do what was asked of the link, over the session that holds its lock, while nothing is applied; whether anything was.

    An end that is away is raised, and the request stands; what else goes wrong refuses it.
    """
    requests = Requests(link.state)
    waiting = requests.waiting(link.key)
    for request in waiting:
        names = listed(request.tables)
        link.standing.move(Event.HEAL_STARTED, f"{names}: being made what the source has")
        try:
            told = await _bring_back(link, conn, target, request)
        except LockstepError as error:
            if isinstance(error, EndError) and error.transient:
                raise
            requests.settle(request.id, str(error), refused=True)
            log.error("resync of %s was not done: %s", names, error, extra=link.about("resync.refused"))
        else:
            requests.settle(request.id, told)
            log.info("%s follows again: %s", names, told, extra=link.about("resync.done"))
        link.standing.move(Event.RELEASED)
    return bool(waiting)


async def _bring_back(link: Link, conn: AsyncConnection[TupleRow], target: End, request: Resync) -> str:
    with translate(target):
        record = await progress.demand(conn)
    source = ends(link.config)[0]
    session = await connect(source, "resync")
    try:
        silent: list[QualifiedName] = []
        if not link.polls:
            published = await published_tables(session, source, record.publication)
            silent = [each for each in request.tables if each not in published]
        if silent:
            await publish(session, source, record.publication, silent)
    finally:
        await session.close()
    if silent:
        # whoever changes rows there must not be refused for want of an identity
        await identities.settle(link)
    tables = frozenset(request.tables)
    wanted = Wanted(suspects=tables, again=tables, confirmed=request.rows)
    healed, _ = await mending.heal(link, conn, target, wanted)
    await follow(conn, target, source, request.tables)
    with translate(target):
        await remembering.remember(link, conn)
    return mending.told(healed)


async def look(link: Link, outlet: Callable[[], Outlet | None]) -> None:
    """Stop whoever applies as soon as something is asked for, until cancelled: it is carried out before more is applied."""
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        applying = outlet()
        if applying is None:
            continue
        try:
            waiting = Requests(link.state).waiting(link.key)
        except LockstepError as error:
            # a state directory that is gone is told of by the journal, which knows what is lost with it
            log.debug("requests were not read: %s", error, extra=link.about("resync.failed"))
            continue
        if waiting:
            names = listed(waiting[0].tables)
            applying.stop(LookAgain(f"{names}: to be made what the source has, asked for by {waiting[0].by}"))


def sentence(plan: Planned) -> str:
    """What a resync would do to one table, for a person. Pure."""
    lost = (
        f"{counted(plan.lost, 'row')} of the target's would be gone or changed"
        if plan.lost
        else "nothing would be lost"
    )
    return (
        f"{plan.table}: {counted(plan.source_rows, 'row')} on the source, {plan.target_rows} on the target; {lost}, "
        f"{plan.missing} would come from the source"
    )
