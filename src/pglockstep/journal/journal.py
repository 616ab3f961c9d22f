"""The journal of one link: what arrives is handed to readers at once, and is on the disk a moment later.

Readers take what is new from memory, and what they have not kept up with from the files, so that memory stays
bounded however long a target is away. Nobody waits for the disk but the confirmation to the source (`durable`), and
whoever appends much faster than the disk writes. One task, `run`, does the writing; files are touched in a thread
of the journal's own.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import msgspec

from pglockstep import failpoints
from pglockstep.errors import JournalDamaged
from pglockstep.journal import blocks, segments
from pglockstep.journal import folder as place
from pglockstep.journal.assembly import Assembly
from pglockstep.journal.blocks import CONTINUES, OPEN
from pglockstep.journal.folder import unusable, usable
from pglockstep.journal.follower import Follower
from pglockstep.journal.reader import find
from pglockstep.journal.retention import Kept, droppable
from pglockstep.journal.tail import Entry, Tail
from pglockstep.journal.writer import Place, Writer
from pglockstep.threads import in_thread
from pglockstep.units import Lsn

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Bytes of messages that may wait to be written before whoever appends has to wait, and that readers find in memory.
_PENDING = 8 << 20
_TAIL = 8 << 20
#: Consecutive transactions are written as one block up to so many bytes.
_BLOCK = 1 << 20
#: How long what has arrived is gathered before it is written, and how long it may wait to be flushed, in seconds;
#: with so many bytes it is flushed at once.
_GATHER = 0.01
_FLUSH = 0.2
_FLUSH_BYTES = 4 << 20
#: The same in WAL of the source, which has to keep what is not flushed here: behind so much of it what is there is flushed, and
#: behind so much whoever appends waits. A message may stand for five times its own bytes.
_FLUSH_WAL = 4 << 20
_APART = 8 << 20
#: How often it is written down how far the source is that has nothing for us, in seconds.
_MARK_EVERY = 1.0
#: How often a full disk is tried again and old segments are looked for, in seconds.
_TRY_AGAIN = 1.0
_PRUNE_EVERY = 10.0

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Limits(msgspec.Struct, frozen=True):
    """How large a segment gets and how much is kept that nobody needs any more; bytes and seconds."""

    segment_size: int = 64 << 20
    keep_size: int = 1 << 30
    keep_age: float = 86400.0


class Journal:
    """An open journal. Use `open`, have `run` running, then `append` and `reader`; `close` in the end."""

    def __init__(
        self, folder: Path, lock: int, writer: Writer, thread: ThreadPoolExecutor, limits: Limits
    ) -> None:
        self.folder = folder
        self._lock = lock
        self._writer = writer
        self._thread = thread
        self._limits = limits
        self._assembly = Assembly()
        self.tail = Tail()
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._files = asyncio.Lock()
        self._readers: set[Follower] = set()
        self._needed: Lsn | None = None
        self._flushed_at = time.monotonic()
        self._marked_at = 0.0
        self._unflushed = 0
        #: the end of the last transaction that has arrived whole
        self._taken = writer.end
        self._failed: Exception | None = None
        #: what is in the way of writing right now, for a person; empty if nothing is
        self.trouble = ""
        #: what a crash had left unfinished at the end, and was cut off; empty if nothing was
        self.cut = writer.cut
        #: everything that has arrived is complete up to here; and everything that is on the disk
        self.position = writer.end
        self.durable = writer.end
        #: when anything was last heard of the source, if it is received, by the monotonic clock
        self.heard_at = time.monotonic()

    @classmethod
    async def open(cls, folder: Path, link: str, source: str, limits: Limits) -> Journal:
        """Open a link's journal, or make it. Raises `JournalDamaged`, `JournalUnusable`, or `LinkHeld` if it is in use."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

        def opened() -> tuple[int, Writer]:
            lock = place.lock(folder)
            try:
                return lock, Writer.open(folder, link, source, segment_size=limits.segment_size)
            except BaseException:
                os.close(lock)
                raise

        try:
            lock, writer = await in_thread(opened, executor=thread)
        except BaseException as error:
            thread.shutdown(wait=False)
            if isinstance(error, OSError):
                raise unusable(folder, error) from error
            raise
        return cls(folder, lock, writer, thread, limits)

    async def extent(self) -> tuple[Lsn, Lsn] | None:
        """From where up to where it has everything that the source sent; None if nothing was ever written to it."""
        async with self.at_files() as writer:
            with usable(self.folder):
                return await self.do(lambda: writer.extent)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has arrived in part."""
        return not self._assembly.empty

    async def begin_at(self, lsn: Lsn) -> None:
        """Begin with what follows `lsn`: an empty journal, or one that has a gap there."""
        async with self.at_files() as writer:
            with usable(self.folder):
                await self.do(lambda: writer.begin_at(lsn))
        self.position = self.durable = lsn

    async def append(self, messages: Sequence[bytes]) -> None:
        """Take messages as they arrived; waits while too much is waiting for the disk, or to be flushed to it."""
        self.heard_at = time.monotonic()
        for chunk in self._assembly.take(messages):
            self.tail.add(chunk)
            self.position = blocks.position(chunk, self.position)
            self._taken = blocks.position(chunk, self._taken)
        self._work.set()
        self._wake_readers()
        while (self.tail.unwritten > _PENDING or self._apart > _APART) and self._failed is None:
            self._room.clear()
            await self._room.wait()
        if self._failed is not None:
            raise self._failed

    @property
    def _apart(self) -> int:
        """How much WAL lies between what is durable and what would be if all that has arrived were flushed."""
        return self._taken - self.durable

    def heard(self, lsn: Lsn) -> None:
        """The source has nothing more to send before `lsn`; that is durable once it is written down too."""
        self.heard_at = time.monotonic()
        if self._assembly.empty and lsn > self.position:
            if self.position == self.durable:
                self._work.set()
            self.position = lsn
            self._wake_readers()

    async def abandon(self) -> None:
        """Give up the transaction that has arrived in part: the source will send it again."""
        if not self._assembly.in_pieces:
            self._assembly.abandon()
            return
        async with self.at_files() as writer:
            self._assembly.abandon()
            number = self.tail.take_back()
            with usable(self.folder):
                await self.do(writer.abandon)
            for each in self._readers:
                each.abandoned(number, writer.place)

    def needs(self, lsn: Lsn) -> None:
        """From `lsn` on what is in the journal is still needed; what was not needed before never is again."""
        self._needed = max(lsn, self._needed or lsn)

    async def reader(self, lsn: Lsn) -> Follower:
        """Follow everything from the first transaction whose commit starts at `lsn` or later; some before may come too."""
        async with self.at_files():
            with usable(self.folder):
                start = await self.do(lambda: find(self.folder, lsn))
        if start is None:
            raise JournalDamaged(
                f"the journal in {self.folder} begins later than {lsn}, which the target is complete up to",
                hint="was the target restored from an older copy? pglockstep teardown, empty the target, pglockstep once",
            )
        made = Follower(self, start)
        self._readers.add(made)
        return made

    def leaves(self, reader: Follower) -> None:
        """A reader reads no more."""
        self._readers.discard(reader)

    async def run(self) -> None:
        """Write what has arrived, keep on doing so, and remove what nobody needs. Raises what the disk will not mend."""
        prune_at = 0.0
        try:
            while True:
                await self._wait_for_work()
                try:
                    await self._write_what_waits()
                    if time.monotonic() >= prune_at or self.trouble:
                        async with self.at_files():
                            await self.do(self._prune)
                        prune_at = time.monotonic() + _PRUNE_EVERY
                except OSError as error:
                    await self._wait_for_room(error)
                else:
                    self.trouble = ""
        except Exception as error:
            self._failed = error
            self._room.set()
            raise

    async def _wait_for_room(self, error: OSError) -> None:
        """A full disk passes; anything else does not."""
        if error.errno not in _NO_ROOM:
            raise unusable(self.folder, error) from error
        if not self.trouble:
            log.error(
                "no room for the journal in %s: receiving waits until there is; nothing is lost, the source keeps the rest",
                self.folder,
                extra={"action": "journal.full"},
            )
        self.trouble = f"no room for the journal in {self.folder}"
        async with self.at_files() as writer:
            with usable(self.folder):
                await self.do(self._prune)
                if self._needed is not None and writer.end <= self._needed:
                    await self._start_over(writer, self._needed)
        await asyncio.sleep(_TRY_AGAIN)
        self._work.set()

    async def _start_over(self, writer: Writer, needed: Lsn) -> None:
        """The segment that is being written cannot be pruned; but nobody needs what is in it, and has to read it."""
        passed = self.tail.passed(needed)
        if any(each.in_files or (passed and each.wants(passed[-1].number)) for each in self._readers):
            return
        if await self.do(lambda: writer.start_over([entry.chunk for entry in passed])):
            for entry in passed:
                entry.place = writer.place
            self.tail.written(passed)
            self.tail.evict(tuple(self._readers), _TAIL)
            self._unflushed = 0
            self._room.set()

    async def _wait_for_work(self) -> None:
        patience = _PRUNE_EVERY
        if self._unflushed:
            patience = max(0.0, self._flushed_at + _FLUSH - time.monotonic())
        elif self.position > self.durable and not self.in_transaction:
            patience = max(0.0, self._marked_at + _MARK_EVERY - time.monotonic())
        try:
            async with asyncio.timeout(patience):
                await self._work.wait()
        except TimeoutError:
            return
        if self.tail.unwritten < _BLOCK:
            await asyncio.sleep(_GATHER)
        self._work.clear()

    async def _write_what_waits(self) -> None:
        """Write it in few blocks; mark how far the source is, and flush, if it is time to."""
        async with self.at_files() as writer:
            waiting = self.tail.waiting()
            now = time.monotonic()
            much = self._unflushed + self.tail.unwritten >= _FLUSH_BYTES or self._apart >= _FLUSH_WAL
            mark = None
            if (
                not self.in_transaction
                and self.position > self.durable
                and now - self._marked_at >= _MARK_EVERY
            ):
                mark, self._marked_at = self.position, now
            flush = much or mark is not None or now - self._flushed_at >= _FLUSH
            try:
                await self.do(lambda: _write(writer, waiting, mark, flush=flush))
            finally:
                self._unflushed += self.tail.written(waiting)
                self.tail.evict(tuple(self._readers), _TAIL)
            if flush:
                self._unflushed, self._flushed_at = 0, now
                self.durable = max(self.durable, writer.end)
            self._room.set()

    def _prune(self) -> None:
        if self._needed is None:
            return
        kept = []
        for file, until in segments.reaches(self.folder):
            found = file.path.stat()
            written = datetime.fromtimestamp(found.st_mtime, UTC)
            kept.append(Kept(file.number, until, found.st_size, written))
        gone = droppable(
            kept,
            self._needed,
            datetime.now(UTC),
            keep_size=0 if self.trouble else self._limits.keep_size,
            keep_age=timedelta(seconds=self._limits.keep_age),
        )
        for file in segments.listed(self.folder):
            if file.number in gone:
                failpoints.reach("journal.drop")
                file.path.unlink()
        if gone:
            segments.sync_folder(self.folder)

    def _wake_readers(self) -> None:
        for each in self._readers:
            each.wake()

    @asynccontextmanager
    async def at_files(self) -> AsyncIterator[Writer]:
        """Nobody else is at the journal's files meanwhile."""
        async with self._files:
            yield self._writer

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` returns, done in the journal's thread."""
        return await in_thread(work, executor=self._thread)

    async def close(self) -> None:
        """Write and flush what is complete, and let go of the files."""
        self._assembly.abandon()
        try:
            async with self.at_files() as writer:
                if self._failed is None and not self.trouble:
                    waiting = self.tail.waiting()
                    await self.do(lambda: _write(writer, waiting, None, flush=True))
                await self.do(writer.close)
        except OSError as error:
            log.warning("the end of the journal was not written: %s; the source sends it again", error)
        finally:
            self._thread.shutdown(wait=False)
            os.close(self._lock)

    @property
    def usage(self) -> int | None:
        """How much of the file system is in use, in percent; None if it cannot be told."""
        found = place.room(self.folder)
        return None if found is None else found.used_percent


def _write(writer: Writer, waiting: Sequence[Entry], mark: Lsn | None, *, flush: bool) -> None:
    """Write entries, complete transactions several to a block; each gets its place as soon as it has one.

    `mark`: behind them the source has nothing for us before that position.
    """

    def write(group: Sequence[Entry]) -> None:
        place = writer.append(blocks.joined([entry.chunk for entry in group]))
        skip = 0
        for entry in group:
            entry.place = Place(place.segment, place.offset, skip)
            skip += len(entry.chunk.messages)

    group: list[Entry] = []
    size = 0
    for entry in waiting:
        alone = entry.chunk.flags & (OPEN | CONTINUES)
        if group and (alone or size + entry.chunk.size > _BLOCK):
            write(group)
            group, size = [], 0
        if alone:
            write([entry])
        else:
            group.append(entry)
            size += entry.chunk.size
    if group:
        write(group)
    if mark is not None and mark > writer.end:
        writer.append(blocks.mark(mark))
    if flush:
        writer.sync()
