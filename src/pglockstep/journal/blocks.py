"""Blocks: runs of pgoutput messages as they stand in a segment, compressed and with a checksum. Pure.

A block either holds complete transactions, or a piece of one large transaction, so that a transaction that did not
end can be cut off between two blocks. A record of the journal is a transaction just as the source sent it: its
``Begin`` carries the xid, the LSN and the time of its commit, its ``Commit`` where it ends.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from struct import Struct

import lz4.block
import msgspec

from pglockstep.units import Lsn

#: Flags of a block: it starts, or ends, in the middle of a transaction; it holds descriptions of tables.
CONTINUES, OPEN, DESCRIBES = 1, 2, 4
#: It stands at a segment's head and repeats the descriptions that are in force there.
CATALOG = 8

#: How a block begins.
MAGIC = b"PGLb"
_PLAIN, _LZ4 = 0, 1
_layout = Struct("<4sBBHIIIIIQQqI")
HEADER_SIZE = _layout.size

_begin = Struct("!cQqI")
_commit = Struct("!cBQQq")
_BEGIN, _COMMIT, _RELATION, _TYPE = b"BCRY"


class Damaged(Exception):
    """What stands here is not the block that was written; the text says why."""


class Chunk(msgspec.Struct):
    """Messages that belong into one block. LSNs are integers, the time is in microseconds since 2000-01-01 UTC.

    `first`: where the commit of the first transaction starts; `end`: where the last complete one ends, 0 if none
    ends here; `size`: the bytes of all messages.
    """

    messages: Sequence[bytes]
    size: int
    flags: int = 0
    transactions: int = 0
    first: int = 0
    end: int = 0
    commit_time: int = 0


class Header(msgspec.Struct, frozen=True):
    """What stands before a block's content. `stored` and `raw` are bytes, compressed and not.

    `synced`: when the block was written, the segment was on the disk up to this offset for certain.
    """

    flags: int
    codec: int
    synced: int
    stored: int
    raw: int
    messages: int
    transactions: int
    first: int
    end: int
    commit_time: int
    checksum: int

    @property
    def size(self) -> int:
        """The bytes of the whole block."""
        return HEADER_SIZE + self.stored


def begins(message: bytes) -> tuple[int, int, int]:
    """Of a ``Begin``: where its commit record starts, when it was committed, the xid."""
    _, lsn, time, xid = _begin.unpack(message)
    return lsn, time, xid


def ends(message: bytes) -> tuple[int, int]:
    """Of a ``Commit``: where its commit record ends, when it was committed."""
    _, _, _, lsn, time = _commit.unpack(message)
    return lsn, time


def whole(messages: Sequence[bytes], kinds: bytes, size: int) -> Chunk:
    """A chunk of complete transactions of such `kinds`, the last message of which is a ``Commit``."""
    first, _, _ = begins(messages[kinds.index(_BEGIN)])
    end, time = ends(messages[-1])
    return Chunk(messages, size, _described(kinds), kinds.count(_COMMIT), first, end, time)


def piece(
    messages: Sequence[bytes], kinds: bytes, size: int, begin: bytes, *, starts: bool, ends_here: bool
) -> Chunk:
    """A piece of the transaction that began with `begin`; with its last piece it `ends_here`."""
    first, time, _ = begins(begin)
    flags = _described(kinds) | (0 if starts else CONTINUES) | (0 if ends_here else OPEN)
    if not ends_here:
        return Chunk(messages, size, flags, 0, first, 0, time)
    end, time = ends(messages[-1])
    return Chunk(messages, size, flags, 1, first, end, time)


def _described(kinds: bytes) -> int:
    return DESCRIBES if _RELATION in kinds or _TYPE in kinds else 0


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Several chunks of complete transactions as one."""
    if len(chunks) == 1:
        return chunks[0]
    last = chunks[-1]
    flags = 0
    for chunk in chunks:
        flags |= chunk.flags
    return Chunk(
        [message for chunk in chunks for message in chunk.messages],
        sum(chunk.size for chunk in chunks),
        flags,
        sum(chunk.transactions for chunk in chunks),
        chunks[0].first,
        last.end,
        last.commit_time,
    )


def encode(chunk: Chunk, synced: int = 0) -> list[bytes]:
    """The block's bytes, in parts to be written one after the other; `synced` as in `Header`."""
    lengths = array("I", map(len, chunk.messages))
    raw = b"".join((lengths.tobytes(), *chunk.messages))
    stored, codec = lz4.block.compress(raw, store_size=False), _LZ4
    if len(stored) >= len(raw):
        stored, codec = raw, _PLAIN
    fields = (
        MAGIC, chunk.flags, codec, 0, synced, len(stored), len(raw), len(lengths), chunk.transactions,
        chunk.first, chunk.end, chunk.commit_time,
    )  # fmt: skip
    bare = _layout.pack(*fields, 0)
    return [_layout.pack(*fields, zlib.crc32(stored, zlib.crc32(bare))), stored]


def header(data: bytes) -> Header:
    """Read a block's header; raises `Damaged` if these bytes are not one."""
    if len(data) < HEADER_SIZE:
        raise Damaged("a block's header is cut short")
    magic, flags, codec, zero, *rest = _layout.unpack_from(data)
    if magic != MAGIC or codec not in (_PLAIN, _LZ4) or zero:
        raise Damaged("there is no block where one should start")
    return Header(flags, codec, *rest)


def content(found: Header, stored: bytes) -> list[bytes]:
    """The messages of a block; raises `Damaged` if anything in header or content is not as it was written."""
    verify(found, stored)
    try:
        raw = stored
        if found.codec == _LZ4:
            raw = lz4.block.decompress(stored, uncompressed_size=found.raw)
    except lz4.block.LZ4BlockError as error:
        raise Damaged(f"a block cannot be unpacked: {error}") from error
    lengths = array("I", raw[: 4 * found.messages])
    bounds = accumulate(lengths, initial=4 * found.messages)
    messages = [raw[start:end] for start, end in pairwise(bounds)]
    if len(raw) != found.raw or sum(lengths) + 4 * found.messages != len(raw):
        raise Damaged("a block's lengths do not add up")
    return messages


def verify(found: Header, stored: bytes) -> None:
    """Raise `Damaged` unless header and content are what was written."""
    if len(stored) < found.stored:
        raise Damaged("a block is cut short")
    bare = _layout.pack(
        MAGIC, found.flags, found.codec, 0, found.synced, found.stored, found.raw, found.messages, found.transactions,
        found.first, found.end, found.commit_time, 0,
    )  # fmt: skip
    if zlib.crc32(stored, zlib.crc32(bare)) != found.checksum:
        raise Damaged("a block's checksum is wrong")


def described(messages: Sequence[bytes]) -> dict[bytes, bytes]:
    """The descriptions of tables and types among messages, by kind and OID: a later one replaces an earlier one."""
    return {message[:5]: message for message in messages if message[0] in (_RELATION, _TYPE)}


def catalog(descriptions: Sequence[bytes]) -> Chunk:
    """The chunk at a segment's head."""
    return Chunk(descriptions, sum(map(len, descriptions)), CATALOG | DESCRIBES)


def mark(lsn: Lsn) -> Chunk:
    """A chunk without messages: the source has nothing for us before `lsn`."""
    return Chunk((), 0, first=lsn, end=lsn)


def position(chunk: Chunk | Header, before: Lsn) -> Lsn:
    """Up to where everything is complete after a block, if it was up to `before` ahead of it."""
    return Lsn(max(before, chunk.end))
