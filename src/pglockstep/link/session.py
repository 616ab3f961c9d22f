"""Opening a link: both ends, what they are, and the lock that makes this process the one that does its work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.apply.batch import BARRIER_PREFIX
from pglockstep.config.sections import LinkConfig
from pglockstep.copy.ends import Ends
from pglockstep.copy.selection import Selection
from pglockstep.copy.triggers import demand_quiet
from pglockstep.errors import IdentityChanged, LinkHeld
from pglockstep.findings import demand
from pglockstep.guard import watch
from pglockstep.postgres import privileges
from pglockstep.postgres.connect import End, connect, describe, ends, translate
from pglockstep.postgres.privileges import Facts
from pglockstep.postgres.slots import Slot
from pglockstep.postgres.slots import read as read_slot
from pglockstep.progress import slots
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn

#: How long a killed process's session may still hold the lock: its server has to notice first.
_DYING = 10.0


class Opened(msgspec.Struct, frozen=True):
    """One end with a session at it, and what is known of it."""

    end: End
    conn: AsyncConnection[TupleRow]
    facts: Facts


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


async def take_lock(conn: AsyncConnection, target: End, *, patience: float = _DYING) -> bool:
    """Take the link's lock; waits `patience` seconds for a session that a killed process left behind."""
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        with translate(target):
            if await progress.take_lock(conn):
                return True
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(0.1)


async def demand_lock(conn: AsyncConnection, target: End) -> None:
    """Take the link's lock, as `take_lock` does; raises `LinkHeld`, which names the holder, if another process has it."""
    if await take_lock(conn, target):
        return
    with translate(target):
        held = await progress.holder(conn)
    who = f"{held.application} (pid {held.pid} on the target)" if held else "another session"
    raise LinkHeld(
        f"{who} holds link {target.link!r}",
        hint="stop that process first if this one is to take over; pglockstep status shows it",
    )


def demand_identity(source: End, facts: Facts, record: LinkRecord) -> None:
    """Raise `IdentityChanged` unless the source is the very database that this target was copied from."""
    demand(slots.identity_findings(record, facts.identity, describe(source.conninfo)))


def demand_same_link(target: End, known: LinkRecord, found: LinkRecord) -> None:
    """Raise `IdentityChanged` unless the target still belongs to the link that it did."""
    if found.id != known.id:
        raise IdentityChanged(
            f"the target ({describe(target.conninfo)}) belongs to another link now: it was {known.id}, it is {found.id}",
            hint="was it torn down and copied anew? then start this daemon again",
        )


async def demand_slot(
    conn: AsyncConnection, source: End, record: LinkRecord, journal: tuple[Lsn, Lsn] | None = None
) -> Slot:
    """The link's slot; raises `SourceLacks` unless slot and `journal` can go on from the target's progress without a gap."""
    with translate(source):
        slot = await read_slot(conn, record.slot)
    demand(slots.slot_findings(record, slot, journal))
    assert slot is not None
    return slot


async def demand_no_slot(conn: AsyncConnection, source: End, record: LinkRecord) -> None:
    """Raise `SourceLacks` if the slot is there with which the link was streamed before it was polled: nobody reads it."""
    with translate(source):
        cursor = await conn.execute(
            "SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1", [record.slot]
        )
    demand([slots.slot_left(record)] if cursor.rowcount else [])


async def emit_barrier(conn: AsyncConnection[TupleRow], source: End, link: str) -> Lsn:
    """Write a barrier into the source's WAL; a target whose progress has reached the result holds all before it."""
    with translate(source):
        # a standby that is away makes nobody wait for us
        await conn.execute("SET synchronous_commit = local")
        cursor = await conn.execute(
            "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)", [BARRIER_PREFIX, link]
        )
        row = await cursor.fetchone()
    assert row is not None
    barrier: Lsn = row[0]
    return barrier


async def source_position(conn: AsyncConnection) -> Lsn:
    """Where the source's WAL ends now; on a standby, up to where it is replayed."""
    cursor = await conn.execute(
        "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() "
        "ELSE pg_catalog.pg_current_wal_lsn() END"
    )
    row = await cursor.fetchone()
    assert row is not None
    position: Lsn = row[0]
    return position


async def source_clock(conn: AsyncConnection) -> int:
    """What the source's clock shows, in microseconds since 2000-01-01 UTC, as commits carry it."""
    cursor = await conn.execute(
        "SELECT (extract(epoch FROM pg_catalog.clock_timestamp() - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint"
    )
    row = await cursor.fetchone()
    assert row is not None
    time: int = row[0]
    return time


async def act_as_replica(conn: AsyncConnection, target: End, facts: Facts, selection: Selection) -> None:
    """Prepare the target's session for applying: triggers and foreign keys stay quiet, commits do not wait for the disk.

    Progress commits with the rows, so what a crash of the target forgets, it forgets together.
    """
    allowed = await privileges.can_act_as_replica(conn)
    await demand_quiet(conn, target, facts, selection, replica=allowed)
    with translate(target):
        await conn.execute("SET synchronous_commit = off")
        if await progress.is_whole(conn):
            # or what we apply would look like somebody else's writes
            await watch.be_ours(conn)
        elif allowed:
            await watch.act_as_replica(conn)
