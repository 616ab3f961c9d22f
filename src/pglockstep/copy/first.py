"""The first copy of a link, from nothing on either end to a target complete as of an LSN.

The whole of the target's side is one transaction: a copy that fails or is killed leaves the target as empty
as it was. What the copy makes on the source is written down on the target beforehand, so that whoever comes
next can take it back. The link's lock is held by the caller throughout.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from psycopg import AsyncConnection

from pglockstep.copy import readiness, restore
from pglockstep.copy import source as ours
from pglockstep.copy.rows import copy_large_objects, copy_table
from pglockstep.copy.selection import Selection
from pglockstep.copy.triggers import demand_quiet
from pglockstep.errors import LockstepError, SourceError, TargetBusy
from pglockstep.findings import demand
from pglockstep.postgres import catalog, privileges, sequences
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.dump import SchemaArchive
from pglockstep.postgres.installations import clients_for
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.privileges import Facts
from pglockstep.postgres.replication import NewSlot, ReplicationConnection
from pglockstep.progress import target as progress
from pglockstep.progress.target import ChangedIdentity, LinkRecord
from pglockstep.units import Lsn

log = logging.getLogger(__name__)

#: How often the set of tables may change under our hands while slot and publication are made.
_ATTEMPTS = 5
#: How the session that fills a target is called in ``pg_stat_activity``.
COPIER = "pglockstep copy-in "


class Ends(msgspec.Struct, frozen=True):
    """Both ends with a connection each and what is known of them."""

    source: End
    target: End
    source_conn: AsyncConnection
    target_conn: AsyncConnection
    source_facts: Facts
    target_facts: Facts

    @property
    def both(self) -> tuple[End, End]:
        """Source and target."""
        return self.source, self.target


class CopyResult(msgspec.Struct, frozen=True):
    """What a first copy brought over; the target is complete as of `lsn`."""

    lsn: Lsn
    tables: int
    rows: int


async def demand_ready(ends: Ends, selection: Selection, without_key: str) -> list[Table]:
    """Raise unless a first copy can start; returns the tables that it will carry. Changes nothing."""
    demand(privileges.source_findings(ends.source_facts, needs_slot=True))
    demand(privileges.target_findings(ends.target_facts, needs_copy=True))
    demand(privileges.encoding_findings(ends.source_facts, ends.target_facts))
    with translate(ends.target):
        demand(readiness.emptiness(await readiness.holdings(ends.target_conn)))
    with translate(ends.source):
        every = await catalog.tables(ends.source_conn)
    tables = [table for table in every if selection.carries(*table.name)]
    demand(privileges.table_findings(ends.source_facts, tables))
    if not selection.is_everything:
        with translate(ends.source):
            selection.demand_whole(await ours.references(ends.source_conn))
    demand(readiness.identity_findings(tables, ends.source_facts.major, without_key, selection))
    replica = await privileges.can_act_as_replica(ends.target_conn)
    await demand_quiet(ends.source_conn, ends.source, ends.target_facts, selection, replica=replica)
    clients_for(ends.source_facts.major, os.environ)
    return tables


async def copy(ends: Ends, link: str, selection: Selection, without_key: str) -> CopyResult:
    """Make the first copy. On failure everything that it made on either end is taken back."""
    await demand_ready(ends, selection, without_key)
    with translate(ends.target):
        record = await progress.create(ends.target_conn, link, ends.source_facts.identity)
    try:
        result = await _copy(ends, record, selection)
    except BaseException:
        try:
            await undo(ends, record)
        except LockstepError as error:
            log.warning(
                "what the copy began could not be taken back now (%s); the next start does it",
                error,
                extra={"action": "copy.undo", "link": link},
            )
        raise
    await _analyze(ends)
    return result


async def undo(ends: Ends, record: LinkRecord) -> None:
    """Take back what an unfinished copy, or a link that is torn down, left on the source, then on the target.

    A copy that was complete after all is left as it is, and said to be so: its last statement can outlive the
    process that sent it.
    """
    if record.phase == "copying":
        await _end_copier(ends)
        with translate(ends.target):
            now = await progress.read(ends.target_conn)
        if now is not None and now.phase != "copying":
            raise TargetBusy("the copy has just been completed", hint="the same command goes on from there")
    with translate(ends.target):
        changed = await progress.identities(ends.target_conn)
    await ours.end_work(ends.source_conn, ends.source, record.id)
    with translate(ends.source):
        # for this may be killed as well
        await ours.mark_at_work(ends.source_conn, record.id)
    await ours.drop_slot(ends.source_conn, ends.source, record.slot)
    await ours.drop_publication(ends.source_conn, ends.source, record.publication)
    await ours.set_identities_back(ends.source_conn, ends.source, changed)
    with translate(ends.target):
        await progress.forget(ends.target_conn)


async def _end_copier(ends: Ends) -> None:
    """End the session with which a killed process was copying; the lock is ours, so nobody copies any more."""
    with translate(ends.target):
        for _ in range(100):
            cursor = await ends.target_conn.execute(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
                "WHERE datname = pg_catalog.current_database() AND usename = current_user "
                "AND pg_catalog.starts_with(application_name, $1)",
                [COPIER],
            )
            if not await cursor.fetchall():
                return
            await asyncio.sleep(0.1)
    raise TargetBusy(
        "the session of a copy that was killed does not end on the target",
        hint=f"pg_stat_activity there shows which one: its application_name begins with {COPIER!r}; it is tried again",
    )


async def _analyze(ends: Ends) -> None:
    """Let the target's planner know what it holds now; the copy is good without it."""
    try:
        with translate(ends.target):
            await ends.target_conn.execute("ANALYZE")
    except LockstepError as error:
        log.warning(
            "the target was not analysed: %s",
            error,
            extra={"action": "copy.analyze", "link": ends.target.link},
        )


