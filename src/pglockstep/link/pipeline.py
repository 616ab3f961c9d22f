"""The pipeline of a link: receive, decode, apply, confirm; each a named task, bounded in bytes by the
size of a batch: one is being applied, one waits, one is being gathered, and the rest stays with the source.

What is confirmed to the source is only ever progress whose commit the target has flushed to its disk. While
nothing is in flight, progress follows the source's own position, or a quiet database would pin the WAL of a
busy server. The first task that fails ends the pipeline with its error.
"""

from __future__ import annotations

import asyncio
import time

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.apply.applier import Applier
from pglockstep.apply.batch import Batch
from pglockstep.errors import LockstepError, TargetUnreachable, leaves
from pglockstep.postgres.connect import End, describe, translate
from pglockstep.postgres.replication import ReplicationConnection
from pglockstep.units import Lsn
from pglockstep.wal.frames import Keepalive, WalData, parse, payloads, status_update
from pglockstep.wal.messages import Relation
from pglockstep.wal.pgoutput import decode

#: So many bytes of changes are applied at once; more are gathered until the source pauses for so long, in
#: seconds, but no longer than that.
_FEW = 32 << 10
_PAUSE = 0.002
_LONGEST_GATHERING = 0.05
#: How long progress may lag behind an idle source's position before it is written, in seconds.
_IDLE_PROGRESS = 5.0
#: How often the source is told what is durable, in seconds.
_CONFIRM_EVERY = 0.5
#: How often the target is asked for a sign of life while there is nothing to ask it, in seconds.
_ASK_TARGET_EVERY = 5.0
#: How long a change may wait to be applied before the link counts as behind, in seconds.
BEHIND_AFTER = 3.0


