"""One poll: every table compared as of one moment of the source's, and what differs written as one transaction into the journal.

The transaction is as large as it has to be, and never held in memory: it goes into the journal in portions while the ends are
read, and from there to the guard and to the target as any other does. It is complete, and can be applied, only once all has been
read; whoever stops before that leaves one behind that did not end, which is given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep import failpoints
from pglockstep.apply.batch import BARRIER_PREFIX
from pglockstep.apply.statements import TableWriter
from pglockstep.compare.chunks import chunks
from pglockstep.compare.moves import Change, Differing, Moves, Unique, carried, described
from pglockstep.compare.pairing import Pairing, Server
from pglockstep.compare.ranges import Range
from pglockstep.compare.sessions import both
from pglockstep.errors import ApplyRefused, Inconclusive, LookAgain, first_of
from pglockstep.journal.journal import Journal
from pglockstep.link.sight import Sight
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.snapshots import Position
from pglockstep.progress import copying, detached
from pglockstep.progress import source_tables as followed
from pglockstep.progress import target as progress
from pglockstep.units import Lsn
from pglockstep.wal.encode import encode
from pglockstep.wal.messages import Begin, Commit, LogicalMessage, Relation

if TYPE_CHECKING:
    from pglockstep.link.link import Link

log = logging.getLogger(__name__)

#: What a transaction that no transaction of the source's stands behind has for its xid.
NO_XID = 0

_UNIQUE = """
SELECT n.nspname, c.relname, i.indexprs IS NOT NULL OR i.indpred IS NOT NULL OR i.indisexclusion, ARRAY(
    SELECT a.attname::text FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE k.place <= i.indnkeyatts)
FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE (i.indisunique OR i.indisexclusion) AND NOT i.indisprimary AND n.nspname !~ '^(pg_|pglockstep$)'
"""


class Paired(msgspec.Struct, frozen=True):
    """The tables that are followed and stand on both ends; names of the source's that nobody follows; what is unique here."""

    tables: Sequence[tuple[Table, Table]]
    strangers: Sequence[QualifiedName]
    unique: Mapping[QualifiedName, Unique]
    servers: tuple[Server, Server]
    #: nothing is written before this place: the target is complete up to there, or tables of its are
    beyond: Lsn


class Swept(msgspec.Struct):
    """What came of a poll: where the target is complete once it has it (None if nothing was written), and tables not read."""

    lsn: Lsn | None = None
    changes: int = 0
    skipped: dict[QualifiedName, str] = {}


async def paired(link: Link, sight: Sight) -> Paired:
    """The tables of a link as both ends have them now. Raises the ends' errors."""
    source, target = sight.ends
    with translate(source):
        theirs = {each.oid: each for each in await catalog.tables(sight.holder)}
    async with sight.pair() as (there, here):
        conn = here.conn
        with translate(target):
            ours = {each.name: each for each in await catalog.tables(conn)}
            apart, known, beyond = await _remembered(link, conn)
            cursor = await conn.execute(_UNIQUE)
            unique: dict[QualifiedName, Unique] = {}
            async for schema, name, whatever, columns in cursor:
                table = QualifiedName(schema, name)
                before = unique.get(table, Unique())
                unique[table] = Unique((*before.columns, tuple(columns)), before.whatever or whatever)
        servers = Server.of(there.conn), Server.of(here.conn)
    if not known:
        # the first time: what was copied has the names that it has there
        known = {each.name: each.oid for each in theirs.values() if each.name in ours}
    pairs = [
        (theirs[oid], ours[name])
        for name, oid in sorted(known.items())
        # what was dropped, renamed or replaced there is found by those who look for that
        if oid in theirs
        and theirs[oid].name == name
        and name in ours
        and name not in apart
        and link.selection.carries(*name)
    ]
    strangers = [
        each.name
        for each in theirs.values()
        if link.selection.carries(*each.name) and each.oid not in known.values() and each.name not in apart
    ]
    return Paired(pairs, strangers, unique, servers, beyond)


async def _remembered(
    link: Link, conn: AsyncConnection[TupleRow]
) -> tuple[Collection[QualifiedName], dict[QualifiedName, int], Lsn]:
    """What the target remembers: tables that are left alone, those that follow, by the source's OIDs, and how far it is.

    Where nothing of ours stands any more it is what we know of it. Raises psycopg's errors.
    """
    if not await progress.is_whole(conn):
        lost = link.memory.known()
        apart = () if lost is None else lost.apart
        return {QualifiedName(schema, name) for schema, name, _ in apart}, {}, Lsn(0)
    now = await progress.demand(conn)
    assert now.progress is not None
    ahead = await copying.ahead(conn, now.progress)
    beyond = max([now.progress, *ahead.values()])
    return (await detached.read(conn)).keys(), await followed.read(conn), beyond


