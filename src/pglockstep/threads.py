"""Work done in a thread beside the event loop, and waited for to its end: what it has done must be known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(
    work: Callable[[], T], *, executor: Executor | None = None, hurry: Callable[[], None] | None = None
) -> T:
    """What `work` returns. A cancelled caller waits for its end as well, and tells it to `hurry`, where that can be done."""
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if hurry is not None:
            hurry()
        await asyncio.wait([future])
        raise
