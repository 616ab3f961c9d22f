"""What is being put back on the source, as the target remembers it: so that a kill at any moment is gone on from.

A transaction that commits on one server while another one has to know of it can always be cut off in between. Here the one
that has to know asks the one that committed: the xid was noted before the commit was tried, and a server knows what became
of each of its xids.
"""

from __future__ import annotations

import msgspec
from psycopg import AsyncConnection

from pglockstep.units import Lsn


class Restoring(msgspec.Struct, frozen=True):
    """An attempt: the source's transaction `xid` of the session `pid` there, which began with a message at `marker`.

    `outcome` is what the attempt would have to report if it has committed; None while it was not ready to.
    """

    incident: str
    xid: str
    pid: int
    marker: Lsn
    outcome: str | None = None


async def note(conn: AsyncConnection, attempt: Restoring) -> None:
    """Remember an attempt in place of an earlier one, before anything of it can commit. Raises psycopg's errors."""
    await conn.execute(
        "INSERT INTO pglockstep.restoring (incident, xid, pid, marker, outcome) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT (incident) DO UPDATE SET xid = EXCLUDED.xid, pid = EXCLUDED.pid, marker = EXCLUDED.marker, "
        "began_at = pg_catalog.now(), outcome = EXCLUDED.outcome",
        [attempt.incident, attempt.xid, attempt.pid, attempt.marker, attempt.outcome],
    )


async def read(conn: AsyncConnection, incident: str) -> Restoring | None:
    """The latest attempt for an incident; None if there was none. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT incident, xid, pid, marker, outcome FROM pglockstep.restoring WHERE incident = $1", [incident]
    )
    row = await cursor.fetchone()
    return None if row is None else Restoring(*row)


async def forget(conn: AsyncConnection, incident: str) -> None:
    """Forget an incident's attempts: its outcome is kept elsewhere. Raises psycopg's errors."""
    await conn.execute("DELETE FROM pglockstep.restoring WHERE incident = $1", [incident])
