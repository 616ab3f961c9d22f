"""The messages of pgoutput as bytes, and random ones of them: what the decoder is held against.

Written from the chapter "Logical Replication Message Formats" of PostgreSQL's manual alone, so that a
misreading in the decoder finds no twin here.
"""

from __future__ import annotations

import string
from struct import pack

from hypothesis import strategies as st

from pglockstep.wal.messages import (
    UNCHANGED,
    Begin,
    Binary,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    Row,
    Truncate,
    TypeName,
    Update,
    Value,
)

# --- encoding --------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The bytes that a server sends for `message`."""
    match message:
        case Begin():
            return pack("!cQqI", b"B", message.final_lsn, message.commit_time, message.xid)
        case Commit():
            lsns = message.commit_lsn, message.end_lsn
            return pack("!cBQQq", b"C", 0, *lsns, message.commit_time)
        case Origin():
            return pack("!cQ", b"O", message.commit_lsn) + text(message.name)
        case Relation():
            return (
                pack("!cI", b"R", message.relation_id)
                + text(message.schema)
                + text(message.name)
                + message.replica_identity.encode("ascii")
                + pack("!H", len(message.columns))
                + b"".join(map(_column, message.columns))
            )
        case TypeName():
            return pack("!cI", b"Y", message.type_oid) + text(message.schema) + text(message.name)
        case Insert():
            return pack("!cI", b"I", message.relation_id) + b"N" + row(message.new)
        case Update():
            old = b"" if message.old is None else _old(message.old, is_key=message.old_is_key)
            return pack("!cI", b"U", message.relation_id) + old + b"N" + row(message.new)
        case Delete():
            return pack("!cI", b"D", message.relation_id) + _old(message.old, is_key=message.old_is_key)
        case Truncate():
            options = 1 * message.cascade + 2 * message.restart_identity
            count = len(message.relation_ids)
            return pack(f"!cIB{count}I", b"T", count, options, *message.relation_ids)
        case LogicalMessage():
            head = pack("!cBQ", b"M", message.transactional, message.lsn)
            return head + text(message.prefix) + pack("!I", len(message.content)) + message.content
    raise AssertionError(f"no such message: {message}")


def text(value: str) -> bytes:
    """A String of the protocol."""
    return value.encode() + b"\0"


def row(values: Row) -> bytes:
    """TupleData of the protocol."""
    return pack("!H", len(values)) + b"".join(map(_value, values))


def _value(value: Value) -> bytes:
    if value is None:
        return b"n"
    if value is UNCHANGED:
        return b"u"
    return (b"b" if isinstance(value, Binary) else b"t") + pack("!i", len(value)) + value


def _column(column: RelationColumn) -> bytes:
    return bytes([column.in_key]) + text(column.name) + pack("!Ii", column.type_oid, column.type_modifier)


def _old(values: Row, *, is_key: bool) -> bytes:
    return (b"K" if is_key else b"O") + row(values)


# --- random messages -------------------------------------------------------------------------------

u32 = st.integers(0, 2**32 - 1)
lsns = st.integers(0, 2**64 - 1)
times = st.integers(-(2**63), 2**63 - 1)
#: Quotes, percent signs, placeholders, line breaks, kinds of messages and all of Unicode; never empty.
names = st.text(
    st.sampled_from("\"'%$\\{}\n\t .;" + string.ascii_letters)
    | st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    min_size=1,
    max_size=63,
)
values: st.SearchStrategy[Value] = st.one_of(
    st.none(), st.just(UNCHANGED), st.binary(max_size=80), st.builds(Binary, st.binary(max_size=80))
)
rows: st.SearchStrategy[Row] = st.lists(values, max_size=12).map(tuple)
columns = st.builds(RelationColumn, names, u32, st.integers(-(2**31), 2**31 - 1), st.booleans())

#: Every kind of message, by its letter.
by_kind: dict[str, st.SearchStrategy[Message]] = {
    "B": st.builds(Begin, lsns, times, u32),
    "C": st.builds(Commit, lsns, lsns, times),
    "O": st.builds(Origin, lsns, names),
    "R": st.builds(
        Relation, u32, names, names, st.sampled_from("dnfi"), st.lists(columns, max_size=8).map(tuple)
    ),
    "Y": st.builds(TypeName, u32, names, names),
    "I": st.builds(Insert, u32, rows),
    "U": st.builds(Update, u32, rows) | st.builds(Update, u32, rows, rows, st.booleans()),
    "D": st.builds(Delete, u32, rows, st.booleans()),
    "T": st.builds(Truncate, st.lists(u32, max_size=8).map(tuple), st.booleans(), st.booleans()),
    "M": st.builds(LogicalMessage, st.booleans(), lsns, names, st.binary(max_size=80)),
}
messages = st.one_of(*by_kind.values())
