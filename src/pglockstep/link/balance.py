"""Whether a heal may be committed: nothing that stood on the target may be gone afterwards that its rules would not let go.

A heal makes the target what the source is. If the source was wiped as well, that would be the wipe, by a side door.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from types import MappingProxyType

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.errors import LockstepError, TooMuchLost
from pglockstep.findings import counted, listed
from pglockstep.guard import questions
from pglockstep.guard.allowances import covers
from pglockstep.guard.counts import DAY
from pglockstep.guard.mend import Mended
from pglockstep.guard.partitions import below
from pglockstep.guard.policy import Rules
from pglockstep.link.link import Link
from pglockstep.observe.incident import Kind
from pglockstep.postgres.names import QualifiedName


class Intact(TooMuchLost):
    """Tables that the target still holds as they stood would lose rows: it is the source that lost them."""

    def __init__(self, tables: Mapping[QualifiedName, str]) -> None:
        super().__init__("; ".join(tables.values()))
        self.tables = frozenset(tables)


class Differs(LockstepError):
    """Something would be changed where nothing may be without a decision."""


class Balance:
    """What a heal over `conn` did to each table, judged before its commit.

    `named`: tables of which it is known that they were harmed, or that somebody has decided to restore. `time`: the source's
    clock, in microseconds since 2000. `again`: tables that are to follow again, of which so many rows may be gone or changed as
    a person has `confirmed`. `compares`: nothing is to be changed.
    """

    def __init__(
        self,
        link: Link,
        conn: AsyncConnection[TupleRow],
        named: Collection[QualifiedName],
        time: int,
        *,
        again: Collection[QualifiedName] = (),
        confirmed: int = 0,
        compares: bool = False,
    ) -> None:
        self._link = link
        self._conn = conn
        self._named = named
        self._time = time
        self._again = again
        self._confirmed = confirmed
        self._compares = compares
        #: how many rows each table held before it was harmed, as far as that is known, and how many it holds now
        self.stood: dict[QualifiedName, int] = {}
        self.rows: dict[QualifiedName, int] = {}
        #: how many each has lost by it, that nobody had said may go
        self.lost: dict[QualifiedName, int] = {}
        self._used: dict[str, int] = {}

    async def judge(
        self,
        mended: Mapping[QualifiedName, Mended],
        wiped: Mapping[QualifiedName, str] = MappingProxyType({}),
    ) -> None:
        """Raise `TooMuchLost`, which undoes the heal, if it takes more than it may; `Differs` if it was only to compare.

        `wiped`: tables in which the source has done what the stream would hold, and what that was.
        """
        harmed: dict[QualifiedName, str] = {}
        intact: dict[QualifiedName, str] = {}
        self._used = {}
        await self._link.learn(self._conn)
        for name, done in mended.items():
            now = await questions.count(self._conn, name)
            before = now - done.put_back + done.removed
            known = self._link.gate.stood(name)
            self.rows[name] = now
            self.stood[name] = stood = before if known is None else known
            if name in self._again:
                continue
            self.lost[name] = max(0, stood - now)
            which = intact if before >= stood and name not in self._named else harmed
            undone = known is not None and was_undone(self._link.rules.of(name), stood, before, done.removed)
            # a table that is whole is left to the stream, which holds what was undone as well
            if name in wiped and (done.put_back or done.removed) and (which is intact or not undone):
                which[name] = wiped[name]
            elif self._is_too_much(name, stood, now, whole=before >= stood):
                which[name] = (
                    f"table {name} would hold {counted(now, 'row')} on the target where {stood} stood"
                )
        for name, sentence in (await self._short(mended)).items():
            whole = self.rows[name] - mended[name].put_back + mended[name].removed >= self.stood[name]
            which = intact if whole and name not in self._named else harmed
            which.setdefault(name, sentence)
        removed = sum(done.removed for name, done in mended.items() if name in self._again)
        if removed > self._confirmed:
            raise TooMuchLost(
                f"{counted(removed, 'row')} of the target's would be gone or changed, and {self._confirmed} were confirmed",
                hint="the same command again tells the number of now",
            )
        if harmed:
            raise lost_on_both(harmed)
        if intact:
            raise Intact(intact)
        if self._compares and any(done.put_back or done.removed for done in mended.values()):
            raise Differs

    async def _short(self, mended: Mapping[QualifiedName, Mended]) -> dict[QualifiedName, str]:
        """Tables that may not lose what they do, because all partitions of something would hold too little; and why."""
        found: dict[QualifiedName, str] = {}
        rules = self._link.rules
        for root, partitions in rules.shared.items():
            losing = [name for name in partitions if name in mended and self.lost.get(name)]
            if not losing:
                continue
            now = {
                name: self.rows[name] if name in self.rows else await questions.count(self._conn, name)
                for name in partitions
            }
            reason = below(rules, root, now | {name: self.stood[name] for name in losing}, now)
            if reason is not None:
                found |= {name: reason for name in losing if not self._may(name, self.lost[name])}
        return found

    def commit(self) -> None:
        """The heal was committed: what was allowed is used."""
        for allowance, rows in self._used.items():
            self._link.incidents.use(allowance, rows)

    def note_lost(self) -> None:
        """What was lost by it adds up with what the stream takes."""
        for name, rows in self.lost.items():
            self._link.gate.judge.counts.add_lost(name, rows, self._time)

    def _is_too_much(self, name: QualifiedName, stood: int, now: int, *, whole: bool) -> bool:
        counts, lost = self._link.gate.judge.counts, stood - now
        if lost <= 0:
            return False
        filled_since = counts.account(name).filled_since
        stood_for_a_day = filled_since is not None and self._time - filled_since >= DAY
        # it adds up with what the stream has taken
        stood += counts.lost_lately(name, self._time)
        swing = counts.swing(name, self._time)
        rules = self._link.rules.of(name)
        if not is_too_much(rules, stood, now, swing=swing, whole=whole and not stood_for_a_day):
            return False
        if self._may(name, lost):
            self.lost[name] = 0
            return False
        return True

    def _may(self, name: QualifiedName, lost: int) -> bool:
        """Whether somebody has said that so many rows of the table may go."""
        return may_go(self._link, name, lost, self._used)


def may_go(link: Link, name: QualifiedName, rows: int, used: dict[str, int], kind: Kind = "delete") -> bool:
    """Whether somebody has said that so many rows of a table may go, or change; what of that is `used` is noted there."""
    for incident in link.open_incidents():
        if incident.decision is not None and incident.decision.verb == "approve":
            at = (name.schema, name.name)
            if sum(each.rows_lost for each in incident.tables if (each.schema, each.table) == at) >= rows:
                return True
    named = (name, *link.rules.above(name))
    for each in link.incidents.allowances(link.key, datetime.now(UTC)):
        if (
            QualifiedName(each.schema, each.table) in named
            and covers(each.kind, kind)
            and each.rows - each.used - used.get(each.id, 0) >= rows
        ):
            used[each.id] = used.get(each.id, 0) + rows
            return True
    return False


def is_too_much(rules: Rules, stood: int, now: int, *, swing: int = 0, whole: bool) -> bool:
    """Whether a table of `stood` rows may not hold so few `now`; `whole`: the target has all of them still. Pure.

    `swing`: by so many rows it changes by chance. What neither end has any more has nowhere to come back from: then not even a
    small table is emptied.
    """
    lost = stood - now
    if lost <= 0:
        return False
    return (
        lost > max(rules.may_lose(stood), swing)
        or now < min(rules.floor, stood)
        or (rules.judge and not now and not whole)
    )


def was_undone(rules: Rules, stood: int, before: int, removed: int) -> bool:
    """Whether what the source had lost of a table is there again, as far as the target can tell that has lost rows, too. Pure.

    Of `stood` rows it held `before`, and `removed` of those the source does not have. Of all others the worst is assumed: they
    have to be so few that the rules would let them go.
    """
    unseen = max(0, stood - before) + removed
    if not rules.judge or stood < rules.min_table_rows:
        return not unseen
    return unseen <= min(rules.may_lose(stood), rules.may_turn(stood))


def lost_on_both(tables: Mapping[QualifiedName, str]) -> TooMuchLost:
    """That the source does not have any more what the target lost. Pure."""
    first = next(iter(tables))
    return TooMuchLost(
        f"{'; '.join(list(tables.values())[:5])}: the source does not have them either",
        hint=f"were {listed(tables)} wiped on the source as well? put the rows back there, or if they were meant to go: "
        f"pglockstep guard allow --table '{first}' --rows N --for 10m; then decide again",
    )
