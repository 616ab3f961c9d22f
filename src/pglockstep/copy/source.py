"""Our objects on the source: replica identities, the publication, the slot. And how they are taken back.

Whoever changes the source for a link marks the session as at work on it, and whoever takes that work back ends
such sessions first: a killed process's last statement can outlive it, and must not land on what comes after.

The order is the point. What a table lacks is written down on the target, then changed here; a table is
published only once an UPDATE of it can say which row it was, so no statement of the source's users ever fails
for our sake; the slot comes last, because one made before its publication would break at the first write in
between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import LiteralString

import msgspec
import psycopg
from psycopg import AsyncConnection, sql

from pglockstep.copy.selection import Reference
from pglockstep.errors import SourceBusy
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress.target import ChangedIdentity


async def mark_at_work(conn: AsyncConnection, link_id: str) -> None:
    """Mark a session of the source's as at work on this link, for as long as it lives. Raises psycopg's errors."""
    # by literal: a replication connection takes no parameters
    statement = sql.SQL("SELECT pg_catalog.pg_advisory_lock_shared({})").format(_work(link_id))
    await conn.execute(statement)


async def end_work(conn: AsyncConnection, end: End, link_id: str) -> None:
    """End the sessions that a killed process left at work on this link; waits until they are gone."""
    others = (
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_locks "
        "WHERE locktype = 'advisory' AND objsubid = 1 AND pid <> pg_catalog.pg_backend_pid() "
        "AND (classid::bigint << 32) | objid::bigint = {} "
        "AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
    )
    with translate(end):
        for _ in range(100):
            cursor = await conn.execute(sql.SQL(others).format(_work(link_id)))
            if not cursor.rowcount:
                return
            await asyncio.sleep(0.1)
    raise SourceBusy(
        "a session of a copy that was killed does not end on the source",
        hint="pg_stat_activity there shows it: its application_name begins with 'pglockstep'; it is tried again",
    )


def _work(link_id: str) -> sql.Literal:
    """The key of the advisory lock: "pg" in ASCII, then the link's 48 random bits."""
    return sql.Literal(0x7067 << 48 | int(link_id, 16))


def without_identity(tables: Sequence[Table]) -> list[Table]:
    """The tables whose updates could not say which row they changed."""
    return [table for table in tables if not table.unlogged and not table.has_replica_identity]


async def references(conn: AsyncConnection) -> list[Reference]:
    """What on the source cannot be made without which relation. Raises psycopg's errors."""
    cursor = await conn.execute(files("pglockstep.copy").joinpath("sql", "references.sql").read_bytes())
    return [
        Reference(kind, QualifiedName(schema, name), how, QualifiedName(other_schema, other))
        async for kind, schema, name, how, other_schema, other in cursor
    ]


def identified_by_generated(tables: Sequence[Table], major: int) -> list[Table]:
    """The tables whose UPDATEs and DELETEs could not say which row it was, or would be refused to their users. Pure.

    Generated columns are not in the stream, so none may be in an identity's index; from PostgreSQL 18 on the source
    itself refuses such UPDATEs and DELETEs once the table is published, under FULL, which contains all columns, too.
    """

    def contained(table: Table) -> bool:
        if table.replica_identity == "f" or not table.has_replica_identity:
            return major >= 18 and any(column.generated for column in table.columns)
        return table.has_generated_identity

    return [table for table in tables if not table.unlogged and contained(table)]


async def owned_sequences(conn: AsyncConnection) -> list[tuple[QualifiedName, QualifiedName]]:
    """Each sequence that belongs to a column, and that column's table. Raises psycopg's errors."""
    cursor = await conn.execute(files("pglockstep.copy").joinpath("sql", "owned_sequences.sql").read_bytes())
    return [
        (QualifiedName(schema, name), QualifiedName(table_schema, table))
        async for schema, name, table_schema, table in cursor
    ]


async def set_full_identity(conn: AsyncConnection, end: End, tables: Iterable[QualifiedName]) -> None:
    """Give each of `tables` REPLICA IDENTITY FULL; waits no longer than `lock_timeout` for any of them."""
    for table in tables:
        await _set_identity(conn, end, table, "FULL")


async def set_identities_back(conn: AsyncConnection, end: End, changed: Sequence[ChangedIdentity]) -> None:
    """Undo `set_full_identity`, but only where the table still stands and still is as we left it."""
    for each in changed:
        with translate(end):
            cursor = await conn.execute(
                "SELECT c.relreplident::text FROM pg_catalog.pg_class AS c "
                "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2",
                list(each.table),
            )
            row = await cursor.fetchone()
        if row == ("f",):
            await _set_identity(conn, end, each.table, each.words)


