"""Putting right what a target lost: its incidents, one heal for all of them, and what has to be remembered for that.

Whoever calls holds the link's lock and applies nothing meanwhile. A heal that would take from the target what the source does
not have either, more than the rules allow, changes nothing: then both ends have lost it, and a person has to look.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.config.sections import GuardConfig
from pglockstep.copy.ends import Ends
from pglockstep.errors import EndError, LockstepError, TargetError, TooMuchLost
from pglockstep.findings import counted
from pglockstep.guard import heal as engine
from pglockstep.guard import questions, watch
from pglockstep.guard.heal import Healed, Remembered, Wish
from pglockstep.guard.mend import Mended
from pglockstep.guard.policy import Rules
from pglockstep.guard.watch import Mode
from pglockstep.link import session
from pglockstep.link.link import Link
from pglockstep.link.states import Event
from pglockstep.observe.incident import Incident, Kind, Loss, needs_decision
from pglockstep.postgres import catalog
from pglockstep.postgres.connect import End, connect, ends, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import detached
from pglockstep.progress import target as progress

log = logging.getLogger(__name__)


def mode_of(guard: GuardConfig) -> Mode | None:
    """How the target is watched; None for not at all. Pure."""
    return None if guard.protect_target == "off" else guard.protect_target


async def remember(link: Link, conn: AsyncConnection[TupleRow], target: End) -> Remembered:
    """Write down what this target is, while it stands."""
    with translate(target):
        found = await engine.remember(conn)
    # how far it is, is said by itself alone
    lasting = msgspec.structs.replace(found.record, progress=None, commit_time=None, written_at=None)
    body = msgspec.json.encode(msgspec.structs.replace(found, record=lasting))
    if body != link.state.remembered_target(link.key):
        link.state.remember_target(link.key, body)
    return found


def remembered(link: Link) -> Remembered | None:
    """What was written down of the target; None if nothing was."""
    body = link.state.remembered_target(link.key)
    return None if body is None else msgspec.json.decode(body, type=Remembered)


# --- opening an incident ------------------------------------------------------------------------------------


def opened(
    link: Link,
    kind: Kind,
    message: str,
    tables: Sequence[Loss] = (),
    *,
    happened_at: datetime | None = None,
    **evidence: object,
) -> Incident:
    """Write an incident of the target's down; one of that kind that is being healed already is it.

    It heals by itself where the configuration says so, and the source is not under suspicion, too.
    """
    waiting = link.open_incidents()
    for known in waiting:
        if known.side == "target" and known.kind == kind and known.tables == tuple(tables):
            return known
    guard = link.config.guard
    policies = {Rules.of(guard, QualifiedName(each.schema, each.table)).on_target_wipe for each in tables}
    hold = "hold" in (policies or {guard.on_target_wipe}) or any(each.side == "source" for each in waiting)
    now = datetime.now(UTC)
    detected = None if happened_at is None else round(max(0.0, (now - happened_at).total_seconds()), 3)
    incident = Incident(
        link=link.config.name,
        side="target",
        kind=kind,
        message=message,
        tables=tuple(tables),
        state="held" if hold else "healing",
        opened_at=now,
        happened_at=happened_at or now,
        detected_after_seconds=detected,
    )
    incident = link.incidents.open(link.key, msgspec.structs.replace(incident, **evidence))
    log.error(
        "incident %s: %s; %s",
        incident.id,
        message,
        "held: nothing more is applied" if hold else "being put back from the source",
        extra=link.about("guard.target"),
    )
    return incident


async def made_again(link: Link, error: TargetError) -> bool:
    """Whether `error` says that a database is gone that was our target, and it has been made again, empty.

    Raises `IncidentOpen` where that waits for a decision.
    """
    if error.finding is None or error.finding.code != "unknown_database":
        return False
    known = remembered(link)
    if known is None:
        return False
    incident = opened(link, "missing_database", "the target's database is gone")
    if incident.state == "held":
        raise needs_decision(incident)
    conn = await engine.open_again(ends(link.config)[1], known)
    await conn.close()
    return True


def _all_of_it(incident: Incident) -> bool:
    """Whether there is nothing left to go on from."""
    return incident.kind in ("missing_database", "identity") or (
        incident.kind == "drop" and not incident.tables
    )


async def notice_loss(link: Link, conn: AsyncConnection[TupleRow], target: End) -> None:
    """Open an incident if what we keep in the target is gone from one that was ours. Raises `IncidentOpen` if it is held."""
    with translate(target):
        record = await progress.read(conn)
    if (record is not None and record.progress is not None) or remembered(link) is None:
        return
    if record is not None and record.phase == "copying":
        return
    if not any(each.kind == "missing_database" for each in link.open_incidents()):
        opened(link, "drop", "schema pglockstep is gone from the target, and with it how far it was")


@asynccontextmanager
async def opened_ends(link: Link, purpose: str) -> AsyncIterator[Ends]:
    """Both ends, as `session.opened` has them; a database that is gone and was our target is made again first."""
    async with AsyncExitStack() as stack:
        try:
            both = await stack.enter_async_context(session.opened(link.config, purpose))
        except TargetError as error:
            if not await made_again(link, error):
                raise
            both = await stack.enter_async_context(session.opened(link.config, purpose))
        yield both


async def stand_again(link: Link, conn: AsyncConnection[TupleRow], target: End) -> None:
    """Heal a target that was ours and has nothing of ours any more; raises `IncidentOpen` where that waits for a decision."""
    await notice_loss(link, conn, target)
    lost = [each for each in link.open_incidents() if each.side == "target" and _all_of_it(each)]
    if not lost:
        return
    if held := next((each for each in lost if each.state == "held"), None):
        raise needs_decision(held)
    await settle(link, conn, target)


# --- the heal -----------------------------------------------------------------------------------------------


async def settle(link: Link, conn: AsyncConnection[TupleRow], target: End) -> None:
    """Heal what is to be healed. An end that is away is raised, and tried again; what else goes wrong is held."""
    healing = [each for each in link.open_incidents() if each.side == "target" and each.state == "healing"]
    if not healing:
        return
    reason = "; ".join(each.message for each in healing)
    link.standing.move(Event.HEAL_STARTED, f"being put back from the source: {reason}")
    try:
        healed = await heal(link, conn, target, _suspects(healing))
    except EndError as error:
        if error.transient:
            raise
        _give_up(link, healing, error)
    except LockstepError as error:
        _give_up(link, healing, error)
    else:
        what = _told(healed)
        for each in healing:
            link.incidents.concluded(each.id, "healed", what)
        log.info("the target is healed: %s", what, extra=link.about("guard.healed"))


def _give_up(link: Link, healing: Sequence[Incident], error: LockstepError) -> None:
    for each in healing:
        link.incidents.undecided(each.id, f"{error.message} ({error.hint})" if error.hint else error.message)
    log.error("the target is not healed: %s", error, extra=link.about("guard.undecided"))


def _suspects(incidents: Sequence[Incident]) -> frozenset[QualifiedName] | None:
    """The tables to look at; None for all."""
    if any(map(_all_of_it, incidents)):
        return None
    return frozenset(QualifiedName(loss.schema, loss.table) for each in incidents for loss in each.tables)


async def heal(
    link: Link,
    conn: AsyncConnection[TupleRow],
    target: End,
    suspects: frozenset[QualifiedName] | None,
    *,
    follow_again: Collection[QualifiedName] = (),
) -> Healed:
    """Make these tables, or all, what they are on the source, exactly; the stream then skips what they hold.

    `follow_again` are tables that were detached. Raises `TooMuchLost`, with nothing changed, where tables would end with fewer
    rows than the rules allow; else the ends' errors.
    """
    source, guard = ends(link.config)[0], link.config.guard
    with translate(target):
        record = await progress.read(conn)
        whole = record is not None and record.progress is not None
        seen = await watch.pending(conn) if whole else None
        apart = await detached.read(conn) if whole else {}
    known = remembered(link) if not whole else await remember(link, conn, target)
    assert known is not None
    left_out = await not_followed(link, source) | (apart.keys() - set(follow_again))

    async def judge(mended: Mapping[QualifiedName, Mended]) -> None:
        for name, done in mended.items():
            stood = link.gate.stood(name)
            now = await questions.count(conn, name)
            # what was never counted shows at least what the heal itself took away
            stood = now - done.put_back + done.removed if stood is None else stood
            if name not in follow_again:
                demand_harmless(Rules.of(guard, name), name, stood, now)

    healed = await engine.heal(
        source, target, conn, known, Wish(frozenset(left_out), suspects, mode_of(guard), judge)
    )
    with translate(target):
        await detached.attach(conn, follow_again)
        if seen is not None:
            await watch.dealt_with(conn, seen)
    link.gate.forget(list(healed.tables))
    await remember(link, conn, target)
    return healed


def demand_harmless(rules: Rules, name: QualifiedName, stood: int, now: int) -> None:
    """Raise `TooMuchLost` if a table of `stood` rows would hold so few `now` that its rules forbid it. Pure."""
    lost = stood - now
    if lost > 0 and (lost > rules.may_lose(stood) or now < min(rules.floor, stood)):
        raise TooMuchLost(
            f"table {name} would hold {counted(now, 'row')} on the target where {stood} stood: the source does not have them",
            hint=f"look at {name} on the source: was it wiped as well, or is something still deleting there? then decide again",
        )


async def not_followed(link: Link, source: End) -> set[QualifiedName]:
    """The source's tables that this link leaves out."""
    conn = await connect(source, "heal")
    try:
        with translate(source):
            found = await catalog.tables(conn)
        return {each.name for each in found if not link.selection.carries(*each.name)}
    finally:
        await conn.close()


def _told(healed: Healed) -> str:
    """What came of a heal, in a sentence. Pure."""
    parts = [f"{counted(healed.put_back, 'row')} put back"]
    if healed.removed:
        parts.append(f"{counted(healed.removed, 'row')} that the source does not have taken away")
    if healed.made:
        parts.append(f"{counted(len(healed.made), 'object')} made again")
    return ", ".join(parts)