async def _copy(ends: Ends, record: LinkRecord, selection: Selection) -> CopyResult:
    # making the slot has a patience of its own
    stream = await ReplicationConnection.open(msgspec.structs.replace(ends.source, lock_timeout=0.0))
    try:
        with translate(ends.source):
            for conn in (ends.source_conn, stream.conn):
                await ours.mark_at_work(conn, record.id)
        snapshot, tables = await _prepare_source(ends, record, selection, stream)
        log.info(
            "copying %d tables as of %s",
            len(tables),
            snapshot.lsn,
            extra={"action": "copy.start", "link": ends.source.link},
        )
        with tempfile.TemporaryDirectory(prefix="pglockstep-") as scratch:
            archive = SchemaArchive(clients_for(ends.source_facts.major, os.environ), Path(scratch))
            return await _transfer(ends, record, selection, snapshot, tables, archive)
    finally:
        await stream.close()


async def _prepare_source(
    ends: Ends, record: LinkRecord, selection: Selection, stream: ReplicationConnection
) -> tuple[NewSlot, list[Table]]:
    """Identities, publication, slot, in this order; again if a table came or went meanwhile."""
    conn, end = ends.source_conn, ends.source
    for _ in range(_ATTEMPTS):
        tables = await _tables(conn, end, selection)
        keyless = ours.without_identity(tables)
        with translate(ends.target):
            await progress.remember_identities(
                ends.target_conn,
                record.id,
                [ChangedIdentity(table.name, table.replica_identity) for table in keyless],
            )
        await ours.set_full_identity(conn, end, keyless)
        await ours.create_publication(conn, end, record.publication, tables)
        slot = await ours.create_slot(stream, conn, end, record.slot)
        seen = await _tables(conn, end, selection, slot.snapshot)
        same = [(table.oid, table.name) for table in seen] == [(table.oid, table.name) for table in tables]
        if same and not ours.without_identity(seen):
            return slot, seen
        await ours.drop_slot(conn, end, record.slot)
        await ours.drop_publication(conn, end, record.publication)
    raise SourceError(
        "tables keep coming and going on the source; no moment was found at which to start",
        hint="try again when no DDL is running there",
    )


async def _tables(
    conn: AsyncConnection, end: End, selection: Selection, snapshot: str | None = None
) -> list[Table]:
    with translate(end):
        async with conn.transaction():
            if snapshot:
                await use_snapshot(conn, snapshot)
            return [table for table in await catalog.tables(conn) if selection.carries(*table.name)]


async def use_snapshot(conn: AsyncConnection, snapshot: str) -> None:
    """Let the transaction just begun see what `snapshot` shows."""
    await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    # SET TRANSACTION SNAPSHOT takes a literal only; the name is the server's own
    await conn.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode())


async def _transfer(
    ends: Ends,
    record: LinkRecord,
    selection: Selection,
    snapshot: NewSlot,
    tables: Sequence[Table],
    archive: SchemaArchive,
) -> CopyResult:
    major = ends.target_facts.major
    left_out = await _left_out(ends, selection)
    source = await connect(ends.source, "copy-out")
    target = await connect(ends.target, "copy-in")
    try:
        async with source.transaction(force_rollback=True), target.transaction():
            with translate(ends.source):
                await use_snapshot(source, snapshot.snapshot)
                wanted = await restore.owners(source)
            await archive.dump(ends.source, snapshot.snapshot, left_out)
            if await privileges.can_act_as_replica(target):
                # event triggers of the user's, made half way, must not fire for what follows
                await target.execute("SET LOCAL session_replication_role = replica")
            present = await restore.present(target)
            pre_data = await archive.section("pre-data", target_major=major, present=present)
            await restore.run_script(target, ends.target, pre_data, what="schema")
            await restore.drop_public(source, target, ends.both)
            rows = 0
            for table in tables:
                rows += await copy_table(source, target, ends.both, table)
            await copy_large_objects(source, target, ends.both)
            post_data = await archive.section("post-data", target_major=major)
            await restore.run_script(target, ends.target, post_data, what="indexes and constraints")
            await restore.refresh_materialized_views(source, target, ends.both)
            with translate(ends.source):
                states = await sequences.read(source)
            with translate(ends.target):
                await sequences.move(target, states)
            await restore.give_to_owners(target, ends.target, wanted)
            await restore.grant(target, ends.target, await archive.grants(target_major=major))
            with translate(ends.target):
                changed = await progress.identities(target)
            await restore.set_identities(target, ends.target, changed)
            with translate(ends.target):
                await progress.complete_copy(target, record.id, snapshot.lsn)
    finally:
        await source.close()
        await target.close()
    return CopyResult(snapshot.lsn, len(tables), rows)


async def _left_out(ends: Ends, selection: Selection) -> list[QualifiedName]:
    """The source's relations that the selection leaves out: tables, roots, views, and sequences of their columns."""
    with translate(ends.source):
        cursor = await ends.source_conn.execute(catalog.statement("holdings"))
        names = [QualifiedName(schema, name) async for schema, name, kind in cursor if kind != "sequence"]
        owned = await ours.owned_sequences(ends.source_conn)
    sequences_of_theirs = [sequence for sequence, table in owned if not selection.carries(*table)]
    return [*selection.left_out(names), *sequences_of_theirs]
