"""Beside whoever applies: what others do to the target, noticed as they commit it, and by looking once a second.

What is found is an incident; whoever applies is stopped between two commits, and what was lost is put back before it goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.errors import LockstepError, TargetError
from pglockstep.findings import counted, listed
from pglockstep.guard import reading, watch
from pglockstep.guard.reading import Reader, Reading, Trouble
from pglockstep.guard.watch import ForeignWrite, Pending, Watched
from pglockstep.link import healing
from pglockstep.link.link import Link
from pglockstep.link.outlet import Outlet
from pglockstep.observe.incident import Incident, Kind, Loss, needs_decision
from pglockstep.postgres import catalog
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import detached

log = logging.getLogger(__name__)

#: How often the target is looked at, in seconds; and how often what it is made of is written down.
_LOOK_EVERY = 1.0
_REMEMBER_EVERY = 60.0

#: Foreign statements that take nothing from what we follow: somebody's own tables, views and indexes beside ours.
_HARMLESS = (
    "CREATE ",
    "COMMENT",
    "GRANT",
    "REVOKE",
    "REFRESH",
    "REINDEX",
    "SECURITY LABEL",
    "ANALYZE",
    "CLUSTER",
)
#: From mild to serious.
_KINDS: tuple[Kind, ...] = (
    "foreign_write",
    "update",
    "delete",
    "floor",
    "truncate",
    "drop",
    "missing_database",
)


class TargetWatch:
    """The watch of one link's target, while somebody applies there."""

    def __init__(self, link: Link, target: End, tables: Sequence[QualifiedName], watched: Watched) -> None:
        self._link = link
        self._target = target
        self._tables = tables
        self._watched = watched
        self._before: Reading | None = None

    @classmethod
    async def begin(cls, link: Link, conn: AsyncConnection[TupleRow], target: End) -> TargetWatch | None:
        """Put the watch on, over the session that holds the lock, and write down what the target is; None if it is off."""
        mode = healing.mode_of(link.config.guard)
        await healing.remember(link, conn, target)
        with translate(target):
            if mode is None:
                return None
            tables = await _followed(link, conn)
            watched = await watch.install(conn, tables, mode)
        if watched.unwatched:
            some = listed(map(str, watched.unwatched))
            log.warning(
                "foreign writes to %s are found by looking only: %s",
                some,
                next(iter(watched.unwatched.values())),
                extra=link.about("watch.partial"),
            )
        elif not watched.ddl:
            log.info(
                "foreign DDL on the target is found by looking, once a second: an event trigger needs a superuser",
                extra=link.about("watch.partial"),
            )
        return cls(link, target, tables, watched)

    async def run(self, outlet: Outlet) -> None:
        """Watch until something is found; that stops `outlet`. A target that cannot be reached is its own matter."""
        sides = [
            asyncio.create_task(self._again(self._listen), name="listen"),
            asyncio.create_task(self._again(self._look), name="look"),
            asyncio.create_task(self._again(self._remember), name="remember"),
        ]
        try:
            done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            outlet.stop(needs_decision(next(iter(done)).result()))
        finally:
            for task in sides:
                task.cancel()
            await asyncio.wait(sides)

    async def _again(self, look: object) -> Incident:
        """One look after another, whatever it fails by."""
        while True:
            try:
                found: Incident = await look()  # type: ignore[operator]
                return found
            except LockstepError as error:
                log.debug("the target was not looked at: %s", error, extra=self._link.about("watch.failed"))
            await asyncio.sleep(_LOOK_EVERY)

    async def _listen(self) -> Incident:
        async for pending in watch.listen(self._target):
            conn = await connect(self._target, "watch")
            try:
                with translate(self._target):
                    apart = set(await detached.read(conn))
                    if (found := incident_of(self._link, pending, self._tables, apart)) is not None:
                        return found
                    # harmless: nobody has to see to it
                    await watch.be_ours(conn)
                    await watch.dealt_with(conn, pending)
            finally:
                await conn.close()
        raise TargetError("nobody listens any more")

    async def _look(self) -> Incident:
        floors = {
            QualifiedName(*name): floor
            for name, floor in self._link.config.guard.floors.items()
            if QualifiedName(*name) in self._tables
        }
        reader = Reader(self._target, self._tables, floors)
        try:
            while True:
                now = await reader.read()
                if self._before is not None:
                    found = [
                        each for each in reading.judge(self._before, now, self._ours()) if self._counts(each)
                    ]
                    if found:
                        return _of_troubles(self._link, found)
                self._before = now
                await asyncio.sleep(_LOOK_EVERY)
        finally:
            await reader.aclose()

    def _ours(self) -> set[QualifiedName]:
        """Tables that may have shrunk by our own doing: all that the triggers watch, for them nothing is guessed."""
        return set(self._watched.tables)

    def _counts(self, trouble: Trouble) -> bool:
        """What is not sure is worth a look only where no trigger tells."""
        return trouble.sure or trouble.table not in self._watched.tables

    async def _remember(self) -> Incident:
        while True:
            await asyncio.sleep(_REMEMBER_EVERY)
            conn = await connect(self._target, "remember")
            try:
                await healing.remember(self._link, conn, self._target)
            finally:
                await conn.close()


