"""Which large objects differ between two databases: by OID, and by what they hold.

No change of them is ever decoded, so a target has them as the copy left them. Their contents are hashed where they are, a
piece at a time; both ends are read in the order of the OIDs and matched as they come, so that neither the number of the
objects nor their size asks for memory. Reads alone, and takes no locks that a writer waits for.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from psycopg import AsyncConnection

from pglockstep.postgres.connect import End, translate

#: How many objects are asked for at once, and for how many seconds that should go on: a statement holds back vacuum.
_AT_ONCE, _SECONDS = 1000, 1.0

#: Objects that differ are read again so often, and so many of them: further ones are counted as they were seen.
_ROUNDS, _READ_AGAIN = 6, 10_000

#: So many of them are named.
_NAMED = 20

#: What an object holds: None where our role may not read it. Of one that is not there, `_ABSENT`.
_Content = bytes | None
_ABSENT = b""

#: One object's content on the source and on the target.
_Both = tuple[_Content, _Content]

_DIFFERENT = ("missing", "extra", "changed")


class LargeObjects(msgspec.Struct, frozen=True):
    """How many large objects the ends have, and how many differ.

    `missing` ones are on the source only, `extra` ones on the target only, `changed` ones hold something else; `unread`
    ones are on both ends, and a role may not read them on one. `first` are the OIDs of the first few that differ. `settled`:
    whether the ends stood still for long enough to tell.
    """

    source: int = 0
    target: int = 0
    missing: int = 0
    extra: int = 0
    changed: int = 0
    unread: int = 0
    first: tuple[int, ...] = ()
    settled: bool = True

    @property
    def differ(self) -> bool:
        """Whether one was seen to."""
        return bool(self.missing or self.extra or self.changed)

    @property
    def known(self) -> bool:
        """Whether all of them could be compared."""
        return self.settled and not self.unread


class _Reader:
    """One end's objects, in order, as many at a time as can be read without haste."""

    def __init__(self, conn: AsyncConnection[Any], end: End) -> None:
        self._conn = conn
        self._end = end
        self._limit = 1
        self._after = 0
        self._read: deque[tuple[int, _Content]] = deque()
        self.done = False
        self.count = 0

    @property
    def next(self) -> int | None:
        """The OID of the next object; None if there is no further one."""
        return self._read[0][0] if self._read else None

    def take(self) -> _Content:
        """What the next object holds; it is the next one no longer."""
        self.count += 1
        return self._read.popleft()[1]

    async def fill(self) -> None:
        """Read on, if all that was read has been taken."""
        if self._read or self.done:
            return
        began = time.monotonic()
        self._read.extend(await _objects(self._conn, self._end, self._after, None, self._limit))
        self.done = len(self._read) < self._limit
        if self._read:
            self._after = self._read[-1][0]
        slow = time.monotonic() - began > _SECONDS
        self._limit = max(1, self._limit // 4) if slow else min(_AT_ONCE, self._limit * 4)


async def _objects(
    conn: AsyncConnection[Any], end: End, after: int, oids: Collection[int] | None, limit: int
) -> list[tuple[int, _Content]]:
    with translate(end):
        cursor = await conn.execute(_statement(), [after, None if oids is None else list(oids), limit])
        return [(oid, None if content is None else bytes(content)) async for oid, content in cursor]


@cache
def _statement() -> bytes:
    return files("pglockstep.compare").joinpath("sql", "large_objects.sql").read_bytes()


async def compare(
    source: AsyncConnection[Any],
    target: AsyncConnection[Any],
    ends: tuple[End, End],
    advance: Callable[[], Awaitable[None]] | None,
) -> LargeObjects:
    """Compare all of them; `advance` as for rows: what differs is read again behind it. Raises the ends' errors."""
    there, here = _Reader(source, ends[0]), _Reader(target, ends[1])
    suspects: dict[int, _Both] = {}
    kinds: Counter[str] = Counter()
    while True:
        await _together(there.fill(), here.fill())
        if there.next is None and here.next is None:
            break
        oid = min(each.next for each in (there, here) if each.next is not None)
        both = (
            there.take() if there.next == oid else _ABSENT,
            here.take() if here.next == oid else _ABSENT,
        )
        kind = _kind(both)
        if kind in _DIFFERENT and len(suspects) < _READ_AGAIN:
            suspects[oid] = both
        else:
            kinds[kind] += 1
    settled = True
    if advance is not None and suspects:
        suspects, settled = await _proven(source, target, ends, suspects, advance)
    kinds.update(map(_kind, suspects.values()))
    return LargeObjects(
        source=there.count,
        target=here.count,
        **{kind: kinds[kind] for kind in (*_DIFFERENT, "unread")},
        first=tuple(sorted(oid for oid, both in suspects.items() if _kind(both) in _DIFFERENT)[:_NAMED]),
        settled=settled,
    )


def _kind(both: _Both) -> str:
    if _ABSENT in both:
        return "" if both[0] == both[1] else "missing" if both[1] == _ABSENT else "extra"
    if None in both:
        return "unread"
    return "" if both[0] == both[1] else "changed"


async def _proven(
    source: AsyncConnection[Any],
    target: AsyncConnection[Any],
    ends: tuple[End, End],
    suspects: dict[int, _Both],
    advance: Callable[[], Awaitable[None]],
) -> tuple[dict[int, _Both], bool]:
    """Those of the suspects that did differ at one moment, or cannot be read; and whether all could be told.

    The source is read before the target, again and again. What has not moved on one end between two readings differed
    from what the other end was read as in between.
    """
    proven: dict[int, _Both] = {}
    for _ in range(_ROUNDS):
        await advance()
        moving: dict[int, _Both] = {}
        every = list(suspects)
        for oids in [every[at : at + _AT_ONCE] for at in range(0, len(every), _AT_ONCE)]:
            there = dict(await _objects(source, ends[0], 0, oids, _AT_ONCE))
            here = dict(await _objects(target, ends[1], 0, oids, _AT_ONCE))
            for oid in oids:
                before, now = suspects[oid], (there.get(oid, _ABSENT), here.get(oid, _ABSENT))
                kind = _kind(now)
                if kind in _DIFFERENT and before[0] != now[0] and before[1] != now[1]:
                    moving[oid] = now
                elif kind:
                    proven[oid] = now
        suspects = moving
        if not suspects:
            return proven, True
    return proven, False


async def _together(first: Awaitable[None], second: Awaitable[None]) -> None:
    for each in await asyncio.gather(first, second, return_exceptions=True):
        if isinstance(each, BaseException):
            raise each
