"""What the source has done that is not on the target yet, judged as the stream will judge it, before anybody relies on it.

A wipe in a thousand small transactions is held at the first that was one too many; the rest of it waits in the journal. Who
restores the table means all of it. And who heals the target from the source must not bring over what the stream would hold.
So what the journal has is judged as if each transaction that trips were undone. Nothing is written anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.apply.batch import BatchBuilder
from pglockstep.errors import ApplyRefused
from pglockstep.guard import questions, restore_journal
from pglockstep.guard.answers import Ask, Pass, Question, Trip
from pglockstep.guard.restore import is_restoring
from pglockstep.link import held_back
from pglockstep.link.gate import StreamGate
from pglockstep.link.link import Link
from pglockstep.link.receiving import reached, received
from pglockstep.link.scratch import polled_apart
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, connect, ends, translate
from pglockstep.postgres.moments import Moment
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import copying
from pglockstep.progress.target import LinkRecord, is_whole
from pglockstep.units import LAST_LSN, Lsn
from pglockstep.wal.messages import Begin, Commit, Delete, Insert, Message, Relation, Truncate, Update

#: How long a table may be locked that is asked about: it may be ourselves who alter it in the heal.
_PATIENCE = "200ms"


async def belonging(
    link: Link,
    sessions: tuple[AsyncConnection[TupleRow], AsyncConnection[TupleRow]],
    target: End,
    record: LinkRecord,
    first: Lsn,
    tables: Collection[QualifiedName],
) -> list[Lsn]:
    """Where the commit records start of all transactions from `first` on that take from `tables` more than may go.

    In order; `first`, which tripped, is the first of them. Those that put something back are among them: that counts against
    what was taken. `sessions` are at the source and at the target. Raises `NotInJournal`, and the ends' errors.
    """
    there, conn = sessions
    with translate(target):
        here = {each.name: each for each in await catalog.tables(conn)}
    assert record.progress is not None
    others = dict.fromkeys(here.keys() - set(tables), LAST_LSN)
    survey = _Survey(link, record, here, first, others)
    found = [each.lsn for each in await survey.go_on(there, first)]
    return found if found[:1] == [first] else [first, *found]


class Unapplied:
    """What the source has committed behind what the target has: a heal would bring it over unjudged.

    Begin it before the heal locks anything; `there` is a session on the source, and stays open as long.
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
        #: what was judged, where the source is polled; `kept` keeps it open
        self.moment: Moment | None = None
        self.kept: AsyncExitStack | None = None

    @classmethod
    async def of(
        cls,
        link: Link,
        ends: tuple[End, End],
        sessions: tuple[AsyncConnection[TupleRow], AsyncConnection[TupleRow]],
        record: LinkRecord,
        settled: Mapping[QualifiedName, Lsn],
    ) -> Unapplied:
        """That of a target that is complete up to the progress of `record`.

        `ends` and `sessions` are the source's and the target's. `settled`: what the source did to a table before that was
        dealt with.
        """
        assert record.progress is not None
        with translate(ends[0]):
            theirs = {each.name: each for each in await catalog.tables(sessions[0])}
        with translate(ends[1]):
            here = {each.name: each for each in await catalog.tables(sessions[1])}
            # whether tables are further than that is lost where nothing of ours stands; their counts know
            stands = await is_whole(sessions[1])
            ahead = await copying.ahead(sessions[1], record.progress) if stands else {}
            if stands:
                # what led to it may have been seen elsewhere
                link.gate.held = await held_back.known(sessions[1], record.progress)
        link.gate.begin(record.progress, ahead)
        later = {name: max(lsn, ahead.get(name, lsn)) for name, lsn in settled.items()}
        survey = _Survey(link, record, here, record.progress, {**ahead, **later}, theirs)
        return cls(link, sessions[0], ends[0], record, survey)

    async def wiped(self, *, counts: bool) -> Mapping[QualifiedName, str]:
        """The tables that the source, as it stands now, has lost more of than may go, and how.

        `counts`: tables may be counted on the target, which is not so once the heal is under way. What it holds is asked
        all the same, as it was before the heal; of a table that cannot be read it counts as too much.
        """
        if self._link.polls:
            if self.moment is not None:
                return self._wiped
            assert self.kept is not None
            moment, self._survey.folder = await polled_apart(self._link, self._record, self.kept)
            beyond = await reached(self._link, self._record)
            self.moment = msgspec.structs.replace(moment, lsn=max(moment.lsn, beyond or moment.lsn))
            barrier = LAST_LSN
        else:
            barrier = await received(self._link, self._there, self._source, self._record)
        self._survey.gate.may_count = counts
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
    """Judges as the link's own gate would, and uses nothing up; for a target that may have lost rows.

    `inside` is a session at the source: what a large transaction has done is told by what the source holds now.
    """

    may_count = True
    #: how many rows a table held as of the target's progress, before anybody harmed it; None if that is not known
    before: Callable[[QualifiedName], int | None]

    def _use(self, passed: Pass) -> None:
        pass

    async def _ask(self, inside: AsyncConnection[TupleRow], ask: Ask) -> list[int]:
        outside = await connect(self._target, "guard", lock_timeout=_PATIENCE)
        try:
            with translate(self._target):
                tables = {each.name: each for each in await catalog.tables(outside)}
            return [
                await self._told(inside, outside, tables.get(each.shape.name), each) for each in ask.questions
            ]
        finally:
            await outside.close()

    async def _told(
        self,
        there: AsyncConnection[TupleRow],
        here: AsyncConnection[TupleRow],
        table: Table | None,
        question: Question,
    ) -> int:
        too_much = question.limit + 1
        columns = set() if table is None else {each.name for each in table.columns}
        if table is None or question.name not in columns:
            # there is nothing of it left that could be taken
            return 0
        if not {question.shape.columns[index] for index in question.shape.key} <= columns:
            return too_much
        coming = 0
        if question.keys is None:
            with translate(ends(self._config)[0]), suppress(psycopg.errors.UndefinedTable):
                # what it does not have it does not bring
                coming = await questions.holding_now(there, table, question)
        with translate(self._target):
            try:
                left = await questions.count(here, table.name)
                lacks = max(0, (self.before(table.name) or 0) - left)
                return await questions.answer_of_what_is_left(
                    here, table, question, lacks=lacks, coming=coming
                )
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
                return too_much

    async def _recount(self, tables: Sequence[QualifiedName], progress: Lsn, time: int) -> None:
        stood = {name: self.before(name) or 0 for name in tables}
        if self.may_count:
            await super()._recount(tables, progress, time)
        for name, rows in stood.items():
            # what it holds now may be what is left of it
            if (self.rows(name) or 0) <= rows:
                self.judge.counts.seed(name, rows, progress, time)


