"""The frames around pgoutput's messages, both ways."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglockstep.errors import ProtocolViolation
from pglockstep.wal.frames import Keepalive, WalData, parse, payloads, status_update, unix_time

lsns = st.integers(0, 2**64 - 1)
times = st.integers(-(2**63), 2**63 - 1)


@given(lsns, lsns, times, st.binary())
def test_wal_data_carries_its_payload(wal_start: int, wal_end: int, time: int, payload: bytes) -> None:
    """Two positions and the payload arrive as they were sent, an empty payload too."""
    frame = pack("!cQQq", b"w", wal_start, wal_end, time) + payload
    assert parse(frame) == WalData(wal_start, wal_end, payload)


@given(st.lists(st.none() | st.binary(max_size=9)))
def test_what_the_frames_carry(contents: list[bytes | None]) -> None:
    """Payloads and keepalives come apart, each in order; a frame without a payload is told with the keepalives."""
    keepalive, head = pack("!cQqB", b"k", 1, 2, 0), pack("!cQQq", b"w", 1, 2, 3)
    frames = [keepalive if content is None else head + content for content in contents]
    carried, others = payloads(frames)
    assert carried == [content for content in contents if content]
    assert others == [frame for frame, content in zip(frames, contents, strict=True) if not content]


@given(lsns, times, st.booleans())
def test_keepalive(wal_end: int, time: int, reply: bool) -> None:
    """A keepalive tells the server's position and whether it waits for an answer."""
    assert parse(pack("!cQqB", b"k", wal_end, time, reply)) == Keepalive(wal_end, reply_requested=reply)


@given(st.booleans(), st.data())
def test_frames_cut_short_are_refused(keepalive: bool, data: st.DataObject) -> None:
    """A frame that ends within its head is a violation of the protocol, never another error."""
    whole = pack("!cQqB", b"k", 1, 2, 0) if keepalive else pack("!cQQq", b"w", 1, 2, 3)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ProtocolViolation):
        parse(whole[:cut])


@given(st.binary(min_size=1, max_size=40))
def test_a_keepalive_has_a_fixed_length(rest: bytes) -> None:
    """Bytes after a keepalive are a violation of the protocol."""
    with pytest.raises(ProtocolViolation):
        parse(pack("!cQqB", b"k", 1, 2, 0) + rest)


@given(
    st.binary(max_size=60) | st.builds(bytes.__add__, st.sampled_from([b"w", b"k"]), st.binary(max_size=60))
)
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    """Any bytes are a frame or a violation of the protocol."""
    with contextlib.suppress(ProtocolViolation):
        assert isinstance(parse(data), WalData | Keepalive)


@pytest.mark.parametrize("kind", [bytes([code]) for code in range(256) if chr(code) not in "wk"])
def test_unknown_kinds_are_refused(kind: bytes) -> None:
    """Every other kind of frame is refused, and named."""
    with pytest.raises(ProtocolViolation) as caught:
        parse(kind + bytes(24))
    assert repr(kind) in caught.value.message


@given(lsns, lsns, lsns, st.integers(0, 4_000_000_000_000_000), st.booleans())
def test_status_update_tells_three_positions_apart(
    written: int, flushed: int, applied: int, microseconds: int, reply: bool
) -> None:
    """Received, durable and applied stand in the protocol's order; the server forgets by the second one."""
    now = unix_time(microseconds)
    update = status_update(written=written, flushed=flushed, applied=applied, now=now, reply=reply)
    kind, *positions, time, wants_reply = unpack("!cQQQqB", update)
    assert (kind, positions, wants_reply) == (b"r", [written, flushed, applied], reply)
    assert abs(time - microseconds) <= 1


def test_times_count_from_postgresqls_epoch() -> None:
    """Zero is the first moment of 2000 in UTC, in both directions."""
    epoch = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
    assert unix_time(0) == epoch
    assert unix_time(1_500_000) == epoch + 1.5
    assert status_update(written=0, flushed=0, applied=0, now=epoch + 2.25)[25:33] == pack("!q", 2_250_000)
