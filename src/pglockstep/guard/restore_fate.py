"""What became of an earlier attempt to put something back, when whoever made it has been killed: the source itself is asked.

The attempt's xid was noted on the target before its commit could be tried, together with what it would have to report.
"""

from __future__ import annotations

import asyncio

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.errors import SourceBusy, SourceLacks
from pglockstep.guard.restore_outcome import Outcome
from pglockstep.postgres.connect import End, translate
from pglockstep.progress import restoring
from pglockstep.progress.restoring import Restoring


async def settled(
    notes: AsyncConnection[TupleRow], source: AsyncConnection[TupleRow], ends: tuple[End, End], incident: str
) -> Outcome | None:
    """What an earlier attempt has put back; None if there was none, or it came to nothing. `ends`: target and source.

    One that still runs is a killed process's: it is ended, or has committed, before this returns.
    """
    with translate(ends[0]):
        attempt = await restoring.read(notes, incident)
    if attempt is None:
        return None
    for _ in range(100):
        fate = await _fate(source, ends[1], attempt)
        if fate == "committed":
            text = attempt.outcome
            outcome = msgspec.json.decode(text, type=Outcome) if text else Outcome(incident=incident)
            return await with_end(source, ends[1], outcome)
        if fate == "aborted":
            return None
        with translate(ends[1]):
            await source.execute(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = $1 "
                "AND backend_xid::text::bigint = $2::bigint % 4294967296",
                [attempt.pid, attempt.xid],
            )
        await asyncio.sleep(0.1)
    raise SourceBusy(
        f"an earlier attempt to restore incident {incident} does not end on the source (pid {attempt.pid})",
        hint="pg_stat_activity there shows it: its application_name begins with 'pglockstep restore'; it is tried again",
    )


async def _fate(conn: AsyncConnection[TupleRow], end: End, attempt: Restoring) -> str:
    with translate(end):
        try:
            cursor = await conn.execute("SELECT pg_catalog.pg_xact_status($1::text::xid8)", [attempt.xid])
        except psycopg.errors.InvalidParameterValue:
            # a number that the server has not given out: a promoted standby that never got to see it
            return "aborted"
        row = await cursor.fetchone()
    if row is None or row[0] is None:
        raise SourceLacks(
            f"incident {attempt.incident} was being restored so long ago that the source has forgotten whether that was done",
            hint="compare the ends (`pglockstep diff`), then decide with `reject` or `approve`",
        )
    return str(row[0])


async def with_end(conn: AsyncConnection[TupleRow], end: End, outcome: Outcome) -> Outcome:
    """The outcome, with a place in the source's WAL at or behind its transaction's commit."""
    with translate(end):
        cursor = await conn.execute("SELECT pg_catalog.pg_current_wal_insert_lsn()")
        row = await cursor.fetchone()
    assert row is not None
    return msgspec.structs.replace(outcome, lsn=str(row[0]))