class _Survey:
    """Judges one transaction of the journal after the other, from `position` on; `copied` as `BatchBuilder` takes it.

    `here` are the target's tables, `theirs` the source's, by which one is judged that somebody has altered on the target.
    """

    def __init__(
        self,
        link: Link,
        record: LinkRecord,
        here: Mapping[QualifiedName, Table],
        position: Lsn,
        copied: Mapping[QualifiedName, Lsn],
        theirs: Mapping[QualifiedName, Table] | None = None,
    ) -> None:
        self.gate = link.gate.twin(_Twin)
        self.gate.before = link.gate.stood
        self.position = position
        self.folder = link.state.journal(record.id)
        self._record = record
        self._here = here
        self._theirs = theirs or {}
        self._builder = BatchBuilder(record.id, position, here.__getitem__, copied=copied, gate=self.gate)
        self._unknown: set[int] = set()

    async def go_on(
        self, inside: AsyncConnection[TupleRow], first: Lsn, until: Lsn = LAST_LSN
    ) -> list[_Found]:
        """What trips of all that is in the journal from `first` on, until what commits at `until` or later.

        What large transactions have done is counted over `inside`, a session at the source.
        """
        progress = self._record.progress
        assert progress is not None
        found: list[_Found] = []
        batches = restore_journal.onwards(self.folder, first)
        putting_back = _PuttingBack(self._record.id)
        while (messages := await asyncio.to_thread(next, batches, None)) is not None:
            for message, size in putting_back.left_out(messages, found):
                if isinstance(message, Begin) and message.final_lsn >= until:
                    return found
                if isinstance(message, Relation):
                    self._describe(message)
                elif (judged := self._judged(message)) is not None:
                    self._builder.take(judged, size)
                while self._builder.held:
                    trip = await self.gate.found(inside, progress)
                    if trip is not None and (not found or found[-1].lsn != self.gate.held_at):
                        found.append(_Found(self.gate.held_at, trip))
                    self._builder.release()
                while self._builder.ready:
                    self._builder.seal()
        return found

    def _describe(self, relation: Relation) -> None:
        name = QualifiedName(relation.schema, relation.name)
        # of what is not on the target nothing can be taken there
        for table in (self._here.get(name), self._theirs.get(name) if name in self._here else None):
            if table is not None:
                with suppress(ApplyRefused):
                    self._builder.describe(relation, table)
                    self._unknown.discard(relation.relation_id)
                    return
        self._unknown.add(relation.relation_id)

    def _judged(self, message: Message) -> Message | None:
        """What of a message is to be judged; None if it is about a table that is not."""
        if isinstance(message, Truncate):
            known = tuple([each for each in message.relation_ids if each not in self._unknown])
            return msgspec.structs.replace(message, relation_ids=known) if known else None
        if isinstance(message, (Insert, Update, Delete)) and message.relation_id in self._unknown:
            return None
        return message


class _PuttingBack:
    """Leaves out the transactions by which the link `link` has put something back on the source."""

    def __init__(self, link: str) -> None:
        self._link = link
        self._begun: Begin | None = None
        self._inside = False

    def left_out(
        self, messages: Sequence[tuple[Message, int]], found: list[_Found]
    ) -> Iterator[tuple[Message, int]]:
        """The other messages, each with its size; the transactions that were left out are added to what was `found`."""
        for message, size in messages:
            if isinstance(message, Relation):
                yield message, size
            elif isinstance(message, Begin):
                self._begun = message
            else:
                if self._begun is not None:
                    # its first message says so, if it is one
                    self._inside = is_restoring(message, self._link)
                    if self._inside:
                        found.append(_Found(Lsn(self._begun.final_lsn), None))
                    else:
                        yield self._begun, 0
                    self._begun = None
                if not self._inside:
                    yield message, size
                elif isinstance(message, Commit):
                    self._inside = False
