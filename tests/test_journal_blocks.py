"""What arrives, in any pieces, comes out of chunks and blocks as it went in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_journal import numbers, relation, transaction
from pglockstep.journal import assembly, blocks
from pglockstep.journal.assembly import Assembly
from pglockstep.journal.blocks import CONTINUES, OPEN, Chunk, Damaged
from pglockstep.journal.kinds import kinds_of
from pglockstep.wal.encode import encode
from pglockstep.wal.messages import LogicalMessage

#: The sizes of some transactions: how many rows, and how large each is.
sizes = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from([0, 20, 70_000, 300_000])), min_size=1, max_size=8
)


def chunks_of(messages: list[bytes], cuts: list[int]) -> tuple[list[Chunk], Assembly]:
    """What an assembly makes of messages that arrive in pieces."""
    bounds = sorted({0, len(messages), *(cut % (len(messages) + 1) for cut in cuts)})
    made, found = Assembly(), []
    for start, end in pairwise(bounds):
        found += made.take(messages[start:end])
    return found, made


@given(sizes=sizes, cuts=st.lists(st.integers(0, 200), max_size=12))
def test_every_message_comes_out_once_and_in_order(sizes: list[tuple[int, int]], cuts: list[int]) -> None:
    """However it arrives: chunks hold all of it, whole transactions or pieces of one, and say rightly which."""
    messages = [
        each
        for number, (rows, size) in enumerate(sizes, 1)
        for each in transaction(number, rows=rows, size=size)
    ]
    chunks, made = chunks_of(messages, cuts)
    assert made.empty
    assert [message for chunk in chunks for message in chunk.messages] == messages
    assert sum(chunk.transactions for chunk in chunks) == len(sizes)
    assert chunks[-1].end == (len(sizes) + 1) * 100
    is_open = False
    for chunk in chunks:
        assert bool(chunk.flags & CONTINUES) == is_open
        is_open = bool(chunk.flags & OPEN)
        if not chunk.flags & (OPEN | CONTINUES):
            assert numbers(chunk.messages)[0] * 100 == chunk.first
        assert chunk.size == sum(map(len, chunk.messages))
        assert (chunk.end == 0) == is_open
    assert not is_open


@given(rows=st.integers(0, 9), cut=st.integers(0, 12))
def test_what_did_not_end_is_held_back_until_it_is_large(rows: int, cut: int) -> None:
    """An unfinished small transaction is handed to nobody, and can be forgotten; a large one goes in pieces."""
    first, second = transaction(1), transaction(2, rows=rows, size=assembly.PIECE // 3)
    arrived = second[: min(cut, len(second) - 1)]
    chunks, made = chunks_of([*first, *arrived], [])
    handed_out = [message for chunk in chunks for message in chunk.messages]
    assert handed_out[: len(first)] == first
    assert made.in_pieces == (sum(map(len, arrived)) >= assembly.PIECE)
    assert handed_out[len(first) :] == (arrived if made.in_pieces else [])
    made.abandon()
    assert made.empty
    assert [m for chunk in made.take(second) for m in chunk.messages] == second


@given(cuts=st.lists(st.integers(0, 20), max_size=5), count=st.integers(1, 5))
def test_messages_outside_of_transactions_are_left_out(cuts: list[int], count: int) -> None:
    """However many an application writes, and however large: nothing is held back for them, and nothing is open."""
    outside = encode(LogicalMessage(False, 5, "app", b"x" * assembly.PIECE))
    inside = encode(LogicalMessage(True, 5, "app", b"x"))
    with_one = [*transaction(2)[:2], inside, *transaction(2)[2:]]
    arrived = [*[outside] * count, *transaction(1), *[outside] * count, *with_one, outside]
    chunks, made = chunks_of(arrived, cuts)
    assert made.empty
    assert [message for chunk in chunks for message in chunk.messages] == [*transaction(1), *with_one]


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20), st.integers(0, 2**64 - 1))
def test_a_block_gives_back_what_it_was_made_of(messages: list[bytes], lsn: int) -> None:
    """Any messages, compressed or not."""
    made = b"".join(blocks.encode(Chunk(messages, sum(map(len, messages)), 3, 7, lsn, lsn, -5)))
    found = blocks.header(made)
    assert (found.flags, found.transactions, found.first, found.end, found.commit_time) == (
        3,
        7,
        lsn,
        lsn,
        -5,
    )
    assert found.size == len(made)
    assert blocks.content(found, made[blocks.HEADER_SIZE :]) == messages


def test_a_flipped_bit_anywhere_in_a_block_is_found() -> None:
    """Header or content, any bit of it: refused, never another message."""
    messages = transaction(1, rows=3)
    made = b"".join(blocks.encode(blocks.whole(messages, kinds_of(messages), sum(map(len, messages)))))
    for bit in range(len(made) * 8):
        flipped = bytearray(made)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            blocks.content(blocks.header(bytes(flipped)), bytes(flipped)[blocks.HEADER_SIZE :])


def test_the_newest_description_of_each_table_is_in_force() -> None:
    """Described anew, the old description is gone; others stay."""
    one, other = relation(1), relation(2)
    anew = one[:-1] + b"\x05"
    assert list(blocks.described([one, other, *transaction(1), anew]).values()) == [anew, other]
