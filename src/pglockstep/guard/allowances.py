"""What may pass a rule without an incident, and a held transaction that may pass once. Pure.

An allowance covers the loss of rows by its own kind and by milder ones: who may truncate a table may also delete from it. A
change of values is covered by its own kind alone. One with an end is a purge that was announced, and holds for what was
committed before that end, by the source's clock; its rows are used up. One without covers so many rows again and again,
but no more of them, net, within the table's window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain

import msgspec

from pglockstep.guard.counts import Account
from pglockstep.guard.window import STEPS
from pglockstep.observe.incident import Allowance, Incident, Kind
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.frames import POSTGRES_EPOCH

#: From mild to serious.
RANKS: tuple[Kind, ...] = ("update", "delete", "floor", "truncate", "drop")


class Claim(msgspec.Struct, frozen=True):
    """A loss of `rows` rows that this allowance covers, `net` of them by number; for as long as nothing else trips."""

    allowance: str
    name: QualifiedName
    rows: int
    net: int


def covers(allowed: Kind | None, kind: Kind) -> bool:
    """Whether what was allowed, None for everything, is as serious as `kind`."""
    if allowed is None or allowed == kind:
        return True
    if "update" in (allowed, kind) or allowed not in RANKS:
        return False
    return RANKS.index(allowed) > RANKS.index(kind)


class Allowances:
    """The allowances in force, and what has been used of them."""

    def __init__(self) -> None:
        self._by_table: dict[QualifiedName, list[Allowance]] = {}
        # of one with an end: all that was used; of one without: how much in which step of its table's window
        self._used: dict[str, int] = {}
        self._recent: dict[str, deque[tuple[int, int]]] = {}

    def replace(self, allowances: Iterable[Allowance]) -> None:
        """Have these and no others; what was used here before they were written down stays used."""
        self._by_table = {}
        known = set()
        for each in allowances:
            known.add(each.id)
            self._by_table.setdefault(QualifiedName(each.schema, each.table), []).append(each)
            self._used[each.id] = max(each.used, self._used.get(each.id, 0))
        self._used = {id: used for id, used in self._used.items() if id in known}
        self._recent = {id: recent for id, recent in self._recent.items() if id in known}

    def claim(
        self, account: Account, kind: Kind, rows: int, net: int, step: int, time: int, claims: Sequence[Claim]
    ) -> Claim | None:
        """The allowance that covers a loss at `time`, beside what `claims` took of it already; None if there is none.

        What is said of a table that has partitions covers each of them, and what they lose together is used of it.
        """
        named = (account.name, *account.above)
        for each in chain.from_iterable(self._by_table.get(name, ()) for name in named):
            taken = [claim for claim in claims if claim.allowance == each.id]
            if each.until is None:
                left = each.rows - self._within(each.id, step) - sum(claim.net for claim in taken)
                fits = rows <= each.rows and net <= left
            else:
                used = self._used[each.id] + sum(claim.rows for claim in taken)
                fits = rows <= each.rows - used and time <= _microseconds(each)
            if fits and covers(each.kind, kind):
                return Claim(each.id, account.name, rows, net)
        return None

    def take(self, claim: Claim, step: int) -> None:
        """What was claimed has been used, in this step of the table's window."""
        self._used[claim.allowance] = self._used.get(claim.allowance, 0) + claim.rows
        recent = self._recent.setdefault(claim.allowance, deque())
        self._within(claim.allowance, step)
        if recent and recent[-1][0] == step:
            recent[-1] = (step, recent[-1][1] + claim.net)
        elif claim.net:
            recent.append((step, claim.net))

    def _within(self, id: str, step: int) -> int:
        recent = self._recent.get(id)
        if not recent:
            return 0
        while recent and recent[0][0] < step - STEPS:
            recent.popleft()
        return sum(net for _, net in recent)


class Approved(msgspec.Struct, frozen=True):
    """An incident that was approved: these losses may pass, once."""

    kind: Kind
    rows: dict[tuple[QualifiedName, bool], int]

    @classmethod
    def of(cls, incident: Incident) -> Approved:
        """What the approval of `incident` lets through."""
        rows = {}
        for loss in incident.tables:
            rows[QualifiedName(loss.schema, loss.table), bool(loss.columns)] = loss.rows_lost
        return cls(incident.kind, rows)

    def covers(self, name: QualifiedName, kind: Kind, rows: int) -> bool:
        """Whether it is this loss that was approved, or a smaller one."""
        return rows <= self.rows.get((name, kind == "update"), -1)


def approved_at(incident: Incident) -> int:
    """The LSN of the transaction that an incident held; 0 if it was none."""
    return Lsn.parse(incident.lsn) if incident.lsn else 0


def _microseconds(allowance: Allowance) -> int:
    assert allowance.until is not None
    return round((allowance.until.timestamp() - POSTGRES_EPOCH) * 1_000_000)
