"""The decoder of pgoutput: bytes in, messages out, no I/O and no state.

Written after the chapter "Logical Replication Message Formats" of PostgreSQL's manual, for protocol
version 1 and the messages that versions 2 to 4 leave unchanged. Streaming of unfinished transactions and
two-phase commit are never asked for; their messages, like anything else unknown, are a
`ProtocolViolation`: never a guess. The names of relations and columns arrive in UTF-8, the client encoding
of every connection of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as StructError

from pglockstep.errors import ProtocolViolation
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
    PartialRow,
    Relation,
    RelationColumn,
    Row,
    Truncate,
    TypeName,
    Update,
    Value,
)

_u64 = Struct("!Q").unpack_from
_begin = Struct("!QqI").unpack_from
_commit = Struct("!BQQq").unpack_from
_message = Struct("!BQ").unpack_from
_truncate = Struct("!IB").unpack_from
_column_type = Struct("!Ii").unpack_from

_INSERT, _UPDATE, _DELETE = b"IUD"
_NEW, _KEY, _OLD = b"NKO"
_NULL, _TOAST, _TEXT, _BINARY = b"nutb"


def decode(data: bytes) -> Message:
    """The message that `data`, one payload of the replication stream, holds.

    Raises `ProtocolViolation` for anything unknown, cut short or with bytes left over.
    """
    try:
        kind = data[0]
        if kind == _INSERT:
            return _decode_insert(data)
        if kind == _UPDATE:
            return _decode_update(data)
        if kind == _DELETE:
            return _decode_delete(data)
        return _DECODERS[kind](data)
    except KeyError:
        raise ProtocolViolation(
            f"the source sent an unknown pgoutput message of kind {data[:1]!r}",
            hint="is another output plugin or a newer protocol in use? please report this with the server's version",
        ) from None
    except (IndexError, StructError, UnicodeDecodeError) as error:
        raise _malformed(data) from error


def _malformed(data: bytes) -> ProtocolViolation:
    return ProtocolViolation(
        f"the source sent a malformed pgoutput message of kind {data[:1]!r} and {len(data)} bytes",
        hint="does a proxy stand between? the link resumes from its last progress when it is started again",
    )


def _end(data: bytes, position: int) -> None:
    if position != len(data):
        raise _malformed(data)


def _string(data: bytes, position: int) -> tuple[str, int]:
    end = data.find(b"\0", position)
    if end < 0:
        raise _malformed(data)
    return data[position:end].decode(), end + 1


def _u32(data: bytes, position: int) -> int:
    return data[position] << 24 | data[position + 1] << 16 | data[position + 2] << 8 | data[position + 3]


def _row(data: bytes, position: int) -> tuple[Row, int]:
    count = data[position] << 8 | data[position + 1]
    position += 2
    size = len(data)
    # the compiler slices this one without a detour
    view = data
    values: list[Value] = [None] * count
    partial = False
    for index in range(count):
        kind = data[position]
        position += 1
        if kind == _NULL:
            continue
        if kind == _TOAST:
            values[index] = UNCHANGED
            partial = True
            continue
        # as `_u32`, without a call for each value
        length = (
            data[position] << 24 | data[position + 1] << 16 | data[position + 2] << 8 | data[position + 3]
        )
        position += 4
        if length > size - position:
            raise _malformed(data)
        value = view[position : position + length]
        position += length
        if kind == _TEXT:
            values[index] = value
        elif kind == _BINARY:
            values[index] = Binary(value)
        else:
            raise _malformed(data)
    return (PartialRow(values) if partial else tuple(values)), position


def _decode_begin(data: bytes) -> Begin:
    final_lsn, commit_time, xid = _begin(data, 1)
    _end(data, 21)
    return Begin(final_lsn, commit_time, xid)


def _decode_commit(data: bytes) -> Commit:
    _flags, commit_lsn, end_lsn, commit_time = _commit(data, 1)
    _end(data, 26)
    return Commit(commit_lsn, end_lsn, commit_time)


def _decode_origin(data: bytes) -> Origin:
    (commit_lsn,) = _u64(data, 1)
    name, position = _string(data, 9)
    _end(data, position)
    return Origin(commit_lsn, name)


def _decode_relation(data: bytes) -> Relation:
    relation_id = _u32(data, 1)
    schema, position = _string(data, 5)
    name, position = _string(data, position)
    replica_identity = chr(data[position])
    count = data[position + 1] << 8 | data[position + 2]
    position += 3
    columns = []
    for _ in range(count):
        in_key = bool(data[position] & 1)
        column, position = _string(data, position + 1)
        type_oid, type_modifier = _column_type(data, position)
        position += 8
        columns.append(RelationColumn(column, type_oid, type_modifier, in_key))
    _end(data, position)
    # PostgreSQL leaves the schema empty for pg_catalog
    return Relation(relation_id, schema or "pg_catalog", name, replica_identity, tuple(columns))


def _decode_type(data: bytes) -> TypeName:
    type_oid = _u32(data, 1)
    schema, position = _string(data, 5)
    name, position = _string(data, position)
    _end(data, position)
    return TypeName(type_oid, schema or "pg_catalog", name)


def _decode_insert(data: bytes) -> Insert:
    relation_id = _u32(data, 1)
    if data[5] != _NEW:
        raise _malformed(data)
    new, position = _row(data, 6)
    _end(data, position)
    return Insert(relation_id, new)


def _decode_update(data: bytes) -> Update:
    relation_id = _u32(data, 1)
    kind = data[5]
    old: Row | None = None
    position = 5
    if kind in (_KEY, _OLD):
        old, position = _row(data, 6)
    if data[position] != _NEW:
        raise _malformed(data)
    new, position = _row(data, position + 1)
    _end(data, position)
    return Update(relation_id, new, old, kind == _KEY)


def _decode_delete(data: bytes) -> Delete:
    relation_id = _u32(data, 1)
    kind = data[5]
    if kind not in (_KEY, _OLD):
        raise _malformed(data)
    old, position = _row(data, 6)
    _end(data, position)
    return Delete(relation_id, old, kind == _KEY)


def _decode_truncate(data: bytes) -> Truncate:
    count, options = _truncate(data, 1)
    relation_ids = tuple(_u32(data, 6 + 4 * index) for index in range(count))
    _end(data, 6 + 4 * count)
    return Truncate(relation_ids, bool(options & 1), bool(options & 2))


def _decode_message(data: bytes) -> LogicalMessage:
    flags, lsn = _message(data, 1)
    prefix, position = _string(data, 10)
    length = _u32(data, position)
    position += 4
    content = data[position : position + length]
    _end(data, position + length)
    return LogicalMessage(bool(flags & 1), lsn, prefix, content)


_DECODERS: dict[int, Callable[[bytes], Message]] = {
    ord("B"): _decode_begin,
    ord("C"): _decode_commit,
    ord("O"): _decode_origin,
    ord("R"): _decode_relation,
    ord("Y"): _decode_type,
    ord("T"): _decode_truncate,
    ord("M"): _decode_message,
}
