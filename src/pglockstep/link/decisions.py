"""What becomes of a decision that a command has written down: a live daemon carries it out, or whoever works on the link next."""

from __future__ import annotations

import asyncio

from pglockstep.errors import DecisionRefused
from pglockstep.link.link import Link
from pglockstep.observe.incident import Incident, needs_decision
from pglockstep.observe.incidents import Incidents

#: How often a command looks whether the daemon has carried its decision out, in seconds.
_LOOK = 0.1


async def settled(link: Link, incident: Incident) -> Incident:
    """The decided `incident` as it is once the decision has been carried out; raises `DecisionRefused` if it could not be.

    A daemon on this machine is waited for as long as it lives; without one it is done here. Whoever is interrupted leaves the
    decision standing.
    """
    store = Incidents(link.state)
    while link.state.daemon_pid(link.key) is not None:
        if (found := _outcome(store, incident)) is not None:
            return found
        await asyncio.sleep(_LOOK)
    # it may have been the last thing that it did
    if (found := _outcome(store, incident)) is not None:
        return found
    return await carry_out(link, store.get(incident.id))


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


async def carry_out(link: Link, incident: Incident) -> Incident:
    """Carry the decision on `incident` out while no daemon runs; the incident as it is then."""
    raise needs_decision(incident)
