"""The daemon: all chosen links in one process, each with a task of its own.

A link that fails for good takes none of the others with it; the daemon ends when its last link has ended, with
the exit code that stands for all. SIGTERM and Ctrl-C end it between commits: every link can go on later from
just where it stood.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Sequence

from pglockstep.errors import LockstepError, first_of, worst
from pglockstep.link.keep import keep
from pglockstep.link.link import Link

log = logging.getLogger(__name__)

#: So many more objects than before may be part of cycles that nobody needs: then these are looked for. More than
#: the rows of the batches under way.
_COLLECT_AFTER = 500_000


async def run(links: Sequence[Link], ended: Callable[[Link, LockstepError], None]) -> int:
    """Run every link until it ends or this task is cancelled; `ended` hears of each that ends, and why."""

    # rows are tuples by the hundred thousand, and in no cycle: looking for one among them would cost a tenth
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)

    async def one(link: Link) -> int:
        try:
            await keep(link)
        except LockstepError as error:
            ended(link, error)
            return error.exit_code
        return 0

    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one(link), name=f"link {link.config.name}") for link in links]
    except BaseExceptionGroup as group:
        # a bug, which is to be told by its own name
        raise first_of(group) from group
    return worst(task.result() for task in running)
