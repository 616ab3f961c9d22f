"""What is held back, as the target remembers it: for whoever applies next, from wherever that may be."""

from __future__ import annotations

import msgspec
from psycopg import AsyncConnection

from pglockstep.units import Lsn


class Held(msgspec.Struct, frozen=True):
    """A transaction that a rule tripped over: `lsn` is where its commit record starts. `losses` are encoded."""

    lsn: Lsn
    kind: str
    message: str
    losses: str
    since_lsn: Lsn | None = None


async def note(conn: AsyncConnection, held: Held) -> None:
    """Remember it; what is known of it already stays. Raises psycopg's errors."""
    await conn.execute(
        "INSERT INTO pglockstep.held (lsn, kind, message, losses, since_lsn) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT (lsn) DO NOTHING",
        [held.lsn, held.kind, held.message, held.losses, held.since_lsn],
    )


async def read(conn: AsyncConnection, progress: Lsn) -> list[Held]:
    """What is held back of what comes behind `progress`; what came before it is forgotten. Raises psycopg's errors."""
    await conn.execute("DELETE FROM pglockstep.held WHERE lsn < $1", [progress])
    cursor = await conn.execute("SELECT lsn, kind, message, losses, since_lsn FROM pglockstep.held")
    return [Held(*row) async for row in cursor]


async def forget(conn: AsyncConnection, lsn: Lsn) -> None:
    """It was decided what becomes of it, and that was done. Raises psycopg's errors."""
    await conn.execute("DELETE FROM pglockstep.held WHERE lsn = $1", [lsn])