async def _set_identity(
    conn: AsyncConnection, end: End, table: QualifiedName, identity: LiteralString
) -> None:
    statement = sql.SQL("ALTER TABLE ONLY {} REPLICA IDENTITY {}").format(table.sql(), sql.SQL(identity))
    try:
        await conn.execute(statement)
    except psycopg.errors.LockNotAvailable as error:
        blockers = await _blockers(conn)
        raise SourceBusy(
            f"table {table} on the source is locked by others for longer than lock_timeout{blockers}",
            hint="let that transaction end, or raise lock_timeout; then try again",
        ) from error
    except psycopg.Error:
        with translate(end):
            raise


async def create_publication(conn: AsyncConnection, end: End, name: str, tables: Sequence[Table]) -> None:
    """Publish just these tables, partition leaves by themselves (a TRUNCATE of one leaf is silent through a root)."""
    published = sql.SQL(", ").join(
        sql.SQL("ONLY {}").format(table.name.sql()) for table in tables if not table.unlogged
    )
    what = sql.SQL(" FOR TABLE {}").format(published) if published.as_string() else sql.SQL("")
    with translate(end):
        await conn.execute(sql.SQL("CREATE PUBLICATION {}{}").format(sql.Identifier(name), what))


async def publish(conn: AsyncConnection, end: End, name: str, tables: Iterable[QualifiedName]) -> None:
    """Publish these tables as well, each by itself."""
    published = sql.SQL(", ").join(sql.SQL("ONLY {}").format(table.sql()) for table in tables)
    with translate(end):
        await conn.execute(
            sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(name), published)
        )


async def drop_slot(conn: AsyncConnection, end: End, name: str) -> None:
    """Drop the slot if it is there. Whoever calls holds the link's lock, so a session still using it is a dead one's."""
    with translate(end):
        await end_sender(conn, name)
        await conn.execute(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE slot_name = $1",
            [name],
        )


async def end_sender(conn: AsyncConnection, slot: str) -> None:
    """End a session that a killed process left on the slot; waits until the slot is free."""
    for _ in range(100):
        cursor = await conn.execute(
            "SELECT active_pid, pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots "
            "WHERE slot_name = $1 AND active_pid IS NOT NULL",
            [slot],
        )
        if await cursor.fetchone() is None:
            return
        await asyncio.sleep(0.1)
    raise SourceBusy(
        f"replication slot {slot} is still in use on the source",
        hint="SELECT active_pid FROM pg_replication_slots tells by whom; it is tried again",
    )


async def drop_publication(conn: AsyncConnection, end: End, name: str) -> None:
    """Drop the publication if it is there: only then is anything written."""
    with translate(end):
        cursor = await conn.execute("SELECT FROM pg_catalog.pg_publication WHERE pubname = $1", [name])
        if not cursor.rowcount:
            return
        await conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))


async def published_tables(conn: AsyncConnection, end: End, name: str) -> set[QualifiedName]:
    """What the publication publishes."""
    with translate(end):
        cursor = await conn.execute(
            "SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = $1", [name]
        )
        return {QualifiedName(schema, table) async for schema, table in cursor}


class Unidentified(msgspec.Struct, frozen=True):
    """A published table whose users cannot UPDATE or DELETE, and what it has for an identity, as in ``pg_class``.

    `may_alter`: our role could change that; `has_generated`: the server would refuse FULL, too.
    """

    table: QualifiedName
    identity: str
    may_alter: bool
    has_generated: bool


async def unidentified(conn: AsyncConnection, end: End, publication: str) -> list[Unidentified]:
    """The tables that the publication's being there keeps their users from changing."""
    statement = files("pglockstep.copy").joinpath("sql", "unidentified.sql").read_bytes()
    with translate(end):
        cursor = await conn.execute(statement, [publication])
        return [Unidentified(QualifiedName(schema, name), *rest) async for schema, name, *rest in cursor]


def withdrawal(publication: str, table: QualifiedName) -> sql.Composed:
    """The statement that takes a table out of a publication. It waits for no reader or writer."""
    return sql.SQL("ALTER PUBLICATION {} DROP TABLE ONLY {}").format(sql.Identifier(publication), table.sql())


async def _blockers(conn: AsyncConnection) -> str:
    cursor = await conn.execute(
        "SELECT 'pid ' || pid FROM pg_catalog.pg_stat_activity "
        "WHERE xact_start IS NOT NULL AND datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() "
        "ORDER BY xact_start LIMIT 3"
    )
    found = [row[0] async for row in cursor]
    return f" (open transactions: {', '.join(found)})" if found else ""
