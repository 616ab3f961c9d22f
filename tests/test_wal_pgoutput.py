"""pgoutput's messages decode to what was sent, and nothing else is ever taken for one."""

from __future__ import annotations

import contextlib
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encode_pgoutput import by_kind, messages
from pglockstep.errors import ProtocolViolation
from pglockstep.wal.encode import encode
from pglockstep.wal.messages import (
    UNCHANGED,
    Binary,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Relation,
    RelationColumn,
    Truncate,
    TypeName,
    Update,
    Value,
)
from pglockstep.wal.pgoutput import decode

# --- what was sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", by_kind)
@given(data=st.data())
def test_every_message_survives_the_wire(kind: str, data: st.DataObject) -> None:
    """A message of each kind, with names and values of any content, decodes to itself."""
    message = data.draw(by_kind[kind])
    encoded = encode(message)
    assert encoded[:1] == kind.encode()
    decoded = decode(encoded)
    assert type(decoded) is type(message)
    assert decoded == message


def test_the_four_kinds_of_value_stay_apart() -> None:
    """NULL, unchanged, text and binary are four different things, an empty text and an empty binary too."""
    sent: tuple[Value, ...] = (None, UNCHANGED, b"", Binary(b""), b"n", Binary(b"n"))
    decoded = decode(encode(Insert(1, sent)))
    assert isinstance(decoded, Insert)
    assert [type(value) for value in decoded.new] == [type(value) for value in sent]
    assert decoded.new == sent
    assert decoded.new[1] is UNCHANGED


def test_a_binary_value_is_no_text() -> None:
    """The same bytes mean different values in the two forms, so they are never equal, either way round."""
    assert Binary(b"1") == Binary(b"1")
    assert not Binary(b"1") != Binary(b"1")  # noqa: SIM202
    for one, other in [(Binary(b"1"), b"1"), (b"1", Binary(b"1"))]:
        assert one != other
        assert not one == other  # noqa: SIM201


def test_old_rows_keep_their_kind() -> None:
    """A key (K), a whole old row (O) and no old row are told apart."""
    new = (b"2", b"x")
    assert decode(encode(Update(1, new))) == Update(1, new, None, old_is_key=False)
    assert decode(encode(Update(1, new, (b"1", None), True))) == Update(1, new, (b"1", None), old_is_key=True)
    assert decode(encode(Update(1, new, (b"1", None)))) == Update(1, new, (b"1", None), old_is_key=False)
    assert decode(encode(Delete(1, (b"1", None), True))) == Delete(1, (b"1", None), old_is_key=True)
    assert decode(encode(Delete(1, (b"1", None), False))) == Delete(1, (b"1", None), old_is_key=False)


@pytest.mark.parametrize("count", [0, 1, 1600])
def test_rows_and_relations_of_any_width(count: int) -> None:
    """No column, one, and as many as PostgreSQL allows: all arrive, in their order."""
    columns = tuple(RelationColumn(f"c{index}", 23, -1, index % 2 == 0) for index in range(count))
    relation = Relation(7, "public", "wide", "f", columns)
    assert decode(encode(relation)) == relation
    kinds: tuple[Value, ...] = (None, UNCHANGED, b"x" * 9, Binary(b"y" * 9))
    row = tuple(kinds[index % 4] for index in range(count))
    for message in (Insert(7, row), Update(7, row, row), Delete(7, row, False)):
        assert decode(encode(message)) == message


def test_huge_values() -> None:
    """A value of many megabytes, full of bytes that mean something in the protocol, comes through whole."""
    huge = b"ntubKONBCDIURYTM\0\xff" * 1_000_000
    change = Insert(1, (huge, b"", Binary(huge), None))
    assert decode(encode(change)) == change
    message = LogicalMessage(True, 1, "p", huge)
    assert decode(encode(message)) == message


