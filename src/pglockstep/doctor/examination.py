"""Examining both ends of a link: everything that can be found out is, and nothing is changed.

No finding ends the examination. An end that cannot be reached is itself a finding, and the other end is
examined all the same; what a failed reading would have told is left out, and the failure is told instead.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TypeVar

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.compiled import is_compiled
from pglockstep.config.sections import LinkConfig
from pglockstep.copy import readiness
from pglockstep.copy import source as ours
from pglockstep.copy.selection import Selection
from pglockstep.copy.triggers import firing_findings
from pglockstep.doctor import here, readings
from pglockstep.doctor import source as judge_source
from pglockstep.doctor import target as judge_target
from pglockstep.doctor.connection import connection_findings, replication_refused
from pglockstep.doctor.readings import (
    Available,
    Extension,
    Held,
    Name,
    NamedRole,
    Place,
    Role,
    Thing,
    Waiting,
)
from pglockstep.errors import LockstepError
from pglockstep.findings import Finding, told
from pglockstep.journal import reader
from pglockstep.journal.folder import usable
from pglockstep.observe.state import StateDirectory
from pglockstep.postgres import catalog, ownership, privileges
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, connect, describe, ends, translate
from pglockstep.postgres.firing import would_fire
from pglockstep.postgres.installations import clients_for
from pglockstep.postgres.moments import slot_patience
from pglockstep.postgres.privileges import Facts
from pglockstep.postgres.replication import ReplicationConnection
from pglockstep.postgres.slots import read as read_slot
from pglockstep.progress import slots
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn

T = TypeVar("T")
_RANK = {"error": 0, "warning": 1, "info": 2}


class OpenEnd(msgspec.Struct):
    """One end that answers: its connection, and what every judgement needs of it."""

    end: End
    conn: AsyncConnection[TupleRow]
    facts: Facts
    place: Place


async def examine(link: LinkConfig, state: StateDirectory) -> list[Finding]:
    """Everything that is to be said of a link's two ends and of this machine, the serious first."""
    examination = Examination(link, state)
    async with AsyncExitStack() as stack:
        await examination.run(stack)
    return sorted(examination.found, key=lambda each: (_RANK[each.severity], each.side))


