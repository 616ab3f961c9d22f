"""The target's half of a link: what the journal has, gathered into batches beside the target's work on those before.

Bounded in bytes by the size of a batch: one is being applied, one waits, one is being gathered, and the rest stays
in the journal. While nothing is in flight, progress follows the source's own position, or a quiet database would
pin the WAL of a busy server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep import failpoints
from pglockstep.apply.applier import Applier
from pglockstep.apply.runs import Batch
from pglockstep.errors import LockstepError, first_of
from pglockstep.journal.follower import Abandoned, Follower
from pglockstep.journal.journal import Journal
from pglockstep.journal.kinds import size_of
from pglockstep.link.gate import StreamGate
from pglockstep.postgres.connect import End, answered, hang_up, translate
from pglockstep.units import Lsn
from pglockstep.wal.messages import Relation
from pglockstep.wal.pgoutput import decode

#: So many bytes of changes are applied at once; more are gathered until the source pauses for so long, in
#: seconds, but no longer than that.
_FEW = 32 << 10
_PAUSE = 0.002
_LONGEST_GATHERING = 0.05
#: How long progress may lag behind an idle source's position before it is written, in seconds.
_IDLE_PROGRESS = 5.0
#: How often the target is asked what it has flushed, and for a sign of life while there is nothing to ask, in seconds.
_ASK_EVERY = 0.5
_ASK_IDLE_EVERY = 5.0
#: How often what was kept of deleted rows is looked through, in seconds.
_PRUNE_EVERY = 60.0
#: How long what is held may take to be on the journal's disk before it is told all the same, in seconds.
_KEEP_WITHIN = 5.0
#: How long nothing is applied for the sake of one moment, in seconds; how long that may be ahead of the target; and how often
#: it is looked.
_CUT = 1.0
_UNTIL_CUT = 10.0
_LOOK_AGAIN = 0.001
#: How long a change may wait to be applied before the link counts as behind, in seconds.
BEHIND_AFTER = 3.0


class Outlet:
    """Applies what `reader` reads from `journal` by `applier` over `conn`; `watch` is a second session of the target's.

    What the applier's gate holds back is settled by `gate`, once everything before it is there. `prune` is called now and
    then with the second session, to forget what was kept of deleted rows for long enough.
    """

    def __init__(
        self,
        target: End,
        journal: Journal,
        reader: Follower,
        applier: Applier,
        conn: AsyncConnection[TupleRow],
        watch: AsyncConnection[TupleRow],
        gate: StreamGate | None = None,
        prune: Callable[[AsyncConnection[TupleRow]], Awaitable[None]] | None = None,
    ) -> None:
        self._target = target
        self._journal = journal
        self._reader = reader
        self.applier = applier
        self._conn = conn
        self.watch = watch
        self._gate = gate
        self._prune_by = prune
        self._stopped: LockstepError | None = None
        self._until: Lsn | None = None
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._asked_at = time.monotonic()
        self._pruned_at = time.monotonic() - _PRUNE_EVERY
        self._idle_since = time.monotonic()
        self._unapplied_since: float | None = None
        self._failed: Exception | None = None
        self._silent: LockstepError | None = None
        self._cutting = asyncio.Lock()
        #: how far the target has everything on its disk
        self.flushed = Lsn(0)

    @property
    def applied(self) -> Lsn:
        """The target is complete up to here."""
        return self.applier.progress

    @property
    def lag_seconds(self) -> float:
        """How long the oldest change that has been taken has been waiting to be applied."""
        return 0.0 if self._unapplied_since is None else time.monotonic() - self._unapplied_since

    def stop(self, error: LockstepError) -> None:
        """End `run` with `error`, between two exchanges with the target; what has not been committed by then is not."""
        self._stopped = error
        self._arrived.set()
        self._taken.set()

    def end_at(self, place: Lsn) -> None:
        """Let `run` end once the target is complete up to `place`."""
        self._until = place
        self._arrived.set()

    async def run(self, until: Lsn | None = None) -> None:
        """Apply for ever, or until the target is complete up to `until`. Raises the first error."""
        self._until = until
        try:
            async with asyncio.TaskGroup() as tasks:
                side = [
                    tasks.create_task(self._read(), name="read"),
                    tasks.create_task(self._ask(), name="flushed"),
                ]
                await self._apply()
                for task in side:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise self._silent or first_of(group) from group

    async def _read(self) -> None:
        """Gather until it fails; the target first completes what was taken before, and then hears of the failure.

        An exchange that is cut short would end the target's session, and with it the link's lock.
        """
        try:
            while True:
                messages = await self._reader.read()
                size = size_of(messages)
                await self._take(messages)
                if size > _FEW:
                    # much is on its way: in larger portions it costs less
                    await asyncio.sleep(_PAUSE)
        except (LockstepError, Abandoned) as error:
            self._failed = error
            self._arrived.set()

    async def _take(self, messages: Sequence[bytes]) -> None:
        if self._unapplied_since is None:
            self._unapplied_since = time.monotonic()
        builder = self.applier.builder
        at = 0
        while (at := builder.feed(messages, at)) < len(messages):
            if builder.held or builder.at_cut or builder.full > 1:
                # one waits for the target's next turn, or for being let through; the rest stays in the journal
                self._arrived.set()
                self._taken.clear()
                await self._taken.wait()
                continue
            relation = decode(messages[at])
            assert isinstance(relation, Relation)
            await self.applier.describe(relation)
            at += 1
        self._arrived.set()

    async def _apply(self) -> None:
        builder = self.applier.builder
        while self._until is None or self.applier.progress < self._until:
            if self._stopped is not None:
                raise self._stopped
            if builder.held and not builder.ready:
                await self._settle()
                continue
            batch = await self._next()
            if batch is not None:
                failpoints.reach("apply.begin")
                await self.applier.run(batch)
                self._idle_since = time.monotonic()
                if self._gate is not None and self._gate.awaits:
                    self._gate.applied(self.applier.progress)
            if not builder.ready and not self.applier.in_transaction:
                self._unapplied_since = None
                await self._follow()

    async def _next(self) -> Batch | None:
        """The next batch; None if there is none, but something was read or heard, or a while has passed.

        A few changes go at once. Where many have gathered, more are on their way: the target does better with
        larger batches, so these are waited for until the source pauses, for a moment and no longer.
        """
        builder = self.applier.builder
        began = time.monotonic()
        patience = _IDLE_PROGRESS
        while not builder.full:
            if builder.ready:
                left = began + _LONGEST_GATHERING - time.monotonic()
                if builder.size <= _FEW or left <= 0 or self._failed or builder.held:
                    break
                patience = min(_PAUSE, left)
            elif builder.held or self._stopped:
                return None
            elif self._failed:
                raise self._failed
            self._arrived.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._arrived.wait()
            except TimeoutError:
                break
            if not builder.ready:
                return None
        self._taken.set()
        return builder.seal() if builder.ready else None

    async def cut(
        self, start: Lsn, moment: Callable[[], Awaitable[Lsn]], look: Callable[[], Awaitable[None]]
    ) -> None:
        """Have `look` find the target with exactly what committed before the LSN that `moment` comes to.

        `start` is where the source is now, and that LSN is behind it. What commits there or later waits meanwhile, for `_CUT`
        seconds at the most; so may what is before it, to be applied. Raises `TimeoutError` if it does not come to that. One
        after the other: the end of one would be the end of what another waits for.
        """
        async with self._cutting:
            await self._cut(start, moment, look)

    async def _cut(
        self, start: Lsn, moment: Callable[[], Awaitable[Lsn]], look: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            # what has been taken by now is before that moment
            self._cut_at(start)
            async with asyncio.timeout(_CUT):
                lsn = await moment()
            self._cut_at(lsn)
            async with asyncio.timeout(_UNTIL_CUT):
                await _come_to(
                    lambda: not self._is_busy and (self.applier.builder.at_cut or self._is_level(lsn))
                )
            async with asyncio.timeout(_CUT):
                await look()
        finally:
            self._cut_at(Lsn(0))

    def _cut_at(self, lsn: Lsn) -> None:
        builder = self.applier.builder
        builder.cut, builder.at_cut = lsn, False
        self._taken.set()

    @property
    def is_level(self) -> bool:
        """Whether everything that has arrived was applied, nothing is held back, and nobody wants it to end."""
        level = self._reader.level and not self._journal.in_transaction
        return level and self.goes_on and not self._is_busy and not self.applier.builder.held

    @property
    def goes_on(self) -> bool:
        """Whether nothing has failed yet, and nobody wants it to end."""
        return self._failed is None and self._stopped is None

    @property
    def _is_busy(self) -> bool:
        return self.applier.builder.ready or self.applier.in_transaction

    def _is_level(self, lsn: Lsn) -> bool:
        """Whether everything has been applied that the source has sent, which is up to `lsn` at least."""
        journal = self._journal
        return self._reader.level and not journal.in_transaction and journal.position >= lsn

    async def _settle(self) -> None:
        """The target has everything before what is held back: find out whether that may go on. Raises `IncidentOpen`."""
        assert self._gate is not None
        with answered(self._target, self._conn, self.watch), translate(self._target):
            await self._gate.settle(self._conn, self.applier.progress, self._kept)
        self.applier.builder.release()
        self._taken.set()

    async def _kept(self, lsn: Lsn) -> None:
        """Wait until the journal has everything up to `lsn` on its disk; not for ever, should that be full."""
        end = time.monotonic() + _KEEP_WITHIN
        while True:
            if self._journal.durable >= lsn or time.monotonic() >= end:
                return
            await asyncio.sleep(0.005)

    async def _follow(self) -> None:
        """Nothing is in flight, or held back: the target is complete up to the source's own position."""
        if self.applier.builder.held or not self._reader.level or self._journal.in_transaction:
            return
        position = self._journal.position
        idle = time.monotonic() - self._idle_since
        if position > self.applier.progress and (
            (self._until is not None and position >= self._until) or idle >= _IDLE_PROGRESS
        ):
            failpoints.reach("progress.move")
            await self.applier.move_progress(position)
            if self._gate is not None:
                self._gate.passed_over(position)
            self._idle_since = time.monotonic()

    async def _ask(self) -> None:
        while True:
            await asyncio.sleep(_ASK_EVERY)
            if self.applier.unflushed or time.monotonic() - self._asked_at >= _ASK_IDLE_EVERY:
                try:
                    await self.learn_flushed()
                    await self._prune()
                except LockstepError as error:
                    # whoever is being answered just now, or waits for something to do, fails by it
                    self._silent = self._failed = error
                    hang_up(self._conn)
                    self._arrived.set()
                    return

    async def _prune(self) -> None:
        """Forget now and then what was kept of deleted rows for long enough."""
        if self._prune_by is not None and time.monotonic() - self._pruned_at >= _PRUNE_EVERY:
            self._pruned_at = time.monotonic()
            with answered(self._target, self.watch), translate(self._target):
                await self._prune_by(self.watch)

    async def learn_flushed(self) -> None:
        """Ask the target how far its WAL is on its disk, and with it our commits."""
        self._asked_at = time.monotonic()
        with answered(self._target, self.watch), translate(self._target):
            cursor = await self.watch.execute("SELECT pg_catalog.pg_current_wal_flush_lsn()")
            row = await cursor.fetchone()
        assert row is not None
        unflushed = self.applier.unflushed
        while unflushed and unflushed[0].target <= row[0]:
            self.flushed = unflushed.popleft().source
        self._journal.needs(self.flushed)


async def _come_to(is_there: Callable[[], bool]) -> None:
    while True:
        if is_there():
            return
        await asyncio.sleep(_LOOK_AGAIN)
