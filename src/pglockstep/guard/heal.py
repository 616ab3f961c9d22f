"""Putting back what the target lost, from the source, while the source is in use.

Promised: afterwards every table that was looked at holds, row for row, what the source held at one LSN, in one commit on
the target together with a note of that LSN; everything of the source's schema that was missing is there again; nothing
else was touched, but that what foreign sessions added to the rows and columns of these tables is gone.

**Why it is exact.** Rows are read in a snapshot that a temporary slot exports: that shows exactly the transactions whose
commit record starts before the slot's LSN. The target's progress is behind that; the tables that were put right are
ahead of it, each noted in ``pglockstep.copied`` as a first copy would, and the stream skips for each what it holds
already. Reading at a barrier instead, and taking what the stream then brings with tolerance, would guess at rows without
a key; and no LSN read beside an ordinary snapshot is exact, since a commit is in the WAL before it is visible. The price:
making a slot waits for the transactions that write on the source at that moment. Where the source is polled an ordinary
snapshot will do: whatever is behind it the next poll finds. A table that is truncated or rewritten
between a moment and its turn is read as of a later one.

The caller holds the link's lock, has stopped applying, and starts again from the target's progress with `copying.ahead`.
A failure rolls everything back; the session it was given is then to be closed, as a relay may have been cut short.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep import failpoints
from pglockstep.errors import SourceBusy, TooMuchLost
from pglockstep.guard import database as databases
from pglockstep.guard import missing as schemas
from pglockstep.guard import watch
from pglockstep.guard.database import Database
from pglockstep.guard.mend import Mended, Mender
from pglockstep.guard.missing import Missing
from pglockstep.guard.rebuild import Ends, drop_columns, rename_back, schema
from pglockstep.postgres import catalog, extents, sequences
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.extents import Extent
from pglockstep.postgres.moments import Moment, create_slot, holds, use_snapshot
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.replication import ReplicationConnection
from pglockstep.progress import copying
from pglockstep.progress import target as progress
from pglockstep.progress.target import ChangedIdentity, LinkRecord
from pglockstep.units import Lsn

#: How often tables may be truncated or rewritten on the source before they could be read.
_MOMENTS = 5


class Remembered(msgspec.Struct, frozen=True):
    """What has to be known of a target that may lose anything: read while it stands, and after each heal; kept elsewhere.

    `tables` by schema, name and OID: one that was renamed is still the same.
    """

    record: LinkRecord
    identities: tuple[ChangedIdentity, ...]
    database: Database
    tables: tuple[tuple[str, str, int], ...] = ()


class Wish(msgspec.Struct, frozen=True):
    """What to heal: of the tables that are not `left_out`, the `suspects`, or all if that is None.

    Beside them every table that is missing or lacks a column, and what foreign keys tie to these. `mode`: how the tables
    are to be watched from the heal's own commit on; None for not at all. `stood`: the columns that the target had when all
    was well, by schema, table and name; what the source does not have of them any more is no harm of the target's. `judge` is
    told before the commit what was done to each table, and may look at it over the same session; what it raises undoes all
    of it. `moment`: the source is polled: an ordinary snapshot of it will do, which is open already.
    """

    left_out: frozenset[QualifiedName] = frozenset()
    suspects: frozenset[QualifiedName] | None = None
    mode: watch.Mode | None = "watch"
    stood: frozenset[tuple[str, str, str]] = frozenset()
    judge: Callable[[Mapping[QualifiedName, Mended]], Awaitable[None]] | None = None
    moment: Moment | None = None


class Healed(msgspec.Struct, frozen=True):
    """What was put back: objects by their names, and rows of every table that was looked at; `seconds` by their use."""

    made: tuple[str, ...]
    tables: Mapping[QualifiedName, Mended]
    seconds: Mapping[str, float]

    @property
    def put_back(self) -> int:
        """How many rows came back."""
        return sum(each.put_back for each in self.tables.values())

    @property
    def removed(self) -> int:
        """How many rows that the source does not have were taken away."""
        return sum(each.removed for each in self.tables.values())


async def remember(conn: AsyncConnection[TupleRow]) -> Remembered:
    """What has to be known of this target. Raises psycopg's errors, and `TargetError` where nothing of ours is there any more."""
    record = await progress.demand(conn)
    cursor = await conn.execute(
        "SELECT n.nspname, c.relname, c.oid FROM pg_catalog.pg_class AS c "
        "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' "
        "AND n.nspname !~ '^(pg_|pglockstep$|information_schema$)' ORDER BY 1, 2"
    )
    tables = tuple([(schema, name, oid) async for schema, name, oid in cursor])
    return Remembered(record, tuple(await progress.identities(conn)), await databases.read(conn), tables)


