"""The target's watch: writes there that are not ours, seen at once.

Statement triggers on each carried table, and on the partitioned tables above it, fire for foreign sessions only: ours
act as a replica, which plain triggers leave alone, or else show a token that no other role can read. An event trigger
does the same for DDL where our role is a superuser. Each foreign write is a row in ``pglockstep.foreign_write`` in the
writer's own transaction, so nothing is lost while nobody listens, and a NOTIFY without content wakes the listener: what
anybody could have sent is never believed, the rows are.

In the mode *watch* a writer must never feel us; in the mode *block* each foreign write is refused with a sentence.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, Literal, LiteralString

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow, class_row

from pglockstep.errors import TargetLacks, one_line
from pglockstep.postgres.connect import End, answered, connect, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.privileges import can_act_as_replica
from pglockstep.progress import target as progress

Mode = Literal["watch", "block"]

CHANNEL = "pglockstep_foreign_write"
#: The setting by which a session of ours is known where it may not act as a replica.
TOKEN = "pglockstep.token"  # noqa: S105  a setting's name
#: How many foreign writes are kept while nobody deals with them, as ``sql/watch.sql`` has it.
KEPT = 10_000

#: How often the rows are looked at though nobody has called, in seconds; more often where nobody may call, because
#: a transaction that has notified cannot be prepared.
_LOOK_EVERY = 1.0
_LOOK_OFTEN = 0.1

#: The triggers of each mode by name: when they fire, with which rows at hand, and the function.
_TRIGGERS: dict[Mode, dict[str, tuple[LiteralString, LiteralString, LiteralString]]] = {
    "watch": {
        "pglockstep_insert": ("AFTER INSERT", "REFERENCING NEW TABLE AS new_rows", "note_write"),
        "pglockstep_update": ("AFTER UPDATE", "REFERENCING NEW TABLE AS new_rows", "note_write"),
        "pglockstep_delete": ("AFTER DELETE", "REFERENCING OLD TABLE AS old_rows", "note_write"),
        "pglockstep_truncate": ("AFTER TRUNCATE", "", "note_write"),
    },
    "block": {"pglockstep_block": ("BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE", "", "refuse_write")},
}
_EVENT_TRIGGERS: dict[str, LiteralString] = {
    "pglockstep_ddl": "ddl_command_end",
    "pglockstep_drop": "sql_drop",
}
_DDL_FUNCTIONS: dict[Mode, LiteralString] = {"watch": "note_ddl", "block": "refuse_ddl"}


class Watched(msgspec.Struct, frozen=True):
    """What of a watch stands: the tables under it, those that are not and why, and whether DDL is seen at once."""

    tables: tuple[QualifiedName, ...]
    unwatched: dict[QualifiedName, str]
    ddl: bool

    @property
    def complete(self) -> bool:
        """Whether every table is watched."""
        return not self.unwatched


class ForeignWrite(msgspec.Struct, frozen=True):
    """One statement's write to one table, or one object that its DDL changed. `rows` is None for TRUNCATE and DDL.

    `table` is the one that the statement named: of a partitioned one, any leaf may have been written. It is None where
    DDL changed something else, which `object` names.
    """

    number: int
    at: datetime
    xid: int
    operation: str
    schema_name: str | None
    table_name: str | None
    row_count: int | None
    object: str | None
    who: str
    application: str | None
    client: str | None
    statement: str | None

    @property
    def table(self) -> QualifiedName | None:
        """The table, if it is known."""
        if self.schema_name is None or self.table_name is None:
            return None
        return QualifiedName(self.schema_name, self.table_name)

    @property
    def is_ddl(self) -> bool:
        """Whether it changed what the database is made of, rather than rows."""
        return self.operation not in ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


class Pending(msgspec.Struct, frozen=True):
    """Foreign writes that nobody has dealt with, oldest first. `more`: there were others, which were not kept.

    `upto` is the number of the last write that had begun when they were read.
    """

    writes: tuple[ForeignWrite, ...]
    more: bool
    upto: int

    def __bool__(self) -> bool:
        return bool(self.writes) or self.more


async def install(
    conn: AsyncConnection[Any], tables: Sequence[QualifiedName], mode: Mode = "watch"
) -> Watched:
    """Put the watch on these tables, or what is missing of it; a table that our role may not watch is told of.

    The session is known as ours from then on, and an older target's schema of ours is brought up to date. Waits for writers
    of a table, never for its readers, and no longer than `lock_timeout`. Raises psycopg's errors.
    """
    await be_ours(conn)
    await progress.upgrade(conn)
    async with conn.transaction():
        # a function that is made in a schema while that is dropped would stay behind without one
        await conn.execute("LOCK TABLE pglockstep.watch IN ACCESS SHARE MODE")
        await conn.execute(_statement("watch"), prepare=False)
    refused: dict[QualifiedName, str] = {}
    for table, present in (await _triggers(conn, tables)).items():
        if present == set(_TRIGGERS[mode]):
            continue
        try:
            async with conn.transaction():
                await _put_on(conn, table, present, mode)
        except psycopg.errors.InsufficientPrivilege as error:
            refused[table] = one_line(error.diag.message_primary or "")
    await _watch_ddl(conn, mode)
    found = await check(conn, tables, mode)
    reasons = {table: refused.get(table, reason) for table, reason in found.unwatched.items()}
    return msgspec.structs.replace(found, unwatched=reasons)


async def check(conn: AsyncConnection[Any], tables: Sequence[QualifiedName], mode: Mode = "watch") -> Watched:
    """What of the watch stands right now. Changes nothing. Raises psycopg's errors."""
    found = await _triggers(conn, tables)
    wanted = set(_TRIGGERS[mode])
    unwatched = {
        table: "its triggers are gone or disabled" for table, names in found.items() if not wanted <= names
    }
    unwatched |= {table: "it is not there" for table in tables if table not in found}
    return Watched(
        tuple(each for each in found if each not in unwatched), unwatched, await _sees_ddl(conn, mode)
    )


