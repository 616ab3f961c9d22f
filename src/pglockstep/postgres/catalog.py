"""Reading a database's catalog: which tables there are and what they look like.

Read-only, and without locks beyond the catalog's own. Every function takes an open connection and
answers with plain frozen values, so that everything above can be tested without a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from pglockstep.postgres.names import QualifiedName


@cache
def statement(name: str) -> bytes:
    """The text of ``postgres/sql/NAME.sql``."""
    return files("pglockstep.postgres").joinpath("sql", f"{name}.sql").read_bytes()


class Column(msgspec.Struct, frozen=True):
    """One column. `generated` is ``''``, ``'s'`` (stored) or ``'v'`` (virtual); `identity` ``''``, ``'a'``
    (always) or ``'d'`` (by default), as in ``pg_attribute``; `equality` is the type's ``=``, ready for use in a
    statement, or empty where none is sure to work; `base_type` is the type that a domain stands on."""

    name: str
    type_name: str
    type_oid: int
    type_modifier: int = -1
    generated: str = ""
    identity: str = ""
    equality: str = ""
    base_type: str = ""


class Table(msgspec.Struct, frozen=True):
    """One table that holds rows of its own.

    `primary_key` is empty where there is none, or one that is deferrable: in the middle of a transaction such
    a key may name two rows. `has_deferrable`: whether a unique or exclusion constraint of its is.
    """

    oid: int
    name: QualifiedName
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    unlogged: bool = False
    replica_identity: str = "d"
    has_identity_index: bool = False
    has_generated_identity: bool = False
    row_security: bool = False
    forced_row_security: bool = False
    owned: bool = True
    readable: bool = True
    reachable: bool = True
    owner: str = ""
    owner_is_superuser: bool = False
    has_deferrable: bool = False

    @property
    def has_replica_identity(self) -> bool:
        """Whether an UPDATE or DELETE of a published row says which row it was."""
        return self.replica_identity == "f" or self.has_identity_index

    @property
    def data_columns(self) -> tuple[Column, ...]:
        """The columns whose values travel: all but the generated ones."""
        return tuple(column for column in self.columns if not column.generated)


async def tables(conn: AsyncConnection) -> list[Table]:
    """Every table of a user, sorted by schema, then name (as bytes)."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement("tables"))
        found = await cursor.fetchall()
    columns = await _columns(conn, [row["oid"] for row in found])
    return [
        Table(
            name=QualifiedName(row.pop("schema"), row.pop("name")),
            primary_key=tuple(row.pop("primary_key")),
            columns=tuple(columns.get(row["oid"], ())),
            **row,
        )
        for row in found
    ]


async def above(conn: AsyncConnection) -> dict[QualifiedName, tuple[QualifiedName, ...]]:
    """For each table that holds rows what it is a partition of, the nearest first; nothing for most. Raises psycopg's errors."""
    cursor = await conn.execute(statement("above"))
    found: dict[QualifiedName, tuple[QualifiedName, ...]] = {}
    async for schema, name, over_schema, over_name in cursor:
        over = () if over_name is None else (QualifiedName(over_schema, over_name),)
        table = QualifiedName(schema, name)
        found[table] = (*found.get(table, ()), *over)
    return found


async def _columns(conn: AsyncConnection, oids: Sequence[int]) -> dict[int, list[Column]]:
    by_table: dict[int, list[Column]] = {}
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement("columns"), [list(oids)])
        for row in await cursor.fetchall():
            by_table.setdefault(row.pop("table_oid"), []).append(Column(**row))
    return by_table
