"""One table compared: in chunks, of those that differ in parts, and of these row by row.

A chunk whose sums agree is done. Rows that seem to differ are suspects (`suspects`): where changes may be under way they are
looked at again behind barriers, and those that never stand still by two snapshots that show one moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import msgspec

from pglockstep.compare.chunks import chunks
from pglockstep.compare.pairing import Pairing, RowDifference, RowKey
from pglockstep.compare.ranges import Range
from pglockstep.compare.readings import Reader
from pglockstep.compare.sessions import Sessions, both
from pglockstep.compare.suspects import Reading, Seen, Suspects, difference
from pglockstep.errors import Inconclusive, first_of

#: Up to so many rows are read at once, row by row.
_ROWS = 20_000
#: About so many rows are a part of a chunk.
_PART = 64
#: So many keys are asked for in one statement.
_KEYS = 5_000
#: How often a row that differs is looked at again before one moment has to decide.
_ROUNDS = 4
#: How often that is tried.
_MOMENTS = 3
#: How many rows that differ are proven, and named; more are only counted, as they were read.
PROVEN = 10_000


class Matched(msgspec.Struct, frozen=True):
    """Names of two snapshots, on the source and on the target, that show one moment."""

    source: str
    target: str


class Moments(Protocol):
    """What brings the ends to one point while changes are under way."""

    def advance(self) -> Awaitable[None]:
        """Return when the target has everything that the source has committed by now."""

    def matched(self) -> AbstractAsyncContextManager[Matched]:
        """Two snapshots, for as long as the context is open. Raises `Inconclusive` where they cannot be had."""


class Found(msgspec.Struct, frozen=True):
    """What came of a comparison. `reason`: why it did not come to an end; then nothing is proven but what differs."""

    source_rows: int
    target_rows: int
    missing: int = 0
    extra: int = 0
    changed: int = 0
    rows: tuple[RowDifference, ...] = ()
    reason: str = ""

    @property
    def differs(self) -> bool:
        """Whether any row does."""
        return bool(self.missing or self.extra or self.changed)


async def compare(
    pairing: Pairing, sessions: Sessions, moments: Moments | None, *, proven: int = PROVEN
) -> Found:
    """Compare one table; `moments`, unless nobody applies: then the ends are compared as they are.

    Raises the ends' errors, and `Inconclusive` with the reason where the table could not be read.
    """
    return await _Comparison(pairing, sessions, moments, proven).run()


class _Comparison:
    def __init__(self, pairing: Pairing, sessions: Sessions, moments: Moments | None, proven: int) -> None:
        self._pairing = pairing
        self._sessions = sessions
        self._moments = moments
        self._proven = proven
        self._suspects = Suspects()
        self._settling = asyncio.Lock()
        self._rows = [0, 0]
        self._why = ""
        self._more: dict[str, int] = {"missing": 0, "extra": 0, "changed": 0}

    async def run(self) -> Found:
        async with self._readers() as readers:
            ranges = await chunks(self._pairing, *readers)
        try:
            async with asyncio.TaskGroup() as group:
                for each in ranges:
                    group.create_task(self._chunk(each))
        except BaseExceptionGroup as failures:
            raise first_of(failures) from failures
        async with self._readers() as (source, target):
            await self._settle(source, target)
        found = self._suspects.different
        counts = dict(self._more)
        for row in found:
            counts[row.kind] += row.copies
        if not found and not self._suspects.open and self._moments is not None:
            # they were the same, and were counted at two moments
            self._rows[1] = self._rows[0]
        reason = ""
        if self._suspects.open:
            reason = (
                f"{len(self._suspects.open)} of its rows kept changing while they were compared: {self._why}"
            )
        return Found(
            self._rows[0],
            self._rows[1],
            counts["missing"],
            counts["extra"],
            counts["changed"],
            tuple(found),
            reason,
        )

    @asynccontextmanager
    async def _readers(self) -> AsyncIterator[tuple[Reader, Reader]]:
        async with self._sessions.pair() as (source, target):
            yield Reader(source, self._pairing), Reader(target, self._pairing)

    async def _chunk(self, within: Range) -> None:
        async with self._readers() as (source, target):
            if self._pairing.fast:
                here, there = await both(source.sums_of_values(within), target.sums_of_values(within))
            if not self._pairing.fast or here != there:
                here, there = await both(source.sums(within), target.sums(within))
            self._rows[0] += here.rows
            self._rows[1] += there.rows
            if here != there:
                await self._look(within, max(here.rows, there.rows), source, target)

    async def _look(self, within: Range, rows: int, source: Reader, target: Reader) -> None:
        """Find the rows in which a range differs."""
        parts = 1 if rows <= _ROWS // 4 else 1 << (rows // _PART).bit_length()
        groups: list[list[int]] = [[0]]
        if parts > 1:
            here, there = await both(source.parts(within, parts), target.parts(within, parts))
            groups = [[]]
            size = 0
            for part in sorted(here.keys() | there.keys()):
                one, other = here.get(part), there.get(part)
                if one != other:
                    held = max(each.rows for each in (one, other) if each is not None)
                    if size + held > _ROWS and groups[-1]:
                        groups.append([])
                        size = 0
                    groups[-1].append(part)
                    size += held
        for chosen in groups:
            if chosen:
                self._take(
                    *await both(source.rows(within, parts, chosen), target.rows(within, parts, chosen))
                )
            if len(self._suspects.open) > self._proven:
                await self._settle(source, target)

    def _take(self, source: Reading, target: Reading) -> None:
        if len(self._suspects.different) < self._proven:
            self._suspects.add(source, target)
            return
        for key in source.keys() | target.keys():
            if (found := difference(key, source.get(key), target.get(key))) is not None:
                self._more[found.kind] += found.copies

    async def _settle(self, source: Reader, target: Reader) -> None:
        """Decide about all that is open, as far as that can be."""
        async with self._settling:
            if self._moments is None:
                keys = self._suspects.open
                self._suspects.compare(keys, *await both(_read(source, keys), _read(target, keys)))
                return
            for _ in range(_ROUNDS):
                if not (keys := self._suspects.open):
                    return
                before = await _read(source, keys)
                await self._moments.advance()
                there = await _read(target, keys)
                self._suspects.judge(keys, before, there, await _read(source, keys))
            for _ in range(_MOMENTS):
                if not (keys := self._suspects.open) or await self._decide(
                    self._moments, keys, source, target
                ):
                    return

    async def _decide(self, moments: Moments, keys: list[RowKey], source: Reader, target: Reader) -> bool:
        """Have one moment decide; false if it could not."""
        try:
            async with moments.matched() as moment:
                here, there = await both(
                    _read(source, keys, moment.source), _read(target, keys, moment.target)
                )
        except _Rewritten:
            self._why = "it was truncated or rewritten again and again"
            return False
        except Inconclusive as error:
            self._why = error.message
            return False
        self._suspects.compare(keys, here, there)
        return True


class _Rewritten(Exception):
    """The table was truncated or rewritten behind the moment."""


async def _read(reader: Reader, keys: Sequence[RowKey], snapshot: str | None = None) -> dict[RowKey, Seen]:
    """What an end has of these keys, now or as a snapshot shows it."""
    found: dict[RowKey, Seen] = {}
    for start in range(0, len(keys), _KEYS):
        some = keys[start : start + _KEYS]
        rows = await reader.rows_of(some) if snapshot is None else await reader.rows_as_of(snapshot, some)
        if rows is None:
            raise _Rewritten
        found |= rows
    return found