class Examination:
    """One look at both ends; `found` grows as it goes on."""

    def __init__(self, link: LinkConfig, state: StateDirectory) -> None:
        self.found: list[Finding] = []
        self._state = state
        self._link = link
        self._selection = Selection.of(link)
        self._record: LinkRecord | None = None
        #: Where the target cannot be asked, a slot of ours on the source tells that the copy was made.
        self._runs = False
        self._polls = link.mode == "poll"
        self._tables: list[Table] = []
        self._held: list[Held] = []

    async def run(self, stack: AsyncExitStack) -> None:
        """Examine the target's memory of the link first: it decides what has to be asked."""
        self._tell(here.state_findings(here.look(self._state.path), here.user()))
        source, target = await asyncio.gather(*(self._open(end, stack) for end in ends(self._link)))
        remembered = False
        if target is not None:
            with self._part(target.end):
                self._record = await progress.read(target.conn)
                remembered = True
        if source is not None:
            if not remembered:
                self._runs = await self._read(source, readings.names(source.conn, "our_slots"), []) != []
            await self._examine_source(source)
        if target is not None:
            await self._examine_target(target)
        if source is not None and target is not None:
            await self._examine_both(source, target)

    @property
    def _to_copy(self) -> bool:
        """Whether the first copy is still to be made."""
        return not self._runs if self._record is None else self._record.phase == "copying"

    def _tell(self, findings: Iterable[Finding]) -> None:
        self.found += findings

    @contextmanager
    def _part(self, end: End) -> Iterator[None]:
        """One reading, whose failure is a finding and not the end."""
        try:
            with translate(end):
                yield
        except LockstepError as error:
            self.found.append(told(error, end.side))

    async def _read(self, side: OpenEnd, reading: Awaitable[T], default: T) -> T:
        try:
            with translate(side.end):
                return await reading
        except LockstepError as error:
            self.found.append(told(error, side.end.side))
        return default

    async def _open(self, end: End, stack: AsyncExitStack) -> OpenEnd | None:
        try:
            conn = await connect(end, "doctor")
            stack.push_async_callback(conn.close)
            with translate(end):
                side = OpenEnd(end, conn, await privileges.facts(conn), await readings.place(conn))
        except LockstepError as error:
            self.found.append(told(error, end.side))
            return None
        self._tell(connection_findings(end, readings.wire(conn), side.place))
        return side

    # --- each end by itself ---------------------------------------------------------------------------

    async def _examine_source(self, source: OpenEnd) -> None:
        self._tell(privileges.source_findings(source.facts, needs_slot=self._to_copy, polls=self._polls))
        every = await self._read(source, catalog.tables(source.conn), [])
        self._tables = [table for table in every if self._selection.carries(*table.name)]
        held = await self._read(source, readings.held(source.conn), [])
        self._held = [
            each
            for each in held
            if each.kind == "sequence" or self._selection.carries(each.schema, each.name)
        ]
        large = await self._read(source, readings.large_objects(source.conn), readings.LargeObjects(0, []))
        self._tell(privileges.table_findings(source.facts, self._tables, polls=self._polls))
        self._tell(judge_source.not_streamed(() if self._polls else self._tables, self._held, large.count))
        if not source.facts.in_recovery:
            if not self._polls:
                self._tell(judge_source.retention_findings(source.place))
            if not await self._read(source, privileges.can_act_as_replica(source.conn), True):
                self._tell(judge_source.restore_findings(source.facts))
            if not self._polls:
                await self._try_replication(source)
        if self._to_copy:
            await self._examine_what_is_copied(source, large)
        elif self._record is not None:
            await self._examine_stream(source, self._record)

    async def _examine_what_is_copied(self, source: OpenEnd, large: readings.LargeObjects) -> None:
        unreadable = await self._read(source, readings.rows(source.conn, Name, "unreadable"), [])
        held = {each.qualified for each in self._held}
        names = [each.qualified for each in unreadable if each.qualified in held]
        self._tell(judge_source.unreadable_findings(source.facts.role, names, large))
        if not self._polls:
            await self._examine_what_is_decoded(source)
        if not self._selection.is_everything:
            try:
                self._selection.demand_whole(await self._read(source, ours.references(source.conn), []))
            except LockstepError as error:
                self.found.append(told(error, "source", code="left_out_but_needed"))
        try:
            clients_for(source.facts.major, os.environ)
        except LockstepError as error:
            self.found.append(told(error, "source"))

    async def _examine_what_is_decoded(self, source: OpenEnd) -> None:
        self._tell(
            readiness.identity_findings(
                self._tables, source.facts.major, self._link.without_key, self._selection
            )
        )
        patience = slot_patience(source.end)
        none: list[Waiting] = []
        waiting = await self._read(
            source, readings.rows(source.conn, Waiting, "transactions", patience), none
        )
        self._tell(judge_source.waiting_findings(waiting, source.facts.database, patience))

    async def _examine_stream(self, source: OpenEnd, record: LinkRecord) -> None:
        self._tell(slots.identity_findings(record, source.facts.identity, describe(source.end.conninfo)))
        if self._polls:
            mine = await self._read(source, readings.names(source.conn, "our_slots"), [])
            self._tell([slots.slot_left(record)] if record.slot in mine else [])
            return
        if source.facts.in_recovery:
            return
        with self._part(source.end):
            # the slot first: what it has forgotten by then is in the files already
            slot = await read_slot(source.conn, record.slot)
            self._tell(slots.slot_findings(record, slot, self._extent(record)))
        with self._part(source.end):
            published = await ours.published_tables(source.conn, source.end, record.publication)
            self._tell(judge_source.unpublished_findings(self._tables, published))

    def _extent(self, record: LinkRecord) -> tuple[Lsn, Lsn] | None:
        """From where up to where our journal has what the source sent; what is wrong with it is told."""
        folder = self._state.journal(record.id)
        try:
            with usable(folder):
                return reader.extent(folder)
        except LockstepError as error:
            self.found.append(told(error, "here", code="journal"))
        return None

    async def _try_replication(self, source: OpenEnd) -> None:
        """Whether a replication connection is let in: a pooler or pg_hba.conf may bar just these."""
        facts = source.facts
        if not (facts.superuser or facts.replication) or facts.used_senders >= facts.max_senders:
            return
        try:
            await (await ReplicationConnection.open(source.end)).close()
        except LockstepError as error:
            self.found.append(replication_refused(source.end, error.message))

    async def _examine_target(self, target: OpenEnd) -> None:
        self._tell(privileges.target_findings(target.facts, needs_copy=self._to_copy))
        self._tell(judge_target.form_findings(compiled=is_compiled()))
        if self._record is None and self._to_copy:
            held = await self._read(target, readiness.holdings(target.conn), [])
            self._tell(readiness.emptiness(held))

    # --- one end by the other -------------------------------------------------------------------------

    async def _examine_both(self, source: OpenEnd, target: OpenEnd) -> None:
        with self._part(target.end):
            await privileges.demand_distinct(source.conn, target.conn)
        if any(each.code == "same_database" for each in self.found):
            return
        self._tell(judge_target.version_findings(source.facts, target.facts))
        self._tell(privileges.encoding_findings(source.facts, target.facts))
        self._tell(privileges.hidden_row_findings(target.facts, self._tables))
        self._tell(judge_target.text_findings(source.facts, source.place, target.facts, target.place))
        await self._examine_places(source, target)
        if not target.facts.in_recovery:
            await self._examine_firing(source, target)
            makes = await self._read(target, readings.makes_databases(target.conn), True)
            mode = self._link.guard.protect_target
            self._tell(judge_target.guard_findings(target.facts, mode, makes_databases=makes))
        if self._to_copy:
            await self._examine_what_is_made(source, target)

    async def _examine_places(self, source: OpenEnd, target: OpenEnd) -> None:
        filled_by_target = False
        if source.place.has_our_schema:
            with self._part(source.end):
                record = await progress.read(source.conn)
                filled_by_target = record is not None and record.source_identity == target.facts.identity
        there = [] if self._record or self._runs else await self._read(target, readings.held(target.conn), [])
        self._tell(
            judge_target.swapped_findings(
                self._held,
                there,
                ours_on_source=source.place.has_our_schema,
                filled_by_target=filled_by_target,
            )
        )

    async def _examine_firing(self, source: OpenEnd, target: OpenEnd) -> None:
        """What is on the target already if the link runs, else what will come from the source."""
        replica = await self._read(target, privileges.can_act_as_replica(target.conn), True)
        side = source if self._to_copy else target
        firing = await self._read(side, would_fire(side.conn, replica=replica), [])
        told_of = list(firing_findings(firing, target.facts, self._selection, replica=replica))
        if not replica and not told_of:
            self._tell(judge_target.replica_findings(target.facts))
        self._tell(told_of)

    async def _examine_what_is_made(self, source: OpenEnd, target: OpenEnd) -> None:
        """What the first copy will make on the target."""
        major = target.facts.major
        wanted: list[Extension] = await self._read(
            source, readings.rows(source.conn, Extension, "extensions"), []
        )
        present = await self._read(target, readings.rows(target.conn, Extension, "extensions"), [])
        available = await self._read(target, readings.rows(target.conn, Available, "available"), [])
        self._tell(
            judge_target.extension_findings(
                target.facts,
                wanted,
                {each.name for each in present},
                {each.name: each.by_anyone for each in available},
            )
        )
        owners = await self._read(source, ownership.owners(source.conn), {})
        named = await self._read(source, readings.rows(source.conn, NamedRole, "named_roles"), [])
        roles = await self._read(target, readings.rows(target.conn, Role, "roles", major), [])
        if roles:
            self._tell(judge_target.role_findings(target.facts, set(owners.values()), named, roles))
        schemas = sorted({each.schema for each in self._held})
        barred = await self._read(target, readings.names(target.conn, "schemas", schemas), [])
        self._tell(judge_target.room_findings(target.facts, barred, source.place))
        things = await self._read(source, readings.rows(source.conn, Thing, "superuser_only"), [])
        wrappers = await self._read(source, readings.names(source.conn, "wrappers"), [])
        usable = await self._read(target, readings.names(target.conn, "usable_wrappers"), wrappers)
        self._tell(judge_target.superuser_findings(target.facts, things, sorted(set(wrappers) - set(usable))))
