"""What the source has done that is not on the target yet, judged as the stream will judge it, before anybody relies on it.

A wipe in a thousand small transactions is held at the first that was one too many; the rest of it waits in the journal. Who
restores the table means all of it. And who heals the target from the source must not bring over what the stream would hold.
So what the journal has is judged as if each transaction that trips were undone. Nothing is written anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.apply.batch import BatchBuilder
from pglockstep.errors import ApplyRefused
from pglockstep.guard import restore_journal
from pglockstep.guard.answers import Ask, Pass, Trip
from pglockstep.guard.restore import is_restoring
from pglockstep.link.gate import StreamGate
from pglockstep.link.link import Link
from pglockstep.link.receiving import received
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import copying
from pglockstep.progress.target import LinkRecord
from pglockstep.units import LAST_LSN, Lsn
from pglockstep.wal.messages import Begin, Commit, Delete, Insert, Message, Relation, Truncate, Update


async def belonging(
    link: Link,
    conn: AsyncConnection[TupleRow],
    target: End,
    record: LinkRecord,
    first: Lsn,
    tables: Collection[QualifiedName],
) -> list[Lsn]:
    """Where the commit records start of all transactions from `first` on that take from `tables` more than may go.

    In order; `first`, which tripped, is the first of them. Those that put something back are among them: that counts against
    what was taken. Raises `NotInJournal`, and the target's errors.
    """
    with translate(target):
        here = {each.name: each for each in await catalog.tables(conn)}
    assert record.progress is not None
    others = dict.fromkeys(here.keys() - set(tables), LAST_LSN)
    survey = _Survey(link, record, here, first, others)
    found = [each.lsn for each in await survey.go_on(conn, first)]
    return found if found[:1] == [first] else [first, *found]


class Unapplied:
    """What the source has committed behind what the target has: a heal would bring it over unjudged.

    Begin it before the heal, with `conn` a session on the target, and `there` one on the source.
    """

    def __init__(
        self, link: Link, there: AsyncConnection[TupleRow], source: End, record: LinkRecord, survey: _Survey
    ) -> None:
        self._link = link
        self._there = there
        self._source = source
        self._record = record
        self._survey = survey
        self._judged = survey.position
        self._wiped: dict[QualifiedName, str] = {}

    @classmethod
    async def of(
        cls,
        link: Link,
        ends: tuple[End, End],
        sessions: tuple[AsyncConnection[TupleRow], AsyncConnection[TupleRow]],
        record: LinkRecord,
        settled: Mapping[QualifiedName, Lsn],
    ) -> Unapplied:
        """That of a target that stands; `ends` and `sessions` are the source's and the target's.

        `settled`: what the source did to a table before that was dealt with.
        """
        assert record.progress is not None
        with translate(ends[1]):
            here = {each.name: each for each in await catalog.tables(sessions[1])}
            ahead = await copying.ahead(sessions[1], record.progress)
        link.gate.begin(record.progress, ahead)
        later = {name: max(lsn, ahead.get(name, lsn)) for name, lsn in settled.items()}
        survey = _Survey(link, record, here, record.progress, {**ahead, **later})
        return cls(link, sessions[0], ends[0], record, survey)

    async def wiped(self, *, asks: bool) -> Mapping[QualifiedName, str]:
        """The tables that the source, as it stands now, has lost more of than may go, and how.

        `asks`: the target may be asked about them; else what cannot be told without it counts as too much.
        """
        barrier = await received(self._link, self._there, self._source, self._record)
        self._survey.gate.asks = asks
        for each in await self._survey.go_on(self._there, self._judged, barrier):
            if each.trip is not None:
                for loss in each.trip.losses:
                    self._wiped.setdefault(QualifiedName(loss.schema, loss.table), each.trip.message)
        self._judged = barrier
        return self._wiped


class _Found(NamedTuple):
    """A transaction, by where its commit record starts, and why it may not pass; None if it put something back."""

    lsn: Lsn
    trip: Trip | None


class _Twin(StreamGate):
    """Judges as the link's own gate would, and uses nothing up. Unless it `asks`, what it cannot tell counts as too much."""

    asks = True

    def _use(self, passed: Pass) -> None:
        pass

    async def _ask(self, inside: AsyncConnection[TupleRow], ask: Ask) -> list[int]:
        if self.asks:
            return await super()._ask(inside, ask)
        return [each.limit + 1 for each in ask.questions]

    async def _recount(self, tables: Sequence[QualifiedName], progress: Lsn, time: int) -> None:
        if self.asks:
            await super()._recount(tables, progress, time)
            return
        for name in tables:
            self.judge.counts.seed(name, self.stood(name) or 0, progress, time)


