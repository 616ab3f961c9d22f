"""What can be found out about a transaction's changes to one table, beyond their number. Pure.

The same is asked of a transaction that is held in memory (`Held`) and of one that passes in parts
(:mod:`pglockstep.guard.passing`).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from pglockstep.guard.losses import SHOWN, key_row, lost_keys, shown
from pglockstep.guard.transaction import Shape, Tally
from pglockstep.guard.updates import turned
from pglockstep.wal.messages import Row, Value


class Lost(msgspec.Struct, frozen=True):
    """How many of the rows that stood before are gone, and some of them for a person."""

    rows: int
    keys: tuple[str, ...] = ()


class Suspicion(msgspec.Struct, frozen=True):
    """`column` is `value` now in `rows` rows that stood before. `sure`: and was something else in every one of them.

    `keys` are theirs, of before the transaction; None where they are not held. Then `brought` new rows came with the value,
    and no more than `gone` that had it went.
    """

    column: int
    value: Value
    rows: int
    sure: bool
    keys: tuple[Row, ...] | None
    shown: tuple[str, ...] = ()
    brought: int = 0
    gone: int = 0

    def settled(self, answer: int) -> int:
        """In how many rows the column has become the value, by the target's answer to the question."""
        if self.keys is not None:
            return answer
        return max(0, min(self.rows, answer - self.brought + self.gone))


class Evidence(Protocol):
    """What is known of a transaction's changes to one table."""

    shape: Shape
    inserted: int
    updated: int
    deleted: int
    truncated: bool

    def lost(self) -> Lost:
        """The rows that stood before and are gone."""

    def suspicions(self, limit: int) -> list[Suspicion]:
        """The columns that may have become NULL, or one value, in more than `limit` rows that stood before."""


class Held:
    """The changes are in memory: exact."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.shape = tally.shape
        self.inserted = tally.inserted
        self.updated = tally.updated
        self.deleted = tally.deleted
        self.truncated = tally.truncated

    def lost(self) -> Lost:
        """The rows that stood before and are gone."""
        keys = lost_keys(self.shape, self._tally.list_changes())
        return Lost(len(keys), shown(self.shape, [key_row(self.shape, key) for key in keys[:SHOWN]]))

    def suspicions(self, limit: int) -> list[Suspicion]:
        """The columns that may have become NULL, or one value, in more than `limit` rows that stood before."""
        return [
            Suspicion(
                each.column,
                each.value,
                each.rows,
                each.sure,
                each.keys,
                shown(self.shape, each.keys),
            )
            for each in turned(self.shape, self._tally.list_changes(), limit)
        ]
