"""The first copy of a link, from nothing on either end to a target complete as of an LSN; and going on with one.

On the target the schema is one transaction, each part of a table another, and what must wait for all tables the last;
each notes what it has done in its own commit. A copy that is killed, or loses an end, is gone on with: what could not be
copied of the first moment is copied of a later one, and the stream brings every table to one point before the last
transaction. A copy that fails for good takes back what it made, and nothing else. What it makes on the source is written
down on the target beforehand. The link's lock is held by the caller throughout.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import msgspec

from pglockstep.copy import readiness, snapshot
from pglockstep.copy import source as ours
from pglockstep.copy.crew import PURPOSE, Build, Crew, Work
from pglockstep.copy.ends import Ends
from pglockstep.copy.finish import finish
from pglockstep.copy.plan import units
from pglockstep.copy.selection import Selection
from pglockstep.copy.tally import CopyProgress, Tally
from pglockstep.errors import LockstepError, SourceBusy, SourceLacks, TargetBusy
from pglockstep.postgres import catalog, privileges, restore
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import connect, translate
from pglockstep.postgres.dump import Entry, SchemaArchive
from pglockstep.postgres.extents import Extent
from pglockstep.postgres.extents import read as read_extents
from pglockstep.postgres.installations import clients_for
from pglockstep.postgres.moments import Moment
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import copying
from pglockstep.progress import target as progress
from pglockstep.progress.copying import Restored
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn

log = logging.getLogger(__name__)

#: How often tables may be truncated or rewritten before they could be read.
_MOMENTS = 5

#: Brings tables that show different moments to one point by the stream; takes what each holds, gives that point.
CatchUp = Callable[[Mapping[QualifiedName, Lsn]], Awaitable[Lsn]]


class Wish(msgspec.Struct, frozen=True):
    """What is to be copied, and how. `lasting`: an interruption by signal leaves what stands, to be gone on with.

    `polls`: the source is not decoded afterwards, but polled: nothing is made there.
    """

    selection: Selection
    without_key: str
    jobs: int
    report: Callable[[CopyProgress], None]
    catch_up: CatchUp
    lasting: bool = False
    polls: bool = False


class CopyResult(msgspec.Struct, frozen=True):
    """What a first copy brought over; the target is complete as of `lsn`. `done` counts this attempt's work."""

    lsn: Lsn
    tables: int
    rows: int
    done: CopyProgress


async def copy(ends: Ends, link: str, wish: Wish) -> CopyResult:
    """Make the first copy. On a failure that does not pass, everything that it made on either end is taken back."""
    await readiness.demand_ready(ends, wish.selection, wish.without_key, polls=wish.polls)
    with translate(ends.target):
        record = await progress.create(ends.target_conn, link, ends.source_facts.identity)
    return await Attempt(ends, record, wish).run(anew=True)


async def resume(ends: Ends, record: LinkRecord, wish: Wish) -> CopyResult:
    """Go on with a copy that was interrupted; what it has finished is not copied again."""
    await _take_over(ends, record)
    return await Attempt(ends, record, wish).run(anew=False)


async def undo(ends: Ends, record: LinkRecord, *, leave_tables: bool = False) -> bool:
    """Take back what an unfinished copy, or a link that is torn down, left on the source, then on the target.

    Tables of an unfinished copy go as well, unless `leave_tables`; returns whether any stayed. A copy that was complete
    after all is left as it is, and said to be so: its last statement can outlive the process that sent it.
    """
    if record.phase == "copying":
        await _take_over(ends, record)
    with translate(ends.target):
        changed = await progress.identities(ends.target_conn)
        made = await copying.restored(ends.target_conn)
    await ours.end_work(ends.source_conn, ends.source, record.id)
    # for this may be killed as well
    await snapshot.mark(ends, record)
    await ours.drop_slot(ends.source_conn, ends.source, record.slot)
    await ours.drop_publication(ends.source_conn, ends.source, record.publication)
    await ours.set_identities_back(ends.source_conn, ends.source, changed)
    with translate(ends.target):
        async with ends.target_conn.transaction():
            if made is not None and not leave_tables:
                await ends.target_conn.execute(made.removal.encode(), prepare=False)
            await progress.forget(ends.target_conn)
    return made is not None and leave_tables


