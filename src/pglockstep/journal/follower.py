"""A reader that follows a journal: from the files as long as it is behind, then from memory, as things arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pglockstep.journal.folder import usable
from pglockstep.journal.reader import FileReader, Start
from pglockstep.journal.writer import Place

if TYPE_CHECKING:
    from pglockstep.journal.journal import Journal


#: So many bytes of messages are handed out at once, and perhaps one chunk more.
_AT_ONCE = 256 << 10


class Abandoned(Exception):
    """The transaction that a follower is in the middle of was given up; the source sends it again."""


class Follower:
    """Reads a journal from a place on, and then whatever arrives. Close it."""

    def __init__(self, journal: Journal, start: Start) -> None:
        self._journal = journal
        self._file: FileReader | None = FileReader(journal.folder, start.place)
        #: of the entry in memory that is next, unless a file is read
        self._number = 0
        self._cut = False
        self._wakened = asyncio.Event()
        #: descriptions of tables that were sent before the place at which this reader starts
        self.descriptions = start.descriptions
        self._waits = False

    @property
    def in_files(self) -> bool:
        """Whether what is next for this reader stands in the files."""
        return self._file is not None

    @property
    def level(self) -> bool:
        """Whether everything that has arrived was taken, and dealt with: whoever reads waits for more."""
        return self._waits and self._file is None and self._number == self._journal.tail.next

    async def read(self) -> Sequence[bytes]:
        """The next messages, in order; waits for them. Raises `Abandoned` if what was read last will not be completed."""
        self._waits = True
        while True:
            if self._cut:
                raise Abandoned
            if self._file is not None:
                if (found := await self._from_file(self._file)) is not None:
                    self._waits = False
                    return found
                continue
            found = self._from_memory()
            if found:
                self._waits = False
                return found
            self._wakened.clear()
            await self._wakened.wait()

    def _from_memory(self) -> Sequence[bytes]:
        """What memory has; several chunks at once, as far as they are not much."""
        entry = self._journal.tail.entry(self._number)
        if entry is None:
            return ()
        self._number += 1
        following = self._journal.tail.entry(self._number)
        if following is None:
            return entry.chunk.messages
        messages, size = list(entry.chunk.messages), entry.chunk.size
        while following is not None and size < _AT_ONCE:
            messages += following.chunk.messages
            size += following.chunk.size
            self._number += 1
            following = self._journal.tail.entry(self._number)
        return messages

    async def _from_file(self, file: FileReader) -> Sequence[bytes] | None:
        """The next block of the files; None once memory has what follows: then it is read from there."""
        async with self._journal.at_files() as files:
            if self._cut:
                return None
            if file.place >= (self._journal.tail.place or files.place):
                self._number = self._journal.tail.after(file.place)
                file.close()
                self._file = None
                return None
            with usable(self._journal.folder):
                return await self._journal.do(file.read)

    def wants(self, number: int) -> bool:
        """Whether the entry of that number is still to be read from memory."""
        return self._file is None and self._number <= number

    def read_from(self, place: Place) -> None:
        """What is next has left memory: it stands in the files, at `place`."""
        self._file = FileReader(self._journal.folder, place)

    def abandoned(self, number: int, place: Place) -> None:
        """Everything from entry `number` on, which is at `place` in the files, has been given up."""
        if self._file is None:
            self._cut = self._cut or self._number > number
        else:
            self._cut = self._cut or self._file.place > place
        self.wake()

    def wake(self) -> None:
        """Something has arrived, or been heard."""
        self._wakened.set()

    def close(self) -> None:
        """Let go of the files, and of what is kept in memory for this reader."""
        self._journal.leaves(self)
        if self._file is not None:
            self._file.close()
            self._file = None
