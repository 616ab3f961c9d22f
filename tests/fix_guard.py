"""A link whose target somebody harms: noticed by the watch, healed by the guard's engines, brought level again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from fix_copy import once
from fix_servers import Cli, Connection, Pair
from pglockstep.config import places
from pglockstep.config.sections import GuardConfig, TableGuardConfig
from pglockstep.config.values import TablePattern
from pglockstep.copy.ends import Ends
from pglockstep.guard import reading, watch
from pglockstep.guard.heal import Healed, Remembered, Wish, heal, open_again, remember
from pglockstep.guard.reading import Reading, Trouble
from pglockstep.guard.watch import ForeignWrite, Mode, Pending, Watched
from pglockstep.link import session
from pglockstep.link.link import Link
from pglockstep.observe.state import StateDirectory
from pglockstep.postgres import catalog
from pglockstep.postgres.connect import connect, ends
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import copying
from pglockstep.progress import target as progress

T = TypeVar("T")


def named(writes: Iterable[ForeignWrite]) -> set[QualifiedName] | None:
    """The tables that were written to, for a heal of just these; None if any of it may have touched others."""
    found = {None if each.is_ddl else each.table for each in writes}
    return None if None in found else {each for each in found if each is not None}


@dataclass
class Guarded:
    """A link that has been copied, with a watch on its target; `harm` does something to it from another session."""

    cli: Cli
    pair: Pair
    mode: Mode = "watch"
    tables: list[QualifiedName] = field(default_factory=list)
    noticed_after: float | None = None

    def __post_init__(self) -> None:
        once(self.cli, self.pair)
        self._link = Link(self._config, StateDirectory(self.cli.directory / "state"))
        self.source, self.target = ends(self._config)
        self.remembered, self.watched = asyncio.run(self._set_up())

    @property
    def _config(self) -> Any:
        link = places.from_ends(
            self.pair.source, self.pair.target, os.environ, self.cli.directory / "state"
        ).links["default"]
        # what the stream brings while a target is healed is not what these tests are about
        rules = {TablePattern.parse("*.*"): TableGuardConfig(judge=False)}
        return msgspec.structs.replace(link, guard=GuardConfig(tables=rules))

    def on_target(self, work: Callable[[AsyncConnection[TupleRow]], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns of a session of ours at the target."""

        async def run() -> T:
            async with await connect(self.target, "test") as conn:
                return await work(conn)

        return asyncio.run(run())

    def read(self, floors: dict[QualifiedName, int] | None = None) -> Reading:
        """How the target stands."""

        async def run() -> Reading:
            reader = reading.Reader(self.target, self.tables, floors or {})
            try:
                return await reader.read()
            finally:
                await reader.aclose()

        return asyncio.run(run())

    def noticed(self, harm: Callable[[], object]) -> Pending:
        """What a listener is told after `harm` was done, and keeps how long that took after its commit."""

        async def run() -> Pending:
            listener = watch.listen(self.target)
            first = asyncio.create_task(anext(listener))
            # it is listening as soon as its session waits for something
            async with await connect(self.target, "look") as conn:
                for _ in range(500):
                    cursor = await conn.execute(
                        "SELECT FROM pg_stat_activity WHERE application_name ~ '^pglockstep listen' "
                        "AND datname = current_database() AND state = 'idle' AND query ~ 'foreign_write'"
                    )
                    if cursor.rowcount:
                        break
                    await asyncio.sleep(0.01)
            committed = asyncio.get_running_loop().run_in_executor(
                None, lambda: (harm(), time.monotonic())[1]
            )
            try:
                found = await asyncio.wait_for(first, 10)
                told = time.monotonic()
            finally:
                at = await committed
                await listener.aclose()
            self.noticed_after = max(0.0, told - at)
            return found

        return asyncio.run(run())

    def polled(self, before: Reading, *, patience: float = 10.0) -> list[Trouble]:
        """What the poll alone finds wrong, and keeps how long it was until then."""
        began = time.monotonic()
        while time.monotonic() - began < patience:
            if found := reading.judge(before, self.read()):
                self.noticed_after = time.monotonic() - began
                return found
            time.sleep(0.05)
        raise AssertionError("the poll found nothing")

    def rows(self, table: QualifiedName) -> int:
        """How many rows the target's table holds."""
        with self.pair.on_target() as conn:
            found = conn.execute(sql.SQL("SELECT count(*) FROM ONLY {}").format(table.sql())).fetchone()
        assert found is not None
        return int(found[0])

    def remember(self) -> None:
        """Read anew what has to be known of the target."""
        self.remembered = self.on_target(remember)

    def heal(self, suspects: set[QualifiedName] | None = None, mode: Mode | None = "watch") -> Healed:
        """Heal as the link's wiring does it, and bring the target to a barrier afterwards."""
        return asyncio.run(
            self._heal(Wish(suspects=None if suspects is None else frozenset(suspects), mode=mode))
        )

    async def _heal(self, wish: Wish) -> Healed:
        conn = await open_again(self.target, self.remembered)
        try:
            assert await progress.take_lock(conn)
            healed = await heal(self.source, self.target, conn, self.remembered, wish)
        finally:
            await conn.close()
        async with session.opened(self._config, "level") as both:
            assert await session.take_lock(both.target_conn, both.target)
            await self._level(both)
        return healed

    async def _level(self, both: Ends) -> None:
        record = await progress.read(both.target_conn)
        assert record is not None
        assert record.progress is not None
        ahead = await copying.ahead(both.target_conn, record.progress)
        barrier = await session.emit_barrier(both.source_conn, both.source, record.id)
        async with self._link.applying(both, copied=ahead) as pipeline:
            await pipeline.run(until=barrier)

    async def _set_up(self) -> tuple[Remembered, Watched]:
        async with await connect(self.target, "set up") as conn:
            self.tables = [each.name for each in await catalog.tables(conn)]
            watched = await watch.install(conn, self.tables, self.mode)
            return await remember(conn), watched


def tables_with_rows(conn: Connection) -> dict[str, int]:
    """Every table of a user's, and its number of rows."""
    found = conn.execute(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
        "WHERE schemaname !~ '^(pg_|pglockstep|information_schema)' ORDER BY 1"
    ).fetchall()
    counted = {}
    for (name,) in found:
        row = conn.execute(f"SELECT count(*) FROM ONLY {name}".encode()).fetchone()
        assert row is not None
        counted[name] = row[0]
    return counted


def back_to_format_1(target: Connection) -> None:
    """Take away from a target what later formats of our schema brought."""
    target.execute(
        "DROP TABLE pglockstep.watch, pglockstep.foreign_write, pglockstep.deleted, pglockstep.restoring, "
        "pglockstep.detached, pglockstep.source_table, pglockstep.generation, pglockstep.held; "
        "DROP SEQUENCE pglockstep.foreign_write_number, pglockstep.foreign_write_done; "
        "UPDATE pglockstep.format SET version = 1"
    )