async def _take_over(ends: Ends, record: LinkRecord) -> None:
    """End what a killed process's sessions still do for this copy, on both ends."""
    await _end_copiers(ends)
    with translate(ends.target):
        now = await progress.read(ends.target_conn)
    if now is not None and now.phase != "copying":
        raise TargetBusy("the copy has just been completed", hint="the same command goes on from there")
    await ours.end_work(ends.source_conn, ends.source, record.id)


async def _end_copiers(ends: Ends) -> None:
    """End the sessions with which a killed process was copying; the lock is ours, so nobody copies any more."""
    with translate(ends.target):
        for _ in range(100):
            cursor = await ends.target_conn.execute(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
                "WHERE datname = pg_catalog.current_database() AND usename = current_user "
                "AND pg_catalog.starts_with(application_name, $1)",
                [f"pglockstep {PURPOSE} "],
            )
            if not await cursor.fetchall():
                return
            await asyncio.sleep(0.1)
    raise TargetBusy(
        "a session of a copy that was killed does not end on the target",
        hint=f"pg_stat_activity there shows which: its application_name begins with 'pglockstep {PURPOSE}'; it is tried again",
    )


class Attempt:
    """One process's work on a copy."""

    def __init__(self, ends: Ends, record: LinkRecord, wish: Wish) -> None:
        self._ends = ends
        self._record = record
        self._wish = wish
        self._tally = Tally(wish.report)
        self._stands = False

    async def run(self, *, anew: bool) -> CopyResult:
        """Copy what is still to be copied, and finish."""
        self._stands = not anew
        try:
            async with Crew.hired(self._ends, self._record, self._tally, self._wish.jobs) as crew:
                result = await (self._begin(crew) if anew else self._go_on(crew))
        except BaseException as error:
            if self._stands and _goes_on(error, anew=anew, lasting=self._wish.lasting):
                log.warning(
                    "what has been copied stands; the copy goes on from there next time",
                    extra=self._about("copy.interrupted"),
                )
            else:
                await self._undo()
            raise
        await self._analyze()
        return result

    async def _undo(self) -> None:
        try:
            await undo(self._ends, self._record)
        except LockstepError as error:
            log.warning(
                "what the copy began could not be taken back now (%s); the next start does it",
                error,
                extra=self._about("copy.undo"),
            )

    async def _begin(self, crew: Crew) -> CopyResult:
        """Everything as of the link's own first moment, as far as that can still be read."""
        ends = self._ends
        async with (
            snapshot.first(ends, self._record, self._wish.selection, polls=self._wish.polls) as (
                moment,
                tables,
            ),
            self._archive() as archive,
        ):
            log.info("copying %d tables as of %s", len(tables), moment.lsn, extra=self._about("copy.start"))
            await archive.dump(ends.source, moment.snapshot, await self._left_out())
            await self._restore_schema(moment, archive)
            work = await self._plan(tables, archive)
            if not await crew.run(moment, work):
                return await self._finish(moment, archive, work)
        return await self._go_on(crew)

    async def _go_on(self, crew: Crew) -> CopyResult:
        """What is left as of a later moment. Between that and its reading there is as little as can be."""
        ends, selection = self._ends, self._wish.selection
        async with self._archive() as archive:
            await archive.dump(ends.source, None, await self._left_out())
            tables = await snapshot.carried(ends.source_conn, ends.source, selection)
            await self._demand_same(tables, archive)
            stuck = 0
            while stuck < _MOMENTS:
                work = await self._plan(tables, archive)
                async with snapshot.later(ends, self._record, polls=self._wish.polls) as moment:
                    log.info("copying what is left as of %s", moment.lsn, extra=self._about("copy.resume"))
                    missed = await crew.run(moment, work)
                    seen = await snapshot.carried(ends.source_conn, ends.source, selection, moment.snapshot)
                    if [(each.oid, each.columns) for each in seen] != [
                        (each.oid, each.columns) for each in tables
                    ]:
                        raise _changed_schema()
                    if not missed:
                        return await self._finish(moment, archive, work)
                stuck = stuck + 1 if missed == {unit.table.oid for unit in work.units} else 0
        raise SourceBusy(
            "tables of the source keep being truncated or rewritten before they can be read",
            hint="let that rest for a moment; the copy goes on from here",
        )

    @asynccontextmanager
    async def _archive(self) -> AsyncIterator[SchemaArchive]:
        with tempfile.TemporaryDirectory(prefix="pglockstep-") as scratch:
            yield SchemaArchive(clients_for(self._ends.source_facts.major, os.environ), Path(scratch))

    async def _left_out(self) -> list[QualifiedName]:
        """The source's relations that the selection leaves out: tables, roots, views, and sequences of their columns."""
        selection, conn = self._wish.selection, self._ends.source_conn
        with translate(self._ends.source):
            cursor = await conn.execute(catalog.statement("holdings"))
            names = [QualifiedName(schema, name) async for schema, name, kind in cursor if kind != "sequence"]
            owned = await ours.owned_sequences(conn)
        sequences_of_theirs = [sequence for sequence, table in owned if not selection.carries(*table)]
        return [*selection.left_out(names), *sequences_of_theirs]

    async def _restore_schema(self, moment: Moment, archive: SchemaArchive) -> None:
        """Make what the rows need, with a note of how to take it away again."""
        ends, major = self._ends, self._ends.target_facts.major
        self._tally.enter("schema")
        with translate(ends.target):
            present = await restore.present(ends.target_conn)
        entries = await archive.entries("pre-data", present)
        script, removal, digest = await asyncio.gather(
            archive.script(entries, target_major=major),
            archive.removal(await self._to_be_made(entries), target_major=major),
            archive.digest(),
        )
        made = Restored(moment.lsn, digest, removal.decode())
        target = await connect(ends.target, PURPOSE)
        try:
            async with target.transaction():
                if await privileges.can_act_as_replica(target):
                    await target.execute("SET LOCAL session_replication_role = replica")
                await restore.run_script(target, ends.target, script, what="schema")
                with translate(ends.target):
                    await copying.note_restored(target, self._record.id, made)
        finally:
            await target.close()
        self._stands = True

    async def _to_be_made(self, entries: Sequence[Entry]) -> list[Entry]:
        """What of the schema the target does not have yet: of extensions it may have some."""
        with translate(self._ends.target):
            cursor = await self._ends.target_conn.execute("SELECT extname FROM pg_catalog.pg_extension")
            there = [name async for (name,) in cursor]
        with translate(self._ends.source):
            cursor = await self._ends.source_conn.execute(
                "SELECT tableoid, oid FROM pg_catalog.pg_extension WHERE extname = ANY ($1)", [there]
            )
            theirs = set(await cursor.fetchall())
        return [each for each in entries if (each.class_oid, each.oid) not in theirs]

    async def _demand_same(self, tables: Sequence[Table], archive: SchemaArchive) -> None:
        """Raise `SourceLacks` unless the source's schema is still the one that the target has."""
        ends = self._ends
        with translate(ends.target):
            made = await copying.restored(ends.target_conn)
        carried = {table.name for table in tables if not table.unlogged}
        published = carried
        if not self._wish.polls:
            published = await ours.published_tables(ends.source_conn, ends.source, self._record.publication)
        if made is None or made.digest != await archive.digest() or published != carried:
            raise _changed_schema()

    async def _plan(self, tables: Sequence[Table], archive: SchemaArchive) -> Work:
        """What is still to be done; of a table that has arrived in part, everything."""
        ends, conn = self._ends, self._ends.target_conn
        with translate(ends.target):
            arrived = await copying.parts(conn)
            built = await copying.built(conn)
            done = copying.finished(arrived)
            for name in {part.table for part in arrived} - done.keys():
                await copying.start_over(conn, name)
        oids = [table.oid for table in tables]
        with translate(ends.source):
            # one that is gone by now is missed when its turn comes
            extents = {oid: Extent(0, 0, ("",)) for oid in oids} | await read_extents(ends.source_conn, oids)
            cursor = await ends.source_conn.execute(_statement("indexes"), [oids])
            # as an archive knows them, with their table and name
            indexes = {
                (kind, oid): (table, QualifiedName(schema, name))
                async for kind, oid, table, schema, name in cursor
            }
        entries = await archive.entries("post-data")
        to_build = [
            each
            for each in entries
            if (each.class_oid, each.oid) in indexes and indexes[each.class_oid, each.oid][1] not in built
        ]
        scripts = await archive.scripts(to_build, target_major=ends.target_facts.major)
        builds: dict[int, list[Build]] = {}
        for entry, script in zip(to_build, scripts, strict=True):
            oid, name = indexes[entry.class_oid, entry.oid]
            builds.setdefault(oid, []).append(Build(name, script, extents[oid].bytes))
        tally = self._tally
        tally.tables, tally.tables_done = len(tables), len(done)
        tally.size = sum(extent.bytes for extent in extents.values())
        tally.size_done = sum(extents[table.oid].bytes for table in tables if table.name in done)
        tally.enter("rows")
        left = [table for table in tables if table.name not in done]
        same_major = ends.source_facts.major == ends.target_facts.major
        return Work(
            units(left, extents, self._wish.jobs, same_major=same_major),
            builds,
            [each for each in entries if (each.class_oid, each.oid) not in indexes],
        )

    async def _finish(self, moment: Moment, archive: SchemaArchive, work: Work) -> CopyResult:
        """Bring all tables to one point, and make what had to wait for that."""
        ends, record = self._ends, self._record
        with translate(ends.target):
            arrived = await copying.parts(ends.target_conn)
            made = await copying.restored(ends.target_conn)
        assert made is not None
        lsn, done = made.lsn, copying.finished(arrived)
        if any(each > lsn for each in done.values()):
            self._tally.enter("changes since")
            with translate(ends.target):
                await progress.begin_progress(ends.target_conn, record.id, lsn)
            lsn = await self._wish.catch_up(done)
        self._tally.enter("keys and the rest")
        await finish(ends, record, moment, archive, work.rest, lsn)
        return CopyResult(lsn, len(done), sum(part.rows for part in arrived), self._tally.now)

    async def _analyze(self) -> None:
        """Let the target's planner know what it holds now; the copy is good without it."""
        self._tally.enter("statistics")
        try:
            with translate(self._ends.target):
                await self._ends.target_conn.execute("ANALYZE")
        except LockstepError as error:
            log.warning("the target was not analysed: %s", error, extra=self._about("copy.analyze"))

    def _about(self, action: str) -> dict[str, str]:
        return {"action": action, "link": self._ends.target.link}


def _statement(name: str) -> bytes:
    return files("pglockstep.copy").joinpath("sql", f"{name}.sql").read_bytes()


def _changed_schema() -> SourceLacks:
    return SourceLacks(
        "the source's schema, or what include and exclude choose of it, has changed since the copy began; "
        "what is on the target already does not fit any more",
        hint="start over: pglockstep teardown, empty the target, pglockstep once",
    )


def _goes_on(error: BaseException, *, anew: bool, lasting: bool) -> bool:
    """Whether what has been copied is kept after this error, to be gone on with. Pure."""
    if isinstance(error, asyncio.CancelledError):
        return lasting
    if not isinstance(error, LockstepError):
        return False
    # what an earlier attempt left is not thrown away because the source does not let us go on with it
    return error.transient or (not anew and isinstance(error, SourceLacks))
