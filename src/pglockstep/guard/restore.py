"""Putting back on the source exactly what was taken there, in one transaction of the source's.

The caller holds the link's lock and applies nothing meanwhile: the target stands as it was just before the transaction that
tripped, and is only read (its session's temporary tables aside). On the source everything happens in one transaction, opened
by a message that tells the stream whose it is, as a replica, so that no trigger of an application's fires: either all of it
is there, or nothing was changed.

A kill at any instruction is gone on from by calling again: the transaction's xid was noted on the target before it could
commit, and the source knows what became of each of its xids.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep import failpoints
from pglockstep.findings import counted
from pglockstep.guard import restore_checks, restore_fate
from pglockstep.guard.restore_blockers import naming_blockers
from pglockstep.guard.restore_gone import GoneRows
from pglockstep.guard.restore_outcome import Left, Outcome, PutBack
from pglockstep.guard.restore_rows import Sides, TableRows
from pglockstep.guard.restore_schema import Remaking, move_sequences
from pglockstep.guard.restore_taken import Taken, TakenTable
from pglockstep.guard.restore_values import Values
from pglockstep.guard.rows import composed
from pglockstep.postgres import catalog, privileges
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.dump import SchemaArchive
from pglockstep.postgres.installations import clients_for
from pglockstep.postgres.names import QualifiedName, quote_if_needed
from pglockstep.postgres.privileges import Facts
from pglockstep.progress import restoring
from pglockstep.progress import target as progress
from pglockstep.progress.restoring import Restoring
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn
from pglockstep.wal.messages import LogicalMessage, Message

#: The prefix of the message that opens the transaction; its content is the link's id, a colon and the incident's.
MARKER = "pglockstep restore"

_PURPOSE = "restore"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to put back.

    `messages`: the held transaction as the source sent it, from `Begin` to `Commit`, with the descriptions of its
    tables before it; none for a DROP. `only`: of these tables, else of all. `dropped`: tables that are gone from the
    source, renamed or replaced; `known`: the OIDs that they had there. `expected`: how many rows the incident says that
    a table lost; where all of it was taken that is how an empty table on the target is told from one that was emptied,
    too. `images_since`: what the target has deleted behind this LSN belongs to it as well, of the tables in `only`;
    `spanned`: `messages` begin there, and name just those rows. `again`: it was put back before and was taken once more;
    `messages` have that as well.
    """

    link: LinkRecord
    incident: str
    messages: Iterable[Sequence[Message]] = ()
    only: tuple[QualifiedName, ...] | None = None
    dropped: tuple[QualifiedName, ...] = ()
    known: Mapping[QualifiedName, int] = {}
    expected: Mapping[QualifiedName, int] = {}
    images_since: Lsn | None = None
    spanned: bool = False
    again: bool = False


def is_restoring(message: Message, link: str) -> bool:
    """Whether this message opens a transaction by which something is put back for the link of that id. Pure."""
    return (
        isinstance(message, LogicalMessage)
        and message.prefix == MARKER
        and message.content.startswith(f"{link}:".encode())
    )


async def restore(source: End, target: End, order: Order) -> Outcome:
    """Put it back; returns what was, and what was left and why. Done already, it returns that of then.

    Raises the ends' errors, and then nothing was changed.
    """
    async with AsyncExitStack() as opened:

        async def session(end: End) -> AsyncConnection[TupleRow]:
            # everything that a table had is joined and sorted; compiling what runs once costs more than it saves
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
        restore_checks.demand_source(source, facts, order.link)
        done = await restore_fate.settled(notes, watcher, (target, source), order.incident)
        if done is not None and not order.again:
            return done
        sides = Sides(reader, writer, target, source)
        async with naming_blockers(watcher, writer, source):
            return await _Work(sides, notes, facts, order).run()


