"""Nothing of the user's may fire on the target for a row that comes from the source.

Its effects come from the source as rows of their own: firing again would double them, or mail customers twice. As a
replica ordinary triggers and foreign keys stay quiet; what fires all the same is refused, before anything is changed.
"""

from __future__ import annotations

from psycopg import AsyncConnection

from pglockstep.copy.selection import Selection
from pglockstep.errors import TargetLacks
from pglockstep.postgres import catalog, privileges
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.names import QualifiedName, quote_if_needed
from pglockstep.postgres.privileges import Facts


async def demand_quiet(
    conn: AsyncConnection, end: End, target: Facts, selection: Selection, *, replica: bool
) -> None:
    """Raise `TargetLacks` if anything in the database behind `conn` would fire for rows written to it.

    `replica` tells whether they are written under ``session_replication_role = replica``.
    """
    with translate(end):
        cursor = await conn.execute(catalog.statement("firing"), [replica])
        every = [(QualifiedName(schema, name), trigger) async for schema, name, trigger in cursor]
    firing = [(name, trigger) for name, trigger in every if selection.carries(*name)]
    if not firing:
        return
    if not replica:
        raise TargetLacks(
            f"role {quote_if_needed(target.role)} on the target may not set session_replication_role, and triggers or "
            f"foreign keys of {', '.join(str(name) for name, _ in firing[:5])} would fire for copied rows",
            hint=privileges.replica_grant(target),
        )
    table, trigger = firing[0]
    raise TargetLacks(
        f"trigger {quote_if_needed(trigger)} of {table} is ENABLE ALWAYS or ENABLE REPLICA: it would fire on the target for "
        "every row that comes from the source, and its effects would be there twice",
        hint=f"on the source, and on the target if it has the table: ALTER TABLE {table} "
        f"ENABLE TRIGGER {quote_if_needed(trigger)}; or leave the table out with `exclude`",
    )
