"""Looking at a journal's files, also beside whoever writes them: what they hold, where they are damaged, what was sent.

Reads only and takes no lock. Whoever writes may be in the middle of a block: the unfinished end of the newest segment is
no damage, and what looks damaged is looked at twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from pglockstep.errors import JournalDamaged
from pglockstep.journal import blocks, segments
from pglockstep.journal.blocks import CATALOG, CONTINUES, DESCRIBES, OPEN, Damaged, Header
from pglockstep.journal.reader import FileReader
from pglockstep.journal.segments import Segment, SegmentFile
from pglockstep.journal.writer import Place
from pglockstep.units import Lsn

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def time_of(microseconds: int) -> datetime:
    """A time of the wire as a point in time."""
    return _EPOCH + timedelta(microseconds=microseconds)


class SegmentFacts(msgspec.Struct):
    """A segment by its headers alone. `end`: up to where it is complete; times are those of commits.

    `after_gap`: what was sent just before it is not here; `unfinished`: bytes at its end that are no whole block yet.
    """

    file: SegmentFile
    size: int
    after_gap: bool
    end: Lsn
    transactions: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    unfinished: int = 0


def facts(folder: Path) -> Iterator[SegmentFacts]:
    """What each segment holds, oldest first. One that is damaged is told as far as it can be read."""
    for file in segments.listed(folder):
        with suppress(FileNotFoundError):
            yield _facts(file)


def _facts(file: SegmentFile) -> SegmentFacts:
    size = file.path.stat().st_size
    try:
        segment = Segment.open(file)
    except JournalDamaged:
        return SegmentFacts(file, size, False, file.start, unfinished=size)
    with segment:
        found = SegmentFacts(file, size, not segment.head.follows, file.start, unfinished=size)
        found.unfinished -= min(size, segment.blocks_at)
        for offset, header in whole(segment):
            found.unfinished = max(0, size - offset - header.size)
            found.end = blocks.position(header, found.end)
            if header.transactions:
                found.transactions += header.transactions
                found.last_at = time_of(header.commit_time)
                found.first_at = found.first_at or found.last_at
        return found


def whole(segment: Segment) -> Iterator[tuple[int, Header]]:
    """The blocks of a segment by their headers, as far as they are all there."""
    size = segment.size
    with suppress(Damaged):
        for offset, header in segment.headers(segment.blocks_at):
            if offset + header.size > size:
                return
            yield offset, header


# --- damage ----------------------------------------------------------------------------------------


class Damage(msgspec.Struct, frozen=True):
    """A place in a journal that is not as it was written."""

    path: Path
    offset: int
    problem: str


class SegmentCheck(msgspec.Struct):
    """A segment, every checksum of which was tried."""

    file: SegmentFile
    after_gap: bool = False
    end: Lsn = Lsn(0)
    blocks: int = 0
    damage: list[Damage] = msgspec.field(default_factory=list)
    unfinished: int = 0


def checked(folder: Path) -> Iterator[SegmentCheck]:
    """Every segment, oldest first, with all of its damage."""
    number: int | None = None
    for file in segments.listed(folder):
        try:
            found = _check(file, folder)
            if found.damage:
                again = _check(file, folder)
                again.damage = [each for each in again.damage if each in found.damage]
                found = again
        except FileNotFoundError:
            # nobody needs it any more, or its transaction was given up
            continue
        if number is not None and file.number != number + 1:
            found.damage.insert(
                0, Damage(file.path, 0, f"segment {number + 1}, which came before it, is missing")
            )
        number = file.number
        yield found


def _check(file: SegmentFile, folder: Path) -> SegmentCheck:
    newest = file.number >= segments.listed(folder)[-1].number
    found = SegmentCheck(file, end=file.start)
    if newest and segments.was_just_begun(file):
        found.unfinished = file.path.stat().st_size
        return found
    try:
        segment = Segment.open(file)
        open_before: bool | None = segment.head.continues
        offset = segment.blocks_at
        found.after_gap = not segment.head.follows
    except JournalDamaged:
        found.damage.append(Damage(file.path, 0, "the segment's head is not one, or a newer pglockstep's"))
        segment = Segment.headless(file)
        following = segment.block_after(0)
        if following is None:
            segment.close()
            return found
        offset, open_before = following[0], None
    with segment:
        size = segment.size
        while offset < size:
            try:
                header = segment.block(offset)
            except Damaged as error:
                if newest and not segments.was_on_disk(segment, offset):
                    found.unfinished = size - offset
                    break
                found.damage.append(Damage(file.path, offset, str(error)))
                following = segment.block_after(offset)
                if following is None:
                    break
                offset, open_before = following[0], None
                continue
            found.blocks += 1
            found.end = blocks.position(header, found.end)
            if not header.flags & CATALOG and header.messages:
                if open_before is not None and bool(header.flags & CONTINUES) != open_before:
                    found.damage.append(Damage(file.path, offset, "a piece of a transaction is missing"))
                open_before = bool(header.flags & OPEN)
            offset += header.size
    return found


# --- transactions ----------------------------------------------------------------------------------


class Spot(msgspec.Struct, frozen=True):
    """Where some transactions stand, one after the other, or a large one: from `start` up to `until`.

    `first`: where the first one's commit starts; `end`: where the last one's ends.
    """

    start: Place
    until: Place
    transactions: int
    first: Lsn
    end: Lsn


def stretches(folder: Path) -> Iterator[list[SegmentFile]]:
    """Consecutive segments that begin and end between transactions, the newest stretch first."""
    stretch: list[SegmentFile] = []
    files = segments.listed(folder)
    if files and segments.was_just_begun(files[-1]):
        files.pop()
    for file in reversed(files):
        stretch.insert(0, file)
        with Segment.open(file) as segment:
            if not segment.head.continues:
                yield stretch
                stretch = []


def spots(stretch: list[SegmentFile]) -> Iterator[Spot]:
    """The complete transactions of a stretch, by the headers alone, in commit order."""
    begun: Place | None = None
    for file in stretch:
        with Segment.open(file) as segment:
            for offset, header in whole(segment):
                if header.flags & CATALOG or not header.messages:
                    continue
                if not header.flags & CONTINUES:
                    begun = Place(file.number, offset)
                if header.transactions and begun is not None:
                    until = Place(file.number, offset + header.size)
                    yield Spot(begun, until, header.transactions, Lsn(header.first), Lsn(header.end))


def read(folder: Path, start: Place, until: Place) -> Iterator[list[bytes]]:
    """The messages between two places, a block at a time, behind the descriptions of tables in force at `start`."""
    described: dict[bytes, bytes] = {}
    file = next(each for each in segments.listed(folder) if each.number == start.segment)
    with Segment.open(file) as segment:
        for offset, header in segment.headers(segment.blocks_at):
            if offset >= start.offset:
                break
            if header.flags & DESCRIBES:
                described |= blocks.described(segment.messages(offset, header))
    yield list(described.values())
    reader = FileReader(folder, start)
    try:
        while reader.place < until and (messages := reader.read()) is not None:
            yield messages
    finally:
        reader.close()


def bytes_of(folder: Path) -> int:
    """The bytes of all segments."""
    total = 0
    for file in segments.listed(folder):
        with suppress(FileNotFoundError):
            total += os.stat(file.path).st_size
    return total
