"""The source's half of a link: receives into the journal, and tells the source what is durable on our side.

Nothing is confirmed before it is flushed to the journal's disk. While the target keeps up, no more is confirmed than
the target has flushed too, for as long as that costs the source little: then a lost journal loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pglockstep import failpoints
from pglockstep.errors import first_of
from pglockstep.journal.journal import Journal
from pglockstep.postgres.connect import End
from pglockstep.postgres.replication import ReplicationConnection
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn
from pglockstep.wal.frames import Keepalive, WalData, parse, payloads, status_update

#: How often the source is told what is durable, in seconds.
_CONFIRM_EVERY = 0.5
#: How much WAL the source keeps for what is durable here but not on the target yet, in bytes, and how long, in seconds.
_SPARE_BYTES = 8 << 20
_SPARE_SECONDS = 8.0


def confirmable(durable: Lsn, flushed: Lsn, waiting: float) -> Lsn:
    """Up to where the source may forget: `durable` here, `flushed` by the target, which stands still for `waiting` seconds.

    Nothing, as long as it is not known (0) what the target has flushed: an answer is on its way.
    """
    if not flushed:
        return Lsn(0)
    if durable - flushed > _SPARE_BYTES or waiting > _SPARE_SECONDS:
        return durable
    return min(durable, flushed)


class Waiting:
    """For how long the target has been behind with what was durable here. Pure."""

    def __init__(self) -> None:
        self._since: tuple[Lsn, float] | None = None

    def seconds(self, durable: Lsn, flushed: Lsn, now: float) -> float:
        """How long it has not reached a position at least that was durable then; a target that keeps moving keeps up."""
        if flushed >= durable:
            self._since = None
        elif self._since is None or flushed >= self._since[0]:
            self._since = durable, now
        return 0.0 if self._since is None else now - self._since[1]


class Intake:
    """Receives from the slot of a link; `flushed` is how far the target has everything on its disk."""

    def __init__(self, source: End, record: LinkRecord, journal: Journal, flushed: Callable[[], Lsn]) -> None:
        self._source = source
        self._record = record
        self._journal = journal
        self._flushed = flushed
        # nothing: what an earlier session confirmed is for the source to know
        self._confirmed = Lsn(0)
        self._waiting = Waiting()
        self._asked = False
        self._stream: ReplicationConnection | None = None
        self.heard_at = time.monotonic()

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Receive until it fails or is cancelled; `started` is called once the stream has begun. Raises the source's errors."""
        await self._journal.abandon()
        stream = await ReplicationConnection.open(self._source)
        try:
            await stream.start(self._record.slot, self._record.publication, self._journal.position)
            started()
            self._stream = stream
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._confirm(stream), name="confirm")
                # not as a task: a group that only waits for its end counts the failure of one as our own cancellation
                await self._gather(stream)
        except BaseExceptionGroup as group:
            raise first_of(group) from group
        finally:
            self._stream = None
            await stream.close()

    async def _gather(self, stream: ReplicationConnection) -> None:
        while True:
            frames = await stream.read()
            self.heard_at = time.monotonic()
            messages, others = payloads(frames)
            # large values stand in the frames once more
            del frames
            if messages:
                await self._journal.append(messages)
            for frame in others:
                self._hear(parse(frame))
            # who has much to send never lets us wait for it: the others have their turn all the same
            await asyncio.sleep(0)

    def _hear(self, frame: WalData | Keepalive) -> None:
        """Take note of the source's own position."""
        self._journal.heard(Lsn(frame.wal_end))
        # a server that shuts down waits until all of its WAL is confirmed
        self._asked = self._asked or (isinstance(frame, Keepalive) and frame.reply_requested)

    async def _confirm(self, stream: ReplicationConnection) -> None:
        while True:
            await asyncio.sleep(_CONFIRM_EVERY)
            silent = time.monotonic() - self.heard_at
            await self._tell(stream, reply=silent > self._source.silence_timeout / 3)

    async def _tell(self, stream: ReplicationConnection, *, reply: bool = False) -> None:
        durable, flushed = self._journal.durable, self._flushed()
        waiting = self._waiting.seconds(durable, flushed, time.monotonic())
        allowed = durable if self._asked else confirmable(durable, flushed, waiting)
        self._asked = False
        self._confirmed = max(self._confirmed, allowed)
        failpoints.reach("confirm.send")
        await stream.send(
            status_update(
                written=self._journal.position,
                flushed=self._confirmed,
                applied=self._confirmed,
                now=time.time(),
                reply=reply,
            )
        )
        failpoints.reach("confirm.sent")

    async def confirm_now(self) -> None:
        """Before leaving: tell the source what is durable by now."""
        if self._stream is not None:
            await self._tell(self._stream)
