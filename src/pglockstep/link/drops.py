"""Tables that the source does not have any more as they were: seen by looking, judged when the target has all before that.

A DROP is in no stream. What was written to the table before it may be: so the link first goes on up to a barrier that was
set when the table was seen to be gone, and only then it is judged. What may go is dropped on the target, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.apply.batch import BARRIER_PREFIX
from pglockstep.errors import ApplyRefused, LockstepError, TargetError, one_line
from pglockstep.guard import source_tables as there
from pglockstep.guard.judge import Gone
from pglockstep.link import remembering
from pglockstep.link.link import Link
from pglockstep.link.outlet import Outlet
from pglockstep.link.session import source_clock
from pglockstep.observe.incident import needs_decision
from pglockstep.postgres import catalog, privileges
from pglockstep.postgres.connect import End, connect, ends, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import detached
from pglockstep.progress import source_tables as followed
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn

log = logging.getLogger(__name__)

#: How often the source is looked at, in seconds.
_EVERY = 1.0


class Drops:
    """What one link follows, by the source's OIDs; as its target remembers it."""

    def __init__(self, link: Link, known: dict[QualifiedName, int], record: LinkRecord) -> None:
        self._link = link
        self._known = known
        self._id = record.id
        self._identity = record.source_identity
        #: seen to be gone, and not judged yet
        self.gone: list[Gone] = []
        self._seen_at = 0

    @classmethod
    async def of(cls, link: Link, conn: AsyncConnection[TupleRow], target: End, record: LinkRecord) -> Drops:
        """As the target behind `conn` remembers it. Whoever calls holds the lock.

        What the link does not carry, or leaves alone since an incident was rejected, is nothing to it.
        """
        with translate(target):
            known = await followed.read(conn)
            apart = await detached.read(conn)
        ours = {
            name: oid for name, oid in known.items() if link.selection.carries(*name) and name not in apart
        }
        return cls(link, ours, record)

    async def adopt(self, conn: AsyncConnection[TupleRow], target: End) -> None:
        """Note what is followed, where that was never done."""
        if self._known:
            return
        with translate(target):
            here = {each.name for each in await catalog.tables(conn)} - (await detached.read(conn)).keys()
        now = await _on_source(ends(self._link.config)[0])
        self._known = {
            name: oid for name, oid in now.items() if name in here and self._link.selection.carries(*name)
        }
        with translate(target):
            await followed.note(conn, self._known)

    async def look(self, session: AsyncConnection[TupleRow]) -> Lsn | None:
        """A place in the source's WAL behind which tables are gone; None if none is. Raises psycopg's errors."""
        self.gone = there.gone(self._known, await there.read(session))
        if not self.gone:
            self._link.gate.nothing_is_dropped()
            return None
        if self._link.polls:
            self._seen_at = await source_clock(session)
            # with nobody who polls, whoever asked has its own way there
            return await self._link.poller.passed() if self._link.poller is not None else Lsn(0)
        cursor = await session.execute(
            "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)", [BARRIER_PREFIX, self._id]
        )
        row = await cursor.fetchone()
        assert row is not None
        self._seen_at = await source_clock(session)
        place: Lsn = row[0]
        return place

    async def watch(self, outlet: Outlet) -> None:
        """Look again and again; once something is gone, let `outlet` end when it has come to that."""
        source = ends(self._link.config)[0]
        while True:
            try:
                session = await connect(source, "catalog")
                try:
                    while await self._is_known(session):
                        with translate(source):
                            place = await self.look(session)
                        # an older copy of the source, whose WAL does not reach so far, has lost more than tables
                        if place is not None and place > outlet.applied:
                            outlet.end_at(place)
                            return
                        await asyncio.sleep(_EVERY)
                finally:
                    await session.close()
            except LockstepError as error:
                log.debug("the catalog was not read: %s", error, extra=self._link.about("drops.failed"))
            await asyncio.sleep(_EVERY)

    async def _is_known(self, session: AsyncConnection[TupleRow]) -> bool:
        """Whether it is the source that is followed: what another one lacks is no loss of single tables."""
        with translate(ends(self._link.config)[0]):
            return (await privileges.facts(session)).identity == self._identity

    async def settle(self, conn: AsyncConnection[TupleRow], target: End, progress: Lsn) -> None:
        """Judge what is gone; the target has all up to that. Raises `IncidentOpen`, or drops here what may go."""
        if not self.gone:
            return
        gone, self.gone = self.gone, []
        incident = await self._link.gate.dropped(gone, progress, self._seen_at)
        if incident is not None:
            raise needs_decision(incident)
        renamed = {each.name: each.now for each in gone if each.now is not None}
        names = [each.name for each in gone if each.now is None]
        moved = {name: (now, self._known[name]) for name, now in renamed.items()}
        try:
            for name, now in renamed.items():
                if not self._link.selection.carries(*now):
                    raise ApplyRefused(
                        f"table {name} was renamed to {now} on the source, and the link does not carry a table of that name",
                        hint="give it its name back there, or have include and exclude carry the new one",
                    )
            if names:
                await _drop(conn, target, names)
            if moved:
                await _rename(conn, target, moved)
        except LockstepError:
            self._link.gate.not_dropped_here()
            raise
        self._link.gate.dropped_here()
        for each in gone:
            self._known.pop(each.name, None)
        self._known.update(moved.values())
        said = ", ".join(
            [f"{name} dropped" for name in names]
            + [f"{name} renamed to {now}" for name, now in renamed.items()]
        )
        log.warning("on the target as on the source: %s", said, extra=self._link.about("drops.done"))
        with translate(target):
            await remembering.remember(self._link, conn)


