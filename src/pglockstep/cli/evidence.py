"""An incident as people and scripts are shown it: what happened, what is safe, and what to type. Pure."""

from __future__ import annotations

from datetime import datetime

from pglockstep.errors import one_line
from pglockstep.findings import counted
from pglockstep.observe.incident import Incident, Loss, Verb, command, possible
from pglockstep.postgres.names import QualifiedName

#: Keys of a table that are shown; --json has all that are known.
_KEYS = 5
#: Characters of a statement, or of a key, that are shown.
_LONG = 300


def document(incident: Incident) -> dict[str, object]:
    """As it is promised to scripts, and more."""
    decision = incident.decision
    return {
        "id": incident.id,
        "link": incident.link,
        "side": incident.side,
        "kind": incident.kind,
        "message": incident.message,
        "tables": [_table(each) for each in _sorted(incident)],
        "xid": incident.xid,
        "lsn": incident.lsn,
        "since_lsn": incident.since_lsn,
        "state": incident.state,
        "happened_at": incident.happened_at,
        "opened_at": incident.opened_at,
        "detected_after_seconds": incident.detected_after_seconds,
        "healed_after_seconds": incident.healed_after_seconds,
        "who": incident.who,
        "application": incident.application,
        "statements": incident.statements,
        "decisions": list(decisions(incident)),
        "decided_by": incident.decided_by,
        "decision": decision and {"verb": decision.verb, "at": decision.at, "rows": decision.rows},
        "audit": [{"at": each.at, "what": each.what} for each in incident.audit],
    }


def _table(loss: Loss) -> dict[str, object]:
    return {
        "schema": loss.schema,
        "table": loss.table,
        "rows_before": loss.rows_before,
        "rows_lost": loss.rows_lost,
        "columns": loss.columns,
        "keys": loss.keys,
    }


def _sorted(incident: Incident) -> list[Loss]:
    return sorted(incident.tables, key=lambda each: (each.schema, each.table, each.columns))


def decisions(incident: Incident) -> tuple[Verb, ...]:
    """The decisions that somebody can take now."""
    return possible(incident) if incident.state == "held" and incident.decision is None else ()


# --- a line ------------------------------------------------------------------------------------------


def line(incident: Incident) -> str:
    """The incident in one line of a list."""
    what = f"{incident.id:>3}  {standing(incident):<9}  {time(incident.opened_at)}  {incident.link}"
    return f"{what}  {incident.kind} on the {incident.side}: {plain(incident.message)}"


def standing(incident: Incident) -> str:
    """Its state in a word."""
    return "decided" if incident.state == "held" and incident.decision is not None else incident.state