async def look_once(link: Link, conn: AsyncConnection[TupleRow], target: End) -> None:
    """Open an incident for what others did while nobody was there to see it, if a watch has noted that."""
    if healing.mode_of(link.config.guard) is None:
        return
    with translate(target):
        noted = await conn.execute("SELECT pg_catalog.to_regclass('pglockstep.foreign_write') IS NOT NULL")
        if await noted.fetchone() != (True,):
            return
        pending = await watch.pending(conn)
        tables = await _followed(link, conn)
        if pending and incident_of(link, pending, tables, set(await detached.read(conn))) is None:
            await watch.dealt_with(conn, pending)


async def _followed(link: Link, conn: AsyncConnection[TupleRow]) -> list[QualifiedName]:
    """The target's tables that follow the source, sorted. Raises psycopg's errors."""
    here = {each.name for each in await catalog.tables(conn) if link.selection.carries(*each.name)}
    return sorted(here - (await detached.read(conn)).keys())


def incident_of(
    link: Link, pending: Pending, tables: Iterable[QualifiedName], apart: Collection[QualifiedName]
) -> Incident | None:
    """The incident that these foreign writes are, to others than the tables `apart`; None if they are harmless."""
    harm = [
        each
        for each in pending.writes
        if not each.operation.startswith(_HARMLESS) and each.table not in apart
    ]
    if not harm and not pending.more:
        return None
    ours = set(tables)
    found: dict[QualifiedName, Loss] = {}
    for each in harm:
        name = each.table
        if name is None:
            continue
        before = link.gate.stood(name)
        lost = 0
        if each.operation == "DELETE":
            lost = each.row_count or 0
        elif each.operation == "TRUNCATE" or (each.is_ddl and each.operation.startswith("DROP TABLE")):
            lost = before or 0
        had = found.get(name)
        found[name] = Loss(*name, before, (had.rows_lost if had else 0) + lost)
    if pending.more:
        # so many that not all were kept: any table may have been written
        found = {
            name: found.get(name, Loss(*name, link.gate.stood(name), 0))
            for name in sorted(ours | found.keys())
        }
    first = harm[0] if harm else None
    return healing.opened(
        link,
        max((_kind(each) for each in harm), key=_KINDS.index, default="foreign_write"),
        _sentence(harm, more=pending.more),
        [found[name] for name in sorted(found)],
        happened_at=None if first is None else first.at,
        xid=None if first is None else first.xid,
        who=None if first is None else first.who,
        application=None if first is None else first.application,
        statements=tuple(dict.fromkeys(each.statement for each in harm[:20] if each.statement)),
    )


def _kind(write: ForeignWrite) -> Kind:
    if write.is_ddl:
        return "drop" if write.operation.startswith("DROP") else "foreign_write"
    kinds: dict[str, Kind] = {"DELETE": "delete", "TRUNCATE": "truncate"}
    return kinds.get(write.operation, "foreign_write")


def _sentence(writes: Sequence[ForeignWrite], *, more: bool) -> str:
    if not writes:
        return "the target was written to by others, so often that not all of it was kept"
    first = writes[0]
    what = first.table or first.object or "something"
    rows = "" if first.row_count is None else f" of {counted(first.row_count, 'row')}"
    others = f", and {counted(len(writes) - 1, 'other statement')}" if len(writes) > 1 else ""
    by = f" by {first.who}" + (f" ({first.application})" if first.application else "")
    return f"the target was written to{by}: {first.operation} on {what}{rows}{others}{' and more' if more else ''}"


def _of_troubles(link: Link, found: Sequence[Trouble]) -> Incident:
    """One incident of all that was seen to be wrong."""
    worst = max(found, key=lambda each: _KINDS.index(each.kind))
    losses = {
        each.table: Loss(*each.table, link.gate.stood(each.table) or each.rows_before, each.rows_lost)
        for each in found
        if each.table is not None
    }
    others = f"; and {len(found) - 1} more" if len(found) > 1 else ""
    return healing.opened(link, worst.kind, worst.message + others, [losses[name] for name in sorted(losses)])
