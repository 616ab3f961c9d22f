"""The store of incidents, of what was decided, and of what may pass without one.

What is opened, decided or changed is on the disk when the call returns. Several processes may use it at once: a daemon opens
incidents and carries decisions out, a command reads and decides. Each change is one transaction over what is there at that
moment: of two decisions one is taken, and the other is told so. Every failure of the file is a `ConfigError`.

A link is found by the fingerprint of its two ends. Ids are counted, and never used again in the same directory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from pglockstep.errors import UsageProblem
from pglockstep.findings import counted, listed
from pglockstep.observe.incident import (
    Allowance,
    Decision,
    Incident,
    IncidentState,
    Noted,
    Outcome,
    after,
    demand_decidable,
)
from pglockstep.observe.state import StateDirectory

#: What `change` leaves alone: that is for decisions and their outcomes.
_KEPT = {"id", "link", "state", "decision", "audit"}
_FINAL: dict[Outcome, str] = {
    "approved": "let through",
    "restored": "put back on the source",
    "healed": "put right",
    "rejected": "left as it is",
}


class Incidents:
    """The incidents and allowances of one state directory."""

    def __init__(
        self, state: StateDirectory, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._file = state.lasting
        self._clock = clock

    # --- reading ------------------------------------------------------------------------------------------

    def get(self, id: str) -> Incident:
        """The incident of that id; raises `UsageProblem`, which names the open ones, if there is none."""
        with self._reading() as conn:
            return _incident(conn, id)

    def link_key(self, id: str) -> str:
        """The fingerprint of the link that an incident belongs to; raises as `get`."""
        with self._reading() as conn:
            _incident(conn, id)
            row = conn.execute("SELECT key FROM incident WHERE id = ?", [_number(id)]).fetchone()
            return str(row[0])

    def listed(self, keys: Collection[str] | None = None, *, only_open: bool = False) -> list[Incident]:
        """The incidents of these links, or of all, in the order in which they were opened."""
        with self._reading() as conn:
            which = "WHERE open ORDER BY id" if only_open else "ORDER BY id"
            rows = conn.execute(f"SELECT id, key, body FROM incident {which}").fetchall()  # noqa: S608
        return [_decoded(number, body) for number, key, body in rows if keys is None or key in keys]

    # --- the life of an incident --------------------------------------------------------------------------

    def open(self, key: str, incident: Incident) -> Incident:
        """Write a new incident down; it comes back with its id."""
        opened = Noted(incident.opened_at, f"opened, {incident.state}")
        incident = msgspec.structs.replace(incident, id="", audit=(*incident.audit, opened))
        with self._writing() as conn:
            number = conn.execute(
                "INSERT INTO incident (key, open, body) VALUES (?, ?, ?)",
                [key, incident.is_open, msgspec.json.encode(incident)],
            ).lastrowid
        return msgspec.structs.replace(incident, id=str(number))

    def change(self, id: str, what: str, **fields: Any) -> Incident:
        """Change what is known of an incident, and say in its audit what that was."""
        if wrong := _KEPT & fields.keys():
            raise ValueError(f"not for change: {listed(sorted(wrong))}")
        with self._writing() as conn:
            return self._put(conn, msgspec.structs.replace(_incident(conn, id), **fields), what)

    def decide(self, id: str, decision: Decision) -> Incident:
        """Take a decision; raises what speaks against it, and then nothing is changed."""
        with self._writing() as conn:
            incident = _incident(conn, id)
            demand_decidable(incident, decision)
            decided = msgspec.structs.replace(
                incident, state=after(incident.state, decision.verb), decision=decision
            )
            rows = "" if decision.rows is None else f" of {counted(decision.rows, 'row')}"
            remember = ", to be remembered" if decision.remember else ""
            return self._put(conn, decided, f"{decision.verb}{rows}{remember}, decided by {decision.by}")

    def undecided(self, id: str, why: str) -> Incident:
        """What was decided, or the link tried by itself, could not be carried out: the incident is held again."""
        with self._writing() as conn:
            incident = _incident(conn, id)
            held = msgspec.structs.replace(incident, state=after(incident.state, "undecided"), decision=None)
            tried = "restore" if incident.decision is None else incident.decision.verb
            return self._put(conn, held, f"{tried} could not be carried out: {why}")

    def concluded(self, id: str, outcome: Outcome, why: str = "", **fields: Any) -> Incident:
        """It is over. An approval that is to be remembered allows the same again from now on.

        Raises `ValueError` if it cannot end so. `healed_after_seconds` is counted from when it happened, unless it is given.
        """
        with self._writing() as conn:
            incident = _incident(conn, id)
            state: IncidentState = after(incident.state, outcome)
            if outcome in ("healed", "restored") and incident.healed_after_seconds is None:
                since = incident.happened_at or incident.opened_at
                fields.setdefault(
                    "healed_after_seconds", round(max(0.0, (self._clock() - since).total_seconds()), 3)
                )
            done = msgspec.structs.replace(incident, state=state, **fields)
            if outcome == "approved" and done.decision is not None and done.decision.remember:
                self._remember(conn, done, done.decision)
            return self._put(conn, done, _FINAL[outcome] + (f": {why}" if why else ""))

    def _remember(self, conn: sqlite3.Connection, incident: Incident, decision: Decision) -> None:
        (key,) = conn.execute("SELECT key FROM incident WHERE id = ?", [_number(incident.id)]).fetchone()
        for loss in incident.tables:
            allowance = Allowance(
                schema=loss.schema,
                table=loss.table,
                rows=loss.rows_lost,
                # who may turn values may not delete, whatever else the same transaction did
                kind="update" if loss.columns else incident.kind,
                incident=incident.id,
                by=decision.by,
                at=self._clock(),
            )
            _allow(conn, key, allowance)

    def _put(self, conn: sqlite3.Connection, incident: Incident, what: str) -> Incident:
        """Write an incident down as it is now, with a line of its audit."""
        incident = msgspec.structs.replace(incident, audit=(*incident.audit, Noted(self._clock(), what)))
        body = msgspec.json.encode(msgspec.structs.replace(incident, id=""))
        conn.execute(
            "UPDATE incident SET open = ?, body = ? WHERE id = ?",
            [incident.is_open, body, _number(incident.id)],
        )
        return incident

    # --- what may pass ------------------------------------------------------------------------------------

    def allow(self, key: str, allowance: Allowance) -> Allowance:
        """Let this pass from now on; it comes back with its id."""
        with self._writing() as conn:
            return _allow(conn, key, allowance)

    def allowances(self, key: str, now: datetime) -> list[Allowance]:
        """What may pass at `now`: what was announced until then or later, and what stands until it is revoked."""
        with self._reading() as conn:
            rows = conn.execute("SELECT id, body FROM allowance WHERE key = ? ORDER BY id", [key]).fetchall()
        return [each for each in map(_allowance, rows) if each.until is None or now < each.until]

    def revoke(self, keys: Collection[str], id: str) -> tuple[str, Allowance]:
        """Take an allowance of one of these links back, and tell of which; raises `UsageProblem` if there is none of that id."""
        with self._writing() as conn:
            rows = conn.execute("SELECT id, body, key FROM allowance ORDER BY id").fetchall()
            known = {str(row[0]): row for row in rows if row[2] in keys}
            if id in known:
                conn.execute("DELETE FROM allowance WHERE id = ?", [int(id)])
                return known[id][2], _allowance(known[id])
        raise UsageProblem(
            f"there is no allowance {id!r}",
            hint=f"there are: {listed(known, 20)}; pglockstep guard list tells what they are"
            if known
            else "nothing is allowed",
        )

    def use(self, id: str, rows: int) -> Allowance | None:
        """So many rows of an allowance were used; None if it was revoked meanwhile."""
        with self._writing() as conn:
            row = conn.execute("SELECT id, body FROM allowance WHERE id = ?", [int(id)]).fetchone()
            if row is None:
                return None
            found = _allowance(row)
            used = msgspec.structs.replace(found, used=found.used + rows)
            conn.execute("UPDATE allowance SET body = ? WHERE id = ?", [msgspec.json.encode(used), int(id)])
            return used

    # --- the file -----------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._file.telling(), self._file.connected() as conn:
            yield conn

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._file.telling(), self._file.writing() as conn:
            yield conn


def _number(id: str) -> int:
    """The number that an id stands for; 0, which none has, if it cannot be one."""
    return int(id) if id.isascii() and id.isdigit() and id[0] != "0" and len(id) < 19 else 0


def _decoded(number: int, body: bytes) -> Incident:
    return msgspec.structs.replace(msgspec.json.decode(body, type=Incident), id=str(number))


def _incident(conn: sqlite3.Connection, id: str) -> Incident:
    number = _number(id)
    row = conn.execute("SELECT body FROM incident WHERE id = ?", [number]).fetchone()
    if row is not None:
        return _decoded(number, row[0])
    open_ones = [str(each) for (each,) in conn.execute("SELECT id FROM incident WHERE open ORDER BY id")]
    raise UsageProblem(
        f"there is no incident {id!r}",
        hint=f"open {'is' if len(open_ones) == 1 else 'are'}: {listed(open_ones, 20)}; pglockstep incidents lists all"
        if open_ones
        else "none is open; pglockstep incidents lists those of the past",
    )


def _allow(conn: sqlite3.Connection, key: str, allowance: Allowance) -> Allowance:
    body = msgspec.json.encode(msgspec.structs.replace(allowance, id=""))
    number = conn.execute("INSERT INTO allowance (key, body) VALUES (?, ?)", [key, body]).lastrowid
    return msgspec.structs.replace(allowance, id=str(number))


def _allowance(row: Sequence[Any]) -> Allowance:
    return msgspec.structs.replace(msgspec.json.decode(row[1], type=Allowance), id=str(row[0]))
