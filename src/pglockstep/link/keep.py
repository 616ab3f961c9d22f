"""Keeping a link level for good: the daemon's loop for one link.

Its two halves live apart, with the journal between them: while the target is away the source goes on being received,
while the source is away the target gets what has been. A transient failure is tried again with growing, jittered
pauses; a refused change is repeated carefully a few times, so that the refusal names its statement; anything else
stops the link with its sentence.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.copy.source import end_sender
from pglockstep.errors import (
    IncidentOpen,
    LinkHeld,
    LockstepError,
    LookAgain,
    RowsDiffer,
    Side,
    TargetBusy,
    TargetError,
    TargetUnreachable,
    first_of,
)
from pglockstep.findings import demand
from pglockstep.journal.follower import Abandoned
from pglockstep.journal.journal import Journal
from pglockstep.link import (
    healing,
    identities,
    matching,
    pinning,
    resync,
    retention,
    rolling,
    session,
    takeover,
    unpublished,
)
from pglockstep.link.attempts import pause, worth_another_try
from pglockstep.link.decisions import is_healing, must_wait, settle
from pglockstep.link.drops import Drops
from pglockstep.link.hindrances import Hindrances, Part
from pglockstep.link.intake import Intake
from pglockstep.link.link import Link
from pglockstep.link.outlet import Outlet
from pglockstep.link.pinning import BeginAgain
from pglockstep.link.session import Opened
from pglockstep.link.states import Event
from pglockstep.link.target_watch import TargetWatch
from pglockstep.postgres import privileges
from pglockstep.postgres.connect import End, answered, connect, ends, hang_up, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How often the state is written down, in seconds.
_REPORT_EVERY = 1.0
#: How often it is looked whether somebody has decided, in seconds.
_LOOK_FOR_DECISION_EVERY = 0.1
#: And whether a source that was another one is the known one again.
_LOOK_AGAIN_EVERY = 2.0


async def keep(link: Link) -> None:
    """Keep the target level until cancelled. Never returns; raises what a person must see to."""
    claim = link.state.claim(link.key)
    if claim is None:
        raise LinkHeld(
            f"another daemon (pid {link.state.daemon_pid(link.key)}) runs link {link.config.name!r}",
            hint="pglockstep status shows it; stop it first if this one is to take over",
        )
    keeper = Keeper(link)
    watching = [
        asyncio.create_task(retention.watch(link, lambda: keeper.target_is_away), name="retention"),
        asyncio.create_task(identities.watch(link), name="identities"),
        asyncio.create_task(pinning.watch(link), name="pinning"),
    ]
    try:
        while True:
            try:
                await keeper.run()
            except BeginAgain:
                keeper = Keeper(link, began=True)
    except LockstepError as error:
        link.standing.move(Event.REFUSED, error.message)
        raise
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        claim.release()


class Keeper:
    """Keeps both halves of a link going, each by itself: one that is away holds up no more than its own."""

    def __init__(self, link: Link, *, began: bool = False) -> None:
        self._link = link
        link.carrier.ahead = not link.polls
        self._began = began
        self._down = Hindrances(link.standing)
        #: sessions that are open already, for the first attempt of either half
        self._first: dict[Side, Opened] = {}
        self._source: AsyncConnection[TupleRow] | None = None
        self._outlet: Outlet | None = None
        self._watch = TargetWatch(link, ends(link.config)[1], self._at_work)
        self._journal: Journal | None = None
        self._applied = Lsn(0)
        self._flushed = Lsn(0)

    def _at_work(self) -> Outlet | None:
        return self._outlet

    @property
    def target_is_away(self) -> bool:
        """Whether what is received goes into the journal alone."""
        return self._journal is not None and self._outlet is None

    async def run(self) -> None:
        """Begin, and go on until cancelled. Raises what a person must see to."""
        link = self._link
        async with AsyncExitStack() as stack:
            try:
                begin = partial(self._begin, stack)
                journal, record = await self._persist("target", begin, lambda: link.standing.applied)
            except (TargetUnreachable, TargetBusy) as error:
                journal, record = await self._begin_without_target(stack, error)
            journal.needs(self._applied)
            self._journal = journal
            link.receive_into(journal, record, self._at_work)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(journal.run(), name="journal")
                    tasks.create_task(
                        self._persist(
                            "source", partial(self._receive, journal, record), lambda: journal.position
                        ),
                        name="intake",
                    )
                    tasks.create_task(
                        self._persist("target", partial(self._apply, journal, record), lambda: self._applied),
                        name="outlet",
                    )
                    tasks.create_task(link.carrier.listen(), name="sequences")
                    watching = unpublished.watch(link, record, lambda: self._source)
                    tasks.create_task(watching, name="unpublished")
                    tasks.create_task(retention.watch_room(link, journal), name="room")
                    tasks.create_task(self._watch.run(), name="watch")
                    tasks.create_task(resync.look(link, self._at_work), name="requests")
                    tasks.create_task(matching.serve(link, record, self._at_work), name="moments")
                    tasks.create_task(rolling.verify(link, record, self._at_work), name="verify")
                    while True:
                        self._note()
                        await asyncio.sleep(_REPORT_EVERY)
            except BaseExceptionGroup as group:
                raise first_of(group) from group
            finally:
                link.receives = link.poller = None
                self._note()

    async def _persist(
        self, side: Side, attempt: Callable[[bool], Awaitable[T]], position: Callable[[], object]
    ) -> T:
        """One attempt after another, until one returns; `position` tells whether the last one got anywhere."""
        tries = 0
        careful = False
        while True:
            before = position()
            try:
                return await attempt(careful)
            except Abandoned:
                log.info("the source sends a large transaction again", extra=self._link.about("apply.again"))
            except LookAgain as error:
                log.info("%s", error, extra=self._link.about("watch.compare"))
            except IncidentOpen as error:
                await self._hold(error)
            except LockstepError as error:
                if (task := asyncio.current_task()) and task.cancelling():
                    # a group of tasks that fails while it is cancelled forgets that it was
                    raise asyncio.CancelledError from error
                if isinstance(error, RowsDiffer):
                    self._link.memory.doubts[QualifiedName(*error.table)] = error.message
                # what is being put right may be harmed again and again
                tries = 1 if position() != before or is_healing(self._link) else tries + 1
                # at first start everything is told at once: a service manager tries again, a person corrects
                if not self._began or not worth_another_try(error, tries):
                    raise
                # what was refused is named by its statement next time; an end that was away needs no such care
                careful = not error.transient
                seconds = pause(tries, random.random())  # noqa: S311
                self._went_down(side, error, seconds)
                await asyncio.sleep(seconds)

    async def _hold(self, error: IncidentOpen) -> None:
        """Nothing more is applied until whatever is open has been decided; the source goes on being received."""
        if not must_wait(self._link.open_incidents()):
            # what the link may put right by itself, or was decided by the configuration
            return
        self._link.standing.move(Event.HELD, error.message)
        log.error("%s", error, extra=self._link.about("link.held"))
        looked = time.monotonic()
        while must_wait(self._link.open_incidents()):
            await asyncio.sleep(_LOOK_FOR_DECISION_EVERY)
            if time.monotonic() - looked > _LOOK_AGAIN_EVERY:
                await pinning.look_again(self._link, self._journal.position if self._journal else None)
                looked = time.monotonic()
        self._link.standing.move(Event.RELEASED)

    def _went_down(self, side: Side, error: LockstepError, seconds: float) -> None:
        self._down.add(side, error.message)
        log.warning("%s; trying again in %.1f s", error, seconds, extra=self._link.about("link.waiting"))

    def _mind_the_journal(self, journal: Journal) -> None:
        """Say so while there is no room for the journal."""
        if journal.trouble == self._down.of("journal"):
            return
        if journal.trouble:
            self._down.add("journal", journal.trouble)
        else:
            self._is_up("journal")

    def _is_up(self, part: Part) -> None:
        if self._down.remove(part):
            self._note()

    async def _begin(self, stack: AsyncExitStack, careful: bool) -> tuple[Journal, LinkRecord]:
        """Open both ends, take the lock, make the first copy if there is none, open the journal."""
        link = self._link
        async with AsyncExitStack() as opening:
            try:
                ends = await opening.enter_async_context(healing.opened_ends(link, "run"))
                await session.demand_lock(ends.target_conn, ends.target)
                await takeover.settle(link, ends)
                await healing.stand_again(link, ends.target_conn, ends.target)
            except IncidentOpen as error:
                if link.known() is None or pinning.open_incident(link) is not None:
                    raise
                # a target that is gone and held is one that is away: the source goes on being received
                raise TargetBusy(error.message, hint=error.hint) from error
            self._began = True
            record, copied = await link.ready(ends, lasting=True)
            await pinning.pin_first(link, ends, anew=bool(copied))
            journal = await opening.enter_async_context(link.journal(ends.source_conn, ends.source, record))
            assert record.progress is not None
            self._applied = self._flushed = record.progress
            self._first = {
                "source": Opened(ends.source, ends.source_conn, ends.source_facts),
                "target": Opened(ends.target, ends.target_conn, ends.target_facts),
            }
            stack.push_async_callback(opening.pop_all().aclose)
        return journal, record

    async def _begin_without_target(
        self, stack: AsyncExitStack, error: TargetError
    ) -> tuple[Journal, LinkRecord]:
        """Receive into the journal that a former run left; raises `error` if there is none, for then nothing is known.

        The lock cannot be had, so that nobody else's sender is ended; what is received does no harm to anybody.
        """
        link = self._link
        known = link.known()
        if known is None:
            raise error
        journal = await link.open_journal(known)
        stack.push_async_callback(journal.close)
        extent = await journal.extent()
        if extent is None:
            raise error
        self._went_down("target", error, 0.0)
        self._applied = self._flushed = extent[0]
        self._began = True
        return journal, known

    @asynccontextmanager
    async def _opened(self, side: Side) -> AsyncIterator[Opened]:
        """A session at that end, and what the end is; closed afterwards, and with it the lock."""
        found = self._first.pop(side, None)
        if found is None:
            end = dict(zip(("source", "target"), ends(self._link.config), strict=True))[side]
            conn = await self._connected(side, end)
            try:
                with answered(end, conn), translate(end):
                    found = Opened(end, conn, await privileges.facts(conn))
            except BaseException:
                await conn.close()
                raise
        try:
            yield found
        finally:
            if found.conn.lock.locked():
                # somebody waits for an answer there, which may never come
                hang_up(found.conn)
            async with found.conn.lock:
                await found.conn.close()

    async def _connected(self, side: Side, end: End) -> AsyncConnection[TupleRow]:
        try:
            return await connect(end, "run")
        except TargetError as error:
            if side == "source" or not await healing.made_again(self._link, error):
                raise
            return await connect(end, "run")

    async def _receive(self, journal: Journal, record: LinkRecord, careful: bool) -> None:
        """Receive into the journal until something fails."""
        async with pinning.noticing(self._link), self._opened("source") as there:
            extent = await journal.extent()
            known = max(self._applied, extent[1] if extent else self._applied)
            await pinning.demand_known(self._link, there.conn, there.end, record, known)
            demand(privileges.source_findings(there.facts, needs_slot=False, polls=self._link.polls))
            if self._link.poller is not None:
                await self._link.poller.run(partial(self._is_up, "source"))
                return
            now = msgspec.structs.replace(record, progress=self._applied)
            with answered(there.end, there.conn):
                if self._outlet is not None:
                    # the lock is ours: a sender of this slot can only be one that its server has not missed yet
                    with translate(there.end):
                        await end_sender(there.conn, record.slot)
                await session.demand_slot(there.conn, there.end, now, extent)
            self._source = there.conn
            try:
                intake = Intake(there.end, record, journal, self._flushed_by_now)
                await intake.run(partial(self._is_up, "source"))
            finally:
                self._source = None

    async def _apply(self, journal: Journal, record: LinkRecord, careful: bool) -> None:
        """Apply what the journal has until something fails."""
        link = self._link
        async with self._opened("target") as there:
            await session.demand_lock(there.conn, there.end)
            await settle(link, there.conn, there.end)
            with answered(there.end, there.conn), translate(there.end):
                now = await progress.demand(there.conn)
            session.demand_same_link(there.end, record, now)
            demand(privileges.target_findings(there.facts, needs_copy=False))
            drops = await Drops.of(link, there.conn, there.end, now)
            self._watch.begin()
            while True:
                applying = link.outlet(there.conn, there.end, there.facts, journal, careful=careful)
                async with applying as outlet:
                    await self._apply_by(outlet, drops, there)
                async with link.memory.turn:
                    await drops.settle(there.conn, there.end, outlet.applied)

    async def _apply_by(self, outlet: Outlet, drops: Drops, there: Opened) -> None:
        """Apply until something fails, or tables are seen to be gone from the source."""
        self._outlet = outlet
        self._is_up("target")
        log.info("streaming from %s", outlet.applied, extra=self._link.about("stream.start"))
        watching = asyncio.create_task(self._watch_drops(outlet, drops, there), name="drops")
        try:
            await outlet.run()
        finally:
            self._note()
            self._watch.note_truncated(outlet)
            self._outlet = None
            watching.cancel()
            await asyncio.wait({watching})

    async def _watch_drops(self, outlet: Outlet, drops: Drops, there: Opened) -> None:
        try:
            await drops.adopt(outlet.watch, there.end)
            await drops.watch(outlet)
        except LockstepError as error:
            # whoever applies over the same end will hear of it, too
            log.debug("the catalog was not read: %s", error, extra=self._link.about("drops.failed"))

    def _flushed_by_now(self) -> Lsn:
        if self._outlet is not None:
            self._flushed = max(self._flushed, self._outlet.flushed)
        return self._flushed

    def _note(self) -> None:
        if self._outlet is not None:
            self._applied = self._outlet.applied
            self._flushed_by_now()
        assert self._journal is not None
        self._mind_the_journal(self._journal)
        self._link.standing.note(self._journal, self._outlet)
        self._link.gate.save()
