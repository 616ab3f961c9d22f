"""The messages of pgoutput, as plain values.

A *transaction* is `Begin`, any number of changes, `Commit`; a `Relation` precedes the first change of its
table on a connection and follows each change of its shape. Values keep the form in which the server sent
them: ``bytes`` in PostgreSQL's text form, `Binary` in its binary form, ``None`` for NULL and `UNCHANGED` for
a TOASTed value that the transaction did not touch and the server therefore did not send.

LSNs are plain integers here, times are microseconds since 2000-01-01 UTC, as on the wire.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Unchanged(enum.Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged.UNCHANGED


class Binary(bytes):
    """A value in the binary form of its type."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Binary({bytes(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Binary) and bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        # bytes brings one of its own, which a comparison for inequality would find first
        return not self == other

    __hash__ = bytes.__hash__


Value = bytes | Unchanged | None
Row = tuple[Value, ...]


class PartialRow(Row):
    """A row in which at least one value is `UNCHANGED`: told apart without looking at its values."""

    __slots__ = ()


class Message(msgspec.Struct, frozen=True, gc=False):
    """Any message of pgoutput."""


class Begin(Message, frozen=True, gc=False):
    """A committed transaction starts. `final_lsn` is where its commit record starts."""

    final_lsn: int
    commit_time: int
    xid: int


class Commit(Message, frozen=True, gc=False):
    """The transaction ends. `end_lsn` is where its commit record ends: the next one's may start just there."""

    commit_lsn: int
    end_lsn: int
    commit_time: int


class Origin(Message, frozen=True, gc=False):
    """The transaction was replicated to the source from elsewhere, under that origin's name."""

    commit_lsn: int
    name: str


class RelationColumn(msgspec.Struct, frozen=True):
    """A column of a `Relation`; `in_key` if it belongs to the replica identity."""

    name: str
    type_oid: int
    type_modifier: int
    in_key: bool


class Relation(Message, frozen=True):
    """A table as the following changes see it. `replica_identity` is as in ``pg_class``: d, n, f or i."""

    relation_id: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[RelationColumn, ...]


class TypeName(Message, frozen=True, gc=False):
    """A type that is not built in, named for the columns of a following `Relation`."""

    type_oid: int
    schema: str
    name: str


class Insert(Message, frozen=True, gc=False):
    """A row was inserted."""

    relation_id: int
    new: Row


class Update(Message, frozen=True, gc=False):
    """A row was updated.

    `old` is the whole old row if `old_is_key` is false; else just its key columns are filled (the others are
    None), which the server sends only when the key changed. It is None where the key did not change.
    """

    relation_id: int
    new: Row
    old: Row | None = None
    old_is_key: bool = False


class Delete(Message, frozen=True, gc=False):
    """A row was deleted; `old` is the whole row, or just its key columns if `old_is_key`."""

    relation_id: int
    old: Row
    old_is_key: bool


class Truncate(Message, frozen=True, gc=False):
    """One TRUNCATE emptied all of these tables together."""

    relation_ids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class LogicalMessage(Message, frozen=True, gc=False):
    """Something that an application wrote into the WAL with ``pg_logical_emit_message``."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


Change = Insert | Update | Delete | Truncate
