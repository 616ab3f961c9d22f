"""From what arrives to chunks: complete transactions together, a large one in pieces, an unfinished one held back. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pglockstep.journal.blocks import Chunk, piece, whole
from pglockstep.journal.kinds import kinds_of, size_of

#: From how many bytes on an unfinished transaction is handed out in pieces.
PIECE = 256 << 10

_COMMIT, _MESSAGE = b"CM"
#: Of a message of an application's: it belongs to a transaction.
_TRANSACTIONAL = 1


class Assembly:
    """What has arrived of a transaction that is not complete yet."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._kinds = b""
        self._size = 0
        #: the Begin of the transaction that is being handed out in pieces
        self._begin: bytes | None = None

    @property
    def empty(self) -> bool:
        """Whether everything that arrived was handed out, and belongs to complete transactions."""
        return not self._held and self._begin is None

    @property
    def in_pieces(self) -> bool:
        """Whether the open transaction was handed out in part."""
        return self._begin is not None

    def take(self, messages: Sequence[bytes]) -> list[Chunk]:
        """Take messages as they arrived; returns the chunks that can be handed out now."""
        kinds = kinds_of(messages)
        if _MESSAGE in kinds:
            # what an application wrote into the WAL outside of any transaction is nothing that happened to a table
            messages = [each for each in messages if each[0] != _MESSAGE or each[1] & _TRANSACTIONAL]
            kinds = kinds_of(messages)
        chunks = []
        at = 0
        if self._begin is not None:
            end = kinds.find(_COMMIT)
            self._hold(messages, kinds, 0, len(messages) if end < 0 else end + 1)
            if end < 0:
                if self._size >= PIECE:
                    chunks.append(self._piece(self._begin, starts=False, ends_here=False))
                return chunks
            chunks.append(self._piece(self._begin, starts=False, ends_here=True))
            self._begin = None
            at = end + 1
        end = kinds.rfind(_COMMIT, at)
        if end >= 0:
            self._hold(messages, kinds, at, end + 1)
            chunks.append(whole(self._held, self._kinds, self._size))
            self._let_go()
            at = end + 1
        self._hold(messages, kinds, at, len(messages))
        if self._size >= PIECE:
            begin = self._held[0]
            chunks.append(self._piece(begin, starts=True, ends_here=False))
            self._begin = begin
        return chunks

    def abandon(self) -> None:
        """Forget the transaction that did not end: the source will send it again, from its beginning."""
        self._let_go()
        self._begin = None

    def _hold(self, messages: Sequence[bytes], kinds: bytes, start: int, end: int) -> None:
        if start == 0 and end == len(messages):
            some = messages
        elif start < end:
            some, kinds = messages[start:end], kinds[start:end]
        else:
            return
        self._held += some
        self._kinds += kinds
        self._size += size_of(some)

    def _let_go(self) -> None:
        self._held, self._kinds, self._size = [], b"", 0

    def _piece(self, begin: bytes, *, starts: bool, ends_here: bool) -> Chunk:
        made = piece(self._held, self._kinds, self._size, begin, starts=starts, ends_here=ends_here)
        self._let_go()
        return made
