"""From what others did to a target to its incident: one for each occurrence, however much of it is seen, and when."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from pglockstep.guard.harm import KINDS, Harm
from pglockstep.guard.reading import Trouble
from pglockstep.link.link import Link
from pglockstep.observe.incident import Incident, Loss
from pglockstep.postgres.names import QualifiedName

log = logging.getLogger(__name__)

DATABASE_GONE = Harm(troubles=(Trouble("missing_database", "the target's database is gone"),))
SCHEMA_GONE = Harm(
    troubles=(Trouble("drop", "schema pglockstep is gone from the target, and with it how far it was"),)
)
#: Statements that are kept as evidence.
_STATEMENTS = 20


def heals_itself(link: Link, tables: Iterable[QualifiedName]) -> bool:
    """Whether the configuration has decided that the target gets back what it lost; the strictest word counts.

    While the source is under suspicion nobody has: it may be the end that was wiped.
    """
    if any(each.side == "source" for each in link.open_incidents()):
        return False
    guard = link.config.guard
    words = {link.rules.of(name).on_target_wipe for name in tables} or {guard.on_target_wipe}
    return "hold" not in words


def noted(link: Link, harm: Harm, at: datetime | None = None) -> Incident:
    """The open incident of the target's that this harm is, written down; `at`: when it was seen, by the target's clock."""
    losses = harm.losses(link.gate.stood)
    known = [each for each in link.open_incidents() if each.side == "target" and each.kind != "identity"]
    if known:
        return _more(link, known[0], harm, losses)
    now = datetime.now(UTC)
    after = None
    if harm.happened_at is not None and at is not None:
        # the target's clock may be another than ours
        after = max(timedelta(), at - harm.happened_at)
    heals = heals_itself(link, harm.tables)
    incident = link.incidents.open(
        link.key,
        Incident(
            link=link.config.name,
            side="target",
            kind=harm.kind,
            message=harm.sentence,
            tables=losses,
            state="healing" if heals else "held",
            opened_at=now,
            xid=harm.xid,
            happened_at=None if after is None else now - after,
            who=harm.who,
            application=harm.application,
            statements=harm.statements,
            detected_after_seconds=None if after is None else round(after.total_seconds(), 3),
        ),
    )
    log.error(
        "incident %s: %s; %s",
        incident.id,
        incident.message,
        "being put right from the source" if heals else "held: nothing more is applied",
        extra=link.about("guard.target"),
    )
    return incident


def _more(link: Link, known: Incident, harm: Harm, losses: Sequence[Loss]) -> Incident:
    """An occurrence that is known, with what is new of it: other tables, or worse."""
    kind = max(known.kind, harm.kind, key=KINDS.index)
    named = {(each.schema, each.table): each for each in known.tables}
    new = [each for each in losses if (each.schema, each.table) not in named]
    if not new and kind == known.kind:
        return known
    said = dict.fromkeys((*known.statements, *harm.statements))
    return link.incidents.change(
        known.id,
        f"more was seen: {harm.sentence}",
        kind=kind,
        message=harm.sentence,
        tables=(*known.tables, *new),
        who=known.who or harm.who,
        application=known.application or harm.application,
        statements=tuple(said)[:_STATEMENTS],
    )