async def remove(conn: AsyncConnection[Any]) -> None:
    """Take the watch off every table; what it has written down stays. Raises psycopg's errors."""
    await be_ours(conn)
    async with conn.transaction():
        # never CASCADE: what is not ours must not go with it
        cursor = await conn.execute(
            "SELECT t.tgname, n.nspname, c.relname FROM pg_catalog.pg_trigger AS t "
            "JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid "
            "JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE p.pronamespace = pg_catalog.to_regnamespace('pglockstep') AND NOT t.tgisinternal ORDER BY 2, 3, 1"
        )
        for trigger, schema, name in await cursor.fetchall():
            await _drop(conn, trigger, QualifiedName(schema, name))
        for name in _EVENT_TRIGGERS:
            await conn.execute(sql.SQL("DROP EVENT TRIGGER IF EXISTS {}").format(sql.Identifier(name)))


async def act_as_replica(conn: AsyncConnection[Any]) -> bool:
    """Act as a replica from now on, for whom plain triggers do not fire; false if our role may not. Raises psycopg's errors."""
    if not await can_act_as_replica(conn):
        return False
    await conn.execute("SET session_replication_role = replica")
    return True


async def be_ours(conn: AsyncConnection[Any]) -> bool:
    """Have the watch know this session as ours from now on; returns whether it acts as a replica.

    Else it shows our token, which comes from a table that no other role may read and never leaves the server: a setting
    of a session's is seen by that session alone. What is lost then: the rows that we write ourselves are gathered for the
    triggers for nothing, and whoever is our role, or a superuser, can pass for us. Raises psycopg's errors.
    """
    if await act_as_replica(conn):
        return True
    await progress.upgrade(conn)
    await conn.execute("SELECT pg_catalog.set_config($1, token, false) FROM pglockstep.watch", [TOKEN])
    return False


async def pending(conn: AsyncConnection[Any]) -> Pending:
    """The foreign writes that nobody has dealt with. Raises psycopg's errors."""
    # in this order: what begins in between is not missed
    cursor = await conn.execute(
        "SELECT CASE WHEN is_called THEN last_value ELSE 0 END, "
        "(SELECT last_value FROM pglockstep.foreign_write_done) FROM pglockstep.foreign_write_number"
    )
    row = await cursor.fetchone()
    assert row is not None
    number, done = row
    async with conn.cursor(row_factory=class_row(ForeignWrite)) as rows:
        await rows.execute("SELECT * FROM pglockstep.foreign_write ORDER BY number")
        found = tuple(await rows.fetchall())
    return Pending(found, number - done > KEPT, number)


async def dealt_with(conn: AsyncConnection[Any], seen: Pending) -> None:
    """Forget these foreign writes; belongs after what came of them is durable. Raises psycopg's errors."""
    async with conn.transaction():
        await conn.execute(
            "DELETE FROM pglockstep.foreign_write WHERE number = ANY ($1)",
            [[each.number for each in seen.writes]],
        )
        await conn.execute("SELECT pg_catalog.setval('pglockstep.foreign_write_done', $1)", [seen.upto])