def time(moment: datetime) -> str:
    """A time as it is shown everywhere."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


# --- all of it ---------------------------------------------------------------------------------------


def sentences(incident: Incident) -> list[str]:
    """Everything that is known, for somebody who was woken by it."""
    lines = [f"incident {incident.id} of link {incident.link}: {_now(incident)}", ""]
    lines.append(f"  what     {plain(incident.message)}")
    lines.append(f"  where    {_where(incident)}")
    lines.append(f"  when     {_when(incident)}")
    lines.append(f"  who      {_who(incident)}")
    lines += [f"  said     {plain(each)}" for each in incident.statements]
    lines += [f"  lost     {_lost(each)}" for each in _sorted(incident)]
    if incident.is_open:
        lines.append(f"  safe     {_safe(incident)}")
    if open_to := decisions(incident):
        lines += ["", "to decide, type one of these; each asks before it does anything:"]
        for verb in open_to:
            lines += [
                "",
                f"  {command(incident, verb)}",
                *(f"      {each}" for each in _means(incident, verb)),
            ]
    lines += ["", "so far:"]
    # however long: what could not be carried out says what to type, and half a statement is none
    lines += [f"  {time(each.at)}  {one_line(each.what)}" for each in incident.audit]
    return lines


def _now(incident: Incident) -> str:
    decided = incident.decision
    if incident.state == "held":
        if decided is None:
            return "held, a decision is needed"
        return f"held; {decided.verb} is decided (by {decided.by}) and not done yet"
    if incident.state == "healing":
        return "healing" + (", by itself" if decided is None else f", as decided by {decided.by}")
    took = incident.healed_after_seconds
    after = "" if took is None else f" {took:g} s after it happened"
    return incident.state + after + ("" if decided is None else f", as decided by {decided.by}")


def _where(incident: Incident) -> str:
    found = f"on the {incident.side}"
    if incident.xid is not None:
        found += f", transaction {incident.xid}"
    if incident.lsn is not None:
        found += f" at {incident.lsn}"
    if incident.since_lsn is not None and incident.since_lsn != incident.lsn:
        found += f", together with what went before it since {incident.since_lsn}"
    return found


def _when(incident: Incident) -> str:
    if incident.happened_at is None:
        return f"noticed at {time(incident.opened_at)}"
    after = incident.detected_after_seconds
    noticed = f"noticed at {time(incident.opened_at)}" if after is None else f"noticed {after:g} s later"
    return f"{time(incident.happened_at)}, {noticed}"


def _who(incident: Incident) -> str:
    known = [each for each in (incident.who, incident.application) if each]
    return plain(", with ".join(known)) if known else "not known"


def _lost(loss: Loss) -> str:
    before = "" if loss.rows_before is None else f" of {loss.rows_before}"
    told = f"{plain(str(QualifiedName(loss.schema, loss.table)))}: {loss.rows_lost}{before} rows"
    if loss.columns:
        told += f", in {', '.join(map(plain, loss.columns))}"
    if loss.keys:
        shown = "; ".join(plain(each) for each in loss.keys[:_KEYS])
        told += f" ({shown}{'; …' if loss.rows_lost > min(len(loss.keys), _KEYS) else ''})"
    return told


def _safe(incident: Incident) -> str:
    if incident.kind == "identity":
        return "nothing was copied or applied since another server answers; the end that is as it was keeps all its rows"
    if incident.side == "target":
        return "nothing was changed on the source; the journal goes on receiving what is committed there"
    return (
        "the target keeps its last good state and goes on serving; the journal goes on receiving, "
        "so rows written since are not lost either"
    )


def _means(incident: Incident, verb: Verb) -> list[str]:
    if incident.kind == "identity":
        if verb == "approve":
            return [
                f"this {incident.side} is the right one: an upgrade, a promotion, a server that moved",
                "both ends are compared first, under the guard; then the link goes on",
            ]
        return [
            f"this {incident.side} has lost its data: it is filled from the other end, then the link goes on"
        ]
    if incident.side == "target":
        if verb == "restore":
            return ["the target gets back what the source has; nothing is changed on the source"]
        return [
            "both ends stay as they are, and these tables do not follow any more",
            "until pglockstep resync brings them back as they are on the source; the link goes on with all others",
        ]
    return {
        "approve": [
            "it was meant: what was dropped there is dropped on the target as well, what was renamed there is renamed"
            if incident.kind == "drop"
            else f"it was meant: this once it is let through, and the target loses {_these(incident)} too",
            "with --remember the same may happen again, up to so many rows; pglockstep guard list shows it",
        ],
        "restore": [
            "it was not meant: the source gets back exactly what was taken; no trigger of yours fires, rows written",
            "since stay as they are, and a key that was taken since is left and listed; then the link goes on",
        ],
        "reject": [
            "the source stays as it is and the target keeps its rows: these tables do not follow any more",
            "until pglockstep resync brings them back as they are on the source; the link goes on with all others",
        ],
    }[verb]


def _these(incident: Incident) -> str:
    return "these values" if incident.kind == "update" else f"these {counted(incident.rows_lost, 'row')}"


def plain(text: str) -> str:
    """One line that a terminal does not obey, and not too long."""
    return one_line(text if len(text) <= _LONG else f"{text[:_LONG]}…")