class Sweep:
    """One poll of a link; `sent` are the descriptions of tables that the journal's readers have, kept from poll to poll.

    `lenient`: tables that do not fit each other are left out.
    """

    def __init__(
        self,
        link: Link,
        journal: Journal,
        sight: Sight,
        position: Position,
        plan: Paired,
        link_id: str,
        sent: dict[int, Relation],
        *,
        lenient: bool = False,
    ) -> None:
        self._link = link
        self._journal = journal
        self._sight = sight
        self._position = position
        self._plan = plan
        self._link_id = link_id
        self._sent = sent
        self._lenient = lenient
        self._begun: Begin | None = None
        self._written: set[QualifiedName] = set()
        self.found = Swept(skipped={})

    async def run(
        self, spared: Collection[QualifiedName], *, still: Callable[[], bool], always: bool
    ) -> Swept:
        """Compare all tables but the `spared`; `always`: write a transaction though nothing differs, for the place that it has.

        `still`: whether the target stands as it stood, asked before what was written may be applied; raises `LookAgain` if not.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for source, target in self._plan.tables:
                    if source.name not in spared:
                        group.create_task(self._table(source, target), name=f"poll {source.name}")
        except BaseExceptionGroup as failures:
            raise first_of(failures) from failures
        if not still():
            raise LookAgain("the target was changed while it was compared: compared again")
        if self._begun is None and not always:
            self._journal.heard(self._position.lsn)
            return self.found
        await self._write([])
        begun = self._begun
        assert begun is not None
        # sequences are carried with it, and to where they stand by then: behind the rows
        mark = LogicalMessage(True, begun.final_lsn, BARRIER_PREFIX, self._link_id.encode())
        end = begun.final_lsn + 1
        failpoints.reach("poll.commit")
        await self._journal.append([encode(mark), encode(Commit(begun.final_lsn, end, begun.commit_time))])
        self.found.lsn = Lsn(end)
        return self.found

    async def _table(self, source: Table, target: Table) -> None:
        pairing = carried(source, target, self._plan.servers)
        try:
            # raises what whoever applies would say of tables that do not fit
            TableWriter(described(pairing), target)
        except ApplyRefused:
            if self._lenient:
                return
            raise
        try:
            await self._compare(pairing)
        except Inconclusive as error:
            if source.name in self._written:
                # what goes would be written without what comes
                raise LookAgain(
                    f"table {source.name} could not be read to its end: {error.message}"
                ) from error
            self.found.skipped[source.name] = error.message

    async def _compare(self, pairing: Pairing) -> None:
        async with self._sight.table(pairing) as readers:
            ranges = await chunks(pairing, *readers)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._sums(pairing, each)) for each in ranges]
        except BaseExceptionGroup as failures:
            raise first_of(failures) from failures
        differing = [each for task in tasks if (each := task.result()).source != each.target]
        if not differing:
            return
        moves = Moves(pairing, self._plan.unique.get(pairing.source.name, Unique()))
        for step in (moves.going, moves.changing, moves.coming):
            for each in differing:
                async with self._sight.table(pairing) as (there, here):
                    await self._take(pairing, step(each, there, here))

    async def _sums(self, pairing: Pairing, within: Range) -> Differing:
        async with self._sight.table(pairing) as (there, here):
            return Differing(within, *await both(there.sums(within), here.sums(within)))

    async def _take(self, pairing: Pairing, changes: AsyncGenerator[list[Change]]) -> None:
        async with aclosing(changes):
            async for some in changes:
                if some:
                    self.found.changes += len(some)
                    self._written.add(pairing.source.name)
                    await self._write([*self._description(pairing), *map(encode, some)])
                    failpoints.reach("poll.part")

    def _description(self, pairing: Pairing) -> list[bytes]:
        relation = described(pairing)
        if self._sent.get(relation.relation_id) == relation:
            return []
        self._sent[relation.relation_id] = relation
        return [encode(relation)]

    async def _write(self, messages: Sequence[bytes]) -> None:
        if self._begun is None:
            place = max(self._position.lsn, self._journal.position, self._plan.beyond)
            self._begun = Begin(place, self._position.time, NO_XID)
            messages = [encode(self._begun), *messages]
        if messages:
            await self._journal.append(messages)