async def _drop(conn: AsyncConnection[TupleRow], target: End, names: Sequence[QualifiedName]) -> None:
    """Drop these tables on the target, and nothing that the source did not drop."""
    present = sql.SQL(", ").join(each.sql() for each in names)
    try:
        with translate(target):
            async with conn.transaction():
                await conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(present))
                await followed.forget(conn, names)
                await detached.attach(conn, names)
    except TargetError as error:
        if error.transient or not isinstance(error.__cause__, psycopg.Error):
            raise
        detail = error.__cause__.diag.message_detail or error.message
        raise ApplyRefused(
            f"what was dropped on the source is needed by something else on the target: {one_line(detail)}",
            hint="drop that on the target by hand; the link then goes on",
        ) from error


async def _rename(
    conn: AsyncConnection[TupleRow], target: End, tables: Mapping[QualifiedName, tuple[QualifiedName, int]]
) -> None:
    """Give tables of the target the names that they have on the source, and follow them under these, by the source's OIDs.

    By way of names that no table has: two tables may have changed places. A schema that the target lacks is made.
    """
    try:
        with translate(target):
            async with conn.transaction():
                for name, (_, oid) in tables.items():
                    await conn.execute(
                        sql.SQL("ALTER TABLE {} RENAME TO {}").format(
                            name.sql(), sql.Identifier(_between(oid))
                        )
                    )
                for name, (now, oid) in tables.items():
                    between = QualifiedName(name.schema, _between(oid))
                    if now.schema != name.schema:
                        await conn.execute(
                            sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(now.schema))
                        )
                        await conn.execute(
                            sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(
                                between.sql(), sql.Identifier(now.schema)
                            )
                        )
                        between = QualifiedName(now.schema, between.name)
                    await conn.execute(
                        sql.SQL("ALTER TABLE {} RENAME TO {}").format(between.sql(), sql.Identifier(now.name))
                    )
                await followed.forget(conn, tables)
                await followed.note(conn, dict(tables.values()))
    except TargetError as error:
        if error.transient or not isinstance(error.__cause__, psycopg.Error):
            raise
        raise ApplyRefused(
            f"the target cannot follow what was renamed on the source: {error.message}",
            hint="rename it there by hand, or what is in its way; the link then goes on",
        ) from error


def _between(oid: int) -> str:
    return f"pglockstep_renamed_{oid}"


async def follow(
    conn: AsyncConnection[TupleRow], target: End, source: End, tables: Sequence[QualifiedName]
) -> None:
    """Tables that are on the source again are followed as what they are now."""
    now = await _on_source(source)
    with translate(target):
        await followed.note(conn, {name: now[name] for name in tables if name in now})


async def _on_source(source: End) -> dict[QualifiedName, int]:
    """The OIDs of the source's tables, over a session of its own."""
    session = await connect(source, "catalog")
    try:
        with translate(source):
            return await there.read(session)
    finally:
        await session.close()
