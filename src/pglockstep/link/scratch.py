"""What a source that is polled has done since, for whoever must judge it before the target is healed from just that moment.

It is a poll into a journal of its own, which nobody applies and which is gone afterwards. The snapshot that it went by stays
open: the heal reads the source by the same one, so that it brings over nothing that was not judged.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from pglockstep.errors import SourceBusy
from pglockstep.findings import listed
from pglockstep.journal.journal import Journal, Limits
from pglockstep.link.link import Link
from pglockstep.link.sight import Sight
from pglockstep.link.sweep import Sweep, paired
from pglockstep.postgres.connect import ends
from pglockstep.postgres.moments import Moment
from pglockstep.postgres.snapshots import exported
from pglockstep.progress.target import LinkRecord


async def polled_apart(link: Link, record: LinkRecord, kept: AsyncExitStack) -> tuple[Moment, Path]:
    """The moment, and the folder of the journal that has what differed then; both last as long as `kept` is open.

    Tables that do not fit each other are left out. Raises the ends' errors; `SourceBusy` if a table could not be read.
    """
    assert record.progress is not None
    both = ends(link.config)
    folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="pglockstep-"))) / "poll"
    holder, moment, at = await kept.enter_async_context(exported(both[0], "heal"))
    journal = await Journal.open(folder, record.id, record.source_identity, Limits())
    try:
        await journal.begin_at(record.progress)
        writing = asyncio.create_task(journal.run(), name="scratch")
        try:
            async with Sight.opened(both, "", link.config.jobs, holder, moment) as sight:
                plan = await paired(link, sight)
                sweep = Sweep(link, journal, sight, at, plan, record.id, {}, lenient=True)
                # a task of its own: see `Poller`
                sweeping = asyncio.create_task(sweep.run((), still=lambda: True, always=True), name="sweep")
                found = await sweeping
        finally:
            writing.cancel()
            await asyncio.wait({writing})
    finally:
        await journal.close()
    if found.skipped:
        name, why = next(iter(found.skipped.items()))
        raise SourceBusy(
            f"what the source has done cannot be judged: {listed(found.skipped)} could not be read; {name}: {why}",
            hint="it is tried again",
        )
    return moment, folder
