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
from psycopg.rows import class_row

from pglockstep.postgres.names import QualifiedName


@cache
def statement(name: str) -> bytes:
    """The text of ``postgres/sql/NAME.sql``."""
    return files("pglockstep.postgres").joinpath("sql", f"{name}.sql").read_bytes()


class Column(msgspec.Struct, frozen=True):
    """One column. `generated` is ``''``, ``'s'`` (stored) or ``'v'`` (virtual); `identity` ``''``, ``'a'``
    (always) or ``'d'`` (by default), as in ``pg_attribute``; `equality` is the type's ``=``, ready for use in a
    statement, or empty where none is sure to work."""

    name: str
    type_name: str
    type_oid: int
    type_modifier: int = -1
    not_null: bool = False
    generated: str = ""
    identity: str = ""
    equality: str = ""


class Table(msgspec.Struct, frozen=True):
    """One table that holds rows of its own.

    `primary_key` is empty where there is none, or one that is deferrable: in the middle of a transaction such
    a key may name two rows.
    """

    oid: int
    name: QualifiedName
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    unlogged: bool = False
    is_partition: bool = False
    replica_identity: str = "d"
    has_identity_index: bool = False
    row_security: bool = False
    forced_row_security: bool = False
    owned: bool = True
    readable: bool = True
    estimated_rows: int = 0

    @property
    def has_replica_identity(self) -> bool:
        """Whether an UPDATE or DELETE of a published row says which row it was."""
        return self.replica_identity == "f" or self.has_identity_index

    @property
    def data_columns(self) -> tuple[Column, ...]:
        """The columns whose values travel: all but the generated ones."""
        return tuple(column for column in self.columns if not column.generated)


class _TableRow(msgspec.Struct):
    oid: int
    schema: str
    name: str
    unlogged: bool
    is_partition: bool
    replica_identity: str
    row_security: bool
    forced_row_security: bool
    owned: bool
    readable: bool
    estimated_rows: int
    primary_key: list[str]
    has_identity_index: bool


class _ColumnRow(msgspec.Struct):
    table_oid: int
    name: str
    type_name: str
    type_oid: int
    type_modifier: int
    not_null: bool
    generated: str
    identity: str
    equality: str


async def tables(conn: AsyncConnection) -> list[Table]:
    """Every table of a user, sorted by schema, then name (as bytes)."""
    async with conn.cursor(row_factory=class_row(_TableRow)) as cursor:
        await cursor.execute(statement("tables"))
        found = await cursor.fetchall()
    columns = await _columns(conn, [row.oid for row in found])
    return [
        Table(
            oid=row.oid,
            name=QualifiedName(row.schema, row.name),
            columns=tuple(columns.get(row.oid, ())),
            primary_key=tuple(row.primary_key),
            unlogged=row.unlogged,
            is_partition=row.is_partition,
            replica_identity=row.replica_identity,
            has_identity_index=row.has_identity_index,
            row_security=row.row_security,
            forced_row_security=row.forced_row_security,
            owned=row.owned,
            readable=row.readable,
            estimated_rows=row.estimated_rows,
        )
        for row in found
    ]


async def _columns(conn: AsyncConnection, oids: Sequence[int]) -> dict[int, list[Column]]:
    by_table: dict[int, list[Column]] = {}
    async with conn.cursor(row_factory=class_row(_ColumnRow)) as cursor:
        await cursor.execute(statement("columns"), [list(oids)])
        for row in await cursor.fetchall():
            by_table.setdefault(row.table_oid, []).append(
                Column(
                    name=row.name,
                    type_name=row.type_name,
                    type_oid=row.type_oid,
                    type_modifier=row.type_modifier,
                    not_null=row.not_null,
                    generated=row.generated,
                    identity=row.identity,
                    equality=row.equality,
                )
            )
    return by_table