class _Survey:
    """Judges one transaction of the journal after the other, from `position` on; `copied` as `BatchBuilder` takes it."""

    def __init__(
        self,
        link: Link,
        record: LinkRecord,
        here: Mapping[QualifiedName, Table],
        position: Lsn,
        copied: Mapping[QualifiedName, Lsn],
    ) -> None:
        self.gate = link.gate.twin(_Twin)
        self.position = position
        self._folder = link.state.journal(record.id)
        self._record = record
        self._here = here
        self._builder = BatchBuilder(record.id, position, here.__getitem__, copied=copied, gate=self.gate)
        self._unknown: set[int] = set()

    async def go_on(
        self, inside: AsyncConnection[TupleRow], first: Lsn, until: Lsn = LAST_LSN
    ) -> list[_Found]:
        """What trips of all that is in the journal from `first` on, until what commits at `until` or later.

        What large transactions have done is counted over `inside`.
        """
        progress = self._record.progress
        assert progress is not None
        found: list[_Found] = []
        batches = restore_journal.onwards(self._folder, first)
        putting_back = _PuttingBack(self._record.id)
        while (messages := await asyncio.to_thread(next, batches, None)) is not None:
            for message in putting_back.left_out(messages, found):
                if isinstance(message, Begin) and message.final_lsn >= until:
                    return found
                if isinstance(message, Relation):
                    self._describe(message)
                elif not self._touches(message):
                    self._builder.take(message, 0)
                while self._builder.held:
                    trip = await self.gate.found(inside, progress)
                    if trip is not None and (not found or found[-1].lsn != self.gate.held_at):
                        found.append(_Found(self.gate.held_at, trip))
                    self._builder.release()
                while self._builder.ready:
                    self._builder.seal()
        return found

    def _describe(self, relation: Relation) -> None:
        try:
            self._builder.describe(relation, self._here[QualifiedName(relation.schema, relation.name)])
            self._unknown.discard(relation.relation_id)
        except (ApplyRefused, KeyError):
            # not on the target, or not as it is on the source: not to be judged here
            self._unknown.add(relation.relation_id)

    def _touches(self, message: Message) -> bool:
        """Whether it is about a table that is not to be judged."""
        if isinstance(message, Truncate):
            return not self._unknown.isdisjoint(message.relation_ids)
        return isinstance(message, (Insert, Update, Delete)) and message.relation_id in self._unknown


class _PuttingBack:
    """Leaves out the transactions by which the link `link` has put something back on the source."""

    def __init__(self, link: str) -> None:
        self._link = link
        self._begun: Begin | None = None
        self._inside = False

    def left_out(self, messages: Sequence[Message], found: list[_Found]) -> Iterator[Message]:
        """The other messages; the transactions that were left out are added to what was `found`."""
        for message in messages:
            if isinstance(message, Relation):
                yield message
            elif isinstance(message, Begin):
                self._begun = message
            else:
                if self._begun is not None:
                    # its first message says so, if it is one
                    self._inside = is_restoring(message, self._link)
                    if self._inside:
                        found.append(_Found(Lsn(self._begun.final_lsn), None))
                    else:
                        yield self._begun
                    self._begun = None
                if not self._inside:
                    yield message
                elif isinstance(message, Commit):
                    self._inside = False
