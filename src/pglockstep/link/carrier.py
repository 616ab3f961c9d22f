"""What brings a source's sequences to its target: they are not in the stream, and the rows that they number are.

Promised: whoever goes over to the target at any moment gets no number there that a row already has. A sequence never
moves backwards. `ahead`, it is moved on before the source has got there, by more the faster it counts, and again once half
of that is used up; else it is put exactly where the source's stands. And before a commit that brings more rows than
that allows for, the source is asked again: what it has given to rows that have arrived, its sequences have passed.

A lock on a sequence (a TRUNCATE … RESTART IDENTITY that has not ended) and a source that does not answer hold up no row for
longer than a moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.errors import LockstepError
from pglockstep.postgres import sequences
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.sequences import SequenceState

log = logging.getLogger(__name__)

#: How many numbers a sequence is carried ahead at the least, as many as PostgreSQL itself may lose in a crash; and
#: at the most, unless a session of the source's takes more at once.
LEAST: Final = 32
MOST: Final = 10_000
#: How often sequences are carried in any case, in seconds; reading thousands may take no larger share of the time.
_EVERY = 1.0
_LARGEST_SHARE = 0.05
#: How long the source's answer is waited for, in seconds, and a lock on a sequence.
_PATIENCE = 2.0
LOCK_PATIENCE: Final = "100ms"


def lead(used: int, cache: int) -> int:
    """How many numbers a sequence is carried ahead that gave `used` in the last second or so. Pure."""
    return max(LEAST, 2 * cache, min(2 * used, MOST))


def moved_on(source: SequenceState, target: SequenceState, numbers: int) -> SequenceState | None:
    """What to set the target's sequence to, so that it is about `numbers` ahead; None if it is well enough. Pure."""
    wanted = source.ahead_by(numbers)
    ahead = source.steps_to(target)
    return wanted if ahead < 0 or 2 * ahead < source.steps_to(wanted) else None


class _Pace(msgspec.Struct, frozen=True):
    """A sequence of the source's as last heard of and as a second began, and how many numbers it gives in one."""

    now: SequenceState
    then: SequenceState
    used: int = 0


def pace_after(before: _Pace | None, now: SequenceState, *, over: bool) -> _Pace:
    """The pace of a sequence that stands at `now`; `over`: the second is. Pure."""
    if before is None:
        return _Pace(now, now)
    used = before.then.steps_to(now)
    return _Pace(now, now, used) if over else _Pace(now, before.then, max(before.used, used))


class Carrier:
    """Carries the sequences of a link over sessions to its target that are lent, and one of its own to the source.

    A source that does not answer keeps no row waiting: then sequences are taken to stand where they were read last, and as
    many numbers further as rows have come.
    """

    def __init__(self, source: End, target: End) -> None:
        self._source = source
        self._target = target
        self._source_conn: AsyncConnection[TupleRow] | None = None
        self._asking: asyncio.Task[bool] | None = None
        self._is_lent = False
        # the stream and the clock both carry
        self._turn = asyncio.Lock()
        self._second_began = time.monotonic()
        self._paces: dict[QualifiedName, _Pace] = {}
        # the source was heard, and had no sequence at all
        self._knows_none = False
        #: rows inserted by table: since sequences were carried last, in this second, and in the one before
        self._since: Counter[QualifiedName] = Counter()
        self._this_second: Counter[QualifiedName] = Counter()
        self._last_second: Counter[QualifiedName] = Counter()
        #: whether to be ahead of the source
        self.ahead = False

    def outran(self, table: QualifiedName, rows: int) -> bool:
        """Take note of rows that are about to be inserted; true if sequences must be carried before their commit."""
        if self._knows_none:
            return False
        self._since[table] += rows
        self._this_second[table] += rows
        return self._since[table] > min(max(LEAST, self._last_second[table] * 2), MOST) // 2

    async def carry(self, target: AsyncConnection[TupleRow]) -> None:
        """Move the target's sequences on over the session `target`. Raises errors of the target's."""
        async with self._turn:
            # what is counted from here on may have been numbered after the reading
            since, self._since = self._since, Counter()
            try:
                answered = await self._ask()
                with translate(self._target):
                    await self._move(target, 0 if answered else since.total())
            except BaseException:
                self._since += since
                raise

    @asynccontextmanager
    async def lent(self, target: AsyncConnection[TupleRow]) -> AsyncIterator[None]:
        """Carry now, before any row, and from then on by the clock, over the session `target`."""
        # what a former session left hanging has the former turn
        self._turn = asyncio.Lock()
        await self._try(target)
        clock = asyncio.create_task(self._follow(lambda: self._try(target)), name="sequences")
        self._is_lent = True
        try:
            yield
        finally:
            self._is_lent = False
            clock.cancel()
            # a target that hangs is not waited for: whoever lent the session closes it
            await asyncio.wait({clock}, timeout=_PATIENCE)

    async def listen(self) -> None:
        """Ask the source again and again, also while there is no target to carry to, until cancelled."""

        async def ask() -> None:
            if not self._is_lent:
                await self._ask()

        try:
            await self._follow(ask)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End the session to the source; whoever carries again opens another."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking}, timeout=_PATIENCE)
        if self._source_conn is not None:
            await self._source_conn.close()
        self._source_conn = self._asking = None

    async def _follow(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            began = time.monotonic()
            await step()
            await asyncio.sleep(max(_EVERY, (time.monotonic() - began) / _LARGEST_SHARE))

    async def _try(self, target: AsyncConnection[TupleRow]) -> None:
        """Carry; a failure waits for the next time."""
        try:
            await self.carry(target)
        except LockstepError as error:
            log.debug("sequences were not carried: %s", error, extra=self._about)

    async def _ask(self) -> bool:
        """Whether the source has said anew where its sequences stand; one that stays silent is not waited for again."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._read(), name="ask for sequences")
            await asyncio.wait({self._asking}, timeout=_PATIENCE)
            if self._asking.done():
                return self._asking.result()
        return False

    async def _read(self) -> bool:
        try:
            if self._source_conn is None or self._source_conn.closed:
                self._source_conn = await connect(self._source, "sequences", lock_timeout=LOCK_PATIENCE)
            with translate(self._source):
                found = await sequences.read(self._source_conn)
        except LockstepError as error:
            log.debug("sequences were not read: %s", error, extra=self._about)
            return False
        over = time.monotonic() - self._second_began >= _EVERY
        named = {QualifiedName(each.schema, each.name): each for each in found}
        self._paces = {
            name: pace_after(self._paces.get(name), each, over=over) for name, each in named.items()
        }
        self._knows_none = not named
        if over:
            self._second_began = time.monotonic()
            self._last_second, self._this_second = self._this_second, Counter()
        return True

    async def _move(self, target: AsyncConnection[TupleRow], rows: int) -> None:
        """Move what has to; `rows` have come since the source was last heard."""
        here = {QualifiedName(each.schema, each.name): each for each in await sequences.read(target)}
        if rows:
            # never heard at all: then the target's own are the best that is known
            known = self._paces or {name: _Pace(each, each) for name, each in here.items()}
            self._paces = {
                name: msgspec.structs.replace(pace, now=pace.now.ahead_by(rows))
                for name, pace in known.items()
            }
        moves = [
            moved_on(pace.now, here[name], lead(pace.used, pace.now.cache) if self.ahead else 0)
            for name, pace in self._paces.items()
            if name in here
        ]
        await sequences.move(target, [each for each in moves if each is not None])

    @property
    def _about(self) -> dict[str, str]:
        return {"action": "sequences.failed", "link": self._source.link}