class Pipeline:
    """Streams from `stream`, which is started already, into `applier`."""

    def __init__(
        self,
        ends: tuple[End, End],
        stream: ReplicationConnection,
        applier: Applier,
        watch: AsyncConnection[TupleRow],
    ) -> None:
        self._source, self._target = ends
        self._stream = stream
        self.applier = applier
        self.watch = watch
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        # nothing: what an earlier session committed may not be on the target's disk yet
        self._confirmed = Lsn(0)
        self._asked_target_at = time.monotonic()
        self._idle_since = time.monotonic()
        self._unapplied_since: float | None = None
        self._failed: LockstepError | None = None
        self._asked = False
        #: how far the source has sent, whether or not there was anything in it for us
        self.received = applier.progress
        self.heard_at = time.monotonic()

    @property
    def applied(self) -> Lsn:
        """The target is complete up to here."""
        return self.applier.progress

    @property
    def lag_seconds(self) -> float:
        """How long the oldest change that has arrived has been waiting to be applied."""
        return 0.0 if self._unapplied_since is None else time.monotonic() - self._unapplied_since

    async def run(self, until: Lsn | None = None) -> None:
        """Stream for ever, or until the target is complete up to `until`. Raises the first error."""
        try:
            async with asyncio.TaskGroup() as tasks:
                side = [
                    tasks.create_task(self._receive(), name="receive"),
                    tasks.create_task(self._confirm(), name="confirm"),
                ]
                await self._apply(until)
                for task in side:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        await self.confirm_rest()

    async def _receive(self) -> None:
        """Gather until it fails; the target first completes what arrived before, and then hears of the failure.

        An exchange that is cut short would end the target's session, and with it the link's lock.
        """
        try:
            await self._gather()
        except LockstepError as error:
            self._failed = error
            self._arrived.set()

    async def _gather(self) -> None:
        """Gather what arrives into batches, beside the target's work on the batches before."""
        while True:
            await self._take(*payloads(await self._stream.read()))
            self.received = max(self.received, self.applier.builder.position)
            self._arrived.set()

    async def _take(self, messages: list[bytes], others: list[bytes]) -> None:
        """Give what has arrived to the builder; `others` are frames without a message."""
        self.heard_at = time.monotonic()
        if self._unapplied_since is None:
            self._unapplied_since = self.heard_at
        builder = self.applier.builder
        while (taken := builder.feed(messages)) < len(messages):
            # what was taken may be large, and stands in the builder now
            del messages[:taken]
            if builder.full > 1:
                # one waits for the target's next turn; the rest stays with the source
                self._arrived.set()
                self._taken.clear()
                await self._taken.wait()
                continue
            relation = decode(messages.pop(0))
            assert isinstance(relation, Relation)
            await self.applier.describe(relation)
        for frame in others:
            self._hear(parse(frame))

    def _hear(self, frame: WalData | Keepalive) -> None:
        """Take note of the source's own position."""
        self.received = max(self.received, Lsn(frame.wal_end))
        # a server that shuts down waits until all of its WAL is confirmed
        self._asked = self._asked or (isinstance(frame, Keepalive) and frame.reply_requested)

    async def _apply(self, until: Lsn | None) -> None:
        builder = self.applier.builder
        while until is None or self.applier.progress < until:
            batch = await self._next()
            if batch is not None:
                await self.applier.run(batch)
                self._idle_since = time.monotonic()
            if not builder.ready and not self.applier.in_transaction:
                self._unapplied_since = None
                await self._follow(until)

    async def _next(self) -> Batch | None:
        """The next batch; None if there is none, but the source was heard from or a while has passed.

        A few changes go at once. Where many have gathered, more are on their way: the target does better with
        larger batches, so these are waited for until the source pauses, for a moment and no longer.
        """
        builder = self.applier.builder
        began = time.monotonic()
        patience = _IDLE_PROGRESS
        while not builder.full:
            if builder.ready:
                left = began + _LONGEST_GATHERING - time.monotonic()
                if builder.size <= _FEW or left <= 0 or self._failed:
                    break
                patience = min(_PAUSE, left)
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

    async def _follow(self, until: Lsn | None) -> None:
        """Nothing is in flight: the target is complete up to the source's own position."""
        idle = time.monotonic() - self._idle_since
        wanted = self._asked or (until is not None and self.received >= until)
        if self.received > self.applier.progress and (wanted or idle >= _IDLE_PROGRESS):
            await self.applier.move_progress(self.received)
            self._asked = False
            self._idle_since = time.monotonic()

    async def _confirm(self) -> None:
        while True:
            await asyncio.sleep(_CONFIRM_EVERY)
            await self._learn_flushed()
            silent = time.monotonic() - self.heard_at
            await self._tell(reply=silent > self._source.silence_timeout / 3)

    async def _learn_flushed(self) -> None:
        """Move what may be confirmed up to the commits that the target has flushed."""
        unflushed = self.applier.unflushed
        if not unflushed and time.monotonic() - self._asked_target_at < _ASK_TARGET_EVERY:
            return
        self._asked_target_at = time.monotonic()
        try:
            async with asyncio.timeout(self._target.silence_timeout):
                with translate(self._target):
                    cursor = await self.watch.execute("SELECT pg_catalog.pg_current_wal_flush_lsn()")
                    row = await cursor.fetchone()
        except TimeoutError:
            raise TargetUnreachable(
                f"the target has been silent for {self._target.silence_timeout:.0f} s",
                hint=f"is {describe(self._target.conninfo)} alive? the link reconnects by itself",
            ) from None
        assert row is not None
        flushed: Lsn = row[0]
        while unflushed and unflushed[0].target <= flushed:
            self._confirmed = unflushed.popleft().source

    async def _tell(self, *, reply: bool = False) -> None:
        await self._stream.send(
            status_update(
                written=self.received,
                flushed=self._confirmed,
                applied=self._confirmed,
                now=time.time(),
                reply=reply,
            )
        )

    async def confirm_rest(self) -> None:
        """Before leaving: confirm what the target has flushed by now, waiting a moment for the last commit."""
        for _ in range(20):
            await self._learn_flushed()
            if not self.applier.unflushed:
                break
            await asyncio.sleep(0.05)
        await self._tell()


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a group of tasks failed with: an expected one before a bug's."""
    found = leaves(group)
    expected = [each for each in found if isinstance(each, LockstepError)]
    return (expected or found)[0]
