"""One table as both ends have it: what its rows are compared by, and what each is known by. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from psycopg import AsyncConnection

from pglockstep.compare.content import Content, base_name, comparable_type, kind_of
from pglockstep.errors import Side
from pglockstep.postgres.catalog import Column, Table

#: Texts of the key's columns; for rows without a key, two hashes of all that they say.
RowKey = tuple[str | int, ...]
Kind = Literal["missing", "extra", "changed"]


class Server(msgspec.Struct, frozen=True):
    """What of a server says how rows are written there: its major version, and its database's encoding."""

    major: int
    encoding: str = "UTF8"

    @classmethod
    def of(cls, conn: AsyncConnection[Any]) -> Server:
        """The server behind a connection."""
        encoding = conn.info.parameter_status("server_encoding") or "UTF8"
        return cls(conn.info.server_version // 10000, encoding)


class Pairing(msgspec.Struct, frozen=True):
    """Two tables of one name; `key` is the primary key that both have, in the source's order, or empty.

    `where`: only rows of which this SQL is true, on one end at least. `fast`: rows are the same where their values are, as the
    types see it; what differs then is compared exactly.
    """

    source: Table
    target: Table
    columns: tuple[str, ...]
    key: tuple[str, ...]
    content: Content
    where: str = ""
    fast: bool = False

    @classmethod
    def of(
        cls,
        source: Table,
        target: Table,
        servers: Sequence[Server],
        where: str = "",
        *,
        fast: bool = False,
        columns: tuple[str, ...] | None = None,
    ) -> Pairing:
        """The pairing of two tables of these servers, by these `columns`, or all that can be compared."""
        columns = comparable_columns(source, target) if columns is None else columns
        same = set(source.primary_key) == set(target.primary_key) and _comparable(
            source, target, source.primary_key
        )
        measured = all(each.encoding == "UTF8" for each in servers)
        same_major, same_encoding = (
            len(set(each)) == 1
            for each in ([each.major for each in servers], [each.encoding for each in servers])
        )
        return cls(
            source,
            target,
            columns,
            source.primary_key if same else (),
            Content.of(source, target, columns, measured=measured, same_major=same_major),
            where,
            fast and same_encoding and _alike(source, target, columns),
        )

    def at(self, side: Side) -> Table:
        """The table at that end."""
        return self.source if side == "source" else self.target

    def key_columns(self, side: Side) -> list[Column]:
        """The key's columns as that end has them, in the order of `key`."""
        named = {column.name: column for column in self.at(side).columns}
        return [named[name] for name in self.key]


class RowDifference(msgspec.Struct, frozen=True):
    """One row that differs; of equal rows without a key, so many `copies` of it. `contents`: what it said on either end."""

    kind: Kind
    key: RowKey
    copies: int = 1
    source: tuple[int, ...] | None = None
    target: tuple[int, ...] | None = None


def _comparable(source: Table, target: Table, key: Sequence[str]) -> bool:
    """Whether each end can take the other's values of these columns: a text is no number."""
    here, there = ({each.name: each for each in table.columns} for table in (source, target))
    return all(
        comparable_type(here[name]) == comparable_type(there[name])
        or base_name(here[name]) == base_name(there[name])
        or kind_of(here[name]) == kind_of(there[name]) == "texts"
        for name in key
    )


def _alike(source: Table, target: Table, columns: Sequence[str]) -> bool:
    """Whether these columns are of the same types on both ends, whose hashes then mean the same."""
    here, there = ({each.name: base_name(each) for each in table.columns} for table in (source, target))
    return all(here[name] == there[name] for name in columns)


def comparable_columns(source: Table, target: Table) -> tuple[str, ...]:
    """The columns to compare two tables by: those that both ends store, in the source's order.

    A virtual generated column stores nothing: it follows from the others.
    """
    stored = {column.name for column in target.columns if column.generated != "v"}
    return tuple(
        column.name for column in source.columns if column.generated != "v" and column.name in stored
    )
