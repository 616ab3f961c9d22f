"""Segments: the files of a journal, each with a head and blocks behind it. Files are only ever appended to and cut.

A segment is called after its number and the LSN that the journal was complete up to when it was begun. Everything
here blocks; nothing here decides what is kept.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Self

import msgspec

from pglockstep.errors import JournalDamaged
from pglockstep.journal import blocks
from pglockstep.journal.blocks import CATALOG, CONTINUES, HEADER_SIZE, OPEN, Damaged, Header
from pglockstep.units import Lsn

FORMAT = 1

_MAGIC = b"PGLSJRNL"
_front = Struct("<8sII")
#: More bytes than any head has.
_LONGEST_HEAD = 4096
#: How much is read at once in search of a block.
_WINDOW = 1 << 20
_NAME = re.compile(r"([0-9]{8})-([0-9A-F]{16})\.journal")


class Head(msgspec.Struct, frozen=True):
    """What a segment says of itself: whose journal it belongs to, and where in it it stands.

    `start` is where the journal was complete when the segment was begun, as an integer; `continues`: that was in the
    middle of a transaction; `follows`: there is no gap between the segment before and this one.
    """

    format: int
    number: int
    start: int
    continues: bool
    follows: bool
    link: str
    source: str
    created_at: datetime


class SegmentFile(msgspec.Struct, frozen=True, order=True):
    """A segment by its name."""

    number: int
    start: Lsn
    path: Path

    @classmethod
    def named(cls, folder: Path, number: int, start: Lsn) -> Self:
        """The segment of that number and start."""
        return cls(number, start, folder / f"{number:08d}-{start:016X}.journal")


def listed(folder: Path) -> list[SegmentFile]:
    """The segments in a folder, oldest first."""
    found = []
    for path in folder.iterdir():
        if name := _NAME.fullmatch(path.name):
            found.append(SegmentFile(int(name[1]), Lsn(int(name[2], 16)), path))
    return sorted(found)


def was_just_begun(file: SegmentFile) -> bool:
    """Whether a crash left a segment behind whose head is not whole: nothing was ever written behind it."""
    if file.path.stat().st_size > _LONGEST_HEAD:
        return False
    content = file.path.read_bytes()
    if blocks.MAGIC in content:
        return False
    if len(content) < _front.size:
        return True
    magic, length, checksum = _front.unpack_from(content)
    text = content[_front.size : _front.size + length]
    whole = magic == _MAGIC and len(text) == length and zlib.crc32(text) == checksum
    return not whole


def last_run(folder: Path) -> list[tuple[SegmentFile, Head]]:
    """The newest segments that follow on each other without a gap, oldest first, with their heads."""
    run = []
    files = listed(folder)
    if files and was_just_begun(files[-1]):
        files.pop()
    for file in reversed(files):
        with Segment.open(file) as segment:
            run.append((file, segment.head))
            if not segment.head.follows:
                break
    return run[::-1]


def begins_at(run: Sequence[tuple[SegmentFile, Head]], end: Lsn) -> Lsn:
    """From where on a run that is complete up to `end` has every transaction from its beginning."""
    return next((file.start for file, head in run if not head.continues), end)


def reaches(folder: Path) -> list[tuple[SegmentFile, Lsn | None]]:
    """Each segment but the newest, oldest first, and up to where all reaches that is in it, or that begins in it.

    None where a transaction may go on in the newest segment, and nobody knows yet where that ends.
    """
    found: list[tuple[SegmentFile, Lsn | None]] = []
    until: Lsn | None = None
    for file, following in reversed(list(pairwise(listed(folder)))):
        with Segment.open(following) as segment:
            if not segment.head.continues:
                until = following.start
        found.append((file, until))
    return found[::-1]


class Segment:
    """One open segment. Offsets are bytes from the start of the file."""

    def __init__(self, file: SegmentFile, descriptor: int, head: Head, blocks_at: int) -> None:
        self.file = file
        self.head = head
        self.blocks_at = blocks_at
        self._descriptor = descriptor

    @classmethod
    def create(cls, file: SegmentFile, link: str, source: str, *, continues: bool, follows: bool) -> Self:
        """Begin a new one; it is on the disk when this returns."""
        head = Head(FORMAT, file.number, int(file.start), continues, follows, link, source, datetime.now(UTC))
        text = msgspec.json.encode(head)
        front = _front.pack(_MAGIC, len(text), zlib.crc32(text)) + text
        descriptor = os.open(file.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, [front], 0)
            os.fsync(descriptor)
            sync_folder(file.path.parent)
        except BaseException:
            os.close(descriptor)
            file.path.unlink(missing_ok=True)
            raise
        return cls(file, descriptor, head, len(front))

    @classmethod
    def open(cls, file: SegmentFile, *, writable: bool = False) -> Self:
        """Open a segment that is there. Raises `JournalDamaged` if its head is not what was written."""
        mode = os.O_RDWR if writable else os.O_RDONLY
        descriptor = os.open(file.path, mode | os.O_CLOEXEC)
        try:
            front = os.pread(descriptor, _front.size, 0)
            if len(front) < _front.size:
                raise damaged(file, 0, "the segment's head is cut short")
            magic, length, checksum = _front.unpack(front)
            text = os.pread(descriptor, length, _front.size)
            if magic != _MAGIC or zlib.crc32(text) != checksum:
                raise damaged(file, 0, "the segment's head is not one")
            head = msgspec.json.decode(text, type=Head)
            if head.format > FORMAT:
                raise JournalDamaged(
                    f"journal segment {file.path} was written by a newer pglockstep",
                    hint="use the newer version on this link; this one changes nothing there",
                )
        except BaseException:
            os.close(descriptor)
            raise
        return cls(file, descriptor, head, _front.size + length)

    @classmethod
    def headless(cls, file: SegmentFile) -> Self:
        """Open a segment whose head cannot be read, to look at what stands behind it."""
        head = Head(FORMAT, file.number, int(file.start), False, True, "", "", datetime.now(UTC))
        return cls(file, os.open(file.path, os.O_RDONLY | os.O_CLOEXEC), head, 0)

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return os.fstat(self._descriptor).st_size

    def headers(self, offset: int) -> Iterator[tuple[int, Header]]:
        """The blocks from `offset` on, by their headers alone. Raises `Damaged` where there is none."""
        size = self.size
        while offset < size:
            found = blocks.header(os.pread(self._descriptor, HEADER_SIZE, offset))
            yield offset, found
            offset += found.size

    def block(self, offset: int) -> Header:
        """The header of the block at `offset`; raises `Damaged` unless all of the block is as it was written."""
        found = blocks.header(os.pread(self._descriptor, HEADER_SIZE, offset))
        blocks.verify(found, self.stored(offset, found))
        return found

    def block_after(self, offset: int) -> tuple[int, Header] | None:
        """The first block behind `offset` that is as it was written, wherever it begins; None if there is none."""
        size, at = self.size, offset + 1
        while at < size:
            window = os.pread(self._descriptor, _WINDOW, at)
            found = window.find(blocks.MAGIC)
            if found < 0:
                at += max(1, len(window) - len(blocks.MAGIC) + 1)
                continue
            at += found
            with suppress(Damaged):
                return at, self.block(at)
            at += 1
        return None

    def stored(self, offset: int, found: Header) -> bytes:
        """The content of the block at `offset`, as it stands there."""
        there = max(0, self.size - offset - HEADER_SIZE)
        return os.pread(self._descriptor, min(found.stored, there), offset + HEADER_SIZE)

    def messages(self, offset: int, found: Header) -> list[bytes]:
        """The messages of the block at `offset`; raises `JournalDamaged` if they are not what was written."""
        try:
            return blocks.content(found, self.stored(offset, found))
        except Damaged as error:
            raise damaged(self.file, offset, str(error)) from error

    def write(self, parts: list[bytes], offset: int) -> int:
        """Write a block at `offset`, which is the end; returns the offset behind it. On failure nothing of it stays."""
        try:
            return _write_all(self._descriptor, parts, offset)
        except BaseException:
            os.ftruncate(self._descriptor, offset)
            raise

    def sync(self) -> None:
        """Have everything that was written on the disk, in the file that is found by its name."""
        os.fdatasync(self._descriptor)
        if not os.path.samestat(os.fstat(self._descriptor), self.file.path.stat()):
            raise FileNotFoundError(errno.ENOENT, "another file is there now", str(self.file.path))

    def cut(self, offset: int) -> None:
        """Take away everything from `offset` on."""
        os.ftruncate(self._descriptor, offset)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Extent(msgspec.Struct):
    """What a segment was found to hold. `sound_at` and `complete_at` are offsets.

    `sound_at`: behind the last block that is whole; `complete_at`: behind the last block at which no transaction is
    open, None if there is no such place in this segment; `end`: where the last complete transaction ends.
    """

    sound_at: int
    complete_at: int | None
    end: Lsn
    torn: str = ""


def newest_head(folder: Path) -> Head | None:
    """What the newest segment that can be read says of itself; None if there is none."""
    for file in reversed(listed(folder) if folder.is_dir() else []):
        with suppress(JournalDamaged), Segment.open(file) as segment:
            return segment.head
    return None


def examine(segment: Segment, *, thoroughly: bool, last: bool) -> Extent:
    """Walk through a segment; `thoroughly`: with every checksum.

    Only of the `last` segment may the end be torn: from a block on that the disk never got whole.
    Raises `JournalDamaged`, with the place, for anything else.
    """
    open_before = segment.head.continues
    start = segment.blocks_at
    found = Extent(start, None if open_before else start, segment.file.start)
    size = segment.size
    try:
        for offset, header in segment.headers(start):
            if offset + header.size > size:
                raise Damaged("a block is cut short")
            if thoroughly:
                blocks.verify(header, segment.stored(offset, header))
            if not header.flags & CATALOG and bool(header.flags & CONTINUES) != open_before:
                raise damaged(segment.file, offset, "a piece of a transaction is missing")
            if not header.flags & CATALOG:
                open_before = bool(header.flags & OPEN)
            found.sound_at = offset + header.size
            if header.end:
                found.end = Lsn(header.end)
            if not open_before:
                found.complete_at = found.sound_at
    except Damaged as error:
        if not last or was_on_disk(segment, found.sound_at):
            raise damaged(segment.file, found.sound_at, str(error)) from error
        found.torn = str(error)
    return found


def was_on_disk(segment: Segment, offset: int) -> bool:
    """Whether a whole block behind the bad one at `offset` proves that this one was on the disk once: then it is no torn end.

    Without a flush in between a disk may get a later block before an earlier one.
    """
    following = segment.block_after(offset)
    while following is not None:
        at, header = following
        if header.synced > offset:
            return True
        following = segment.block_after(at + header.size - 1)
    return False


def damaged(file: SegmentFile, offset: int, why: str) -> JournalDamaged:
    """What to raise for a place in a journal that is not as it was written."""
    return JournalDamaged(
        f"journal segment {file.path} is damaged at byte {offset}: {why}; nothing was applied from there",
        hint="look at that disk; pglockstep journal verify lists all damage; if the file is lost: pglockstep teardown, "
        "empty the target, pglockstep once",
    )


def sync_folder(folder: Path) -> None:
    """Have the names of the files in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, parts: list[bytes], offset: int) -> int:
    for part in parts:
        view = memoryview(part)
        while view:
            count = os.pwrite(descriptor, view, offset)
            view = view[count:]
            offset += count
    return offset
