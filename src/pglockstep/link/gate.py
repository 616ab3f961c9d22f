"""The guard in the stream: every transaction is judged before it joins a batch.

What the judge can tell by itself, nearly all, it tells at once. Where it has to know more, or where a rule trips, the stream
stops before that transaction; the target gets everything before it, and then the gate asks the target, or opens the incident.

The judge outlives the sessions: it has judged what comes again after one was lost. How many rows each table holds is written
down, so that the next process need not count.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.apply.runs import Batch
from pglockstep.config.sections import LinkConfig
from pglockstep.errors import ConfigError
from pglockstep.guard import questions
from pglockstep.guard.answers import Answer, Ask, Pass, Recount, Trip
from pglockstep.guard.judge import Gone, Judge
from pglockstep.guard.policy import Rulebook
from pglockstep.guard.transaction import Transaction
from pglockstep.link import held_back, row_counts
from pglockstep.link.tallies import Tallies
from pglockstep.observe.incident import Decision, Incident, needs_decision
from pglockstep.observe.incidents import Incidents
from pglockstep.observe.state import StateDirectory
from pglockstep.postgres import catalog
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.messages import Begin, Commit

log = logging.getLogger(__name__)

T = TypeVar("T", bound="StreamGate")

#: Tables of so many rows are counted at once when their number is not known.
_SMALL = 1_000_000


class StreamGate:
    """The gate of one link; `key` names the link in the state directory."""

    def __init__(self, config: LinkConfig, key: str, state: StateDirectory, target: End) -> None:
        self._config = config
        self._key = key
        self._state = state
        self._target = target
        self._store = Incidents(state)
        self.rules = Rulebook(config.guard)
        self.judge = self._judge()
        #: what the target says is held back, by where the commit records start
        self.held: Mapping[int, Trip] = {}
        self._tallies = Tallies()
        self._copied: Mapping[QualifiedName, Lsn] = {}
        self._began = False
        self._saved = -1
        #: what is held back: the transaction, the judge's answer, and how to have it judged again
        self._transaction: Transaction | None = None
        self._answer: Answer | None = None
        self._again: Callable[[], Answer] | None = None
        #: approved, and not yet seen to be on the target
        self._approved: list[Incident] = []
        #: why tables may be dropped that are being dropped
        self._dropping: Pass | None = None

    def _judge(self) -> Judge:
        # of its own, and shared by a copy of the judge
        store, key = self._store, self._key
        return Judge(self.rules, lambda: store.allowances(key, datetime.now(UTC)))

    # --- beginning and leaving off ------------------------------------------------------------------------

    def begin(self, progress: Lsn, copied: Mapping[QualifiedName, Lsn]) -> None:
        """The stream goes on from `progress`; the tables `copied` are further."""
        counts = self.judge.counts
        self.judge.give_up()
        self.judge.allow(self._store.allowances(self._key, datetime.now(UTC)))
        self._tallies.clear()
        self._copied = copied
        self._answer = None
        if not self._began:
            self._began = True
            for each in row_counts.remembered(self._state, self._key):
                counts.recall(each, progress)
        elif progress > counts.position:
            # somebody else has brought the target on
            for each in counts.remember():
                counts.recall(each, progress)
        counts.position = max(counts.position, progress)

    def start_over(self, position: Lsn) -> None:
        """From here on it is another WAL, from `position` on: what was counted in the former one is forgotten."""
        self.judge = self._judge()
        self.judge.counts.position = position
        self._began, self._saved, self._approved = True, -1, []

    def learn(self, above: Mapping[QualifiedName, tuple[QualifiedName, ...]]) -> None:
        """What each table is a partition of, as `catalog.above` tells it: its rules may be those of the whole."""
        if self.rules.learn(above):
            self.judge.counts.rules_changed()

    async def count_unknown(
        self, conn: AsyncConnection[TupleRow], tables: Collection[QualifiedName], progress: Lsn, time: int
    ) -> None:
        """Count those of the `tables` whose rows are not known, while nobody applies; large ones are counted when it matters."""
        unknown = sorted(name for name in tables if self.rows(name) is None)
        try:
            found = await questions.count_small(conn, unknown, _SMALL)
        except psycopg.errors.InsufficientPrivilege:
            # whoever needs the number, or writes there, says which table it is
            return
        for name, rows in found.items():
            self.judge.counts.seed(name, rows, max(progress, self._copied.get(name, Lsn(0))), time)

    def seed(self, rows: Mapping[QualifiedName, int], lsns: Mapping[QualifiedName, Lsn], time: int) -> None:
        """The tables hold so many rows, each as of its LSN; seen at a time of the source's clock."""
        self._began = True
        for name, lsn in lsns.items():
            self.judge.counts.seed(name, rows[name], lsn, time)

    def forget(self, tables: Sequence[QualifiedName]) -> None:
        """These tables were changed beside the stream: they are counted anew when it matters."""
        for name in tables:
            self.judge.counts.account(name).forget()

    def rows(self, name: QualifiedName) -> int | None:
        """How many rows a table holds on the target; None while that is not known."""
        return self.judge.counts.rows(name)

    def lowest(self, name: QualifiedName) -> int | None:
        """The fewest rows that the stream itself has lately left in a table; None if it has not touched it."""
        account = self.judge.counts.accounts.get(name)
        return None if account is None else account.window.lowest()

    def stood(self, name: QualifiedName) -> int | None:
        """How many rows a table held when that was known last; None if it never was."""
        if self._began:
            return self.judge.counts.stood(name)
        return {each.name: each.rows for each in row_counts.remembered(self._state, self._key)}.get(name)

    def reached(self) -> Lsn | None:
        """Up to where everything was judged, as far as is known without the target; None if it is not."""
        return Lsn(self.judge.counts.position) if self._began else row_counts.position(self._state, self._key)

    def save(self) -> None:
        """Write down how many rows each table holds, if that has changed."""
        counts, position = self.judge.counts, Lsn(self.judge.counts.position)
        if not self._began or position == self._saved:
            return
        try:
            row_counts.save(self._state, self._key, position, counts.remember())
        except (OSError, sqlite3.Error, ConfigError) as error:
            log.debug("row counts were not written down: %s", error, extra=self._about("guard.failed"))
        else:
            self._saved = position

    def passed_over(self, position: Lsn) -> None:
        """There is nothing up to `position` that was not judged."""
        assert self._answer is None, "something is held back before that"
        self.judge.counts.position = max(self.judge.counts.position, position)

    # --- what the builder asks ----------------------------------------------------------------------------

    def whole(self, begin: Begin, commit: Commit, batch: Batch) -> bool:
        """Whether a transaction may join a batch."""
        transaction = Transaction(
            begin.xid, begin.final_lsn, commit.end_lsn, begin.commit_time, self._tallies.of(batch)
        )
        answer = self._judged(transaction)
        if type(answer) is Pass and not answer.used:
            return True
        return self._heard(transaction, answer, partial(self._judged, transaction))

    def part(self, begin: Begin, batch: Batch) -> bool:
        """Whether a part of a large transaction may go into the target's open one."""
        tallies = self._tallies.of(batch)
        transaction = Transaction(begin.xid, begin.final_lsn, 0, begin.commit_time, tallies)
        counts = self.judge.counts
        uncounted = tuple(sorted(each.shape.name for each in tallies if counts.rows(each.shape.name) is None))
        again = partial(self.judge.part, transaction)
        if uncounted and begin.final_lsn >= counts.position:
            # now, before its rows are locked by ourselves
            return self._heard(transaction, Recount(uncounted), again)
        return self._heard(transaction, again(), again)

    def end(self, begin: Begin, commit: Commit) -> bool:
        """Whether a large transaction may be committed."""
        transaction = Transaction(begin.xid, begin.final_lsn, commit.end_lsn, begin.commit_time)
        answer = self._known(transaction) or self.judge.end(transaction)
        return self._heard(transaction, answer, partial(self.judge.end, transaction))

    def _judged(self, transaction: Transaction) -> Answer:
        return self._known(transaction) or self.judge.judge(transaction)

    def _known(self, transaction: Transaction) -> Trip | None:
        """Why a transaction is held back already, by whoever came to it first; None if it is not, or was approved."""
        trip = self.held.get(transaction.final_lsn) if self.held else None
        return None if trip is None or transaction.final_lsn in self.judge.approved else trip

    def _heard(self, transaction: Transaction, answer: Answer, again: Callable[[], Answer]) -> bool:
        if isinstance(answer, Pass):
            self._use(answer)
            return True
        self._transaction, self._answer, self._again = transaction, answer, again
        return False

    # --- settling what is held back -----------------------------------------------------------------------

    async def settle(
        self, inside: AsyncConnection[TupleRow], progress: Lsn, kept: Callable[[Lsn], Awaitable[None]]
    ) -> None:
        """Find out whether what is held back may go on: the target has all before it, as of `progress`.

        `inside` is the session that applies; a large transaction is open there. Returns if it may; raises `IncidentOpen`.
        """
        trip = await self.found(inside, progress)
        if trip is not None:
            assert self._transaction is not None
            # it comes again from its beginning, if it is to come
            self.judge.give_up()
            # whoever restores reads it from the journal, also if we die now
            await kept(Lsn(self._transaction.end_lsn))
            await held_back.note(self._target, self._transaction, trip)
            raise needs_decision(self._open(self._transaction, trip))

    async def found(self, inside: AsyncConnection[TupleRow], progress: Lsn) -> Trip | None:
        """Which rule what is held back breaks, as `settle` finds it out; None if none."""
        assert self._transaction is not None
        assert self._answer is not None
        assert self._again is not None
        while not isinstance(self._answer, Pass):
            if isinstance(self._answer, Recount):
                await self._recount(self._answer.tables, progress, self._transaction.commit_time)
                self._answer = self._again()
            elif isinstance(self._answer, Ask):
                self._answer = self.judge.answer(await self._ask(inside, self._answer))
            else:
                return self._answer
        self._use(self._answer)
        self._answer = None
        return None

    @property
    def held_at(self) -> Lsn:
        """Where the commit record of the transaction starts that was held back last."""
        assert self._transaction is not None
        return Lsn(self._transaction.final_lsn)

    def twin(self, kind: type[T]) -> T:
        """A gate that judges from here on as this one would; what it notes stays its own."""
        twin = kind(self._config, self._key, self._state, self._target)
        twin.judge, twin.held = deepcopy(self.judge), self.held
        twin._copied, twin._began = self._copied, True
        return twin

    async def dropped(self, gone: Sequence[Gone], progress: Lsn, time: int) -> Incident | None:
        """Judge that tables are gone from the source, at a time of its clock; the incident, if it is one.

        The target is complete up to `progress`, and that is behind it.
        """
        self.judge.allow(self._store.allowances(self._key, now := datetime.now(UTC)))
        answer = self.judge.dropped(gone, time)
        if isinstance(answer, Recount):
            await self._recount(answer.tables, progress, time)
            answer = self.judge.dropped(gone, time)
        if isinstance(answer, Trip):
            incident = Incident(
                link=self._config.name,
                side="source",
                kind="drop",
                message=answer.message,
                tables=answer.losses,
                opened_at=now,
                happened_at=now,
            )
            names = {(each.schema, each.table) for each in answer.losses}
            for known in self._store.listed([self._key], only_open=True):
                if known.kind == "drop" and {(each.schema, each.table) for each in known.tables} == names:
                    return known
            return self.opened(incident)
        assert isinstance(answer, Pass)
        self._dropping = answer
        return None

    def dropped_here(self) -> None:
        """What `dropped` let pass was done on the target: what allowed it is used."""
        assert self._dropping is not None
        self._use(self._dropping)
        self._dropping = None
        for incident in [each for each in self._approved if each.kind == "drop"]:
            self._concluded(incident)

    def nothing_is_dropped(self) -> None:
        """The tables of a drop that was approved are there after all: nothing of it is left to be let through."""
        for incident in [each for each in self._approved if each.kind == "drop"]:
            self._approved.remove(incident)
            self.judge.withdraw(incident)
            self._store.concluded(incident.id, "approved", "the source has the tables again")

    def not_dropped_here(self) -> None:
        """It could not be done: whoever tries again is let through again."""
        self._dropping = None
        self._approved = [each for each in self._approved if each.kind != "drop"]

    async def _recount(self, tables: Sequence[QualifiedName], progress: Lsn, time: int) -> None:
        conn = await connect(self._target, "count")
        try:
            for name in tables:
                with translate(self._target):
                    rows = await questions.count(conn, name)
                lsn = max(progress, self._copied.get(name, Lsn(0)))
                self.judge.counts.seed(name, rows, lsn, time)
        finally:
            await conn.close()

    async def _ask(self, inside: AsyncConnection[TupleRow], ask: Ask) -> list[int]:
        outside = await connect(self._target, "guard")
        try:
            with translate(self._target):
                tables = {each.name: each for each in await catalog.tables(outside)}
                return [await questions.answer(inside, outside, tables, each) for each in ask.questions]
        finally:
            await outside.close()

    def _use(self, passed: Pass) -> None:
        about = self._about("guard.allowed")
        for each in passed.used:
            self._store.use(each.allowance, each.rows)
            log.info("%d rows were lost that allowance %s covers", each.rows, each.allowance, extra=about)

    # --- incidents ----------------------------------------------------------------------------------------

    def _open(self, transaction: Transaction, trip: Trip) -> Incident:
        lsn = str(Lsn(transaction.final_lsn))
        for known in self._store.listed([self._key], only_open=True):
            if known.side == "source" and known.lsn == lsn:
                return known if known.decision is None else self._more(known, trip)
        return self.opened(held_back.incident(self._config.name, transaction, trip))

    def _more(self, known: Incident, trip: Trip) -> Incident:
        """What was approved takes more than was known when that was decided: it is to be decided again, with all of it."""
        seen = {(each.schema, each.table, each.columns): each for each in (*known.tables, *trip.losses)}
        self._approved = [each for each in self._approved if each.id != known.id]
        self.judge.withdraw(known)
        self._store.change(known.id, f"it takes more: {trip.message}", tables=tuple(seen.values()))
        return self._store.undecided(known.id, f"it takes more than was known: {trip.message}")

    def opened(self, incident: Incident) -> Incident:
        """Write an incident of the source's down, and decide it where the configuration does."""
        incident = self._store.open(self._key, incident)
        log.error(
            "incident %s: %s; held: the target stays as it was before",
            incident.id,
            incident.message,
            extra=self._about("guard.held"),
        )
        rules = [self.rules.of(QualifiedName(each.schema, each.table)) for each in incident.tables]
        if rules and all(each.on_source_wipe == "restore" for each in rules):
            decision = Decision("restore", "on_source_wipe", datetime.now(UTC))
            incident = self._store.decide(incident.id, decision)
        return incident

    def let_through(self, incident: Incident, progress: Lsn) -> None:
        """`incident` was approved: what it held may pass, if it has not already."""
        if incident.lsn is not None and progress > Lsn.parse(incident.lsn):
            self._store.concluded(incident.id, "approved")
            return
        if all(each.id != incident.id for each in self._approved):
            self.judge.let_through(incident)
            self._approved.append(incident)

    def applied(self, progress: Lsn) -> None:
        """The target is complete up to `progress`: what was approved may be there by now."""
        for incident in list(self._approved):
            if incident.lsn is not None and progress > Lsn.parse(incident.lsn):
                self._concluded(incident)
                log.info("incident %s was let through", incident.id, extra=self._about("guard.approved"))

    def _concluded(self, incident: Incident) -> None:
        self._approved.remove(incident)
        self._store.concluded(incident.id, "approved")

    @property
    def awaits(self) -> bool:
        """Whether a transaction that was approved is still to come."""
        return any(each.lsn is not None for each in self._approved)

    def _about(self, action: str) -> dict[str, str]:
        return {"action": action, "link": self._config.name}