async def open_again(target: End, remembered: Remembered) -> AsyncConnection[TupleRow]:
    """A session at a target that may have lost its database, which is then made again, empty; and its lock is not taken."""
    await databases.make_again(target, remembered.database)
    return await connect(target, "heal")


async def heal(
    source: End, target: End, conn: AsyncConnection[TupleRow], remembered: Remembered, wish: Wish
) -> Healed:
    """Heal the target behind `conn`. Raises the ends' errors; what passes by itself is worth another try."""
    there = await connect(source, "heal")
    try:
        return await Healing(Ends(source, target, there, conn), remembered, wish).run()
    finally:
        await there.close()


class Healing:
    """One heal."""

    def __init__(self, ends: Ends, remembered: Remembered, wish: Wish) -> None:
        self._ends = ends
        self._remembered = remembered
        self._wish = wish
        self._seconds: dict[str, float] = {}

    async def run(self) -> Healed:
        """Heal, in one transaction on the target."""
        ends = self._ends
        async with ends.here.transaction():
            failpoints.reach("heal.begun")
            anew = await self._be_ours()
            with self._timed("catalog"):
                with translate(ends.source):
                    tables = await self._carried()
                    wanted = await schemas.read(ends.there)
                with translate(ends.target):
                    await rename_back(ends.here, self._remembered.tables)
                    lacks = schemas.missing(wanted, await schemas.read(ends.here), self._wish.left_out)
                    self._demand_columns(lacks)
                    if lacks.dropped:
                        # what stands on these goes with them, and is missing from then on
                        await drop_columns(ends.here, lacks)
                        lacks = schemas.missing(wanted, await schemas.read(ends.here), self._wish.left_out)
            async with schema(ends, lacks, self._wish.left_out, self._timed):
                chosen = await self._chosen(tables, lacks, everything=anew)
                mended, lsns = await self._rows(chosen, lacks.at_one_moment)
            with self._timed("the rest"):
                await self._follow_up(tables)
                await self._note(mended, lsns, anew=anew)
            if self._wish.judge is not None:
                with translate(ends.target):
                    await self._wish.judge(mended)
            failpoints.reach("heal.commit")
        failpoints.reach("heal.committed")
        return Healed(lacks.names, mended, self._seconds)

    def _demand_columns(self, lacks: schemas.Missing) -> None:
        """Raise `TooMuchLost` if a column would go that stood here: then it is the source that has lost it."""
        again = {each.place for each in lacks.added}
        for each in lacks.dropped:
            if each.place in self._wish.stood and each.place not in again:
                raise TooMuchLost(
                    f"column {each.name} of table {each.owner} is not on the source any more, and the target has it",
                    hint="if it was meant: drop it on the target, too; else put it back on the source; then decide again",
                )

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[what] = self._seconds.get(what, 0.0) + time.monotonic() - began

    async def _carried(self) -> dict[QualifiedName, Table]:
        found = await catalog.tables(self._ends.there)
        return {each.name: each for each in found if each.name not in self._wish.left_out}

    async def _be_ours(self) -> bool:
        """Make our schema again if it is gone, and have the watch know us; true if how far the target was is lost."""
        conn = self._ends.here
        with translate(self._ends.target):
            await watch.act_as_replica(conn)
            anew = not await progress.is_whole(conn)
            if anew:
                await progress.make_again(conn, self._remembered.record, self._remembered.identities)
            await progress.upgrade(conn)
            await watch.be_ours(conn)
        return anew

    async def _chosen(
        self, tables: Mapping[QualifiedName, Table], lacks: Missing, *, everything: bool
    ) -> list[Table]:
        """The tables to put right."""
        if everything or self._wish.suspects is None:
            return list(tables.values())
        named = self._wish.suspects | lacks.tables | lacks.altered | lacks.at_one_moment
        with translate(self._ends.target):
            named |= await watch.leaves(self._ends.here, named)
        return [each for name, each in tables.items() if name in named]

    async def _rows(
        self, tables: Sequence[Table], together: Collection[QualifiedName]
    ) -> tuple[dict[QualifiedName, Mended], dict[QualifiedName, Lsn]]:
        """Put the tables right, those that must stand `together` as of one moment; and what moment each shows."""
        ends = self._ends
        mended: dict[QualifiedName, Mended] = {}
        lsns: dict[QualifiedName, Lsn] = {}
        mender = Mender(ends.both, ends.there, ends.here, same_major=ends.source_major == ends.target_major)
        missed, stuck = list(tables), 0
        while missed:
            if stuck == _MOMENTS:
                raise SourceBusy(
                    f"tables of the source keep being truncated or rewritten before they can be read: {missed[0].name}",
                    hint="let that rest for a moment; the heal is tried again",
                )
            if any(each.name in together for each in missed):
                missed = [each for each in tables if each in missed or each.name in together]
            before, left = len(missed), []
            async with self._moment() as moment:
                now = await self._as_planned(missed)
                with self._timed("rows"):
                    for table in missed:
                        if (done := await self._mend(mender, table, now[table.oid])) is None:
                            left.append(table)
                            continue
                        mended[table.name] = mended.get(table.name, Mended()) + done
                        lsns[table.name] = moment.lsn
            missed = left
            stuck = stuck + 1 if len(missed) == before else 0
        return mended, lsns

    @asynccontextmanager
    async def _moment(self) -> AsyncIterator[Moment]:
        """A moment of the source, in a transaction that sees it."""
        source, there = self._ends.source, self._ends.there
        if (moment := self._wish.moment) is not None:
            with translate(source):
                await there.execute("BEGIN")
                await use_snapshot(there, moment.snapshot)
            yield moment
            with translate(source):
                await there.execute("ROLLBACK")
            return
        # making the slot has a patience of its own
        stream = await ReplicationConnection.open(msgspec.structs.replace(source, lock_timeout=0.0))
        try:
            name = f"{self._remembered.record.slot}_heal_{secrets.token_hex(3)}"
            with self._timed("moment"):
                slot = await create_slot(stream, there, source, name, temporary=True)
            moment = Moment(slot.lsn, slot.snapshot)
            with translate(source):
                await there.execute("BEGIN")
                await use_snapshot(there, moment.snapshot)
            yield moment
            with translate(source):
                await there.execute("ROLLBACK")
        finally:
            await stream.close()

    async def _as_planned(self, tables: Sequence[Table]) -> dict[int, Extent]:
        """The extents of these tables; raises `SourceBusy` if one is not any more what the schema was made for."""
        with translate(self._ends.source):
            now = await self._carried()
            sizes = await extents.read(self._ends.there, [each.oid for each in tables])
        for each in tables:
            found = now.get(each.name)
            if found is None or (found.oid, found.columns) != (each.oid, each.columns):
                raise SourceBusy(
                    f"table {each.name} was changed on the source while the target was being healed",
                    hint="the heal is tried again",
                )
        # one that is gone by now is missed when its turn comes
        return {each.oid: Extent(0, 0, ("",)) for each in tables} | sizes

    async def _mend(self, mender: Mender, table: Table, size: Extent) -> Mended | None:
        """Put one table right; None if it does not hold any more what the moment shows of it."""
        source, there = self._ends.source, self._ends.there
        with translate(source):
            await there.execute("SAVEPOINT table_read")
            done = await mender.mend(table, size) if await holds(there, table) else None
            # gives the lock back: the source's users may truncate what has been read
            await there.execute("ROLLBACK TO SAVEPOINT table_read")
        return done

    async def _follow_up(self, tables: Collection[QualifiedName]) -> None:
        """Sequences, which are in no stream, and the watch."""
        with translate(self._ends.source):
            ahead = await sequences.read(self._ends.there)
        conn = self._ends.here
        with translate(self._ends.target):
            mine = {(each.schema, each.name): each for each in await sequences.read(conn)}
            behind = [
                each
                for each in ahead
                if (found := mine.get((each.schema, each.name))) is not None and found.steps_to(each) > 0
            ]
            await sequences.move(conn, behind)
            if self._wish.mode is not None:
                await watch.install(conn, sorted(tables), self._wish.mode)

    async def _note(
        self, mended: Mapping[QualifiedName, Mended], lsns: Mapping[QualifiedName, Lsn], *, anew: bool
    ) -> None:
        """How far each table is now; and the link, if that was lost: as far as the table that is the least far."""
        link = self._remembered.record.id
        with translate(self._ends.target):
            for name, lsn in lsns.items():
                await copying.note_again(self._ends.here, link, name, lsn, mended[name].put_back)
            if anew and lsns:
                await progress.begin_progress(self._ends.here, link, min(lsns.values()))
