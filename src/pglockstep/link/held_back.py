"""What rules have tripped over, on the target and as incidents.

The losses that led to a hold are known to the process that saw them, and to its state directory. Another one, on another
machine or with a state directory of its own, would let pass what is too much only together with what went before.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.guard.answers import Trip
from pglockstep.guard.transaction import Transaction
from pglockstep.observe.incident import Incident, Kind, Loss
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.progress import held
from pglockstep.progress.held import Held
from pglockstep.units import Lsn
from pglockstep.wal.frames import unix_time


async def known(conn: AsyncConnection[TupleRow], progress: Lsn) -> Mapping[int, Trip]:
    """What is held back behind `progress`, by where the commit records start. Raises psycopg's errors."""
    return {
        each.lsn: Trip(
            cast("Kind", each.kind),
            msgspec.json.decode(each.losses, type=tuple[Loss, ...]),
            each.message,
            each.since_lsn,
        )
        for each in await held.read(conn, progress)
    }


async def note(target: End, transaction: Transaction, trip: Trip) -> None:
    """Have the target remember that this transaction is held back. Raises the target's errors."""
    losses = msgspec.json.encode(trip.losses).decode()
    conn = await connect(target, "hold")
    try:
        with translate(target):
            await held.note(
                conn, Held(Lsn(transaction.final_lsn), trip.kind, trip.message, losses, trip.since_lsn)
            )
    finally:
        await conn.close()


def incident(link: str, transaction: Transaction, trip: Trip) -> Incident:
    """The incident of this transaction, found now."""
    now = datetime.now(UTC)
    happened = datetime.fromtimestamp(unix_time(transaction.commit_time), UTC)
    return Incident(
        link=link,
        side="source",
        kind=trip.kind,
        message=trip.message,
        tables=trip.losses,
        opened_at=now,
        xid=transaction.xid,
        lsn=str(Lsn(transaction.final_lsn)),
        since_lsn=None if trip.since_lsn is None else str(trip.since_lsn),
        happened_at=happened,
        detected_after_seconds=round(max(0.0, (now - happened).total_seconds()), 3),
    )
