"""The source's half of a link that polls: compares the ends again and again, and writes what differs into the journal.

What is behind the journal does not know the difference: a poll is a transaction. It begins once the target has all that was
written before, and stands still; a link that is held, or whose target is away, is not polled. Nothing is written on the source.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.compare.table import Matched
from pglockstep.errors import EndError, LockstepError, LookAgain
from pglockstep.findings import listed
from pglockstep.journal.journal import Journal
from pglockstep.link import pinning
from pglockstep.link.outlet import Outlet
from pglockstep.link.sight import Sight
from pglockstep.link.stillness import Counts, Stillness, counts, has_turn
from pglockstep.link.sweep import Paired, Sweep, Swept, paired
from pglockstep.postgres.connect import answered, connect, ends, translate
from pglockstep.postgres.moments import Moment
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.snapshots import Position, exported, position
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn
from pglockstep.wal.messages import Relation

if TYPE_CHECKING:
    from pglockstep.link.link import Link

log = logging.getLogger(__name__)

#: How often it is looked whether the target is level, in seconds.
_LOOK = 0.02

Look = Callable[[Moment], Awaitable[None]]


class Asked(msgspec.Struct, eq=False):
    """Somebody waits for a poll that begins from now on; `look` is awaited while both ends show the one moment of it, which the
    source does for as long as `kept` is open.
    """

    done: asyncio.Future[Lsn]
    look: Look | None = None
    kept: AsyncExitStack | None = None


class Poller:
    """Polls for the journal; `outlet` tells who applies just now. In the place of an `Intake`."""

    def __init__(
        self, link: Link, record: LinkRecord, journal: Journal, outlet: Callable[[], Outlet | None]
    ) -> None:
        self._link = link
        self._ends = ends(link.config)
        self._record = record
        self._journal = journal
        self._outlet = outlet
        self._asked: list[Asked] = []
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._stillness = Stillness()
        self._sent: dict[int, Relation] = {}
        self._seen = ""
        self._plan: Paired | None = None
        self._number = 0
        self._said: dict[str, object] = {}
        self._level_at: dict[QualifiedName, datetime] = {}
        #: the end of the last transaction that was written to the journal; before one was, up to where that reaches
        self.written = journal.position

    # --- what others want -----------------------------------------------------------------------------------

    async def passed(self) -> Lsn:
        """Ask for a poll that begins from now on; where the target's progress is once it has what that found."""
        return await self._ask(None, None)

    async def moment(self, kept: AsyncExitStack, export: Callable[[], Awaitable[str]]) -> Matched:
        """Two snapshots that show one moment: the one that a poll compared by, and what `export` makes once the target has it.

        They are open for as long as `kept` is.
        """
        names: list[str] = []

        async def look(moment: Moment) -> None:
            names[:] = [moment.snapshot, await export()]

        await self._ask(look, kept)
        return Matched(*names)

    async def _ask(self, look: Look | None, kept: AsyncExitStack | None) -> Lsn:
        asked = Asked(asyncio.get_running_loop().create_future(), look, kept)
        self._asked.append(asked)
        self._wake.set()
        try:
            return await asked.done
        finally:
            if asked in self._asked:
                self._asked.remove(asked)

    async def confirm_now(self) -> None:
        """Nothing is kept on the source for us, so that there is nothing to confirm."""

    # --- polling --------------------------------------------------------------------------------------------

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Poll until it fails or is cancelled; `started` is called once the source has answered. Raises the ends' errors."""
        source = self._ends[0]
        conn = await connect(source, "poll")
        try:
            async with self._turn:
                await self._give_up()
            started()
            due = time.monotonic()
            while True:
                await self._is_due(due)
                due = time.monotonic() + self._link.config.interval
                outlet = await self._level_outlet()
                async with self._turn:
                    await self._poll(conn, outlet)
        finally:
            await conn.close()

    async def _is_due(self, due: float) -> None:
        while not self._asked and (left := due - time.monotonic()) > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return

    async def _level_outlet(self) -> Outlet:
        while True:
            outlet = self._outlet()
            if outlet is not None and outlet.is_level:
                return outlet
            await asyncio.sleep(_LOOK)

    async def _give_up(self) -> None:
        """What was written of a poll that did not come to its end is none."""
        await self._journal.abandon()
        # who reads on has forgotten what was described in it
        self._sent.clear()
        self._seen = ""
        self._stillness.forget()

    async def _poll(self, conn: AsyncConnection[TupleRow], outlet: Outlet) -> None:
        asked, self._asked = self._asked, []
        # a snapshot is for one alone: the others have their turn
        looking = [each for each in asked if each.look is not None]
        self._asked += looking[1:]
        asked = [each for each in asked if each not in looking[1:]]
        try:
            with answered(self._ends[0], conn):
                now = await position(conn, self._ends[0])
                spared, before = await self._spared(conn, now, hints=not asked)
            self._number += 1
            if not asked and self._plan is not None and len(spared) == len(self._plan.tables):
                self._journal.heard(now.lsn)
                return
            async with AsyncExitStack() as kept:
                holder, moment, seen = await kept.enter_async_context(exported(self._ends[0], "poll"))
                await self._demand_known(holder)
                swept = await self._sweep((holder, moment, seen), spared, outlet, conn, always=bool(asked))
                self._note(swept, seen, spared, before)
                for each in looking[:1]:
                    assert swept.lsn is not None
                    assert each.look is not None
                    assert each.kept is not None
                    await _applied(outlet, swept.lsn)
                    await each.look(moment)
                    each.kept.push_async_callback(kept.pop_all().aclose)
        except LookAgain as error:
            log.info("%s", error, extra=self._link.about("poll.again"))
            self._asked = [*asked, *self._asked]
            await self._give_up()
            await asyncio.sleep(_LOOK)
            return
        except BaseException:
            self._asked = [*asked, *self._asked]
            self._seen = ""
            raise
        for each in asked:
            if not each.done.done():
                assert swept.lsn is not None
                each.done.set_result(swept.lsn)

    async def _spared(
        self, conn: AsyncConnection[TupleRow], now: Position, *, hints: bool
    ) -> tuple[set[QualifiedName], tuple[Counts, Counts]]:
        """The tables that need not be compared now, and what either server has counted; for who asks hints are not enough."""
        source, target = self._ends
        plan = self._plan
        names = [] if plan is None else [each.name for each, _ in plan.tables]
        if self._seen and now.seen == self._seen:
            # nothing at all was committed on the source's server
            return {each for each in names if not has_turn(each, self._number)}, ({}, {})
        with translate(source):
            there = await counts(conn)
        session = await connect(target, "poll")
        try:
            with translate(target):
                here = await counts(session)
        finally:
            await session.close()
        spared = {
            each
            for each in names
            if hints and not has_turn(each, self._number) and self._stillness.stands(each, there, here)
        }
        return spared, (there, here)

    async def _demand_known(self, holder: AsyncConnection[TupleRow]) -> None:
        """Raise `IncidentOpen` unless it is the known source that the snapshot was taken of."""
        known = max(self._record.progress or Lsn(0), self.written)
        await pinning.demand_known(self._link, holder, self._ends[0], self._record, known)

    async def _sweep(
        self,
        shown: tuple[AsyncConnection[TupleRow], Moment, Position],
        spared: set[QualifiedName],
        outlet: Outlet,
        conn: AsyncConnection[TupleRow],
        *,
        always: bool,
    ) -> Swept:
        holder, moment, at = shown
        link = self._link
        async with Sight.opened(self._ends, self._record.id, link.config.jobs, holder, moment) as sight:
            self._plan = plan = await paired(link, sight)
            sweep = Sweep(link, self._journal, sight, at, plan, self._record.id, self._sent)

            def still() -> bool:
                now = self._outlet()
                return now is outlet and now.goes_on

            minding = asyncio.create_task(self._mind(conn, sight, still), name="mind")
            # a task of its own: a group that only waits for its end counts the failure of one as our own cancellation
            sweeping = asyncio.create_task(sweep.run(spared, still=still, always=always), name="sweep")
            try:
                swept = await sweeping
            except EndError as error:
                if still():
                    raise
                raise LookAgain("nobody applies any more what would be found: compared again") from error
            finally:
                minding.cancel()
        if swept.lsn is not None:
            self.written = swept.lsn
        if swept.changes:
            log.debug("%d changes were found", swept.changes, extra=link.about("poll.found"))
        self._tell("strangers", plan.strangers)
        self._tell("skipped", dict(sorted(swept.skipped.items())))
        return swept

    async def _mind(self, conn: AsyncConnection[TupleRow], sight: Sight, still: Callable[[], bool]) -> None:
        """While the ends are read, which may take any time: make sure that they are there, and that it is of any use."""
        source = self._ends[0]
        while True:
            await asyncio.sleep(min(1.0, source.silence_timeout / 3))
            try:
                with answered(source, conn), translate(source):
                    await conn.execute("SELECT")
            except LockstepError:
                sight.hang_up()
                return
            if not still():
                sight.hang_up()
                return

    def _note(
        self, swept: Swept, seen: Position, spared: set[QualifiedName], before: tuple[Counts, Counts]
    ) -> None:
        """What is known of the tables from here on."""
        assert self._plan is not None
        there, here = before
        now = datetime.now(UTC)
        compared = [each.name for each, _ in self._plan.tables if each.name not in spared]
        for name in compared:
            if name not in swept.skipped:
                self._stillness.found_level(name, there, here)
        if not swept.changes:
            self._level_at |= {name: now for name in compared if name not in swept.skipped}
            since = [self._level_at.get(each.name) for each, _ in self._plan.tables]
            if since and None not in since:
                self._link.standing.verified(min(filter(None, since)), "identical")
        # what was spared by what was counted may have changed all the same
        whole = not swept.skipped and (not spared or self._seen == seen.seen)
        self._seen = seen.seen if whole else ""

    def _tell(self, what: str, found: object) -> None:
        """Say once which tables do not follow, or were not read just now."""
        if found == self._said.get(what, type(found)()):
            return
        self._said[what] = found
        if what == "strangers" and isinstance(found, list) and found:
            log.warning(
                "not followed: %s (on the source, and not copied: pglockstep resync brings such a table in)",
                listed(found),
                extra=self._link.about("poll.strangers"),
            )
        elif isinstance(found, dict) and found:
            name, why = next(iter(found.items()))
            log.warning(
                "left for the next poll: %s; %s: %s",
                listed(found),
                name,
                why,
                extra=self._link.about("poll.skipped"),
            )


async def _applied(outlet: Outlet, lsn: Lsn) -> None:
    """Wait until the target has everything up to `lsn`. Raises `LookAgain` if whoever applies ends before that."""
    while outlet.applied < lsn:
        if not outlet.goes_on:
            raise LookAgain("what was found could not be applied")
        await asyncio.sleep(_LOOK)


@asynccontextmanager
async def polled(link: Link, poller: Poller) -> AsyncIterator[Poller]:
    """`poller` is the link's, for whoever wants a poll."""
    before, link.poller = link.poller, poller
    try:
        yield poller
    finally:
        link.poller = before
