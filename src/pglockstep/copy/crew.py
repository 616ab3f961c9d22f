"""The workers of a copy: each with a session on either end, taking the next unit as soon as it has done one.

A unit commits together with the note that it has arrived; once all parts of a table have, its indexes are built, each
with a note too. A killed copy goes on from these notes. No worker waits for the disk: rows and notes are forgotten
together, and the copy's last commit waits for all before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.copy.ends import Ends
from pglockstep.copy.plan import Unit
from pglockstep.copy.snapshot import mark
from pglockstep.copy.tally import Tally
from pglockstep.errors import LockstepError, leaves
from pglockstep.postgres import restore
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import connect, translate
from pglockstep.postgres.dump import Entry
from pglockstep.postgres.moments import Moment, holds, use_snapshot
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.relay import relay
from pglockstep.progress import copying
from pglockstep.progress.copying import Part
from pglockstep.progress.target import LinkRecord

#: How the sessions that fill a target are called in ``pg_stat_activity``.
PURPOSE = "copy-in"
#: Memory for building indexes, shared by all workers, in MB: enough to sort some millions of keys without a file.
_BUILD_MEMORY = 512
#: From this size on each index of a table is worth a commit of its own: it is not built again after a crash.
_LARGE = 64 << 20


class Build(msgspec.Struct, frozen=True):
    """An index, or a constraint that is one, and the statements that build it."""

    index: QualifiedName
    script: bytes
    #: of its table, in bytes
    size: int

    @property
    def shares(self) -> bool:
        """Whether others of its table can be built beside it: it takes no stronger lock than CREATE INDEX does."""
        return b"ALTER " not in self.script


class Work(msgspec.Struct, frozen=True):
    """What is still to be done: rows to copy, and indexes by the OID of their table; `rest` must wait for all of them."""

    units: Sequence[Unit]
    builds: Mapping[int, Sequence[Build]]
    rest: Sequence[Entry]


class Worker(msgspec.Struct, frozen=True):
    """A worker's two sessions."""

    source: AsyncConnection[TupleRow]
    target: AsyncConnection[TupleRow]


class Crew:
    """Copies units as of a moment, and builds what belongs to their tables. Use `hired`."""

    def __init__(self, ends: Ends, record: LinkRecord, tally: Tally, workers: Sequence[Worker]) -> None:
        self._ends = ends
        self._record = record
        self._tally = tally
        self._workers = workers

    @classmethod
    @asynccontextmanager
    async def hired(cls, ends: Ends, record: LinkRecord, tally: Tally, jobs: int) -> AsyncIterator[Crew]:
        """Workers with their sessions open: what is locked and truncated all the time must be reached soon."""
        memory = f"{max(64, _BUILD_MEMORY // jobs)}MB"

        async def leaving() -> AsyncConnection[TupleRow]:
            conn = await connect(ends.source, "copy-out")
            stack.push_async_callback(conn.close)
            return conn

        async def arriving() -> AsyncConnection[TupleRow]:
            conn = await connect(
                ends.target,
                PURPOSE,
                synchronous_commit="off",
                default_tablespace="",
                maintenance_work_mem=memory,
                # the workers are the parallelism: `jobs` is what a copy may take of the target's cores
                max_parallel_maintenance_workers="0",
            )
            stack.push_async_callback(conn.close)
            return conn

        async with AsyncExitStack() as stack:
            try:
                async with asyncio.TaskGroup() as group:
                    opening = [
                        (group.create_task(leaving()), group.create_task(arriving())) for _ in range(jobs)
                    ]
            except BaseExceptionGroup as errors:
                raise first_error(errors) from errors
            workers = [Worker(source.result(), target.result()) for source, target in opening]
            await mark(ends, record, *(worker.source for worker in workers))
            yield cls(ends, record, tally, workers)

    async def run(self, moment: Moment, work: Work) -> set[int]:
        """Do it all, or raise what went wrong first; everything that has been noted by then stands.

        Returns the OIDs of tables that were truncated or rewritten before they were read: they need a later moment.
        """
        shift = Shift(self._ends, self._record, self._tally, moment, work)
        try:
            async with asyncio.TaskGroup() as group:
                reporter = group.create_task(self._report(), name="copy progress")
                tasks = [
                    group.create_task(shift.work(worker), name=f"copy worker {number}")
                    for number, worker in enumerate(self._workers)
                ]
                for task in tasks:
                    await task
                reporter.cancel()
        except BaseExceptionGroup as errors:
            raise first_error(errors) from errors
        return shift.missed

    async def _report(self) -> None:
        while True:
            self._tally.report()
            await asyncio.sleep(0.2)


