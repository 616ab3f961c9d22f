"""A reader of a journal's files: block after block from any LSN, up to what has been written. Blocks; changes nothing."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pglockstep.errors import JournalDamaged
from pglockstep.journal import blocks, segments
from pglockstep.journal.blocks import CATALOG, CONTINUES, DESCRIBES, Damaged, Header
from pglockstep.journal.segments import Segment
from pglockstep.journal.writer import Place
from pglockstep.units import Lsn


class Start(NamedTuple):
    """Where to read from, and the descriptions of tables that are in force there."""

    place: Place
    descriptions: list[bytes]


def find(folder: Path, lsn: Lsn) -> Start | None:
    """Where the first block stands that may hold a transaction whose commit starts at `lsn` or later.

    None if the journal begins later than that, or holds nothing.
    """
    reached = [(file, head) for file, head in segments.last_run(folder) if file.start <= lsn]
    whole = [at for at, (_, head) in enumerate(reached) if not head.continues]
    found = None
    # a transaction that is over may go on in the next segment: then what follows it is found there
    for file, _ in reached[whole[-1] :] if whole else ():
        with Segment.open(file) as segment:
            found, ended = _find_in(segment, lsn)
        if not ended:
            break
    return found


def extent(folder: Path, end: Lsn | None = None) -> tuple[Lsn, Lsn] | None:
    """From where up to where the files have every transaction, also beside whoever writes them; None if there are none.

    `end` spares looking for it, where it is known. Raises `JournalDamaged`, and `OSError` where they cannot be read.
    """
    while folder.is_dir():
        # a segment that is gone was not needed any more, or its transaction was given up just now
        with suppress(FileNotFoundError):
            run = segments.last_run(folder)
            if not run:
                return None
            if end is None:
                with Segment.open(run[-1][0]) as segment:
                    end = segments.examine(segment, thoroughly=False, last=True).end
            return segments.begins_at(run, end), end
    return None


def _find_in(segment: Segment, lsn: Lsn) -> tuple[Start, bool]:
    """As `find`, in one segment; and whether all of it is before."""
    descriptions: dict[bytes, bytes] = {}
    at, ended = segment.blocks_at, True
    try:
        for offset, header in segment.headers(at):
            at = offset
            if not header.flags & CATALOG and not _is_before(header, lsn):
                ended = False
                break
            if header.flags & DESCRIBES:
                descriptions |= blocks.described(segment.messages(offset, header))
            at = offset + header.size
    except Damaged as error:
        raise segments.damaged(segment.file, at, str(error)) from error
    return Start(Place(segment.file.number, at), list(descriptions.values())), ended


def _is_before(header: Header, lsn: Lsn) -> bool:
    """Whether everything in a block was complete at `lsn`: its last commit ends no later, or its one commit starts earlier."""
    if header.flags & CONTINUES or not header.end:
        return header.first < lsn
    return header.end <= lsn


class FileReader:
    """Reads block after block from a place on. Close it."""

    def __init__(self, folder: Path, place: Place) -> None:
        self._folder = folder
        self._segment: Segment | None = None
        self.place = place

    def read(self) -> list[bytes] | None:
        """The next messages; None if nothing more has been written. Raises `JournalDamaged` where they cannot be read."""
        while True:
            segment = self._opened()
            try:
                following = next(segment.headers(self.place.offset), None)
            except Damaged as error:
                raise segments.damaged(segment.file, self.place.offset, str(error)) from error
            if following is None:
                if not self._move_on(segment):
                    return None
                continue
            offset, header = following
            skip = self.place.skip
            messages = segment.messages(offset, header)
            self.place = Place(self.place.segment, offset + header.size)
            if header.flags & CATALOG or not messages:
                continue
            return messages[skip:] if skip else messages

    def close(self) -> None:
        """Close the file that is open."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _opened(self) -> Segment:
        if self._segment is None or self._segment.file.number != self.place.segment:
            self.close()
            for file in segments.listed(self._folder):
                if file.number == self.place.segment:
                    self._segment = Segment.open(file)
                    break
            else:
                raise missing(self._folder, self.place.segment)
        if not self.place.offset:
            self.place = Place(self.place.segment, self._segment.blocks_at)
        return self._segment

    def _move_on(self, segment: Segment) -> bool:
        later = [file for file in segments.listed(self._folder) if file.number > segment.file.number]
        if not later:
            return False
        if later[0].number != segment.file.number + 1:
            raise missing(self._folder, segment.file.number + 1)
        self.place = Place(later[0].number, 0)
        return True


def missing(folder: Path, number: int) -> JournalDamaged:
    """What to raise for a segment that should be there."""
    return JournalDamaged(
        f"journal segment {number} is missing from {folder}",
        hint="put it back if it was moved; else: pglockstep teardown, empty the target, pglockstep once",
    )
