"""How large tables are, and whether their rows can travel in binary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from psycopg import AsyncConnection

from pglockstep.postgres.catalog import statement

#: Built-in types whose binary form is the same on every version from 14 on. Of intervals only the infinite ones,
#: which 17 brought, differ: there the majors must be the same.
_BINARY = frozenset({
    "bool", "bytea", "char", "name", "int8", "int2", "int4", "text", "oid", "float4", "float8", "bpchar", "varchar",
    "date", "time", "timestamp", "timestamptz", "timetz", "bit", "varbit", "numeric", "uuid", "json", "jsonb",
    "inet", "cidr", "macaddr", "macaddr8", "enum", "_bool", "_bytea", "_int8", "_int2", "_int4", "_text", "_float4",
    "_float8", "_bpchar", "_varchar", "_date", "_timestamp", "_timestamptz", "_numeric", "_uuid", "_jsonb",
})  # fmt: skip
_BINARY_WITHIN_MAJOR = frozenset({"interval", "_interval"})


class Extent(msgspec.Struct, frozen=True):
    """How large a table is, and its columns' base types: built-in ones by name, ``enum``, others as ``''``."""

    pages: int
    bytes: int
    types: tuple[str, ...]


async def read(conn: AsyncConnection[Any], oids: Sequence[int]) -> dict[int, Extent]:
    """The extent of each of these tables that is there. Raises psycopg's errors."""
    cursor = await conn.execute(statement("extents"), [list(oids)])
    return {oid: Extent(pages, size, tuple(types)) async for oid, pages, size, types in cursor}


def is_binary(types: Iterable[str], *, same_major: bool) -> bool:
    """Whether columns of these base types mean the same in binary on both ends; composites carry OIDs, and do not."""
    known = _BINARY | _BINARY_WITHIN_MAJOR if same_major else _BINARY
    return known.issuperset(types)
