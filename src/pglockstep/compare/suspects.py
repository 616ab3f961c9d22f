"""Rows that seemed to differ, and what became of them. Pure.

Two ends are never read at one moment. A row is *the same* if what the target has of it is what the source had at one of two
readings around it, with a barrier between the first and the target's: whatever was committed before it is there. It *differs*
if it stood still on the source all that time and the target has it otherwise, twice, in the same version. What keeps moving
is still open: it takes two snapshots that show one moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from pglockstep.compare.pairing import Kind, RowDifference, RowKey

#: Two hashes of what a row says; for rows without a key, how many there are.
Says: TypeAlias = tuple[int, ...]


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What a row says, and in which version it stands there."""

    says: Says
    version: str


Reading: TypeAlias = Mapping[RowKey, Seen]


class Suspects:
    """The rows of one table that are to be looked at again."""

    def __init__(self) -> None:
        self._read: dict[RowKey, tuple[Seen | None, Seen | None]] = {}
        self._evidence: dict[RowKey, tuple[str, str]] = {}
        self._different: dict[RowKey, RowDifference] = {}

    @property
    def open(self) -> list[RowKey]:
        """The rows of which nothing is known yet."""
        return list(self._read)

    @property
    def different(self) -> list[RowDifference]:
        """The rows that were found to differ."""
        return list(self._different.values())

    def add(self, source: Reading, target: Reading) -> None:
        """Take two readings of some rows: those that differ are suspects, unless another reading has the rest of them."""
        for key in source.keys() | target.keys():
            here, there = source.get(key), target.get(key)
            if _says(here) == _says(there) or key in self._different:
                continue
            before = self._read.pop(key, (None, None))
            now = (here or before[0], there or before[1])
            if _says(now[0]) != _says(now[1]):
                self._read[key] = now

    def compare(self, keys: Sequence[RowKey], source: Reading, target: Reading) -> None:
        """Take two readings of these keys that show one moment: they decide."""
        for key in keys:
            self._settle(key, source.get(key), target.get(key))

    def judge(self, keys: Sequence[RowKey], before: Reading, target: Reading, after: Reading) -> None:
        """Take a reading of these keys on the target between two on the source, the first of them before a barrier."""
        for key in keys:
            first, there, last = before.get(key), target.get(key), after.get(key)
            if _says(there) in (_says(first), _says(last)):
                self._forget(key)
            elif _version(first) != _version(last):
                self._evidence.pop(key, None)
            elif self._evidence.get(key) == (evidence := (_version(first), _version(there))):
                self._settle(key, first, there)
            else:
                self._evidence[key] = evidence

    def _settle(self, key: RowKey, here: Seen | None, there: Seen | None) -> None:
        self._forget(key)
        if (found := difference(key, here, there)) is not None:
            self._different[key] = found

    def _forget(self, key: RowKey) -> None:
        self._read.pop(key, None)
        self._evidence.pop(key, None)


def difference(key: RowKey, here: Seen | None, there: Seen | None) -> RowDifference | None:
    """What a row's difference is; None if there is none."""
    source, target = _says(here), _says(there)
    if source == target:
        return None
    if isinstance(key[0] if key else 0, int):
        # without a key: so many rows that say this
        lacking = (source[0] if source else 0) - (target[0] if target else 0)
        return RowDifference("missing" if lacking > 0 else "extra", key, abs(lacking), source, target)
    kind: Kind = "missing" if target is None else "extra" if source is None else "changed"
    return RowDifference(kind, key, 1, source, target)


def _says(seen: Seen | None) -> Says | None:
    return None if seen is None else seen.says


def _version(seen: Seen | None) -> str:
    return "" if seen is None else seen.version
