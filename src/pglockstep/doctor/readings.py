"""What the doctor reads from a server: plain values, one query each, nothing written.

The functions raise psycopg's errors; whoever calls says which end they came from.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import class_row

from pglockstep.postgres import catalog
from pglockstep.postgres.names import QualifiedName

T = TypeVar("T")


@cache
def statement(name: str) -> bytes:
    """The text of ``doctor/sql/NAME.sql``."""
    return files("pglockstep.doctor").joinpath("sql", f"{name}.sql").read_bytes()


class Place(msgspec.Struct, frozen=True):
    """Where a session really is, and what its database is like. Sizes in bytes, times in seconds."""

    backend_pid: int
    address: str
    port: int
    offers_tls: bool
    gss_encrypted: bool
    size: int
    collate: str
    provider: str
    locale: str
    slot_limit: int | None
    idle_slot_timeout: int
    has_our_schema: bool


class Wire(msgspec.Struct, frozen=True):
    """A connection as libpq sees it: to where, how protected, and which backend it was told that it has."""

    host: str
    address: str
    told_pid: int
    encrypted: bool

    @property
    def is_local(self) -> bool:
        """Whether nothing of it leaves this machine."""
        return (
            not self.address
            or self.host.startswith(("/", "@"))
            or self.address.startswith("127.")
            or self.address == "::1"
        )


class Name(msgspec.Struct, frozen=True):
    """The name of a relation, as a query gives it."""

    schema: str
    name: str

    @property
    def qualified(self) -> QualifiedName:
        """The same, as it is known elsewhere."""
        return QualifiedName(self.schema, self.name)


class Held(Name, frozen=True):
    """A relation of users': its kind in words."""

    kind: str


class LargeObjects(msgspec.Struct, frozen=True):
    """How many there are, and the OIDs of those that our role may not read."""

    count: int
    unreadable: list[int]


class Waiting(msgspec.Struct, frozen=True):
    """An open transaction: a session's (`pid`), or a prepared one (`gid`)."""

    pid: int | None
    gid: str
    database: str
    application: str
    seconds: float


class Extension(msgspec.Struct, frozen=True):
    """An extension, and the schema that it is in."""

    name: str
    schema: str


class Available(msgspec.Struct, frozen=True):
    """An extension that a server could make, and whether an ordinary role may make it."""

    name: str
    by_anyone: bool


class NamedRole(msgspec.Struct, frozen=True):
    """A role that a policy (`by_policy`) or a grant names."""

    name: str
    by_policy: bool


class Role(msgspec.Struct, frozen=True):
    """A role of the target's, and whether ours may give things to it."""

    name: str
    superuser: bool
    can_give: bool


class Thing(msgspec.Struct, frozen=True):
    """Something that only a superuser can make."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Owned(Name, frozen=True):
    """What a copy reads: a relation (kind r, p or S), or one owner's large objects (L); and whose it is."""

    kind: str
    oids: list[int]
    owner: str
    owner_is_superuser: bool


async def rows(conn: AsyncConnection, kind: type[T], name: str, *parameters: Any) -> list[T]:
    """The rows of ``sql/NAME.sql``, each as a `kind`."""
    async with conn.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(statement(name), parameters)
        return await cursor.fetchall()


async def names(conn: AsyncConnection, name: str, *parameters: Any) -> list[str]:
    """The one column of ``sql/NAME.sql``."""
    cursor = await conn.execute(statement(name), parameters)
    return [row[0] async for row in cursor]


async def place(conn: AsyncConnection) -> Place:
    """Where this session is."""
    return (await rows(conn, Place, "place"))[0]


def wire(conn: AsyncConnection) -> Wire:
    """How this connection runs."""
    return Wire(
        host=conn.info.host,
        address=conn.info.hostaddr,
        told_pid=conn.info.backend_pid,
        encrypted=conn.pgconn.ssl_in_use,
    )


async def held(conn: AsyncConnection) -> list[Held]:
    """Every relation of users', tables first."""
    async with conn.cursor(row_factory=class_row(Held)) as cursor:
        await cursor.execute(catalog.statement("holdings"))
        return await cursor.fetchall()


async def large_objects(conn: AsyncConnection) -> LargeObjects:
    """The large objects of a database."""
    return (await rows(conn, LargeObjects, "large_objects"))[0]


async def makes_databases(conn: AsyncConnection[Any]) -> bool:
    """Whether our role may make a database."""
    cursor = await conn.execute(
        "SELECT rolsuper OR rolcreatedb FROM pg_catalog.pg_roles WHERE rolname = current_user"
    )
    return await cursor.fetchone() == (True,)
