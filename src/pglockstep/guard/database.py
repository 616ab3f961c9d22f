"""An end's database itself: what it is made of, remembered while it stands, and making it again when it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from pglockstep.errors import (
    EndError,
    SourceLacks,
    SourceUnreachable,
    TargetLacks,
    TargetUnreachable,
    one_line,
)
from pglockstep.postgres.connect import End, answered, connect, translate

#: Where to stand while the database is not there.
_ELSEWHERE = ("postgres", "template1")
#: Settings whose value is a list of names, quoted one by one: as one string it would be one name.
_LISTS = frozenset({
    "local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
    "temp_tablespaces", "unix_socket_directories",
})  # fmt: skip


class Setting(msgspec.Struct, frozen=True):
    """A setting of the database's, of everybody in it or of one role."""

    role: str
    name: str
    value: str


class Grant(msgspec.Struct, frozen=True):
    """A privilege on the database; `role` is empty for everybody."""

    role: str
    privilege: str
    grantable: bool


class Database(msgspec.Struct, frozen=True):
    """What a database is made of. `grants` None: the built-in ones. `provider` as in ``pg_database``, empty before 15."""

    name: str
    owner: str
    encoding: str
    collate: str
    ctype: str
    provider: str = ""
    locale: str | None = None
    rules: str | None = None
    tablespace: str = "pg_default"
    connection_limit: int = -1
    comment: str | None = None
    grants: tuple[Grant, ...] | None = None
    settings: tuple[Setting, ...] = ()


async def read(conn: AsyncConnection[Any]) -> Database:
    """What the database behind `conn` is made of. Raises psycopg's errors."""
    cursor = await conn.execute(
        files("pglockstep.guard").joinpath("sql", "database.sql").read_bytes(), prepare=False
    )
    found = await cursor.fetchone()
    assert found is not None
    row, encoding, owner, tablespace, comment, grants, settings = found
    return Database(
        name=row["datname"],
        owner=owner,
        encoding=encoding,
        collate=row["datcollate"],
        ctype=row["datctype"],
        provider=row.get("datlocprovider", ""),
        locale=row.get("datlocale") or row.get("daticulocale"),
        rules=row.get("daticurules"),
        tablespace=tablespace,
        connection_limit=row["datconnlimit"],
        comment=comment,
        grants=None
        if grants is None
        else tuple(Grant(role, what, grantable == "true") for role, what, grantable in grants),
        settings=tuple(Setting(*each) for each in settings),
    )


def creation(wanted: Database) -> sql.Composed:
    """The statement that makes it, empty. Pure."""
    parts = [
        sql.SQL(
            "CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}"
        ).format(
            sql.Identifier(wanted.name),
            sql.Identifier(wanted.owner),
            *map(sql.Literal, (wanted.encoding, wanted.collate, wanted.ctype)),
        )
    ]
    if wanted.provider:
        words = {"c": ("libc", ""), "i": ("icu", "ICU_LOCALE {}"), "b": ("builtin", "BUILTIN_LOCALE {}")}
        provider, locale = words[wanted.provider]
        parts.append(sql.SQL("LOCALE_PROVIDER {}").format(sql.SQL(provider)))
        if locale:
            parts.append(sql.SQL(locale).format(sql.Literal(wanted.locale)))
        if wanted.rules:
            parts.append(sql.SQL("ICU_RULES {}").format(sql.Literal(wanted.rules)))
    parts.append(
        sql.SQL("TABLESPACE {} CONNECTION LIMIT {}").format(
            sql.Identifier(wanted.tablespace), sql.Literal(wanted.connection_limit)
        )
    )
    return sql.SQL(" ").join(parts)


def furnishing(wanted: Database) -> Iterator[sql.Composed]:
    """The statements that give it its comment, grants and settings, to be run in one transaction. Pure."""
    name = sql.Identifier(wanted.name)
    if wanted.comment is not None:
        yield sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(wanted.comment))
    if wanted.grants is not None:
        for role in ("", wanted.owner):
            yield sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(name, _role(role))
        for each in wanted.grants:
            yield sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                sql.SQL(each.privilege),
                name,
                _role(each.role),
                sql.SQL(" WITH GRANT OPTION" if each.grantable else ""),
            )
    for setting in wanted.settings:
        whose = sql.SQL("ALTER DATABASE {}").format(name)
        if setting.role:
            whose = sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.Identifier(setting.role), name)
        what = sql.Identifier(*setting.name.split("."))
        if setting.name in _LISTS:
            yield sql.SQL("SELECT pg_catalog.set_config({}, {}, true)").format(
                sql.Literal(setting.name), sql.Literal(setting.value)
            )
            yield sql.SQL("{} SET {} FROM CURRENT").format(whose, what)
        else:
            yield sql.SQL("{} SET {} TO {}").format(whose, what, sql.Literal(setting.value))


async def make_again(end: End, wanted: Database) -> bool:
    """Make the database that an end was, empty; false if somebody has done so already. Raises the end's errors.

    On a server that does not have its owner or tablespace it is our role's, or in the usual place.
    """
    conn = await _elsewhere(end)
    try:
        with answered(end, conn), translate(end):
            cursor = await conn.execute(
                "SELECT FROM pg_catalog.pg_database WHERE datname = $1", [wanted.name]
            )
            if cursor.rowcount:
                return False
            wanted = await _as_possible(conn, wanted)
            try:
                await conn.execute(creation(wanted))
            except psycopg.errors.InsufficientPrivilege as error:
                lacks = SourceLacks if end.side == "source" else TargetLacks
                raise lacks(
                    f"the {end.side}'s database is gone and our role may not make it again: {one_line(str(error))}",
                    hint=f"on the {end.side}, as a superuser: {creation(wanted).as_string(conn)};",
                ) from error
            async with conn.transaction():
                for statement in furnishing(wanted):
                    # a role that this server does not have has nothing there
                    with suppress(psycopg.errors.UndefinedObject):
                        async with conn.transaction():
                            await conn.execute(statement)
    finally:
        await conn.close()
    return True


async def _as_possible(conn: AsyncConnection[TupleRow], wanted: Database) -> Database:
    """The database as this server can have it."""
    cursor = await conn.execute(
        "SELECT current_user::text, EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1), "
        "EXISTS (SELECT FROM pg_catalog.pg_tablespace WHERE spcname = $2)",
        [wanted.owner, wanted.tablespace],
    )
    row = await cursor.fetchone()
    assert row is not None
    ours, owner, tablespace = row
    return msgspec.structs.replace(
        wanted,
        owner=wanted.owner if owner else ours,
        tablespace=wanted.tablespace if tablespace else "pg_default",
    )


async def _elsewhere(end: End) -> AsyncConnection[TupleRow]:
    """A session in another database of the end's server."""
    refused: EndError | None = None
    for name in _ELSEWHERE:
        conninfo = make_conninfo(end.conninfo, dbname=name)
        try:
            return await connect(msgspec.structs.replace(end, conninfo=conninfo), "maintenance")
        except (SourceUnreachable, TargetUnreachable) as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _role(name: str) -> sql.Composable:
    return sql.Identifier(name) if name else sql.SQL("PUBLIC")
