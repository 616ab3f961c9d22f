"""Both halves of a link at work together until a given point: for `once`, and for the end of a first copy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from pglockstep.errors import IncidentOpen, first_of
from pglockstep.journal.journal import Journal
from pglockstep.link.outlet import Outlet
from pglockstep.units import LAST_LSN, Lsn


class Receives(Protocol):
    """The source's half, however it comes to know what happens there."""

    def run(self) -> Awaitable[None]:
        """Bring it into the journal until cancelled."""

    async def confirm_now(self) -> None:
        """Before leaving: tell the source what is durable by now."""


class Pipeline:
    """From the source through the journal to the target.

    `reach`: where the source is polled there is no barrier; it has a poll made, and returns what the target is then to reach.
    """

    def __init__(
        self,
        journal: Journal,
        intake: Receives,
        outlet: Outlet,
        reach: Callable[[], Awaitable[Lsn]] | None = None,
    ) -> None:
        self._journal = journal
        self._intake = intake
        self.outlet = outlet
        self._reach = reach

    async def run(self, until: Lsn) -> None:
        """Stream until the target is complete up to `until`; or poll once, unless that is for ever. Raises the first error.

        An `IncidentOpen` only once everything up to `until` is in the journal.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                side = [
                    tasks.create_task(self._journal.run(), name="journal"),
                    tasks.create_task(self._received(), name="intake"),
                ]
                if self._reach is not None and until < LAST_LSN:
                    side.append(tasks.create_task(self._end_when_reached(self._reach), name="reach"))
                try:
                    await self.outlet.run(LAST_LSN if self._reach is not None else until)
                except IncidentOpen:
                    # a decision may need all that the source has sent, and nobody receives after us
                    if self._reach is None:
                        await self._receive_rest(until)
                    raise
                await self._confirm_rest()
                for task in side:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise first_of(group) from group

    async def _received(self) -> None:
        await self._intake.run()

    async def _end_when_reached(self, reach: Callable[[], Awaitable[Lsn]]) -> None:
        self.outlet.end_at(await reach())

    async def _receive_rest(self, until: Lsn) -> None:
        while True:
            if self._journal.durable >= until:
                return
            await asyncio.sleep(0.02)

    async def _confirm_rest(self) -> None:
        """Before leaving: confirm what both have on their disks by now, waiting a moment for the last commit."""
        for _ in range(20):
            await self.outlet.learn_flushed()
            if not self.outlet.applier.unflushed and self._journal.durable >= self.outlet.flushed:
                break
            await asyncio.sleep(0.05)
        await self._intake.confirm_now()
