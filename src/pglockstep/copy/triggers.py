"""Nothing of the user's may fire on the target for a row that comes from the source.

Its effects come from the source as rows of their own: firing again would double them, or mail customers twice. As a
replica ordinary triggers and foreign keys stay quiet; what fires all the same is refused, before anything is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg import AsyncConnection

from pglockstep.copy.selection import Selection
from pglockstep.errors import TargetLacks
from pglockstep.findings import Finding, demand, listed
from pglockstep.postgres import privileges
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.firing import Firing, would_fire
from pglockstep.postgres.names import quote_if_needed
from pglockstep.postgres.privileges import Facts


async def demand_quiet(
    conn: AsyncConnection, end: End, target: Facts, selection: Selection, *, replica: bool
) -> None:
    """Raise `TargetLacks` if anything in the database behind `conn` would fire for rows written to it.

    `replica` tells whether they are written under ``session_replication_role = replica``.
    """
    with translate(end):
        firing = await would_fire(conn, replica=replica)
    demand(firing_findings(firing, target, selection, replica=replica))


def firing_findings(
    every: Sequence[Firing], target: Facts, selection: Selection, *, replica: bool
) -> Iterator[Finding]:
    """What must not fire and would, and how it is kept quiet. Pure."""
    firing = [each for each in every if selection.carries(*each.table)]
    if not firing:
        return
    if not replica:
        fix, where = privileges.replica_grant(target)
        yield Finding(
            side="target",
            severity="error",
            code="no_replica_role",
            message=f"role {quote_if_needed(target.role)} on the target may not set session_replication_role, and "
            f"triggers, foreign keys or rules of {listed(dict.fromkeys(each.table for each in firing))} would fire "
            "for copied rows",
            fix=fix,
            where=where,
        )
        return
    first = firing[0]
    more = f" (and {len(firing) - 1} more such)" if len(firing) > 1 else ""
    yield Finding(
        side="source",
        severity="error",
        code="always_trigger",
        message=f"{first.kind} {quote_if_needed(first.trigger)} of {first.table}{more} is ENABLE ALWAYS or ENABLE "
        "REPLICA: it would fire on the target for every row that comes from the source, and its effects would be there "
        "twice",
        fix="\n".join(
            f"ALTER TABLE {each.table} ENABLE {each.kind.upper()} {quote_if_needed(each.trigger)};"
            for each in firing
        ),
        where="on the source, and on the target if it has the table",
        otherwise="or leave the table out with `exclude`",
        raises=TargetLacks,
    )
