"""A source and two targets that repeat its changes: one statement by statement, one in sets however few they are.

The changes are a real server's, recorded from the source; they are applied through sessions as the link's own are;
then the rows of all three are compared as text.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from typing import LiteralString

import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from fix_recorder import Recorder
from fix_servers import Connection, Servers, all_pairs, connect, drop_database, majors
from pglockstep.apply.applier import Applier
from pglockstep.apply.statements import Statement, TableWriter, truncate
from pglockstep.postgres import catalog
from pglockstep.postgres.connect import End
from pglockstep.postgres.connect import connect as connect_end
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import target as progress
from pglockstep.units import Lsn
from pglockstep.wal.messages import (
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Relation,
    Truncate,
    Update,
)


class Mirror:
    """A recorded source, a target that follows it statement by statement, and one that does in sets."""

    def __init__(self, source: str, target: str, sets: str) -> None:
        self._end = End("target", "mirror", target)
        self._sets_end = End("target", "mirror", sets)
        self._runner = asyncio.Runner()
        self._session: AsyncConnection[TupleRow] | None = None
        self._applier: Applier | None = None
        self._applier_session: AsyncConnection[TupleRow] | None = None
        self._writers: dict[int, TableWriter] = {}
        #: how many runs went as sets since the last `clean`, and how many had to go row by row after all
        self.sets_done = self.clashes = 0
        self.source, self.target, self.sets = connect(source), connect(target), connect(sets)
        for conn in (self.source, self.target, self.sets):
            conn.execute("set lock_timeout = '10s'")
            conn.prepare_threshold = None  # the same table has other types in every test
        self._recorder = Recorder(source)

    def both(self, *statements: LiteralString | sql.Composed) -> None:
        """Execute on both ends, each by itself; nothing of it is recorded."""
        for statement in statements:
            for conn in (self.source, self.target, self.sets):
                conn.execute(statement)
        self._recorder.payloads()

    def on_targets(self, *statements: LiteralString | sql.Composed) -> None:
        """Execute on both targets alone."""
        for statement in statements:
            self.target.execute(statement)
            self.sets.execute(statement)

    def follow(self, *statements: LiteralString | sql.Composed, replica: bool = True) -> list[Statement]:
        """Execute on the source, and repeat the changes on the target: then both have the same rows.

        `replica`: whether triggers and foreign keys are quiet on the target. Returns what was executed there.
        """
        for statement in statements:
            self.source.execute(statement)
        messages = self._recorder.messages()
        executed = self._runner.run(self._repeat(messages, replica=replica))
        assert contents(self.target) == contents(self.source)
        self._runner.run(self._repeat_in_sets(messages, replica=replica))
        assert contents(self.sets) == contents(self.source)
        return executed

    async def _repeat_in_sets(self, messages: Sequence[Message], *, replica: bool) -> None:
        applier = self._applier
        if applier is None:
            conn = self._applier_session = await connect_end(self._sets_end, "apply")
            record = await progress.create(conn, "mirror", "source")
            await progress.complete_copy(conn, record.id, Lsn(0))
            applier = self._applier = Applier(self._sets_end, conn, record.id, Lsn(0), sets_from=1)
            await applier.load_tables()
        assert self._applier_session is not None
        await self._applier_session.execute(
            f"SET session_replication_role = {'replica' if replica else 'origin'}"
        )
        await applier.apply(messages)
        self.sets_done, self.clashes = applier.sets, applier.clashes

    async def _repeat(self, messages: Sequence[Message], *, replica: bool) -> list[Statement]:
        """Execute the statements for `messages`, each of which has to touch as many rows as it says."""
        conn = self._session = self._session or await connect_end(self._end, "apply")
        Applier(self._end, conn, "mirror", Lsn(0))  # teaches the session how values go out
        await conn.execute(f"SET session_replication_role = {'replica' if replica else 'origin'}")
        tables = {table.name: table for table in await catalog.tables(conn)}
        executed: list[Statement] = []
        for message in messages:
            if isinstance(message, Begin):
                await conn.execute("BEGIN")
                await conn.execute("SET CONSTRAINTS ALL DEFERRED")
            elif isinstance(message, Commit):
                await conn.execute("COMMIT")
            elif isinstance(message, Relation):
                name = QualifiedName(message.schema, message.name)
                self._writers[message.relation_id] = TableWriter(message, tables[name])
            elif isinstance(message, Insert | Update | Delete | Truncate):
                statement = statement_for(message, self._writers)
                cursor = await conn.execute(statement.query, statement.parameters)
                touched = cursor.rowcount
                assert not statement.one_row or touched == 1, f"{statement} touched {touched} rows"
                executed.append(statement)
        return executed

    def clean(self) -> None:
        """Drop everything, and leave the session that knew it."""
        self._leave()
        for conn in (self.source, self.target, self.sets):
            conn.rollback()
            found = conn.execute(
                "select nspname from pg_namespace where nspname !~ '^(pg_|information_schema)'"
            )
            for (schema,) in found.fetchall():
                conn.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))
            conn.execute("create schema public")
        self._recorder.payloads()

    def close(self) -> None:
        self._leave()
        with self.source, self.target, self.sets, self._recorder, self._runner:
            pass

    def _leave(self) -> None:
        for session in (self._session, self._applier_session):
            if session is not None:
                self._runner.run(session.close())
        self._session = self._applier = self._applier_session = None
        self.sets_done = self.clashes = 0


def statement_for(change: Insert | Update | Delete | Truncate, writers: dict[int, TableWriter]) -> Statement:
    if isinstance(change, Truncate):
        names = [writers[each].table.name for each in change.relation_ids]
        return truncate(names, restart_identity=change.restart_identity)
    writer = writers[change.relation_id]
    if isinstance(change, Insert):
        return writer.insert(change)
    return writer.update(change) if isinstance(change, Update) else writer.delete(change)


def contents(conn: Connection) -> dict[str, list[str]]:
    """Every table's own rows as text, sorted; columns in the order of their names."""
    tables = conn.execute(
        """select n.nspname, c.relname, array_agg(a.attname::text order by a.attname collate "C")
                  filter (where a.attnum > 0 and not a.attisdropped)
           from pg_class c join pg_namespace n on n.oid = c.relnamespace
           left join pg_attribute a on a.attrelid = c.oid
           where c.relkind = 'r' and c.relpersistence <> 't'
             and n.nspname not in ('pg_catalog', 'information_schema', 'pglockstep')
           group by 1, 2 order by 1, 2"""
    ).fetchall()
    found: dict[str, list[str]] = {}
    for schema, name, columns in tables:
        row = sql.SQL("row({})::text").format(sql.SQL(", ").join(map(sql.Identifier, columns or [])))
        query = sql.SQL("select {} from only {}").format(row, sql.Identifier(schema, name))
        found[f"{schema}.{name}"] = sorted(value for (value,) in conn.execute(query).fetchall())
    return found


@pytest.fixture(
    scope="module",
    params=[(majors[-1], majors[-1])],
    ids=lambda pair: f"{pair[0]}-to-{pair[1]}",
)
def mirrored(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Mirror]:
    """A source and a target of the newest version, or of the (source, target) versions it is parametrised with."""
    source, target = servers.source(request.param[0]), servers.target(request.param[1])
    name = f"mirror_{secrets.token_hex(4)}"
    sets = f"{name}_sets"
    databases = [(source, name), (target, name), (target, sets)]
    for server, each in databases:
        with connect(server.conninfo()) as conn:
            conn.execute(sql.SQL("create database {}").format(sql.Identifier(each)))
    try:
        mirror = Mirror(source.conninfo(name), target.conninfo(name), target.conninfo(sets))
        yield mirror
        mirror.close()
    finally:
        for server, each in databases:
            drop_database(server, each)


@pytest.fixture
def mirror(mirrored: Mirror) -> Iterator[Mirror]:
    """The same, empty."""
    yield mirrored
    mirrored.clean()


#: Run a test once for each pair of versions.
on_all_mirrors = pytest.mark.parametrize(
    "mirrored", all_pairs, indirect=True, ids=[f"{source}-to-{target}" for source, target in all_pairs]
)
