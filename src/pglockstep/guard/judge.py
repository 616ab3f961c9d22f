"""The judge: whether a transaction may go to the target. Pure.

It is told of every transaction in commit order, and answers as :mod:`pglockstep.guard.answers` says. Only a transaction that
passes is noted; one that trips, or of which more has to be known first, may be judged again as if it had not been. One
that has passed before, and comes again after the stream was interrupted, passes without being noted twice.

A transaction in memory is told at once, to `judge`. One that passes in parts is told part by part to `part`, and to `end` at
its commit, where it is decided; before that only a TRUNCATE trips, because whatever comes later does not make up for it. Its
parts are kept until it passes, or `give_up`: what tripped is judged again by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from pglockstep.guard.allowances import RANKS, Allowances, Approved, Claim, approved_at
from pglockstep.guard.answers import PASS, Answer, Ask, Pass, Question, Recount, Trip, Used
from pglockstep.guard.counts import Account, Counts
from pglockstep.guard.evidence import Evidence, Held, Suspicion
from pglockstep.guard.partitions import Shortage, shortage
from pglockstep.guard.passing import Passing
from pglockstep.guard.policy import Rulebook
from pglockstep.guard.transaction import Transaction
from pglockstep.guard.violations import (
    Uncounted,
    Violation,
    deletion,
    rows_after,
    suspected,
    truncation,
    update,
)
from pglockstep.guard.window import Clock
from pglockstep.observe.incident import Allowance, Incident, Kind, Loss
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn

#: What has to be said of a transaction that trips before its end is known.
_NOT_YET = "what else it does has not been judged yet, and is asked about if it is let through"
#: How many other tables a sentence names.
_NAMED = 3


class Gone(msgspec.Struct, frozen=True):
    """A published table that the source no longer has as it was; `how` completes "was …": dropped, renamed, replaced.

    `now`: the name that it was given.
    """

    name: QualifiedName
    how: str = "dropped"
    now: QualifiedName | None = None


class _Large:
    """What is kept of a transaction that passes in parts; `last` is the one that was noted last."""

    def __init__(self, final_lsn: int) -> None:
        self.final_lsn = final_lsn
        self.tables: dict[QualifiedName, Passing] = {}
        self.last: Transaction | None = None

    def note(self, part: Transaction) -> None:
        """Another part; one that tripped and is judged again is not noted twice."""
        if part is self.last:
            return
        self.last = part
        for tally in part.tallies:
            name = tally.shape.name
            if name not in self.tables:
                self.tables[name] = Passing(tally.shape)
            self.tables[name].add(tally)


class _Finding:
    """What a closer look at a transaction has brought up so far."""

    def __init__(self, transaction: Transaction, tallies: Sequence[Evidence]) -> None:
        self.transaction = transaction
        self.tallies = tallies
        self.uncounted: list[QualifiedName] = []
        self.tripped: list[Violation] = []
        self.beside: list[Loss] = []
        #: covered by an allowance, or by an approval: the window forgets them
        self.settled: set[QualifiedName] = set()
        self.claims: list[Claim] = []
        self.approved = False
        self.asked: list[tuple[Account, Evidence, list[Suspicion]]] = []
        self.questions: list[Question] = []


class Judge:
    """Judges one link's transactions by its configuration."""

    def __init__(self, rules: Rulebook, allowed: Callable[[], Iterable[Allowance]] | None = None) -> None:
        #: asked whenever something is to pass because it is allowed: that may have been taken back a moment ago
        self._allowed = allowed
        self.counts = Counts(rules)
        self._accounts = self.counts.accounts
        self._clock = Clock()
        self._allowances = Allowances()
        #: what may pass, and how much of it, by where the commit record starts
        self.approved: dict[int, Approved] = {}
        self._dropped: list[Approved] = []
        self._large: _Large | None = None
        self._finding: _Finding | None = None

    # --- what may pass ------------------------------------------------------------------------------------

    def allow(self, allowances: Iterable[Allowance]) -> None:
        """Have these allowances from now on, and no others."""
        self._allowances.replace(allowances)

    def let_through(self, incident: Incident) -> None:
        """Let what `incident` held pass, once; but not more than it says."""
        if incident.kind == "drop":
            self._dropped.append(Approved.of(incident))
        else:
            self.approved[approved_at(incident)] = Approved.of(incident)

    def withdraw(self, incident: Incident) -> None:
        """Do not let it pass after all."""
        if incident.kind == "drop":
            approved = Approved.of(incident)
            self._dropped = [each for each in self._dropped if each != approved]
        else:
            self.approved.pop(approved_at(incident), None)

    # --- transactions -------------------------------------------------------------------------------------

    def judge(self, transaction: Transaction) -> Answer:
        """Judge a transaction that is held in memory."""
        lsn = transaction.final_lsn
        if lsn < self.counts.position:
            return PASS
        time = self._clock.tell(transaction.commit_time)
        accounts = []
        closely = False
        for tally in transaction.tallies:
            account = self._accounts.get(tally.shape.name)
            if account is None:
                account = self.counts.account(tally.shape.name)
            step = time // account.width
            if account.step != step:
                account.reckon(step)
            accounts.append(account)
            if (
                tally.deleted > account.free_deletes
                or tally.deleted + tally.updated > account.free_changes
                or tally.truncated
            ) and lsn >= account.lsn:
                closely = True
        if closely:
            held = [Held(tally) for tally in transaction.tallies]
            return self._closely(transaction, held, time)
        for account, tally in zip(accounts, transaction.tallies, strict=True):
            came, went = tally.inserted, tally.deleted
            if (came or went) and lsn >= account.lsn and account.rows >= 0:
                account.note(came, went, account.rows + came - went, lsn, transaction.commit_time)
        self._clock.advance(transaction.commit_time)
        self.counts.position = transaction.end_lsn
        return PASS

    def part(self, transaction: Transaction) -> Pass | Trip:
        """Note a part of a large transaction; its `end_lsn` need not be known yet."""
        if transaction.final_lsn < self.counts.position:
            return PASS
        large = self._begun(transaction)
        large.note(transaction)
        finding = _Finding(transaction, ())
        time = self._clock.tell(transaction.commit_time)
        for each in large.tables.values():
            account = self.counts.account(each.shape.name)
            if each.truncated and account.rows > 0 and transaction.final_lsn >= account.lsn:
                self._judged(finding, account, truncation(account, each, transaction, complete=False), time)
        if not finding.tripped:
            return PASS
        trip = self._trip(finding)
        return msgspec.structs.replace(trip, message=f"{trip.message}; {_NOT_YET}")

    def end(self, transaction: Transaction) -> Answer:
        """Judge a large transaction at its commit; its tallies are what `part` was told."""
        if transaction.final_lsn < self.counts.position:
            return PASS
        parts = list(self._begun(transaction).tables.values())
        return self._closely(transaction, parts, self._clock.tell(transaction.commit_time))

    def give_up(self) -> None:
        """Forget the parts of a large transaction that is begun anew, or is not to come."""
        self._large = None

    def answer(self, answers: Sequence[int]) -> Pass | Trip:
        """Judge what was asked about, by the answers to its questions in their order."""
        finding, self._finding = self._finding, None
        assert finding is not None, "nothing was asked"
        assert len(answers) == len(finding.questions), "so many answers were not asked for"
        given = iter(answers)
        transaction = finding.transaction
        time = self._clock.tell(transaction.commit_time)
        for account, evidence, suspicions in finding.asked:
            found = [(each, each.rows if each.sure else each.settled(next(given))) for each in suspicions]
            self._judged(finding, account, update(account, evidence, transaction, found), time)
        if not finding.tripped:
            return self._pass(finding)
        self._note_beside(finding)
        return self._trip(finding)

    # --- tables that are gone -----------------------------------------------------------------------------

    def dropped(self, tables: Sequence[Gone], commit_time: int) -> Pass | Trip | Recount:
        """Judge that tables are gone from the source: all that were seen to be at once, at a time of its clock."""
        short = shortage(self.counts, {each.name: 0 for each in tables if each.now is None})
        uncounted = {*short.uncounted}
        losses: list[Loss] = []
        claims: list[Claim] = []
        approved: Approved | None = None
        sentence = ""
        time = self._clock.tell(commit_time)
        for gone in sorted(tables, key=lambda each: each.name):
            account = self.counts.account(gone.name)
            rows = account.rows
            if rows < 0 and (account.rules.floor or account.sharing or account.rules.drop == "hold"):
                uncounted.add(gone.name)
                continue
            why = short.reasons.get(gone.name)
            if account.rules.drop == "allow" and not account.rules.floor and not why:
                continue
            if by := next((each for each in self._dropped if each.covers(gone.name, "drop", rows)), None):
                approved = by
                continue
            step = time // account.width
            if claim := self._allowances.claim(account, "drop", rows, rows, step, commit_time, claims):
                claims.append(claim)
                continue
            losses.append(Loss(gone.name.schema, gone.name.name, rows, rows))
            held = "1 row" if rows == 1 else f"{rows} rows"
            also = f", and {why}" if why else ""
            sentence = sentence or f"{gone.name} was {gone.how} on the source: it held {held}{also}"
        if uncounted:
            return Recount(tuple(sorted(uncounted)))
        if losses:
            return Trip("drop", tuple(losses), _together(sentence, losses[1:]))
        if approved is not None:
            self._dropped.remove(approved)
        for claim in claims:
            self._allowances.take(claim, time // self.counts.account(claim.name).width)
        for gone in tables:
            self.counts.drop(gone.name)
        return Pass(_used(claims)) if claims else PASS

    # --- a closer look ------------------------------------------------------------------------------------

    def _closely(self, transaction: Transaction, tallies: Sequence[Evidence], time: int) -> Answer:
        finding = _Finding(transaction, tallies)
        short = self._short(transaction, tallies)
        finding.uncounted += short.uncounted
        for evidence in tallies:
            account = self.counts.account(evidence.shape.name)
            step = time // account.width
            account.reckon(step)
            if transaction.final_lsn < account.lsn or account.unjudged:
                continue
            try:
                if evidence.truncated:
                    loss = truncation(account, evidence, transaction, short=short.reasons.get(account.name))
                elif evidence.deleted:
                    loss = deletion(account, evidence, transaction, step, short.reasons.get(account.name))
                else:
                    loss = None
                suspicions = suspected(account, evidence)
            except Uncounted:
                account.forget()
                finding.uncounted.append(account.name)
                continue
            self._judged(finding, account, loss, time)
            if all(each.sure for each in suspicions):
                found = [(each, each.rows) for each in suspicions]
                self._judged(finding, account, update(account, evidence, transaction, found), time)
            else:
                finding.asked.append((account, evidence, suspicions))
        if finding.uncounted:
            return Recount(tuple(sorted(set(finding.uncounted))))
        # also where it trips already: whoever decides is to know all of it
        finding.questions = [
            Question(evidence.shape, each.column, each.value, account.rules.may_turn(account.rows), each.keys)
            for account, evidence, suspicions in finding.asked
            for each in suspicions
            if not each.sure
        ]
        self._finding = finding
        return Ask(tuple(finding.questions)) if finding.questions else self.answer(())

    def _short(self, transaction: Transaction, tallies: Sequence[Evidence]) -> Shortage:
        """What speaks against what the transaction leaves of tables that others are partitions of."""
        after = {}
        for evidence in tallies:
            account = self.counts.account(evidence.shape.name)
            if account.sharing and transaction.final_lsn >= account.lsn:
                with suppress(Uncounted):
                    after[account.name] = rows_after(account, evidence)
        return shortage(self.counts, after) if after else Shortage()

    def _judged(self, finding: _Finding, account: Account, violation: Violation | None, time: int) -> None:
        """Let what is allowed or approved be; the rest trips."""
        if violation is None:
            return
        rows, kind = violation.loss.rows_lost, violation.kind
        approved = self.approved.get(finding.transaction.final_lsn)
        if approved is not None and approved.covers(account.name, kind, rows):
            finding.approved = True
        else:
            if self._allowed is not None:
                self._allowances.replace(self._allowed())
            step = time // account.width
            commit_time = finding.transaction.commit_time
            claim = self._allowances.claim(
                account, kind, rows, violation.net, step, commit_time, finding.claims
            )
            if claim is None:
                finding.tripped.append(violation)
                return
            finding.claims.append(claim)
        if kind != "update":
            finding.settled.add(account.name)

    def _note_beside(self, finding: _Finding) -> None:
        """What else the transaction takes, though no rule would mind: whoever puts the one back wants the other, too."""
        tripped = {(each.loss.schema, each.loss.table) for each in finding.tripped if not each.loss.columns}
        for evidence in finding.tallies:
            name = evidence.shape.name
            account = self.counts.account(name)
            if (name.schema, name.name) in tripped or finding.transaction.final_lsn < account.lsn:
                continue
            before = account.rows if account.rows >= 0 else None
            if evidence.truncated:
                if before:
                    finding.beside.append(Loss(name.schema, name.name, before, before))
            elif evidence.deleted and (lost := evidence.lost()).rows:
                finding.beside.append(Loss(name.schema, name.name, before, lost.rows, keys=lost.keys))

    def _trip(self, finding: _Finding) -> Trip:
        """One incident of everything that tripped, with what was lost beside it."""
        found = sorted(finding.tripped, key=lambda each: -RANKS.index(each.kind))
        losses = sorted(
            [*(each.loss for each in found), *finding.beside], key=lambda each: (each.schema, each.table)
        )
        since = min((each.since_lsn for each in found if each.since_lsn), default=0)
        kind: Kind = found[0].kind
        sentence = _together(found[0].sentence, [*(each.loss for each in found[1:]), *finding.beside])
        return Trip(kind, tuple(losses), sentence, Lsn(since) if since else None)

    def _pass(self, finding: _Finding) -> Pass:
        """Note the transaction."""
        transaction = finding.transaction
        time = self._clock.tell(transaction.commit_time)
        for evidence in finding.tallies:
            account = self.counts.account(evidence.shape.name)
            if transaction.final_lsn < account.lsn or account.rows < 0:
                continue
            came, went = evidence.inserted, evidence.deleted
            after = (0 if evidence.truncated else account.rows) + came - went
            account.note(came, went, after, transaction.final_lsn, transaction.commit_time)
            if evidence.truncated or account.name in finding.settled:
                account.window.settle(after)
            account.reckon(account.step)
        for claim in finding.claims:
            account = self.counts.account(claim.name)
            self._allowances.take(claim, time // account.width)
        if finding.approved:
            del self.approved[transaction.final_lsn]
        self._large = None
        self._clock.advance(transaction.commit_time)
        self.counts.position = transaction.end_lsn
        return Pass(_used(finding.claims)) if finding.claims else PASS

    def _begun(self, transaction: Transaction) -> _Large:
        if self._large is None or self._large.final_lsn != transaction.final_lsn:
            self._large = _Large(transaction.final_lsn)
        return self._large


def _used(claims: Sequence[Claim]) -> tuple[Used, ...]:
    return tuple(Used(claim.allowance, claim.rows) for claim in claims)


def _together(first: str, others: Sequence[Loss]) -> str:
    """The first sentence, and which tables lose rows beside."""
    if not others:
        return first
    named = [
        f"{QualifiedName(loss.schema, loss.table)} ({loss.rows_lost} {'row' if loss.rows_lost == 1 else 'rows'})"
        for loss in others[:_NAMED]
    ]
    if len(others) > _NAMED:
        named.append(f"{len(others) - _NAMED} more")
    return f"{first}; also {', '.join(named)}"