class _Work:
    """One attempt."""

    def __init__(self, sides: Sides, notes: AsyncConnection[TupleRow], facts: Facts, order: Order) -> None:
        self._sides = sides
        self._notes = notes
        self._facts = facts
        self._order = order
        self._outcome = Outcome(incident=order.incident)
        self._left: list[Left] = []
        self._tables: dict[QualifiedName, PutBack] = {}

    async def run(self) -> Outcome:
        sides = self._sides
        with translate(sides.target_end):
            here = {each.name: each for each in await catalog.tables(sides.target)}
        replica = await privileges.can_act_as_replica(sides.source)
        # temporary tables go with this transaction, whatever becomes of it
        async with sides.target.transaction(force_rollback=True):
            taken = await self._taken(here)
            with translate(sides.source_end):
                await self._commit(here, taken, replica=replica)
        return await restore_fate.with_end(sides.source, sides.source_end, self._outcome)

    async def _commit(
        self, here: Mapping[QualifiedName, Table], taken: list[TakenTable], *, replica: bool
    ) -> None:
        """The source's transaction."""
        sides = self._sides
        async with sides.source.transaction():
            attempt = await self._begin(replica=replica)
            await self._rename()
            await self._put_back(here, taken, replica=replica)
            self._outcome = msgspec.structs.replace(
                self._outcome,
                tables=tuple(self._tables[name] for name in sorted(self._tables)),
                left=tuple(self._left),
            )
            text = msgspec.json.encode(self._outcome).decode()
            with translate(sides.target_end):
                await restoring.note(self._notes, msgspec.structs.replace(attempt, outcome=text))
            failpoints.reach("restore.commit")
        failpoints.reach("restore.committed")

    async def _taken(self, here: Mapping[QualifiedName, Table]) -> list[TakenTable]:
        """What the transaction took, staged on the target."""
        order = self._order
        taken = Taken(
            self._sides.target,
            self._sides.target_end,
            here,
            order.only,
            partial(is_restoring, link=order.link.id),
        )
        batches = iter(order.messages)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            await taken.feed(batch)
        found = await taken.finish()
        if order.images_since is None:
            for each in found:
                if missing := await restore_checks.demand_there(self._sides, each):
                    name = each.table.name
                    self._tables[name] = PutBack(*name, left=missing)
                    self._left.append(Left(*name, counted(missing, "row"), "not on the target any more"))
        return found

    async def _begin(self, *, replica: bool) -> Restoring:
        """Open the source's transaction: the message first, then the note on the target that it has begun."""
        sides, order = self._sides, self._order
        with translate(sides.source_end):
            cursor = await sides.source.execute(
                "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text), pg_catalog.pg_current_xact_id()::text, "
                "pg_catalog.pg_backend_pid()",
                [MARKER, f"{order.link.id}:{order.incident}"],
            )
            row = await cursor.fetchone()
            if replica:
                await sides.source.execute("SET LOCAL session_replication_role = replica")
        assert row is not None
        marker, xid, pid = row
        self._outcome = msgspec.structs.replace(self._outcome, marker=str(marker))
        attempt = Restoring(order.incident, xid, pid, marker)
        with translate(sides.target_end):
            await restoring.note(self._notes, attempt)
        failpoints.reach("restore.begun")
        return attempt

    async def _rename(self) -> None:
        """Give tables that stand under another name their own back, where that is free: they have all their rows."""
        conn = self._sides.source
        done = []
        with translate(self._sides.source_end):
            for name in self._order.dropped:
                cursor = await conn.execute(
                    "SELECT n.nspname::text, c.relname::text, pg_catalog.to_regclass($2) IS NULL, "
                    "pg_catalog.to_regnamespace($3) IS NOT NULL FROM pg_catalog.pg_class AS c "
                    "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1 AND c.relkind = 'r'",
                    [self._order.known.get(name, 0), name.sql().as_string(), quote_if_needed(name.schema)],
                )
                row = await cursor.fetchone()
                if row is None or row[:2] == tuple(name) or not all(row[2:]):
                    continue
                now = QualifiedName(row[0], row[1])
                if now.schema != name.schema:
                    moved = QualifiedName(name.schema, now.name)
                    await conn.execute(
                        composed("ALTER TABLE {} SET SCHEMA {}", now.sql(), sql.Identifier(name.schema))
                    )
                    now, was = moved, now
                else:
                    was = now
                if now.name != name.name:
                    await conn.execute(
                        composed("ALTER TABLE {} RENAME TO {}", now.sql(), sql.Identifier(name.name))
                    )
                done.append((str(name), str(was)))
        self._outcome = msgspec.structs.replace(self._outcome, renamed=tuple(done))

    async def _put_back(
        self, here: Mapping[QualifiedName, Table], taken: list[TakenTable], *, replica: bool
    ) -> None:
        renamed = {name for name, _ in self._outcome.renamed}
        dropped = [name for name in self._order.dropped if str(name) not in renamed]
        with tempfile.TemporaryDirectory(prefix="pglockstep-") as scratch:
            remaking: Remaking | None = None
            if dropped:
                remaking = await self._survey(dropped, here, Path(scratch))
                await remaking.before_rows()
                whole = [here[name] for name in sorted({*dropped, *remaking.relations}) if name in here]
                taken = [*(each for each in taken if each.table not in whole), *_whole(whole)]
            with translate(self._sides.source_end):
                there = {each.name: each for each in await catalog.tables(self._sides.source)}
            touched = {each.table.name for each in taken} | {
                *(self._order.only or () if self._order.images_since else ())
            }
            await restore_checks.demand_quiet(
                self._sides.source, self._sides.source_end, self._facts, touched, replica=replica
            )
            for each in taken:
                if each.whole and self._order.expected.get(each.table.name):
                    await restore_checks.demand_rows(self._sides, each.table)
            await self._rows(here, there, taken)
            if remaking is not None:
                await remaking.after_rows()
                await self._finish(remaking, {*remaking.relations, *dropped}, there)
                self._left += remaking.left
                self._outcome = msgspec.structs.replace(self._outcome, made=remaking.made)
        made = remaking.relations if remaking is not None else set()
        await move_sequences(self._sides, made, [each.table.name for each in taken if each.restarted])
        violations = await restore_checks.violations(
            self._sides.source,
            self._sides.source_end,
            [there[name].oid for name in sorted(touched) if name in there],
        )
        self._outcome = msgspec.structs.replace(self._outcome, violations=tuple(violations))

    async def _survey(
        self, dropped: Sequence[QualifiedName], here: Mapping[QualifiedName, Table], scratch: Path
    ) -> Remaking:
        for name in dropped:
            restore_checks.demand_known(here, name)
        with translate(self._sides.target_end):
            target = await privileges.facts(self._sides.target)
        archive = SchemaArchive(clients_for(target.major, os.environ), scratch)
        await archive.dump(self._sides.target_end, None, ())
        remaking = Remaking(self._sides, archive, self._facts.major)
        await remaking.survey(dropped)
        return remaking

    async def _finish(
        self, remaking: Remaking, names: set[QualifiedName], there: Mapping[QualifiedName, Table]
    ) -> None:
        with translate(self._sides.target_end):
            changed = await progress.identities(self._notes)
        tables = [there[name] for name in sorted(names) if name in there]
        await remaking.finish(tables, self._order.link.publication, {each.table: "FULL" for each in changed})

    async def _rows(
        self,
        here: Mapping[QualifiedName, Table],
        there: Mapping[QualifiedName, Table],
        taken: list[TakenTable],
    ) -> None:
        """Put rows back, table by table: values first, then what is missing, then what went before."""
        order = self._order
        known = {each.table.name: each for each in taken}
        if order.images_since is not None:
            for name in order.only or ():
                if name in here and name not in known:
                    known[name] = TakenTable(here[name], -1, here[name].data_columns)
        await restore_checks.demand_writable(self._sides, sorted(known.keys() & there.keys()))
        for name, each in sorted(known.items()):
            table = there.get(name)
            if table is None:
                restore_checks.missing_on_source(name)
            if each.updated and not each.whole:
                # first: a row that only got another key gets its own back, and is not missing then
                await self._carried(Values(self._sides, each, table), "updated")
            gone = GoneRows(self._sides, each, table)
            if each.whole or each.deleted:
                await gone.put_back()
            if order.images_since is not None and (order.only is None or name in order.only):
                staged = order.spanned and each.deleted and not each.whole
                # without a key what an earlier attempt brought back that way would come once more
                if staged or not (order.spanned or (order.again and not table.primary_key)):
                    await gone.put_back_images(order.images_since, staged_only=staged)
            self._note(gone, "inserted")

    async def _carried(self, rows: Values, what: str) -> None:
        await rows.put_back()
        self._note(rows, what)

    def _note(self, rows: TableRows, what: str) -> None:
        name = rows.there.name
        before = self._tables.get(name, PutBack(*name))
        self._tables[name] = msgspec.structs.replace(
            before, **{what: rows.done, "left": before.left + rows.left_count}
        )
        self._left += rows.left


def _whole(tables: Sequence[Table]) -> list[TakenTable]:
    return [
        TakenTable(each, -1, each.data_columns, whole=True, restarted=True, deleted=True) for each in tables
    ]
