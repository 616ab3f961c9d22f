"""The link's own tables on the target: its record, its progress, its lock.

Whoever does a link's work first takes its lock, then reads its progress: a killed process's old session may
still be committing. Nothing here touches a table of the user's.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Literal, LiteralString

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.rows import class_row

from pglockstep.errors import TargetError, TargetLacks
from pglockstep.postgres.names import OUR_SCHEMA, QualifiedName
from pglockstep.units import Lsn

#: What this version writes; ``schema.sql`` is format 1, and each ``format_N.sql`` brings the one before it to N.
FORMAT = 5

#: What our schema has to hold, by the format that brought it.
_HOLDS = {
    1: ("format", "link", "progress", "replica_identity", "restored", "copied", "built"),
    2: ("watch", "foreign_write_number", "foreign_write_done", "foreign_write", "deleted", "restoring"),
    3: ("detached", "source_table"),
    4: ("generation",),
    5: ("held",),
}

#: The two halves of the advisory lock: "pgls" in ASCII, and the one link that a target can have.
_LOCK = (0x70676C73, 1)

Phase = Literal["copying", "streaming"]


class LinkRecord(msgspec.Struct, frozen=True):
    """A link as its target remembers it. `progress` is None until the first copy is complete."""

    id: str
    name: str
    source_identity: str
    phase: Phase
    created_at: datetime
    copied_at: datetime | None = None
    progress: Lsn | None = None
    commit_time: datetime | None = None
    written_at: datetime | None = None

    @property
    def slot(self) -> str:
        """The replication slot's name on the source."""
        return slot_name(self.id)

    @property
    def publication(self) -> str:
        """The publication's name on the source: the slot's."""
        return slot_name(self.id)


def slot_name(link_id: str) -> str:
    """What our objects on a source are called: after the link's random id, never its name."""
    return f"pglockstep_{link_id}"


class ChangedIdentity(msgspec.Struct, frozen=True):
    """A table whose replica identity we set to FULL, and what it was: d, n or i as in ``pg_class``."""

    table: QualifiedName
    before: str

    @property
    def words(self) -> LiteralString:
        """What sets it back: an index that is gone cannot be set again, and behaves as NOTHING."""
        return "DEFAULT" if self.before == "d" else "NOTHING"


class Holder(msgspec.Struct, frozen=True):
    """The session that holds the link's lock."""

    pid: int
    application: str

    @property
    def is_daemon(self) -> bool:
        """Whether it belongs to ``pglockstep run``."""
        return self.application.startswith("pglockstep run ")


async def read(conn: AsyncConnection) -> LinkRecord | None:
    """The record of the link that fills this target; None where there is none. Raises on a newer format."""
    cursor = await conn.execute("SELECT pg_catalog.to_regclass('pglockstep.format') IS NOT NULL")
    if await cursor.fetchone() == (False,):
        return None
    cursor = await conn.execute("SELECT version FROM pglockstep.format")
    row = await cursor.fetchone()
    if row is None or row[0] > FORMAT:
        raise TargetLacks(
            f"schema {OUR_SCHEMA} on the target was written by a newer pglockstep",
            hint="use the newer version on this link; this one changes nothing there",
        )
    async with conn.cursor(row_factory=class_row(LinkRecord)) as rows:
        await rows.execute(
            "SELECT l.id, l.name, l.source_identity, l.phase, l.created_at, l.copied_at, p.lsn AS progress, "
            "p.commit_time, p.written_at "
            "FROM pglockstep.link AS l LEFT JOIN pglockstep.progress AS p ON p.link = l.id"
        )
        return await rows.fetchone()


async def demand(conn: AsyncConnection) -> LinkRecord:
    """The record of the link that fills this target, with its progress; raises `TargetError` where that is gone."""
    record = await read(conn)
    if record is None or record.progress is None:
        raise TargetError(
            "the link's progress is gone from the target",
            hint="was schema pglockstep dropped there? pglockstep teardown, empty the target, pglockstep once",
        )
    return record


async def is_whole(conn: AsyncConnection) -> bool:
    """Whether our schema is there, with everything that its format has, and with a link's progress."""
    cursor = await conn.execute(
        "SELECT c.relname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'pglockstep' AND c.relkind IN ('r', 'S')"
    )
    there = {name async for (name,) in cursor}
    if not there.issuperset(_HOLDS[1]):
        return False
    cursor = await conn.execute(
        "SELECT version, EXISTS (SELECT FROM pglockstep.progress) FROM pglockstep.format"
    )
    row = await cursor.fetchone()
    if row is None or not row[1]:
        return False
    return all(there.issuperset(names) for version, names in _HOLDS.items() if version <= row[0])


async def create(conn: AsyncConnection, name: str, source_identity: str) -> LinkRecord:
    """Make our schema and a new link in it, in phase *copying*, with a random id."""
    async with conn.transaction():
        await conn.execute(files("pglockstep.progress").joinpath("schema.sql").read_bytes(), prepare=False)
        await upgrade(conn)
        await conn.execute(
            "INSERT INTO pglockstep.link (id, name, source_identity, phase) VALUES ($1, $2, $3, 'copying')",
            [secrets.token_hex(6), name, source_identity],
        )
    record = await read(conn)
    assert record is not None
    return record


