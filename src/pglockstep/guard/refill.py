"""A source that lost everything, or is older than it was, filled from its target: what it lacks comes back, nothing else goes.

The caller holds the link's lock and applies nothing meanwhile; the target has all that was ever received from the source, and
is only read. On the source everything happens in one transaction, as a replica, so that no trigger of an application's fires:
either all of it is there, or nothing was changed. Rows that only the source has were written since, and stay; what stands in
the way of the target's rows is left, and told.

A kill at any moment is gone on from by calling again: what is there already is not missing any more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep import failpoints
from pglockstep.guard import questions, restore_checks, restore_fate
from pglockstep.guard.refill_rows import MissingRows
from pglockstep.guard.refill_schema import RefillingSchema
from pglockstep.guard.restore_blockers import naming_blockers
from pglockstep.guard.restore_outcome import Left, Outcome, PutBack
from pglockstep.guard.restore_rows import Sides
from pglockstep.postgres import catalog, privileges
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.dump import SchemaArchive
from pglockstep.postgres.installations import clients_for
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.privileges import Facts
from pglockstep.progress import restoring
from pglockstep.progress.restoring import Restoring
from pglockstep.progress.target import LinkRecord

#: The prefix of the message that opens the transaction; its content is the link's id, a colon and the incident's.
MARKER = "pglockstep refill"

_PURPOSE = "refill"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to fill. `older`: the source is an older copy of itself, so what the target has under a key is the newer row.

    `left_out`: tables of the target's that the link does not carry.
    """

    link: LinkRecord
    incident: str
    older: bool = False
    left_out: frozenset[QualifiedName] = frozenset()


async def refill(source: End, target: End, order: Order) -> Outcome:
    """Fill the source's database, which is there; returns what was put back, and what was left and why.

    Done already, it returns that of then. Raises the ends' errors, and then nothing was changed.
    """
    async with AsyncExitStack() as opened:

        async def session(end: End) -> AsyncConnection[TupleRow]:
            conn = await connect(end, _PURPOSE, work_mem="64MB", jit="off")
            opened.push_async_callback(conn.close)
            return conn

        reader = await session(target)
        notes = await session(target)
        await restore_checks.demand_target(notes, target, order.link)
        writer = await session(source)
        watcher = await session(source)
        with translate(source):
            facts = await privileges.facts(writer)
        # of this incident, and on this server: what became of a transaction is known to no other one
        key = f"{order.incident} {facts.identity}"
        if (done := await restore_fate.settled(notes, watcher, (target, source), key)) is not None:
            return done
        sides = Sides(reader, writer, target, source)
        async with naming_blockers(watcher, writer, source):
            return await _Work(sides, notes, facts, order, key).run()


async def losses(
    source: End, target: End, left_out: Collection[QualifiedName]
) -> dict[QualifiedName, tuple[int, int]]:
    """How many rows each table of the target's holds, and how many of these the source lacks. Changes nothing."""
    async with AsyncExitStack() as opened:
        conns = []
        for end in (target, source):
            conns.append(await connect(end, _PURPOSE, work_mem="64MB", jit="off"))
            opened.push_async_callback(conns[-1].close)
        sides = Sides(conns[0], conns[1], target, source)
        here, there = await _tables(sides, left_out)
        found = {}
        for name, table in here.items():
            with translate(target):
                stood = await questions.count(sides.target, name)
            if name not in there:
                found[name] = (stood, stood)
                continue
            async with sides.source.transaction(force_rollback=True):
                found[name] = (stood, await MissingRows(sides, table, there[name]).lost() if stood else 0)
        return found


class _Work:
    """One attempt."""

    def __init__(
        self, sides: Sides, notes: AsyncConnection[TupleRow], facts: Facts, order: Order, key: str
    ) -> None:
        self._sides = sides
        self._notes = notes
        self._facts = facts
        self._order = order
        self._key = key
        self._outcome = Outcome(incident=order.incident)
        self._left: list[Left] = []
        self._tables: list[PutBack] = []

    async def run(self) -> Outcome:
        sides = self._sides
        replica = await privileges.can_act_as_replica(sides.source)
        with tempfile.TemporaryDirectory(prefix="pglockstep-") as scratch:
            archive = await self._archive(Path(scratch))
            with translate(sides.source_end):
                async with sides.source.transaction():
                    attempt = await self._begin(replica=replica)
                    await self._fill(archive, replica=replica)
                    self._outcome = msgspec.structs.replace(
                        self._outcome, tables=tuple(self._tables), left=tuple(self._left)
                    )
                    text = msgspec.json.encode(self._outcome).decode()
                    with translate(sides.target_end):
                        await restoring.note(self._notes, msgspec.structs.replace(attempt, outcome=text))
                    failpoints.reach("refill.commit")
        failpoints.reach("refill.committed")
        return await restore_fate.with_end(sides.source, sides.source_end, self._outcome)

    async def _archive(self, scratch: Path) -> SchemaArchive:
        sides = self._sides
        major = sides.target.info.server_version // 10000
        archive = SchemaArchive(clients_for(major, os.environ), scratch)
        await archive.dump(sides.target_end, None, sorted(self._order.left_out))
        return archive

    async def _begin(self, *, replica: bool) -> Restoring:
        """Open the source's transaction: the message first, then the note on the target that it has begun."""
        sides, order = self._sides, self._order
        cursor = await sides.source.execute(
            "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text), pg_catalog.pg_current_xact_id()::text, "
            "pg_catalog.pg_backend_pid()",
            [MARKER, f"{order.link.id}:{order.incident}"],
        )
        row = await cursor.fetchone()
        assert row is not None
        if replica:
            await sides.source.execute("SET LOCAL session_replication_role = replica")
        marker, xid, pid = row
        self._outcome = msgspec.structs.replace(self._outcome, marker=str(marker))
        attempt = Restoring(self._key, xid, pid, marker)
        with translate(sides.target_end):
            await restoring.note(self._notes, attempt)
        failpoints.reach("refill.begun")
        return attempt

    async def _fill(self, archive: SchemaArchive, *, replica: bool) -> None:
        """The schema that rows need, the rows, and what needs the rows."""
        sides, order = self._sides, self._order
        schema = RefillingSchema(sides, archive, self._facts.major, order.left_out)
        await schema.before_rows()
        here, there = await _tables(sides, order.left_out)
        await restore_checks.demand_quiet(
            sides.source, sides.source_end, self._facts, here.keys(), replica=replica
        )
        for name, table in here.items():
            if name not in there:
                restore_checks.missing_on_source(name)
            rows = MissingRows(sides, table, there[name])
            await rows.refill(older=order.older)
            self._tables.append(PutBack(*name, rows.done, rows.changed, rows.left_count))
            self._left += rows.left
        await schema.after_rows()
        self._left += schema.left
        touched = [there[each.name].oid for each in self._tables if each.inserted or each.updated]
        violations = await restore_checks.violations(sides.source, sides.source_end, touched)
        self._outcome = msgspec.structs.replace(self._outcome, made=schema.made, violations=tuple(violations))


async def _tables(
    sides: Sides, left_out: Collection[QualifiedName]
) -> tuple[Mapping[QualifiedName, Table], Mapping[QualifiedName, Table]]:
    """The tables that hold rows, on the target and on the source."""
    with translate(sides.target_end):
        here = {each.name: each for each in await catalog.tables(sides.target) if each.name not in left_out}
    with translate(sides.source_end):
        there = {each.name: each for each in await catalog.tables(sides.source)}
    return here, there
