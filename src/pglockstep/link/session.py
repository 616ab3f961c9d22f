"""Opening a link: both ends, what they are, and the lock that makes this process the one that does its work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection

from pglockstep.apply.batch import BARRIER_PREFIX
from pglockstep.config import LinkConfig
from pglockstep.copy.first import Ends
from pglockstep.copy.selection import Selection
from pglockstep.copy.triggers import demand_quiet
from pglockstep.errors import IdentityChanged, SourceLacks
from pglockstep.postgres import privileges
from pglockstep.postgres.connect import connect, describe, ends, translate
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn, human_bytes

#: How long a killed process's session may still hold the lock: its server has to notice first.
_DYING = 10.0


@asynccontextmanager
async def opened(link: LinkConfig, purpose: str) -> AsyncIterator[Ends]:
    """Connect to both ends, learn what they are and make sure that they are two databases."""
    source, target = ends(link)
    source_conn = await connect(source, purpose)
    try:
        target_conn = await connect(target, purpose)
        try:
            with translate(source):
                source_facts = await privileges.facts(source_conn)
            with translate(target):
                target_facts = await privileges.facts(target_conn)
            await privileges.demand_distinct(source_conn, target_conn)
            yield Ends(source, target, source_conn, target_conn, source_facts, target_facts)
        finally:
            await target_conn.close()
    finally:
        await source_conn.close()


async def take_lock(ends: Ends, *, patience: float = _DYING) -> bool:
    """Take the link's lock; waits `patience` seconds for a session that a killed process left behind."""
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        with translate(ends.target):
            if await progress.take_lock(ends.target_conn):
                return True
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(0.1)


def demand_identity(ends: Ends, record: LinkRecord) -> None:
    """Raise `IdentityChanged` unless the source is the very database that this target was copied from."""
    if record.source_identity != ends.source_facts.identity:
        raise IdentityChanged(
            f"another database answers as the source ({describe(ends.source.conninfo)}): this target was filled from "
            f"{record.source_identity}, that one is {ends.source_facts.identity}; nothing was copied",
            hint="point `source` at the database it was, or, if this one is meant: pglockstep teardown, empty the target, "
            "pglockstep once",
        )


async def demand_slot(ends: Ends, record: LinkRecord) -> None:
    """Raise `SourceLacks` unless the slot can go on from the target's progress without a gap."""
    again = "pglockstep teardown, empty the target, pglockstep once"
    with translate(ends.source):
        cursor = await ends.source_conn.execute(
            "SELECT wal_status, confirmed_flush_lsn::text, "
            "pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn)::bigint, "
            "pg_catalog.pg_current_wal_flush_lsn()::text "
            "FROM pg_catalog.pg_replication_slots "
            "WHERE slot_name = $1 AND database = pg_catalog.current_database()",
            [record.slot],
        )
        row = await cursor.fetchone()
    if row is None:
        raise SourceLacks(
            f"replication slot {record.slot} is gone from the source: what was written there since "
            f"{record.progress} cannot be streamed any more",
            hint=f"copy anew: {again}",
        )
    status, confirmed, retained, written = row
    if record.progress is not None and Lsn.parse(written) < record.progress:
        raise IdentityChanged(
            f"the source is older than what the target already has from it: its WAL ends at {written}, the target is "
            f"complete up to {record.progress}; was the source restored from an older copy? nothing was copied",
            hint=f"put the newer source back; or, if this one is meant: {again}",
        )
    if status == "lost":
        raise SourceLacks(
            f"replication slot {record.slot} was invalidated by the source, which kept {human_bytes(retained or 0)} of WAL "
            "for it at the end",
            hint=f"copy anew: {again}; then raise max_slot_wal_keep_size on the source, or keep the daemon running",
        )
    if confirmed and record.progress is not None and Lsn.parse(confirmed) > record.progress:
        raise SourceLacks(
            f"the target is complete up to {record.progress} only, but the source has forgotten everything before "
            f"{confirmed}: was the target restored from an older copy?",
            hint=f"copy anew: {again}",
        )


async def emit_barrier(ends: Ends, link: str) -> Lsn:
    """Write a barrier into the source's WAL; a target whose progress has reached the result holds all before it."""
    with translate(ends.source):
        cursor = await ends.source_conn.execute(
            "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)::text", [BARRIER_PREFIX, link]
        )
        row = await cursor.fetchone()
    assert row is not None
    return Lsn.parse(row[0])


async def source_position(conn: AsyncConnection) -> Lsn:
    """Where the source's WAL ends now."""
    cursor = await conn.execute("SELECT pg_catalog.pg_current_wal_lsn()::text")
    row = await cursor.fetchone()
    assert row is not None
    return Lsn.parse(row[0])


async def act_as_replica(ends: Ends, selection: Selection) -> None:
    """Prepare the target's session for applying: triggers and foreign keys stay quiet, commits do not wait for the disk.

    Progress commits with the rows, so what a crash of the target forgets, it forgets together.
    """
    allowed = await privileges.can_act_as_replica(ends.target_conn)
    await demand_quiet(ends.target_conn, ends.target, ends.target_facts, selection, replica=allowed)
    with translate(ends.target):
        await ends.target_conn.execute("SET synchronous_commit = off")
        if allowed:
            await ends.target_conn.execute("SET session_replication_role = replica")
