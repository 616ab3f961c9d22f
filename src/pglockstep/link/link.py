"""One link, opened and made ready: its first copy made, its pipeline built. Whoever calls holds the link's lock.

`level` and `keep` are the two ways of doing a link's work with it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.apply.applier import Applier
from pglockstep.config.sections import LinkConfig
from pglockstep.copy import first
from pglockstep.copy.ends import Ends
from pglockstep.copy.first import CopyResult, Wish
from pglockstep.copy.selection import Selection
from pglockstep.copy.source import end_sender
from pglockstep.copy.tally import CopyProgress
from pglockstep.errors import JournalDamaged
from pglockstep.findings import demand
from pglockstep.guard.policy import Rulebook
from pglockstep.journal.journal import Journal, Limits
from pglockstep.journal.segments import newest_head
from pglockstep.link import held_back, session
from pglockstep.link.carrier import LOCK_PATIENCE, Carrier
from pglockstep.link.gate import StreamGate
from pglockstep.link.intake import Intake
from pglockstep.link.last_images import LastImages
from pglockstep.link.memory import TargetMemory
from pglockstep.link.outlet import Outlet
from pglockstep.link.pipeline import Pipeline
from pglockstep.link.poller import Poller, polled
from pglockstep.link.standing import Standing
from pglockstep.link.states import Event
from pglockstep.observe.incident import Incident
from pglockstep.observe.incidents import Incidents
from pglockstep.observe.state import StateDirectory
from pglockstep.postgres import catalog, privileges
from pglockstep.postgres.connect import End, answered, connect, ends, fingerprint, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.privileges import Facts
from pglockstep.postgres.slots import read as read_slot
from pglockstep.progress import copying, detached, slots, source_tables
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import LAST_LSN, Lsn, human_bytes
from pglockstep.wal.frames import POSTGRES_EPOCH
from pglockstep.wal.messages import Relation
from pglockstep.wal.pgoutput import decode

log = logging.getLogger(__name__)


class Link:
    """A configured link. `key` names its pair of ends in the state directory; `on_copy` is told how far a copy is."""

    def __init__(
        self, config: LinkConfig, state: StateDirectory, on_copy: Callable[[CopyProgress], None] | None = None
    ) -> None:
        self.on_copy = on_copy
        self.config = config
        self.key = fingerprint(config.source, config.target)
        self.state = state
        self.selection = Selection.of(config)
        self.standing = Standing(config.name, self.key, state)
        source, target = ends(config)
        self.carrier = Carrier(source, target)
        self.gate = StreamGate(config, self.key, state, target)
        self.incidents = Incidents(state)
        self.memory = TargetMemory(state, self.key)
        self._images = LastImages(config, self.rules)
        #: what a daemon receives into, all the time
        self.receives: Journal | None = None
        #: what polls the source, while something does
        self.poller: Poller | None = None
        #: how often the source was marked, as far as is known here (`progress.generation`)
        self.generation = 0

    @property
    def polls(self) -> bool:
        """Whether the source is compared again and again instead of being decoded."""
        return self.config.mode == "poll"

    async def ready(self, ends: Ends, *, lasting: bool = False) -> tuple[LinkRecord, int]:
        """The link's record, with its first copy made; and how many rows that copied just now.

        `lasting`: a copy that a signal interrupts is kept, for a service that is started again.
        """
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        if record is not None:
            session.demand_identity(ends.source, ends.source_facts, record)
            if record.phase == "streaming":
                demand(privileges.source_findings(ends.source_facts, needs_slot=False, polls=self.polls))
                demand(privileges.target_findings(ends.target_facts, needs_copy=False))
                self.standing.belongs_to(record.id)
                return record, 0
        copied = await self._copy(ends, record, lasting=lasting)
        with translate(ends.target):
            record = await progress.demand(ends.target_conn)
        self.standing.belongs_to(record.id)
        return record, copied.done.rows

    async def _copy(self, ends: Ends, record: LinkRecord | None, *, lasting: bool) -> CopyResult:
        """Make the first copy, or go on with one that was interrupted."""
        self.standing.move(Event.COPY_STARTED)
        wish = Wish(
            self.selection,
            self.config.without_key,
            self.config.jobs,
            self._copied_so_far,
            lambda copied: self._catch_up(ends, copied),
            lasting,
            self.polls,
        )
        made = None
        if record is not None:
            with translate(ends.target):
                made = await copying.restored(ends.target_conn)
        if record is not None and made is not None:
            journal = await self.open_journal(record)
            try:
                extent = await journal.extent()
            finally:
                await journal.close()
            if not self.polls:
                await session.demand_slot(ends.source_conn, ends.source, record, extent)
            result = await first.resume(ends, record, wish)
        else:
            if record is not None:
                log.info("taking back a copy that had hardly begun", extra=self.about("copy.undo"))
                await first.undo(ends, record)
                self.state.drop_journal(record.id)
            result = await first.copy(ends, self.config.name, wish)
        log.info(
            "copied %d rows of %d tables in %.1f s (%s, %s/s), complete as of %s",
            result.done.rows,
            result.tables,
            result.done.seconds,
            human_bytes(result.done.sent),
            human_bytes(round(result.done.rate)),
            result.lsn,
            extra=self.about("copy.done"),
        )
        return result

    def _copied_so_far(self, how_far: CopyProgress) -> None:
        self.standing.note_copy(how_far)
        if self.on_copy is not None:
            self.on_copy(how_far)

    async def _catch_up(self, ends: Ends, copied: Mapping[QualifiedName, Lsn]) -> Lsn:
        """Bring tables that show different moments to one point; each skips what it holds already."""
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
            parts = await copying.parts(ends.target_conn)
        assert record is not None
        with translate(ends.source):
            self.gate.seed(copying.rows_of(parts), copied, await session.source_clock(ends.source_conn))
        barrier = await self.barrier(ends, record)
        async with self.applying(ends, copied=copied) as pipeline:
            await pipeline.run(until=barrier)
        return pipeline.outlet.applied

    def receive_into(self, journal: Journal, record: LinkRecord, outlet: Callable[[], Outlet | None]) -> None:
        """A daemon receives into this journal from now on; `outlet` tells who applies just now."""
        self.receives = journal
        if self.polls:
            self.poller = Poller(self, record, journal, outlet)

    async def barrier(self, ends: Ends, record: LinkRecord) -> Lsn:
        """Up to where a pipeline has to run to have all that the source has committed; 0 where it finds that out by a poll."""
        if self.polls:
            return Lsn(0)
        return await session.emit_barrier(ends.source_conn, ends.source, record.id)

    @asynccontextmanager
    async def applying(
        self, ends: Ends, *, careful: bool = False, copied: Mapping[QualifiedName, Lsn] | None = None
    ) -> AsyncIterator[Pipeline]:
        """Both halves, ready to run from the target's progress; `copied` tells of tables that are ahead of it."""
        with translate(ends.target):
            record = await progress.demand(ends.target_conn)
        assert record.progress is not None
        async with self.journal(ends.source_conn, ends.source, record) as journal:
            journal.needs(record.progress)
            applying = self.outlet(
                ends.target_conn, ends.target, ends.target_facts, journal, careful=careful, copied=copied
            )
            async with aclosing(self.carrier), applying as outlet:
                if self.polls:
                    async with polled(self, Poller(self, record, journal, lambda: outlet)) as poller:
                        yield Pipeline(journal, poller, outlet, poller.passed)
                    return
                yield Pipeline(journal, Intake(ends.source, record, journal, lambda: outlet.flushed), outlet)

    @asynccontextmanager
    async def journal(
        self, source_conn: AsyncConnection[TupleRow], source: End, record: LinkRecord
    ) -> AsyncIterator[Journal]:
        """The link's journal, from which the stream goes on without a gap; raises what says that it cannot.

        Whoever calls holds the link's lock: a sender that a killed process left behind is ended.
        """
        assert record.progress is not None
        try:
            journal = await self.open_journal(record)
        except JournalDamaged as error:
            if self.polls:
                raise _polled_anew(error, self.state.journal(record.id)) from error
            with translate(source):
                slot = await read_slot(source_conn, record.slot)
            if slot is not None and (slot.confirmed is None or slot.confirmed <= record.progress):
                folder = self.state.journal(record.id)
                raise JournalDamaged(
                    error.message,
                    hint=f"the target has all that it held, so it can go: mv {folder} {folder}.damaged, then start again",
                ) from error
            raise
        try:
            if self.polls:
                await session.demand_no_slot(source_conn, source, record)
                extent = await journal.extent()
                # what a journal lacks the next poll finds
                if extent is None or not extent[0] <= record.progress <= extent[1]:
                    await journal.begin_at(record.progress)
                yield journal
                return
            with translate(source):
                await end_sender(source_conn, record.slot)
            extent = await journal.extent()
            slot = await session.demand_slot(source_conn, source, record, extent)
            if not slots.covers(record, slot, extent):
                await journal.begin_at(record.progress)
            yield journal
        finally:
            await journal.close()

    async def open_journal(self, record: LinkRecord) -> Journal:
        """The link's journal as it is."""
        wanted = self.config.journal
        limits = Limits(wanted.segment_size, wanted.keep_size, wanted.keep_age)
        journal = await Journal.open(self.state.journal(record.id), record.id, record.source_identity, limits)
        if journal.cut:
            log.info("the journal's end was cut off: %s", journal.cut, extra=self.about("journal.cut"))
        return journal

    def known(self) -> LinkRecord | None:
        """The link as this machine remembers it while its target is away: without progress. None if it does not."""
        link_id = self.standing.link_id
        head = newest_head(self.state.journal(link_id)) if link_id else None
        if head is None:
            return None
        return LinkRecord(head.link, self.config.name, head.source, "streaming", head.created_at)

    @asynccontextmanager
    async def outlet(
        self,
        conn: AsyncConnection[TupleRow],
        target: End,
        facts: Facts,
        journal: Journal,
        *,
        careful: bool = False,
        copied: Mapping[QualifiedName, Lsn] | None = None,
    ) -> AsyncIterator[Outlet]:
        """The target's half over the session `conn`, which holds the lock, ready to run from the target's progress."""
        with answered(target, conn), translate(target):
            await session.act_as_replica(conn, target, facts, self.selection)
            record = await progress.demand(conn)
            assert record.progress is not None
            await progress.upgrade(conn)
            # what was put right, or copied, is ahead of the rest; what does not follow any more, for ever
            known = dict(copied or await copying.ahead(conn, record.progress))
            known |= dict.fromkeys(await detached.read(conn), LAST_LSN)
            followed = {oid: name for name, oid in (await source_tables.read(conn)).items()}
        self.gate.begin(record.progress, known)
        with answered(target, conn), translate(target):
            await self.learn(conn)
            self.gate.held = await held_back.known(conn, record.progress)
            here = [each.name for each in await catalog.tables(conn) if self.selection.carries(*each.name)]
            # what was just copied has been counted
            arrived = await copying.parts(conn)
            fresh = {
                name: lsn
                for name, lsn in copying.finished(arrived).items()
                if lsn >= record.progress and self.gate.rows(name) is None
            }
            self.gate.seed(copying.rows_of(arrived), fresh, _time_of(record))
            await self.gate.count_unknown(conn, here, record.progress, _time_of(record))
        self.gate.save()
        watch = await connect(target, "watch", lock_timeout=LOCK_PATIENCE)
        try:
            reader = await journal.reader(record.progress)
            try:
                applier = Applier(
                    target,
                    conn,
                    record.id,
                    record.progress,
                    careful=careful,
                    at_barrier=partial(self.carrier.carry, conn),
                    outran=self.carrier.outran,
                    catalog_conn=watch,
                    copied=known,
                    gate=self.gate,
                    keeping=self._images.keeping,
                    emptying=partial(self._images.keep_all, conn),
                    followed=followed,
                )
                with answered(target, conn, watch):
                    await applier.start()
                for description in map(decode, reader.descriptions):
                    if isinstance(description, Relation):
                        applier.announce(description)
                async with self.carrier.lent(watch):
                    yield Outlet(target, journal, reader, applier, conn, watch, self.gate, self._images.prune)
            finally:
                reader.close()
        finally:
            await watch.close()
            # a transaction that did not end belongs to nobody now
            with suppress(psycopg.Error):
                await conn.rollback()

    @property
    def rules(self) -> Rulebook:
        """The guard's rules for each table."""
        return self.gate.rules

    async def learn(self, conn: AsyncConnection[TupleRow]) -> None:
        """See which of the target's tables are partitions, and of what: rules go by it. Raises psycopg's errors."""
        above = await catalog.above(conn)
        self.gate.learn({name: each for name, each in above.items() if self.selection.carries(*name)})

    def open_incidents(self) -> list[Incident]:
        """The incidents of this link in which somebody, or the link itself, still has something to do."""
        return self.incidents.listed([self.key], only_open=True)

    def about(self, action: str) -> dict[str, str]:
        """What a log record of this link carries."""
        return {"action": action, "link": self.config.name}


def _time_of(record: LinkRecord) -> int:
    """When the last transaction that is there was committed, or it was copied: in microseconds since 2000-01-01 UTC."""
    time = record.commit_time or record.copied_at or record.created_at
    return round((time.timestamp() - POSTGRES_EPOCH) * 1_000_000)


def _polled_anew(error: JournalDamaged, folder: Path) -> JournalDamaged:
    return JournalDamaged(
        error.message,
        hint=f"the next poll finds all that it held, so it can go: mv {folder} {folder}.damaged, then start again",
    )
