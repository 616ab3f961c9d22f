"""What is made on a target beside the rows: the schema before them, and what follows them.

Runs what pg_restore has written, and repeats what it leaves out. The transactions are the caller's.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import psycopg
from psycopg import AsyncConnection, sql

from pglockstep.errors import TargetError, one_line
from pglockstep.postgres.catalog import statement
from pglockstep.postgres.connect import End, is_gone, translate
from pglockstep.postgres.dump import Present
from pglockstep.postgres.names import QualifiedName

log = logging.getLogger(__name__)


async def run_script(conn: AsyncConnection, end: End, script: bytes, *, what: str) -> None:
    """Run a whole script of pg_restore's; any refusal ends its transaction."""
    await run(conn, end, script, what=what)
    with translate(end):
        # the script sets its own; ours must hold for what follows
        await conn.execute(
            "SET check_function_bodies = off; SET search_path = ''; SET row_security = off; "
            "SET client_min_messages = warning; SET standard_conforming_strings = on"
        )


async def run(conn: AsyncConnection, end: End, script: bytes, *, what: str) -> None:
    """Run statements of pg_restore's as one piece."""
    try:
        await conn.execute(script, prepare=False)
    except psycopg.errors.FeatureNotSupported as error:
        raise _refused(
            error, what, "install what it names on the target's server, or drop it on the source"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise _refused(error, what, "let the target's role do that, or connect as a role that may") from error
    except psycopg.Error as error:
        if is_gone(error) or error.sqlstate is None:
            with translate(end):
                raise
        if isinstance(error, psycopg.errors.UndefinedObject) and (
            error.diag.message_primary or ""
        ).startswith("role "):
            raise _refused(
                error, what, "CREATE ROLE it on the target's server (it need not log in), then try again"
            ) from error
        raise _refused(
            error,
            what,
            f"the target stays empty; make PostgreSQL on it able to hold this (link {end.link!r}), then try again",
        ) from error


def _refused(error: psycopg.Error, what: str, hint: str) -> TargetError:
    return TargetError(f"the target refused the source's {what}: {one_line(str(error))}", hint=hint)


async def present(conn: AsyncConnection) -> Present:
    """What others have made on the target beforehand. Raises psycopg's errors."""
    schemas = await conn.execute(
        "SELECT nspname::text FROM pg_catalog.pg_namespace "
        "WHERE oid >= 16384 AND nspname !~ '^pg_' AND nspname NOT IN ('public', 'pglockstep')"
    )
    extensions = await conn.execute(
        "SELECT extname::text FROM pg_catalog.pg_extension WHERE NOT pg_catalog.pg_has_role(extowner, 'USAGE')"
    )
    return Present([row[0] async for row in schemas], [row[0] async for row in extensions])


async def drop_public(source: AsyncConnection, target: AsyncConnection, ends: tuple[End, End]) -> None:
    """Drop the empty schema ``public`` that every new database has, where the source has dropped its own."""
    with translate(ends[0]):
        cursor = await source.execute("SELECT pg_catalog.to_regnamespace('public') IS NULL")
        dropped = await cursor.fetchone() == (True,)
    if dropped:
        with translate(ends[1]), suppress(psycopg.errors.DependentObjectsStillExist):
            async with target.transaction():
                await target.execute("DROP SCHEMA IF EXISTS public RESTRICT")


async def refresh_materialized_views(
    source: AsyncConnection, target: AsyncConnection, ends: tuple[End, End]
) -> None:
    """Fill every materialised view that is filled on the source, in the order in which they were made.

    One that cannot be filled any more, because a view that it reads is empty now or its query fails, stays empty.
    """
    with translate(ends[0]):
        cursor = await source.execute(statement("materialized_views"), [False])
        filled = {QualifiedName(schema, name) async for schema, name in cursor}
    with translate(ends[1]):
        cursor = await target.execute(statement("materialized_views"), [True])
        present = [QualifiedName(schema, name) async for schema, name in cursor]
    for view in present:
        if view in filled:
            await _refresh(target, ends[1], view)


async def _refresh(conn: AsyncConnection, end: End, view: QualifiedName) -> None:
    try:
        async with conn.transaction():
            await conn.execute(sql.SQL("REFRESH MATERIALIZED VIEW {}").format(view.sql()))
    except psycopg.Error as error:
        if is_gone(error) or error.sqlstate is None:
            with translate(end):
                raise
        log.warning(
            "materialised view %s stays empty on the target: %s",
            view,
            one_line(str(error)),
            extra={"action": "copy.refresh", "link": end.link},
        )