class Shift:
    """What workers share while they do the work of one moment."""

    def __init__(self, ends: Ends, record: LinkRecord, tally: Tally, moment: Moment, work: Work) -> None:
        self._ends = ends
        self._record = record
        self._tally = tally
        self._moment = moment
        self._units = deque(work.units)
        self._parts_left = {unit.table.oid: unit.parts for unit in work.units}
        self._builds = work.builds
        # of tables whose rows arrived in an earlier attempt
        self._to_build: deque[Sequence[Build]] = deque()
        #: what can be built once the first of these is done
        self._then: dict[QualifiedName, Sequence[Build]] = {}
        for oid, found in work.builds.items():
            if oid not in self._parts_left:
                self._queue(found)
        self._busy = 0
        self._changed = asyncio.Condition()
        self.missed: set[int] = set()

    async def work(self, worker: Worker) -> None:
        """One worker's share."""
        if not (self._units or self._to_build):
            return
        with translate(self._ends.source):
            await worker.source.execute("BEGIN")
            await use_snapshot(worker.source, self._moment.snapshot)
            await worker.source.execute("SAVEPOINT unit")
        while (job := await self._next()) is not None:
            if isinstance(job, Unit):
                await self._copy(worker.source, worker.target, job)
            else:
                await self._build(worker.target, job)
                self._to_build += [[each] for each in self._then.pop(job[0].index, ())]
            async with self._changed:
                self._busy -= 1
                self._changed.notify_all()
        with translate(self._ends.source):
            await worker.source.execute("ROLLBACK")

    async def _next(self) -> Unit | Sequence[Build] | None:
        """What to do next: indexes first, for they are what a copy waits for in the end; None when all is done."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._to_build or self._units or not self._busy)
            if not (self._to_build or self._units):
                return None
            self._busy += 1
            return self._to_build.popleft() if self._to_build else self._units.popleft()

    async def _copy(
        self, source: AsyncConnection[TupleRow], target: AsyncConnection[TupleRow], unit: Unit
    ) -> None:
        if unit.table.oid in self.missed:
            return
        if not await self._is_as_it_was(source, unit.table):
            self.missed.add(unit.table.oid)
            return
        sent = 0

        def moved(count: int) -> None:
            nonlocal sent
            sent += count
            self._tally.moved(count)

        # the savepoint gives the lock back: the source's users may truncate what has been read
        copies = (
            unit.copy_out.as_bytes() + b"; ROLLBACK TO SAVEPOINT unit",
            b"BEGIN; " + unit.copy_in.as_bytes(),
        )
        rows = await relay(source, target, self._ends.both, copies, moved)
        done = Part(unit.table.name, unit.part, unit.parts, self._moment.lsn, rows, sent)
        with translate(self._ends.target):
            note = copying.note_part(target, self._record.id, done)
            await target.execute(note + b"; COMMIT", prepare=False)
        self._tally.landed(sent, unit.bytes, rows)
        self._landed(unit)

    def _landed(self, unit: Unit) -> None:
        oid = unit.table.oid
        self._parts_left[oid] -= 1
        if self._parts_left[oid] or oid in self.missed:
            return
        self._tally.tables_done += 1
        if found := self._builds.get(oid):
            self._queue(found)

    def _queue(self, builds: Sequence[Build]) -> None:
        """One table's indexes: constraints want it for themselves, so they come first; of a large one the rest is shared."""
        first = [each for each in builds if not each.shares]
        rest = [each for each in builds if each.shares]
        if builds[0].size < _LARGE:
            self._to_build.append([*first, *rest])
        elif first:
            self._to_build.append(first)
            self._then[first[0].index] = rest
        else:
            self._to_build += [[each] for each in rest]

    async def _is_as_it_was(self, source: AsyncConnection[TupleRow], table: Table) -> bool:
        with translate(self._ends.source):
            if await holds(source, table):
                return True
            await source.execute("ROLLBACK TO SAVEPOINT unit")
        return False

    async def _build(self, target: AsyncConnection[TupleRow], builds: Sequence[Build]) -> None:
        """Build indexes of one table, one after the other; of a large one each is noted by itself."""
        for some in [[each] for each in builds] if builds[0].size >= _LARGE else [builds]:
            script = b";\n".join(
                each.script + copying.note_built(self._record.id, each.index) for each in some
            )
            await restore.run(
                target, self._ends.target, b"BEGIN;\n" + script + b";\nCOMMIT", what="indexes and constraints"
            )


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a group of workers failed with: one that will not pass before one that will. Pure."""
    found = leaves(errors)
    bugs = [each for each in found if not isinstance(each, LockstepError)]
    lasting = [each for each in found if isinstance(each, LockstepError) and not each.transient]
    return (bugs or lasting or found)[0]
