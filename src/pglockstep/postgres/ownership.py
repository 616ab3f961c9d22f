"""Who owns what, and who may do what: repeating on one server what another one has, as far as the roles are there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import psycopg
from psycopg import AsyncConnection, sql

from pglockstep.postgres.catalog import statement
from pglockstep.postgres.connect import End, translate

log = logging.getLogger(__name__)


async def owners(conn: AsyncConnection) -> dict[tuple[str, str], str]:
    """Who owns what: (kind, identity), both in words of SQL, to the owner's name."""
    cursor = await conn.execute(statement("owners"))
    return {(kind, identity): owner async for kind, identity, owner in cursor}


async def give_to_owners(conn: AsyncConnection, end: End, wanted: Mapping[tuple[str, str], str]) -> list[str]:
    """Give each object to the role that is named, where this server has that role; returns those that it has not."""
    with translate(end):
        cursor = await conn.execute("SELECT rolname FROM pg_catalog.pg_roles")
        roles = {row[0] async for row in cursor}
        have = await owners(conn)
    statements = [
        # kind and identity are the server's own spelling, quoted by it
        sql.SQL("ALTER {} {} OWNER TO {}")
        .format(sql.SQL(kind.upper()), sql.SQL(identity), sql.Identifier(owner))
        .as_bytes()
        for (kind, identity), owner in wanted.items()
        if owner in roles and have.get((kind, identity), owner) != owner
    ]
    await _where_possible(conn, end, statements, what="owners")
    if missing := sorted(set(wanted.values()) - roles):
        other = "source" if end.side == "target" else "target"
        log.warning(
            "the %s has no role %s: what it owns on the %s belongs to our role there",
            end.side,
            ", ".join(missing),
            other,
            extra={"action": "copy.owners", "link": end.link},
        )
    return missing


async def grant(conn: AsyncConnection, end: End, statements: Sequence[bytes]) -> int:
    """Repeat the other end's grants, where this server has the roles; returns how many could not be."""
    return await _where_possible(conn, end, statements, what="grants")


async def _where_possible(conn: AsyncConnection, end: End, statements: Iterable[bytes], *, what: str) -> int:
    """Run each statement; one that names a missing role or that our role may not run is left out and counted."""
    left_out = 0
    for each in statements:
        try:
            async with conn.transaction():
                await conn.execute(each)
        except (psycopg.errors.UndefinedObject, psycopg.errors.InsufficientPrivilege):
            left_out += 1
        except psycopg.Error:
            with translate(end):
                raise
    if left_out:
        log.warning(
            "%d %s could not be repeated on the %s: a role is missing there, or ours may not",
            left_out,
            what,
            end.side,
            extra={"action": f"copy.{what}", "link": end.link},
        )
    return left_out
