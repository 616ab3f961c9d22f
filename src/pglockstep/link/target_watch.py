"""What others do to the target, noticed as they commit it, and by looking once a second; as long as the link is kept.

Also while the link is held or the target is away for a moment. What is found is an incident, and whoever applies is stopped
between two exchanges: what comes of it is settled by whoever has the lock, and nothing is applied before that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.errors import EndError, LockstepError, LookAgain
from pglockstep.findings import listed
from pglockstep.guard import watch
from pglockstep.guard.reading import Reader
from pglockstep.guard.watch import Mode, Watched
from pglockstep.link import looking, remembering
from pglockstep.link.link import Link
from pglockstep.link.looking import Seen
from pglockstep.link.noting import DATABASE_GONE, noted
from pglockstep.link.outlet import Outlet
from pglockstep.observe.incident import Incident, needs_decision
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.names import QualifiedName

log = logging.getLogger(__name__)

#: How often the target is looked at, in seconds, and how soon again while somebody calls without end.
_LOOK_EVERY = 1.0
_LOOK_OFTEN = 0.05
#: How soon what failed is tried again, in seconds.
_TRY_AGAIN = 0.2
#: How soon the same doubt is a reason to compare again, in seconds.
_DOUBT_EVERY = 60.0


class TargetWatch:
    """The watch of one link's target; `outlet` tells who applies there just now."""

    def __init__(self, link: Link, target: End, outlet: Callable[[], Outlet | None]) -> None:
        self._link = link
        self._target = target
        self._outlet = outlet
        self._begun = asyncio.Event()
        self._wanted = asyncio.Event()
        self._called = asyncio.Event()
        self._truncated: tuple[set[QualifiedName], set[QualifiedName]] = (set(), set())
        self._doubted: dict[object, float] = {}
        self._said = ""

    def begin(self) -> None:
        """The target stands, and our lock is held: put the watch on where it is not yet."""
        self._begun.set()
        self._wanted.set()

    def note_truncated(self, outlet: Outlet) -> None:
        """Take note of what was truncated by ourselves; also when somebody stops applying."""
        self._truncated[0].update(outlet.applier.truncated)
        outlet.applier.truncated.clear()

    async def run(self) -> None:
        """Watch until cancelled. A target that cannot be reached is its own matter."""
        await self._begun.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._put_on(), name="put the watch on")
            tasks.create_task(self._listen(), name="listen")
            tasks.create_task(self._look(), name="look")

    # --- putting the watch on -----------------------------------------------------------------------------

    async def _put_on(self) -> None:
        """A writer of a table may hold it up, and nothing else."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._install()
            except LockstepError as error:
                log.debug("the watch is not on yet: %s", error, extra=self._link.about("watch.failed"))
                self._wanted.set()
                await asyncio.sleep(_LOOK_EVERY)

    async def _install(self) -> None:
        conn = await connect(self._target, "watch")
        try:
            async with self._link.memory.turn:
                with translate(self._target):
                    modes = _modes(self._link, await looking.following(self._link, conn))
                    self._link.memory.unwatched()
                    if not modes:
                        await watch.remove(conn)
                        return
                    for mode, tables in modes.items():
                        self._say(await watch.install(conn, tables, mode), mode)
        finally:
            await conn.close()

    def _say(self, watched: Watched, mode: Mode) -> None:
        """Say once what is seen later than it could be, or is not refused."""
        said, level = "", logging.INFO
        if watched.unwatched:
            reason = next(iter(watched.unwatched.values()))
            said = (
                f"foreign writes to {listed(map(str, watched.unwatched))} are found by looking only: {reason}"
            )
        elif not watched.ddl:
            said = "foreign DDL on the target is found by looking, once a second: an event trigger needs a superuser there"
            if mode == "block":
                said, level = f"not refused: {said}", logging.WARNING
        if said and said != self._said:
            log.log(level, "%s", said, extra=self._link.about("watch.partial"))
        self._said = said

    # --- looking ------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Have it looked at whenever somebody else has written; what was written is read by the look itself."""
        while True:
            try:
                async for _ in watch.listen(self._target):
                    self._called.set()
            except LockstepError as error:
                # that the target is gone is a reason to look, too
                self._called.set()
                log.debug("nobody listens: %s", error, extra=self._link.about("watch.failed"))
            await asyncio.sleep(_TRY_AGAIN)

    async def _look(self) -> None:
        reader = Reader(self._target)
        try:
            while True:
                try:
                    async with self._link.memory.turn:
                        await self._look_once(reader)
                except LockstepError as error:
                    # an end that is away is told of by whoever applies there
                    level = logging.DEBUG if isinstance(error, EndError) else logging.ERROR
                    log.log(
                        level,
                        "the target was not looked at: %s",
                        error,
                        extra=self._link.about("watch.failed"),
                    )
                await asyncio.sleep(_LOOK_OFTEN)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY - _LOOK_OFTEN):
                        await self._called.wait()
                self._called.clear()
        finally:
            await reader.aclose()

    async def _look_once(self, reader: Reader) -> None:
        outlet = self._outlet()
        answer = await reader.ask(self._ask)
        if answer is None:
            if self._link.memory.known() is not None:
                self._stop(noted(self._link, DATABASE_GONE))
            return
        seen = answer[0]
        if seen is None:
            return
        if seen.harm:
            self._stop(noted(self._link, seen.harm, seen.at))
        elif seen.unclear and outlet is not None and self._is_new(seen):
            outlet.stop(LookAgain(f"{seen.suspicion.sentence}: to be compared"))

    async def _ask(self, conn: AsyncConnection[TupleRow]) -> tuple[Seen | None]:
        """Look; and where all is well, know that."""
        if (outlet := self._outlet()) is not None:
            self.note_truncated(outlet)
        before, recent = self._truncated
        seen = await looking.look(self._link, conn, before | recent)
        # what was truncated while it was looked may be seen the next time only
        self._truncated = (set(), before)
        if seen is not None and seen.stands and not seen.harm and not seen.unclear:
            await looking.forget_what_is_harmless(self._link, conn, seen)
            self._link.memory.advance(seen.reading)
            if self._link.memory.is_due:
                await remembering.remember(self._link, conn)
        return (seen,)

    def _stop(self, incident: Incident) -> None:
        outlet = self._outlet()
        if outlet is not None:
            outlet.stop(needs_decision(incident))

    def _is_new(self, seen: Seen) -> bool:
        """Whether any of this was not compared a moment ago."""
        now = time.monotonic()
        doubts: set[object] = {each.number for each in seen.vague} | {each.table for each in seen.doubtful}
        new = {each for each in doubts if now - self._doubted.get(each, -_DOUBT_EVERY) >= _DOUBT_EVERY}
        self._doubted = {each: at for each, at in self._doubted.items() if now - at < _DOUBT_EVERY}
        self._doubted |= dict.fromkeys(new, now)
        return bool(new)


def _modes(link: Link, tables: tuple[QualifiedName, ...]) -> dict[Mode, list[QualifiedName]]:
    """The tables by how they are watched; last what is told of the link as a whole, which is what becomes of its DDL."""
    guard = link.config.guard
    found: dict[Mode, list[QualifiedName]] = {}
    for name in tables:
        mode = link.rules.of(name).protect_target
        if mode != "off":
            found.setdefault(mode, []).append(name)
    return dict(sorted(found.items(), key=lambda each: each[0] == guard.protect_target))
