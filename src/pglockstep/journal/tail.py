"""The newest part of a journal, in memory: what readers have not taken yet, as far as it is little enough. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from pglockstep.journal.blocks import CONTINUES, OPEN, Chunk
from pglockstep.journal.writer import Place
from pglockstep.units import Lsn


class Entry(msgspec.Struct):
    """A chunk in memory, numbered in order; `place` once it has been written."""

    number: int
    chunk: Chunk
    place: Place | None = None


class Wanting(Protocol):
    """Somebody who reads from memory."""

    def wants(self, number: int) -> bool:
        """Whether the entry of that number is still to be read from memory."""

    def read_from(self, place: Place) -> None:
        """What is next has left memory: it stands in the files, at `place`."""


class Tail:
    """Entries that are not written, or not read by everybody. `size` and `unwritten` count bytes of messages."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        #: the number of the next entry, and of the one with which the transaction begins that is open at the end
        self.next = 0
        self._opens = 0
        self.size = 0
        self.unwritten = 0

    def add(self, chunk: Chunk) -> None:
        """Put a chunk at the end."""
        if chunk.flags & OPEN and not chunk.flags & CONTINUES:
            self._opens = self.next
        self._entries.append(Entry(self.next, chunk))
        self.next += 1
        self.size += chunk.size
        self.unwritten += chunk.size

    def waiting(self) -> list[Entry]:
        """The entries that are not written."""
        return [entry for entry in self._entries if entry.place is None]

    def passed(self, lsn: Lsn) -> list[Entry]:
        """The entries that are not written and belong to transactions that ended at `lsn` at the latest."""
        waiting = self.waiting()
        ended = [at for at, entry in enumerate(waiting, start=1) if 0 < entry.chunk.end <= lsn]
        return waiting[: max(ended, default=0)]

    def written(self, entries: Sequence[Entry]) -> int:
        """Take note of those of `entries` that have been given a place; returns their bytes."""
        size = sum(entry.chunk.size for entry in entries if entry.place is not None)
        self.unwritten -= size
        return size

    def evict(self, readers: Sequence[Wanting], most: int) -> None:
        """Forget what was written and everybody has read; and more, while there is more than `most` bytes."""
        while self._entries and (first := self._entries[0]).place is not None:
            wanting = [each for each in readers if each.wants(first.number)]
            if wanting and self.size <= most:
                return
            for each in wanting:
                each.read_from(first.place)
            self._entries.popleft()
            self.size -= first.chunk.size

    def take_back(self) -> int:
        """Remove the transaction that is open at the end; returns the number with which it began, which is the next again."""
        self.next = self._opens
        while self._entries and self._entries[-1].number >= self.next:
            entry = self._entries.pop()
            self.size -= entry.chunk.size
            if entry.place is None:
                self.unwritten -= entry.chunk.size
        return self.next

    def entry(self, number: int) -> Entry | None:
        """The entry of a number that has not been forgotten; None if it has not come yet."""
        if number >= self.next:
            return None
        return self._entries[number - self._entries[0].number]

    @property
    def place(self) -> Place | None:
        """Where the first entry stands in the files; None if it does not, or there is none."""
        return self._entries[0].place if self._entries else None

    def after(self, place: Place) -> int:
        """The number of the first entry that a reader of the files, who is at `place`, has not read."""
        behind: Iterator[int] = (
            entry.number for entry in self._entries if entry.place is None or entry.place >= place
        )
        return next(behind, self.next)
