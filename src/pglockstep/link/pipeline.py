"""Both halves of a link at work together until a given point: for `once`, and for the end of a first copy."""

from __future__ import annotations

import asyncio

from pglockstep.errors import IncidentOpen, first_of
from pglockstep.journal.journal import Journal
from pglockstep.link.intake import Intake
from pglockstep.link.outlet import Outlet
from pglockstep.units import Lsn


class Pipeline:
    """From the source through the journal to the target."""

    def __init__(self, journal: Journal, intake: Intake, outlet: Outlet) -> None:
        self._journal = journal
        self._intake = intake
        self.outlet = outlet

    async def run(self, until: Lsn) -> None:
        """Stream until the target is complete up to `until`. Raises the first error.

        An `IncidentOpen` only once everything up to `until` is in the journal.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                side = [
                    tasks.create_task(self._journal.run(), name="journal"),
                    tasks.create_task(self._intake.run(), name="intake"),
                ]
                try:
                    await self.outlet.run(until)
                except IncidentOpen:
                    # a decision may need all that the source has sent, and nobody receives after us
                    await self._receive_rest(until)
                    raise
                await self._confirm_rest()
                for task in side:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise first_of(group) from group

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
