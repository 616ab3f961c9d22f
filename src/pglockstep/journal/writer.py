"""The end of a journal, where it is written: blocks appended, segments begun, what did not end cut off. Everything blocks."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from pglockstep import failpoints
from pglockstep.journal import blocks, segments
from pglockstep.journal.blocks import CONTINUES, DESCRIBES, OPEN, Chunk
from pglockstep.journal.segments import Segment, SegmentFile
from pglockstep.units import Lsn


class Place(msgspec.Struct, frozen=True, order=True):
    """Where messages stand: the segment's number, the block's offset, and how many messages of it come before."""

    segment: int
    offset: int
    skip: int = 0


class Writer:
    """Appends to the last segment of a journal. `open` cuts off what a crash left unfinished."""

    def __init__(self, folder: Path, link: str, source: str, segment_size: int) -> None:
        self._folder = folder
        self._link = link
        self._source = source
        self._segment_size = segment_size
        self._segment: Segment | None = None
        self._offset = 0
        self._last_number = 0
        #: where the transaction that is open at the end begins: the segment's number, the offset, the descriptions then
        self._open_at: tuple[int, int] | None = None
        self._descriptions: dict[bytes, bytes] = {}
        self._unsynced = 0
        self._appended = False
        #: everything that was appended is complete up to here
        self.end = Lsn(0)
        #: what was cut off when the journal was opened, for a person to read
        self.cut = ""

    @classmethod
    def open(cls, folder: Path, link: str, source: str, *, segment_size: int) -> Self:
        """Open a journal, or begin an empty one. Raises `JournalDamaged` for anything but an end that is torn."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writer = cls(folder, link, source, segment_size)
        files = segments.listed(folder)
        while files and writer._segment is None:
            file = files.pop()
            if segments.was_just_begun(file):
                writer.cut = writer.cut or "a segment that was just begun"
                file.path.unlink()
                continue
            segment = Segment.open(file, writable=True)
            extent = segments.examine(segment, thoroughly=True, last=True)
            writer.cut = writer.cut or extent.torn
            if extent.complete_at is None:
                writer.cut = writer.cut or "a transaction that did not end"
                segment.close()
                file.path.unlink()
                continue
            if extent.complete_at < segment.size:
                writer.cut = writer.cut or "a transaction that did not end"
                segment.cut(extent.complete_at)
            # a killed process may have left it to the system's memory alone
            segment.sync()
            writer._segment, writer._offset = segment, extent.complete_at
            writer._last_number = file.number
            writer.end = extent.end
            writer._descriptions = _descriptions(segment)
        segments.sync_folder(folder)
        return writer

    @property
    def extent(self) -> tuple[Lsn, Lsn] | None:
        """From where up to where the journal has everything; None if there is no segment yet."""
        if self._segment is None:
            return None
        return segments.begins_at(segments.last_run(self._folder), self.end), self.end

    @property
    def place(self) -> Place:
        """Where the next block goes, as far as is known yet: it may have to begin a segment."""
        return Place(self._segment.file.number, self._offset) if self._segment else Place(0, 0)

    def begin_at(self, lsn: Lsn) -> None:
        """Begin the journal, or a new run of it behind a gap, with what follows `lsn`. It must not be inside a transaction."""
        self.sync()
        self.end = lsn
        self._next_segment(continues=False, follows=False)

    def append(self, chunk: Chunk) -> Place:
        """Write a block; returns where its messages stand. On an `OSError` it is as if it had not been tried."""
        if self._segment is None or self._offset >= self._segment_size:
            self._next_segment(continues=bool(chunk.flags & CONTINUES))
        assert self._segment is not None
        place = Place(self._segment.file.number, self._offset)
        parts = blocks.encode(chunk, self._offset - self._unsynced)
        failpoints.reach("journal.write")
        self._offset = self._segment.write(parts, self._offset)
        self._unsynced += sum(map(len, parts))
        self._appended = True
        failpoints.reach("journal.written")
        if chunk.flags & DESCRIBES:
            self._descriptions |= blocks.described(chunk.messages)
        if not chunk.flags & OPEN:
            self._open_at = None
        elif not chunk.flags & CONTINUES:
            self._open_at = (place.segment, place.offset)
        self.end = blocks.position(chunk, self.end)
        return place

    def sync(self) -> None:
        """Have everything that was appended on the disk. What the disk refused once is not tried again, but cut off."""
        if self._segment is not None and self._unsynced:
            failpoints.reach("journal.sync")
            try:
                self._segment.sync()
            except OSError as error:
                # the system may have forgotten it, and would call it written the next time
                with suppress(OSError):
                    self._segment.cut(self._offset - self._unsynced)
                self._segment.close()
                self._segment = None
                raise OSError(errno.EIO, f"what was written did not get there: {error.strerror}") from error
            self._unsynced = 0
            failpoints.reach("journal.synced")

    def abandon(self) -> None:
        """Cut the transaction that is open at the end off: the source will send it again."""
        if self._open_at is None:
            return
        number, offset = self._open_at
        assert self._segment is not None
        while self._segment.file.number > number:
            path = self._segment.file.path
            self._segment.close()
            path.unlink()
            self._segment = Segment.open(segments.listed(self._folder)[-1], writable=True)
        self._segment.cut(offset)
        segments.sync_folder(self._folder)
        self._offset, self._open_at, self._unsynced = offset, None, 0
        self._descriptions = _descriptions(self._segment)

    def start_over(self, passed: Sequence[Chunk]) -> bool:
        """Remove all that was written, to have room, and begin behind `passed`; false if a transaction is open there.

        Nobody needs any of it any more, nor `passed`, which would have been written next.
        """
        if self._segment is None or (self._open_at is not None and not passed):
            return False
        for chunk in passed:
            self._descriptions |= blocks.described(chunk.messages)
            self.end = blocks.position(chunk, self.end)
        self._segment.close()
        self._segment, self._open_at = None, None
        for file in segments.listed(self._folder):
            failpoints.reach("journal.drop")
            file.path.unlink()
        segments.sync_folder(self._folder)
        self._next_segment(continues=False)
        return True

    def close(self) -> None:
        """Sync and close. A last mark proves that all before it was on the disk."""
        if self._segment is None:
            return
        try:
            if self._appended and self._open_at is None:
                self.sync()
                with suppress(OSError):
                    self.append(blocks.mark(self.end))
            self.sync()
        finally:
            if self._segment is not None:
                self._segment.close()
                self._segment = None

    def _next_segment(self, *, continues: bool, follows: bool = True) -> None:
        files = segments.listed(self._folder)
        # places are compared by it: where everything was removed, numbers go on all the same
        number = (files[-1].number if files else self._last_number) + 1
        file = SegmentFile.named(self._folder, number, self.end)
        if self._segment is not None:
            self.sync()
        fresh = Segment.create(file, self._link, self._source, continues=continues, follows=follows)
        try:
            head = blocks.encode(blocks.catalog(list(self._descriptions.values())))
            offset = fresh.write(head, fresh.blocks_at)
        except BaseException:
            fresh.close()
            file.path.unlink(missing_ok=True)
            raise
        if self._segment is not None:
            self._segment.close()
        self._segment, self._offset, self._unsynced, self._last_number = fresh, offset, offset, number
        failpoints.reach("journal.segment")


def _descriptions(segment: Segment) -> dict[bytes, bytes]:
    """The descriptions of tables that are in force at the end of a segment."""
    found: dict[bytes, bytes] = {}
    for offset, header in segment.headers(segment.blocks_at):
        if header.flags & DESCRIBES:
            found |= blocks.described(segment.messages(offset, header))
    return found