async def listen(end: End) -> AsyncGenerator[Pending, None]:
    """Tell of foreign writes as they are committed, over a session of its own, until that or the target is lost.

    Each is told once, all together what nobody has dealt with when the session begins. Raises the target's errors.
    """
    conn = await connect(end, "listen")
    try:
        with answered(end, conn), translate(end):
            await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
            cursor = await conn.execute(
                "SELECT pg_catalog.current_setting('max_prepared_transactions') = '0'"
            )
            patience = _LOOK_EVERY if await cursor.fetchone() == (True,) else _LOOK_OFTEN
        told: set[int] = set()
        told_of_more = False
        while True:
            with answered(end, conn), translate(end):
                try:
                    found = await pending(conn)
                except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
                    raise TargetLacks(
                        "schema pglockstep, or what the watch keeps in it, is gone from the target",
                        hint="a heal puts it back; the poll tells how the target stands",
                    ) from error
            writes = tuple(each for each in found.writes if each.number not in told)
            more = found.more and not told_of_more
            told, told_of_more = {each.number for each in found.writes}, found.more
            if writes or more:
                yield Pending(writes, more, found.upto)
                continue
            with translate(end):
                await _called(conn, patience)
    finally:
        await conn.close()


async def _called(conn: AsyncConnection[TupleRow], patience: float) -> None:
    """Wait until somebody calls, or for so long."""
    async for _ in conn.notifies(timeout=patience, stop_after=1):
        pass


async def leaves(conn: AsyncConnection[Any], tables: Collection[QualifiedName]) -> set[QualifiedName]:
    """These tables and every one below them, where rows written through them may be. Raises psycopg's errors."""
    cursor = await conn.execute(
        "WITH RECURSIVE below (oid) AS ("
        "SELECT c.oid FROM unnest($1::text[], $2::text[]) AS w (schema_name, table_name) "
        "JOIN pg_catalog.pg_namespace AS n ON n.nspname = w.schema_name "
        "JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.table_name "
        "UNION SELECT i.inhrelid FROM below JOIN pg_catalog.pg_inherits AS i ON i.inhparent = below.oid) "
        "SELECT n.nspname, c.relname FROM below JOIN pg_catalog.pg_class AS c ON c.oid = below.oid "
        "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relkind = 'r'",
        [[each.schema for each in tables], [each.name for each in tables]],
    )
    return {QualifiedName(schema, name) async for schema, name in cursor}


async def _triggers(
    conn: AsyncConnection[Any], tables: Sequence[QualifiedName]
) -> dict[QualifiedName, set[str]]:
    cursor = await conn.execute(
        _statement("watched"), [[each.schema for each in tables], [each.name for each in tables]]
    )
    return {QualifiedName(schema, name): set(triggers) async for schema, name, triggers in cursor}


async def _put_on(conn: AsyncConnection[Any], table: QualifiedName, present: set[str], mode: Mode) -> None:
    for name, (when, rows, function) in _TRIGGERS[mode].items():
        if name not in present:
            await conn.execute(
                sql.SQL(
                    "CREATE OR REPLACE TRIGGER {} {} ON {} {} FOR EACH STATEMENT EXECUTE FUNCTION pglockstep.{}()"
                ).format(
                    sql.Identifier(name), sql.SQL(when), table.sql(), sql.SQL(rows), sql.Identifier(function)
                )
            )
            # one that somebody disabled stays disabled when it is replaced
            await conn.execute(
                sql.SQL("ALTER TABLE {} ENABLE TRIGGER {}").format(table.sql(), sql.Identifier(name))
            )
    for name in present - set(_TRIGGERS[mode]):
        await _drop(conn, name, table)


async def _drop(conn: AsyncConnection[Any], trigger: str, table: QualifiedName) -> None:
    await conn.execute(
        sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(trigger), table.sql())
    )


async def _sees_ddl(conn: AsyncConnection[Any], mode: Mode) -> bool:
    cursor = await conn.execute(
        "SELECT count(*) FROM pg_catalog.pg_event_trigger AS e JOIN pg_catalog.pg_proc AS p ON p.oid = e.evtfoid "
        "WHERE e.evtname = ANY ($1) AND e.evtenabled = 'O' AND p.proname = $2 "
        "AND p.pronamespace = pg_catalog.to_regnamespace('pglockstep')",
        [list(_EVENT_TRIGGERS), _DDL_FUNCTIONS[mode]],
    )
    return await cursor.fetchone() == (len(_EVENT_TRIGGERS),)


async def _watch_ddl(conn: AsyncConnection[Any], mode: Mode) -> None:
    """Make the event triggers, where our role may."""
    if await _sees_ddl(conn, mode):
        return
    try:
        async with conn.transaction():
            for name, event in _EVENT_TRIGGERS.items():
                identifier = sql.Identifier(name)
                await conn.execute(sql.SQL("DROP EVENT TRIGGER IF EXISTS {}").format(identifier))
                await conn.execute(
                    sql.SQL("CREATE EVENT TRIGGER {} ON {} EXECUTE FUNCTION pglockstep.{}()").format(
                        identifier, sql.SQL(event), sql.Identifier(_DDL_FUNCTIONS[mode])
                    )
                )
    except psycopg.errors.InsufficientPrivilege:
        return


@cache
def _statement(name: str) -> bytes:
    return files("pglockstep.guard").joinpath("sql", f"{name}.sql").read_bytes()
