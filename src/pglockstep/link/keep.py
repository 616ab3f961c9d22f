"""Keeping a link level for good: the daemon's loop for one link.

A transient failure is tried again with growing, jittered pauses; a refused change is repeated carefully a few
times, so that the refusal names its statement; anything else stops the link with its sentence.
"""

from __future__ import annotations

import asyncio
import logging
import random

from pglockstep.copy.ends import Ends
from pglockstep.copy.source import published_tables
from pglockstep.errors import ApplyRefused, LinkHeld, LockstepError, SourceError, TargetError
from pglockstep.link import retention, session
from pglockstep.link.link import Link
from pglockstep.link.pipeline import Pipeline
from pglockstep.link.states import Event
from pglockstep.postgres import catalog
from pglockstep.postgres.connect import translate
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord

log = logging.getLogger(__name__)

#: How often a refused change is repeated before a person is needed, and the pauses between attempts, in seconds.
_CAREFUL_ATTEMPTS = 3
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
#: How often sequences are carried and the state is written down, in seconds.
_SEQUENCES_EVERY = 10.0
_REPORT_EVERY = 1.0
#: How often the source is asked for tables that do not follow, in seconds.
_LOOK_AGAIN_EVERY = 30.0


async def keep(link: Link) -> None:
    """Keep the target level until cancelled. Never returns; raises what a person must see to."""
    claim = link.state.claim(link.key)
    if claim is None:
        raise LinkHeld(
            f"another daemon (pid {link.state.daemon_pid(link.key)}) runs link {link.config.name!r}",
            hint="pglockstep status shows it; stop it first if this one is to take over",
        )
    watching = asyncio.create_task(retention.watch(link), name="retention")
    try:
        await Keeper(link).run()
    except LockstepError as error:
        link.standing.move(Event.REFUSED, error.message)
        raise
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        claim.release()


class Keeper:
    """Tries again what is worth it, for as long as it lives."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock_was_ours = False

    async def run(self) -> None:
        """One attempt after another."""
        tries = 0
        careful = False
        while True:
            before = self._link.standing.applied
            try:
                await self._attempt(careful=careful)
            except LockstepError as error:
                if (task := asyncio.current_task()) and task.cancelling():
                    # a group of tasks that fails while it is cancelled forgets that it was
                    raise asyncio.CancelledError from error
                tries = 1 if self._link.standing.applied != before else tries + 1
                # at first start everything is told at once: a service manager tries again, a person corrects
                if not self._lock_was_ours or not worth_another_try(error, tries):
                    raise
                # what was refused is named by its statement next time; an end that was away needs no such care
                careful = not error.transient
                seconds = pause(tries, random.random())  # noqa: S311
                self._link.standing.move(Event.END_LOST, error.message)
                log.warning(
                    "%s; trying again in %.1f s", error, seconds, extra=self._link.about("link.waiting")
                )
                await asyncio.sleep(seconds)

    async def _attempt(self, *, careful: bool) -> None:
        """Open both ends and stream until something fails."""
        link = self._link
        async with session.opened(link.config, "run") as ends:
            if not await session.take_lock(ends):
                raise await self._held_by_other(ends)
            self._lock_was_ours = True
            record, _ = await link.ready(ends, lasting=True)
            async with link.applying(ends, careful=careful) as pipeline:
                link.standing.move(Event.STREAM_STARTED)
                log.info("streaming from %s", pipeline.applier.progress, extra=link.about("stream.start"))
                side = [
                    asyncio.create_task(self._report(pipeline), name="report"),
                    asyncio.create_task(self._carry_sequences(ends, pipeline), name="sequences"),
                    asyncio.create_task(self._watch_unpublished(ends, record), name="unpublished"),
                ]
                try:
                    await pipeline.run()
                finally:
                    for task in side:
                        task.cancel()
                    await asyncio.gather(*side, return_exceptions=True)
                    link.standing.note(pipeline)

    async def _report(self, pipeline: Pipeline) -> None:
        while True:
            self._link.standing.note(pipeline)
            await asyncio.sleep(_REPORT_EVERY)

    async def _carry_sequences(self, ends: Ends, pipeline: Pipeline) -> None:
        """Carry sequences now and then; a failure waits for the next time."""
        while True:
            await asyncio.sleep(_SEQUENCES_EVERY)
            try:
                await self._link.carry_sequences(ends, pipeline.watch)
            except LockstepError as error:
                log.debug("sequences were not carried: %s", error, extra=self._link.about("sequences.failed"))

    async def _held_by_other(self, ends: Ends) -> LinkHeld:
        with translate(ends.target):
            held = await progress.holder(ends.target_conn)
        who = f"{held.application} (pid {held.pid} on the target)" if held else "another session"
        return LinkHeld(
            f"{who} holds link {self._link.config.name!r}",
            hint="stop that process first if this one is to take over; pglockstep status shows it",
        )

    async def _watch_unpublished(self, ends: Ends, record: LinkRecord) -> None:
        """Say which tables do not follow, now and whenever there are others."""
        said: list[str] = []
        while True:
            try:
                silent = await self._unpublished(ends, record)
            except LockstepError as error:
                log.debug("the catalog was not read: %s", error, extra=self._link.about("unpublished.failed"))
            else:
                if silent and silent != said:
                    log.warning(
                        "not in the stream, so the target does not follow them: %s (unlogged, or made after the copy)",
                        ", ".join(silent[:10]),
                        extra=self._link.about("stream.unpublished"),
                    )
                said = silent
            await asyncio.sleep(_LOOK_AGAIN_EVERY)

    async def _unpublished(self, ends: Ends, record: LinkRecord) -> list[str]:
        carries = self._link.selection.carries
        with translate(ends.source):
            tables = [table for table in await catalog.tables(ends.source_conn) if carries(*table.name)]
        published = await published_tables(ends.source_conn, ends.source, record.publication)
        return [str(table.name) for table in tables if table.name not in published]


def worth_another_try(error: LockstepError, tries: int) -> bool:
    """Whether a link that had been running goes on by itself after its `tries`-th failure in a row. Pure."""
    if error.transient or isinstance(error, LinkHeld):
        # held: by our own session that its server has not missed yet, or by a `once` that took its turn
        return True
    # a refused change may have been refused for what passes: it is repeated with care, a few times
    return type(error) in (ApplyRefused, SourceError, TargetError) and tries <= _CAREFUL_ATTEMPTS


def pause(tries: int, chance: float) -> float:
    """Seconds to wait after the `tries`-th failure in a row; `chance` in [0, 1) spreads many links apart. Pure."""
    return float(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries - 1, 10)) * (0.5 + chance / 2))