def test_the_schema_of_postgresql_itself() -> None:
    """PostgreSQL leaves its own schema's name out; it is put back."""
    assert decode(encode(Relation(1, "", "t", "d", ()))) == Relation(1, "pg_catalog", "t", "d", ())
    assert decode(encode(TypeName(1, "", "t"))) == TypeName(1, "pg_catalog", "t")


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_options_of_truncate(cascade: bool, restart: bool) -> None:
    """CASCADE is bit 1 and RESTART IDENTITY bit 2, each by itself."""
    encoded = pack("!cIBI", b"T", 1, cascade | restart << 1, 9)
    assert decode(encoded) == Truncate((9,), cascade=cascade, restart_identity=restart)


# --- anything else ---------------------------------------------------------------------------------


@given(messages)
def test_every_truncation_is_refused(message: Message) -> None:
    """A message cut short anywhere is a violation of the protocol, never anything else."""
    encoded = encode(message)
    for length in range(len(encoded)):
        with pytest.raises(ProtocolViolation):
            decode(encoded[:length])


@given(messages, st.binary(min_size=1, max_size=20))
def test_every_byte_too_many_is_refused(message: Message, rest: bytes) -> None:
    """Bytes left over are a violation of the protocol, whatever they are."""
    with pytest.raises(ProtocolViolation):
        decode(encode(message) + rest)


@given(
    st.binary(max_size=200)
    | st.builds(bytes.__add__, st.sampled_from([k.encode() for k in by_kind]), st.binary())
)
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    """Any bytes are a message or a violation of the protocol, those that begin like a message too."""
    with contextlib.suppress(ProtocolViolation):
        assert isinstance(decode(data), Message)


@given(messages, st.data())
def test_damaged_messages_raise_nothing_else(message: Message, data: st.DataObject) -> None:
    """A message with any one byte changed is a message or a violation of the protocol."""
    damaged = bytearray(encode(message))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolViolation):
        assert isinstance(decode(bytes(damaged)), Message)


@pytest.mark.parametrize("kind", [bytes([code]) for code in range(256) if chr(code) not in by_kind])
def test_unknown_kinds_are_refused_by_name(kind: bytes) -> None:
    """A kind that is not known is named, so that a newer protocol is recognised for what it is."""
    with pytest.raises(ProtocolViolation, match="unknown pgoutput message of kind") as caught:
        decode(kind + bytes(30))
    assert repr(kind) in caught.value.message
    assert caught.value.hint


def test_nothing_is_no_message() -> None:
    """An empty payload is refused like any other malformed one."""
    with pytest.raises(ProtocolViolation):
        decode(b"")


@pytest.mark.parametrize(
    "malformed",
    [
        pytest.param(b"I\0\0\0\1K" + pack("!H", 0), id="insert with a key"),
        pytest.param(b"I\0\0\0\1O" + pack("!H", 0), id="insert with an old row"),
        pytest.param(b"D\0\0\0\1N" + pack("!H", 0), id="delete with a new row"),
        pytest.param(b"U\0\0\0\1K" + pack("!H", 0), id="update without a new row"),
        pytest.param(b"U\0\0\0\1K" + pack("!H", 0) + b"K" + pack("!H", 0), id="update with two keys"),
        pytest.param(b"I\0\0\0\1N" + pack("!Hc", 1, b"x"), id="unknown kind of value"),
        pytest.param(b"I\0\0\0\1N" + pack("!Hci", 1, b"t", -1), id="value of negative length"),
        pytest.param(b"I\0\0\0\1N" + pack("!Hci", 1, b"b", -5), id="binary value of negative length"),
        pytest.param(b"I\0\0\0\1N" + pack("!Hci", 1, b"t", 2**31 - 1), id="value longer than the message"),
        pytest.param(b"O" + bytes(8) + b"\xff\0", id="name that is no UTF-8"),
        pytest.param(pack("!cIB", b"T", 2**32 - 1, 0), id="truncate of too many tables"),
        pytest.param(b"M" + bytes(9) + b"p\0" + pack("!I", 2**32 - 1), id="message longer than itself"),
    ],
)
def test_malformed_messages_are_refused(malformed: bytes) -> None:
    """What the format rules out is refused, though its length would do."""
    with pytest.raises(ProtocolViolation, match="malformed"):
        decode(malformed)
