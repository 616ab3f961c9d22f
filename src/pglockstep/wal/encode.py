"""The encoder of pgoutput: messages in, bytes out, for transactions that come from somewhere else than a slot. Pure.

Written after the chapter "Logical Replication Message Formats" of PostgreSQL's manual, as the decoder is, and without
looking at it: what one of them misreads is not what the other one writes.
"""

from __future__ import annotations

from struct import pack

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


def encode(message: Message) -> bytes:
    """The bytes that a server sends for `message`; names in UTF-8."""
    match message:
        case Begin():
            return pack("!cQqI", b"B", message.final_lsn, message.commit_time, message.xid)
        case Commit():
            lsns = message.commit_lsn, message.end_lsn
            return pack("!cBQQq", b"C", 0, *lsns, message.commit_time)
        case Origin():
            return pack("!cQ", b"O", message.commit_lsn) + _text(message.name)
        case Relation():
            return (
                pack("!cI", b"R", message.relation_id)
                + _text(message.schema)
                + _text(message.name)
                + message.replica_identity.encode("ascii")
                + pack("!H", len(message.columns))
                + b"".join(map(_column, message.columns))
            )
        case TypeName():
            return pack("!cI", b"Y", message.type_oid) + _text(message.schema) + _text(message.name)
        case Insert():
            return pack("!cI", b"I", message.relation_id) + b"N" + _row(message.new)
        case Update():
            old = b"" if message.old is None else _old(message.old, is_key=message.old_is_key)
            return pack("!cI", b"U", message.relation_id) + old + b"N" + _row(message.new)
        case Delete():
            return pack("!cI", b"D", message.relation_id) + _old(message.old, is_key=message.old_is_key)
        case Truncate():
            options = 1 * message.cascade + 2 * message.restart_identity
            count = len(message.relation_ids)
            return pack(f"!cIB{count}I", b"T", count, options, *message.relation_ids)
        case LogicalMessage():
            head = pack("!cBQ", b"M", message.transactional, message.lsn)
            return head + _text(message.prefix) + pack("!I", len(message.content)) + message.content
    raise AssertionError(f"no such message: {type(message).__name__}")


def _text(value: str) -> bytes:
    """A String of the protocol."""
    return value.encode() + b"\0"


def _row(values: Row) -> bytes:
    """TupleData of the protocol."""
    return pack("!H", len(values)) + b"".join(map(_value, values))


def _value(value: Value) -> bytes:
    if value is None:
        return b"n"
    if value is UNCHANGED:
        return b"u"
    return (b"b" if isinstance(value, Binary) else b"t") + pack("!i", len(value)) + value


def _column(column: RelationColumn) -> bytes:
    return bytes([column.in_key]) + _text(column.name) + pack("!Ii", column.type_oid, column.type_modifier)


def _old(values: Row, *, is_key: bool) -> bytes:
    return (b"K" if is_key else b"O") + _row(values)
