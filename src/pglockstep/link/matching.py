"""One point for both ends while changes are under way: a barrier that the target has passed, or a moment that both show.

A moment is a snapshot that making a slot exports on the source, which shows exactly what committed before an LSN, and one of
the target's, taken when it had exactly that. Only whoever applies can stop there. A command beside a daemon asks it through
the state directory; the daemon makes both snapshots, and keeps them until the command lets go.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.compare.table import Matched
from pglockstep.errors import EndError, Inconclusive, LockstepError
from pglockstep.link.link import Link
from pglockstep.link.outlet import Outlet
from pglockstep.link.session import emit_barrier, source_position
from pglockstep.observe.requests import MomentWanted, Requests
from pglockstep.postgres.connect import End, connect, ends, translate
from pglockstep.postgres.moments import create_slot
from pglockstep.postgres.replication import ReplicationConnection
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn

log = logging.getLogger(__name__)

#: How often a daemon looks whether a moment is wanted, and whoever wants it whether it is there, in seconds.
_LOOK_EVERY = 0.2
#: How long whoever asked waits, and how long snapshots are kept for one who does not let go of them.
_PATIENCE = 15.0
_KEPT = 60.0
#: How many of these there are at once; each has three sessions of its own, and a slot while it is made.
_AT_ONCE = 3


class Alone:
    """For whoever applies by itself: `advance` brings the target to where the source is, `applying` runs while it is open.

    One at a time.
    """

    def __init__(
        self,
        link: Link,
        record: LinkRecord,
        advance: Callable[[], Awaitable[None]],
        applying: Callable[[Callable[[Outlet], Awaitable[None]]], Awaitable[None]],
    ) -> None:
        self._link = link
        self._record = record
        self._advance = advance
        self._applying = applying
        self._turn = asyncio.Lock()

    async def advance(self) -> None:
        """As `Moments` says."""
        async with self._turn:
            await self._advance()

    @asynccontextmanager
    async def matched(self) -> AsyncIterator[Matched]:
        """As `Moments` says."""
        async with AsyncExitStack() as kept:
            found: list[Matched] = []

            async def cut(outlet: Outlet) -> None:
                found.append(await taken(self._link, self._record, outlet, kept))

            async with self._turn:
                await self._applying(cut)
            yield found[0]


class Beside:
    """For a command beside whoever applies; `advance` has it pass a barrier. It is asked for moments, if it runs here."""

    def __init__(self, link: Link, advance: Callable[[], Awaitable[None]]) -> None:
        self._link = link
        self.advance = advance

    @asynccontextmanager
    async def matched(self) -> AsyncIterator[Matched]:
        """As `Moments` says."""
        link = self._link
        if link.state.daemon_pid(link.key) is None:
            raise Inconclusive(
                "whoever applies does not run on this machine, or not as a daemon, and cannot be asked for one moment",
                hint="the same command beside the daemon, with its state directory",
            )
        requests = Requests(link.state)
        by = f"pid {os.getpid()}"
        wanted = requests.ask_for_moment(link.key, MomentWanted(by=by, at=datetime.now(UTC)))
        try:
            yield await self._answered(requests, wanted)
        finally:
            requests.forget_moment(wanted.id)

    async def _answered(self, requests: Requests, wanted: MomentWanted) -> Matched:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            found = requests.moment(wanted.id)
            if found is None or found.refused:
                raise Inconclusive(found.refused if found else "the daemon did not keep the moment")
            if found.source:
                return Matched(found.source, found.target)
            await asyncio.sleep(_LOOK_EVERY / 4)
        raise Inconclusive(
            f"the daemon did not come to one moment within {_PATIENCE:.0f} s",
            hint="pglockstep status says what it waits for",
        )


async def serve(link: Link, record: LinkRecord, outlet: Callable[[], Outlet | None]) -> None:
    """Make moments for those who ask, until cancelled: beside each other, as one who was killed lets go of none."""
    requests = Requests(link.state)
    at_it: dict[str, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as tasks:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            at_it = {id: task for id, task in at_it.items() if not task.done()}
            try:
                for wanted in requests.moments_wanted(link.key):
                    if wanted.id in at_it or len(at_it) >= _AT_ONCE:
                        continue
                    if wanted.source or wanted.refused:
                        # its daemon is gone, and with it the snapshots; or it was kept for long enough
                        requests.forget_moment(wanted.id)
                    else:
                        serving = (
                            _pass(link, requests, wanted)
                            if wanted.only_passes
                            else _serve(link, record, outlet(), requests, wanted)
                        )
                        at_it[wanted.id] = tasks.create_task(serving, name="moment")
            except LockstepError as error:
                # a state directory that is gone is told of by the journal, which knows what is lost with it
                log.debug("no moment was made: %s", error, extra=link.about("moment.failed"))


async def _serve(
    link: Link, record: LinkRecord, outlet: Outlet | None, requests: Requests, wanted: MomentWanted
) -> None:
    async with AsyncExitStack() as kept:
        with suppress(LockstepError):
            # a state directory that is gone is no place for an answer
            try:
                if outlet is None:
                    raise Inconclusive("nothing is being applied at the moment")
                found = await taken(link, record, outlet, kept)
            except (Inconclusive, EndError) as error:
                requests.answer(msgspec.structs.replace(wanted, refused=error.message))
                return
            requests.answer(msgspec.structs.replace(wanted, source=found.source, target=found.target))
            await _let_go(requests, wanted)


async def _let_go(requests: Requests, wanted: MomentWanted) -> None:
    """Return once whoever asked has let go of it, or has had long enough."""
    end = time.monotonic() + _KEPT
    while True:
        if time.monotonic() >= end or requests.moment(wanted.id) is None:
            return
        await asyncio.sleep(_LOOK_EVERY)


async def taken(link: Link, record: LinkRecord, outlet: Outlet, kept: AsyncExitStack) -> Matched:
    """Two snapshots that show one moment, open for as long as `kept` is.

    Raises `Inconclusive` if it does not come in time, or an end has no room or no right for it: a slot, a session.
    """
    try:
        return await _taken(link, record, outlet, kept)
    except EndError as error:
        raise Inconclusive(
            f"the ends could not be seen at one moment: {error.message}", hint=error.hint
        ) from error


async def _taken(link: Link, record: LinkRecord, outlet: Outlet, kept: AsyncExitStack) -> Matched:
    source, target = ends(link.config)
    if link.polls:
        return await _polled(link, target, kept)
    # making the slot has a patience of its own
    stream = await ReplicationConnection.open(msgspec.structs.replace(source, lock_timeout=0.0))
    kept.push_async_callback(stream.close)
    there = await connect(source, "compare")
    kept.push_async_callback(there.close)
    here = await connect(target, "compare")
    kept.push_async_callback(here.close)
    names = ["", ""]

    async def moment() -> Lsn:
        slot = await create_slot(
            stream, there, source, f"{record.slot}_look_{secrets.token_hex(3)}", temporary=True
        )
        names[0] = slot.snapshot
        # or the stream would not be known to be past it
        await emit_barrier(there, source, record.id)
        return slot.lsn

    async def look() -> None:
        names[1] = await _exported(here, target)

    with translate(source):
        start = await source_position(there)
    try:
        await outlet.cut(start, moment, look)
    except TimeoutError:
        raise Inconclusive(
            "the target did not come to the moment that the source was seen at"
            if names[0]
            else "the source could not be seen at one moment within a second, for transactions that are open there"
        ) from None
    return Matched(*names)


async def _exported(conn: AsyncConnection[TupleRow], end: End) -> str:
    with translate(end):
        await conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor = await conn.execute("SELECT pg_catalog.pg_export_snapshot()")
        row = await cursor.fetchone()
    assert row is not None
    name: str = row[0]
    return name


async def _polled(link: Link, target: End, kept: AsyncExitStack) -> Matched:
    """The moment of a poll, on the source, and on the target once it has what that found."""
    if link.poller is None:
        raise Inconclusive("the source is not being polled at the moment")
    here = await connect(target, "compare")
    kept.push_async_callback(here.close)
    return await link.poller.moment(kept, partial(_exported, here, target))


async def _pass(link: Link, requests: Requests, wanted: MomentWanted) -> None:
    """Have a poll made, and say what the target reaches by it."""
    with suppress(LockstepError):
        # a state directory that is gone is no place for an answer
        if link.poller is None:
            refused = "the source is not being polled at the moment"
            requests.answer(msgspec.structs.replace(wanted, refused=refused))
            return
        lsn = await link.poller.passed()
        requests.answer(msgspec.structs.replace(wanted, source=str(lsn)))
        await _let_go(requests, wanted)
