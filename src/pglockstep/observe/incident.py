"""An incident: one time that a rule tripped, with its evidence, what was decided and what came of it. Pure.

::

    held ──approve──▶ held, decided ──▶ approved   the transaction was let through, this once
      │──restore───▶ healing ─────────▶ restored (source) or healed (target)
      │──reject────▶ held, decided ──▶ rejected   the source stays as it is, the target keeps its rows
      └── and what came right by itself: healed

What the link may put right by itself begins in ``healing``. A decision that could not be carried out leaves the incident
held and undecided, and its audit says why.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from pglockstep.errors import DecisionRefused, IncidentOpen, Side, UsageProblem
from pglockstep.findings import counted, listed

Kind = Literal[
    "delete", "truncate", "drop", "floor", "update", "identity", "missing_database", "foreign_write"
]
IncidentState = Literal["held", "healing", "healed", "approved", "restored", "rejected"]
Verb = Literal["approve", "restore", "reject"]
Outcome = Literal["approved", "restored", "healed", "rejected"]
#: What can happen to an incident: it is decided, that could not be carried out, or it was.
Step = Verb | Literal["undecided"] | Outcome

#: States in which somebody, or the link itself, still has something to do.
OPEN: frozenset[IncidentState] = frozenset({"held", "healing"})


class Loss(msgspec.Struct, frozen=True):
    """What one table lost, or would have: of `rows_before` rows, if that is known, `rows_lost`.

    `columns`: of an UPDATE, those that became NULL or one value. `keys`: some of the rows, for a person to recognise.
    """

    schema: str
    table: str
    rows_before: int | None
    rows_lost: int
    columns: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """What was decided, by whom and when. `rows`: as told with ``approve``; `remember`: the same up to so many rows passes."""

    verb: Verb
    by: str
    at: datetime
    rows: int | None = None
    remember: bool = False


class Noted(msgspec.Struct, frozen=True):
    """A line of an incident's audit."""

    at: datetime
    what: str


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """One time that a rule tripped. LSNs as text, times in UTC.

    `message` is the sentence that a person reads first. `lsn` is where the commit record of the transaction starts, and
    `since_lsn` where the losses began that only together were too many, if that was earlier. `who`, `application` and
    `statements` are what is known of who did it, and how.
    """

    id: str = ""
    link: str
    side: Side
    kind: Kind
    message: str
    tables: tuple[Loss, ...]
    state: IncidentState = "held"
    opened_at: datetime
    xid: int | None = None
    lsn: str | None = None
    since_lsn: str | None = None
    happened_at: datetime | None = None
    who: str | None = None
    application: str | None = None
    statements: tuple[str, ...] = ()
    detected_after_seconds: float | None = None
    healed_after_seconds: float | None = None
    #: decided, and being carried out or done; None while nothing has been decided
    decision: Decision | None = None
    audit: tuple[Noted, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether somebody, or the link itself, still has something to do."""
        return self.state in OPEN

    @property
    def rows_lost(self) -> int:
        """All rows lost: the number that ``approve`` has to name."""
        return sum(each.rows_lost for each in self.tables)

    @property
    def decided_by(self) -> str | None:
        """Who decided; None while nobody has."""
        return None if self.decision is None else self.decision.by


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """What may pass a rule without an incident: up to `rows` of a table's, in one transaction or window.

    `kind` None: whatever the rule. `until` None: from now on, revocable; then `incident` is the decision it came from. With an
    end in time it is a purge that was announced, and what was used of `rows` counts.
    """

    id: str = ""
    schema: str
    table: str
    rows: int
    kind: Kind | None = None
    until: datetime | None = None
    used: int = 0
    incident: str | None = None
    by: str = ""
    at: datetime


_NEXT: dict[tuple[IncidentState, Step], IncidentState] = {
    ("held", "approve"): "held",
    ("held", "reject"): "held",
    ("held", "restore"): "healing",
    ("held", "undecided"): "held",
    ("healing", "undecided"): "held",
    ("held", "approved"): "approved",
    ("held", "rejected"): "rejected",
    # it came right by itself
    ("held", "healed"): "healed",
    ("healing", "healed"): "healed",
    ("healing", "restored"): "restored",
}


def after(state: IncidentState, step: Step) -> IncidentState:
    """The state that follows; raises `ValueError` for a step that cannot be taken in `state`. Pure."""
    try:
        return _NEXT[state, step]
    except KeyError:
        raise ValueError(f"an incident that is {state} cannot become {step}") from None


def possible(incident: Incident) -> tuple[Verb, ...]:
    """The decisions that make sense for an incident of this kind on this side. Pure."""
    if incident.kind == "missing_database":
        return ("restore",)
    if incident.kind == "identity":
        return ("approve", "restore")
    # a target that differs from its source is no copy of it any more: there is nothing to let through
    return ("restore", "reject") if incident.side == "target" else ("approve", "restore", "reject")


def command(incident: Incident, verb: Verb) -> str:
    """What a person types to decide so."""
    rows = f" --rows {incident.rows_lost}" if verb == "approve" and incident.rows_lost else ""
    return f"pglockstep incidents {verb} {incident.id}{rows}"


def demand_decidable(incident: Incident, decision: Decision) -> None:
    """Raise what speaks against this decision: it comes too late, makes no sense here, or does not know what it lets through."""
    _demand_undecided(incident)
    name, verb = f"incident {incident.id}", decision.verb
    if verb not in possible(incident):
        others = "; ".join(_MEANS[each].format(command(incident, each)) for each in possible(incident))
        raise UsageProblem(f"{name} cannot be {_DONE[verb]}: {_why_not(incident, verb)}", hint=others)
    if verb != "approve":
        return
    look = f"pglockstep incidents show {incident.id} tells what was lost; to let it through: {command(incident, verb)}"
    if decision.rows is None and incident.rows_lost:
        raise UsageProblem(f"to approve {name}, the number of rows that it took has to be named", hint=look)
    if decision.rows is not None and decision.rows != incident.rows_lost:
        message = (
            f"{name} took {counted(incident.rows_lost, 'row')}, not {decision.rows}; nothing was approved"
        )
        raise UsageProblem(message, hint=look)
    if decision.remember and incident.kind == "identity":
        hint = "leave --remember out: whoever answers at an address is looked at every time"
        raise UsageProblem(f"another server cannot be accepted once and for all, as in {name}", hint=hint)


def _demand_undecided(incident: Incident) -> None:
    name, decision = f"incident {incident.id}", incident.decision
    show = f"pglockstep incidents show {incident.id} tells what became of it"
    if decision is not None:
        when = f"{decision.at:%Y-%m-%d %H:%M:%S} UTC"
        still = f"; it is {incident.state}" if not incident.is_open else ", and that is not done yet"
        raise DecisionRefused(
            f"{name} was decided before: {decision.verb}, by {decision.by} at {when}{still}", hint=show
        )
    if incident.state == "healing":
        raise DecisionRefused(f"{name} is being put right already, without a decision", hint=show)
    if not incident.is_open:
        raise DecisionRefused(f"{name} is over: it was {incident.state}", hint=show)


def _why_not(incident: Incident, verb: Verb) -> str:
    if incident.kind == "missing_database":
        return f"the {incident.side}'s database is gone, and without it there is no link"
    if incident.kind == "identity":
        return f"another {incident.side} answers, and none of its tables can be followed as it is"
    return "it was the target that was written to, and a target has to be what its source is"


def needs_decision(incident: Incident) -> IncidentOpen:
    """An open incident as the error with which a command ends that would have had to go on. Pure."""
    message = f"incident {incident.id} is open: {incident.message}"
    show = f"pglockstep incidents show {incident.id}"
    if incident.decision is not None:
        return IncidentOpen(
            f"{message} ({incident.decision.verb} is decided, and not done yet)",
            hint=f"pglockstep run or pglockstep once carries it out; {show} tells what became of it",
        )
    if incident.state == "healing":
        return IncidentOpen(message, hint=f"it is being put right; {show} tells how far that is")
    decisions = ", or ".join(_MEANS[each].format(command(incident, each)) for each in possible(incident))
    return IncidentOpen(message, hint=f"{show} tells all of it; then {decisions}")


def told(open_incidents: list[Incident], *, otherwise: str) -> str:
    """In a word what the guard is doing, as ``status`` tells it; `otherwise` if no incident is open. Pure."""
    for state in ("held", "healing"):
        found = [each for each in open_incidents if each.state == state]
        if found:
            decided = all(each.decision for each in found) and state == "held"
            ids = listed(each.id for each in found)
            return f"{state}: incident{'s' if len(found) > 1 else ''} {ids}{', decided' if decided else ''}"
    return otherwise


_DONE: dict[Verb, str] = {"approve": "approved", "restore": "restored", "reject": "rejected"}
_MEANS: dict[Verb, str] = {
    "approve": "{} lets it through",
    "restore": "{} puts it back",
    "reject": "{} leaves both ends as they are",
}