async def make_again(conn: AsyncConnection, record: LinkRecord, changed: Sequence[ChangedIdentity]) -> None:
    """Make our schema again on a target that lost it, for the link that it had; how far it is, is for others to say."""
    async with conn.transaction():
        await forget(conn)
        await create(conn, record.name, record.source_identity)
        await conn.execute(
            "UPDATE pglockstep.link SET id = $1, phase = $2, created_at = $3, copied_at = $4",
            [record.id, record.phase, record.created_at, record.copied_at],
        )
        await remember_identities(conn, record.id, changed)


async def upgrade(conn: AsyncConnection) -> None:
    """Bring our schema, which is there, to this version's format. Whoever calls holds the lock, or has just made it."""
    async with conn.transaction():
        cursor = await conn.execute("SELECT version FROM pglockstep.format")
        row = await cursor.fetchone()
        assert row is not None
        for version in range(row[0] + 1, FORMAT + 1):
            script = files("pglockstep.progress").joinpath(f"format_{version}.sql").read_bytes()
            await conn.execute(script, prepare=False)


async def complete_copy(conn: AsyncConnection, link: str, lsn: Lsn) -> None:
    """The first copy is complete as of `lsn`, or of where the stream has brought it since. Belongs into its last commit."""
    cursor = await conn.execute(
        "UPDATE pglockstep.link SET phase = 'streaming', copied_at = pg_catalog.clock_timestamp() WHERE id = $1",
        [link],
    )
    if cursor.rowcount != 1:
        raise TargetLacks("another process took over the copy of this link", hint="leave it to that one")
    await begin_progress(conn, link, lsn)
    await conn.execute("DELETE FROM pglockstep.restored")
    await conn.execute("DELETE FROM pglockstep.built")


async def begin_progress(conn: AsyncConnection, link: str, lsn: Lsn) -> None:
    """Let the stream start at `lsn`; where it has started already it goes on."""
    await conn.execute(
        "INSERT INTO pglockstep.progress (link, lsn) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        [link, lsn],
    )


async def follow_anew(conn: AsyncConnection, link: str, source_identity: str, lsn: Lsn) -> None:
    """The target goes on from `lsn` in the WAL of a source that is not what it was. Belongs into the commit that levels it.

    Positions in the former WAL mean nothing there: last images keep their rows only until they are old enough to go.
    """
    await conn.execute(
        "UPDATE pglockstep.link SET source_identity = $1 WHERE id = $2", [source_identity, link]
    )
    for table in ("progress", "copied", "source_table", "held"):
        await conn.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(OUR_SCHEMA, table)))
    await conn.execute("UPDATE pglockstep.deleted SET lsn = '0/0'")
    await conn.execute("UPDATE pglockstep.generation SET number = 0")
    await begin_progress(conn, link, lsn)


async def forget(conn: AsyncConnection) -> None:
    """Remove everything of ours from the target."""
    await conn.execute("DROP SCHEMA IF EXISTS pglockstep CASCADE")


async def remember_identities(conn: AsyncConnection, link: str, changed: Sequence[ChangedIdentity]) -> None:
    """Write down what is about to be changed on the source, before it is changed."""
    async with conn.transaction():
        for each in changed:
            await conn.execute(
                "INSERT INTO pglockstep.replica_identity (link, schema_name, table_name, before) "
                "VALUES ($1, $2, $3, $4) ON CONFLICT (link, schema_name, table_name) DO UPDATE SET before = EXCLUDED.before",
                [link, each.table.schema, each.table.name, each.before],
            )


async def identities(conn: AsyncConnection) -> list[ChangedIdentity]:
    """The source's tables whose replica identity we changed."""
    cursor = await conn.execute(
        "SELECT schema_name, table_name, before FROM pglockstep.replica_identity ORDER BY 1, 2"
    )
    return [ChangedIdentity(QualifiedName(schema, name), before) async for schema, name, before in cursor]


async def repeat_identities(conn: AsyncConnection, before: Sequence[ChangedIdentity]) -> None:
    """Give the tables here the replica identity that the user's had on the source before we changed it there."""
    for each in before:
        # a table may be gone by now
        await conn.execute(
            sql.SQL("ALTER TABLE IF EXISTS ONLY {} REPLICA IDENTITY {}").format(
                each.table.sql(), sql.SQL(each.words)
            )
        )


async def take_lock(conn: AsyncConnection) -> bool:
    """Take the link's lock for as long as this session lives; false if another session has it."""
    cursor = await conn.execute("SELECT pg_catalog.pg_try_advisory_lock($1, $2)", _LOCK)
    return await cursor.fetchone() == (True,)


async def holder(conn: AsyncConnection) -> Holder | None:
    """Who holds the link's lock right now."""
    cursor = await conn.execute(
        "SELECT l.pid, coalesce(a.application_name, '') "
        "FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 "
        "AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) "
        "AND l.classid = $1::bigint::oid AND l.objid = $2::bigint::oid",
        _LOCK,
    )
    row = await cursor.fetchone()
    return None if row is None else Holder(row[0], row[1])
