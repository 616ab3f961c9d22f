"""What becomes of a source that is not the one it was, once that is decided: it is filled from the target, or accepted.

Whoever calls holds the link's lock and applies nothing meanwhile. A kill at any moment is gone on from by calling again.
"""

from __future__ import annotations

import logging

from pglockstep.copy.ends import Ends
from pglockstep.errors import EndError, IncidentOpen, LockstepError, TargetLacks, TooMuchLost
from pglockstep.findings import counted, demand, listed
from pglockstep.guard import refill
from pglockstep.guard.policy import Rules
from pglockstep.guard.refill import Order
from pglockstep.guard.restore_outcome import told
from pglockstep.link import adoption, pinning, remembering
from pglockstep.link.link import Link
from pglockstep.link.states import Event
from pglockstep.observe.incident import Incident, Outcome, needs_decision
from pglockstep.postgres import privileges
from pglockstep.postgres.connect import translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import generation
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord

log = logging.getLogger(__name__)


async def settle(link: Link, both: Ends) -> None:
    """Have the source be the one that the target follows, before anything moves; then pin both ends.

    Carries out what was decided if it is another one. Raises `IncidentOpen` where nothing was, or that could not be done; an
    end that is away is raised, and the decision stands.
    """
    with translate(both.target):
        record = await progress.read(both.target_conn)
    incident = pinning.open_incident(link)
    if record is None or record.phase == "copying":
        stranger = await pinning.stranger(link, both) if incident is None else None
        if stranger is not None:
            incident = pinning.opened_for(link, "identity", stranger)
        if incident is not None and pinning.is_decided(incident):
            nothing = TargetLacks(
                "the target remembers no link any more: there is nothing to fill the source from, or to compare it with",
                hint="nothing was changed; restore one of the two from a backup",
            )
            pinning.take_back(link, incident, nothing)
        if incident is not None:
            raise needs_decision(link.incidents.get(incident.id))
        return
    with translate(both.target):
        await progress.upgrade(both.target_conn)
        link.generation = await generation.on_target(both.target_conn)
    if incident is None or not pinning.is_decided(incident):
        try:
            up_to = await pinning.reached(link, record)
            await pinning.demand_known(link, both.source_conn, both.source, record, up_to)
        except pinning.BeginAgain:
            incident = pinning.open_incident(link)
        else:
            demand(privileges.source_findings(both.source_facts, needs_slot=False, polls=link.polls))
            demand(privileges.target_findings(both.target_facts, needs_copy=False))
            await pinning.pin(link, both, record)
            return
    assert incident is not None
    await _carry_out(link, both, record, incident)


async def _carry_out(link: Link, both: Ends, record: LinkRecord, incident: Incident) -> None:
    verb = "restore" if incident.decision is None else incident.decision.verb
    link.standing.move(Event.HEAL_STARTED, f"incident {incident.id}: {incident.message}")
    outcome: Outcome = "restored" if verb == "restore" else "approved"
    try:
        demand(privileges.source_findings(both.source_facts, needs_slot=False, polls=link.polls))
        await adoption.catch_up(link, both, record)
        with translate(both.target):
            record = await progress.read(both.target_conn) or record
        what = await (_fill if verb == "restore" else _accept)(link, both, record, incident)
    except IncidentOpen:
        # in what was still to be applied something else waits for a decision
        raise
    except EndError as error:
        if error.transient:
            raise
        _give_up(link, incident, error)
    except LockstepError as error:
        _give_up(link, incident, error)
    with translate(both.target):
        await remembering.remember(link, both.target_conn)
    await pinning.pin(link, both, record)
    link.incidents.concluded(incident.id, outcome, what)
    log.info("incident %s: %s", incident.id, what, extra=link.about("guard.restored"))


def _give_up(link: Link, incident: Incident, error: LockstepError) -> None:
    pinning.take_back(link, incident, error)
    raise needs_decision(link.incidents.get(incident.id)) from error


async def _fill(link: Link, both: Ends, record: LinkRecord, incident: Incident) -> str:
    """Give the source back what the target has and it lacks; then follow it."""
    up_to = await pinning.reached(link, record)
    found = await pinning.changed(link, both.source_conn, both.source, record, up_to)
    order = Order(
        link=record,
        incident=incident.id,
        older=found is not None and found.how == "older",
        left_out=await pinning.not_carried(link, both.target),
    )
    outcome = await refill.refill(both.source, both.target, order)
    healed = await adoption.follow_anew(link, both, record, None)
    return f"{told(outcome)}; the target took {counted(healed.put_back, 'row')} that were written since"


async def _accept(link: Link, both: Ends, record: LinkRecord, incident: Incident) -> str:
    """Follow the source as it is, unless it lacks more by now than was told when that was decided."""
    found = await refill.losses(both.source, both.target, await pinning.not_carried(link, both.target))
    with translate(both.target):
        await link.learn(both.target_conn)
    told = {QualifiedName(each.schema, each.table): each.rows_lost for each in incident.tables}
    allowed = {
        name: most_lost(link.rules.of(name), stood, told.get(name, 0)) for name, (stood, _) in found.items()
    }
    beyond = [name for name, (_, lost) in found.items() if lost > allowed[name]]
    short = adoption.short_of_shared_floors(
        link,
        {name: stood for name, (stood, _) in found.items()},
        {name: stood - lost for name, (stood, lost) in found.items()},
        told,
    )
    for root in short:
        beyond += [
            name
            for name in link.rules.shared[root]
            if name in found and name not in beyond and found[name][1] > told.get(name, 0)
        ]
    if beyond:
        total = sum(lost for _, lost in found.values())
        pinning.note_losses(link, incident, found)
        raise TooMuchLost(
            f"{counted(sum(told.values()), 'row')} that the target has were told to be missing in the source that answers, and "
            f"it is {total} now, with more of {listed(beyond)}",
            hint=f"to let the target lose them too: pglockstep incidents approve {incident.id} --rows {total}; to fill the "
            f"source from the target: pglockstep incidents restore {incident.id}",
        )
    healed = await adoption.follow_anew(link, both, record, allowed, told)
    return (
        f"the source that answers now is followed; the target took {counted(healed.put_back, 'row')} from it, and gave up "
        f"{counted(healed.removed, 'row')}"
    )


def most_lost(rules: Rules, stood: int, told: int) -> int:
    """How many of the target's `stood` rows of a table may be missing in another source when it is followed. Pure.

    Those that were `told` to a person; and of what has gone since then so many that the rules would not mind if that had been
    all that there was: a few. Not the last row, and none that a floor needs.
    """
    if not rules.judge:
        since = stood
    elif rules.max_delete_fraction == 1:
        since = rules.max_delete_rows
    else:
        since = min(rules.max_delete_rows, max(0, rules.min_table_rows - 1))
    left = max(rules.floor, 1 if rules.judge else 0)
    return max(told, min(told + since, stood - left))
