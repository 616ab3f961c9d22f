"""Who kept a session waiting for a lock until it gave up: looked at from beside, because afterwards nobody can tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.errors import SourceBusy
from pglockstep.postgres.connect import End

#: How often is looked during one lock_timeout.
_LOOKS = 5


@asynccontextmanager
async def naming_blockers(
    watcher: AsyncConnection[TupleRow], waiter: AsyncConnection[TupleRow], end: End
) -> AsyncIterator[None]:
    """A lock that `waiter` waits for in vain inside is told with who held it; `watcher` is used for nothing else."""
    seen: list[str] = []
    pid = waiter.info.backend_pid

    async def look() -> None:
        # whoever cannot be watched is not named
        with suppress(psycopg.Error):
            while True:
                cursor = await watcher.execute(
                    "SELECT 'pid ' || pid || coalesce(' (' || nullif(application_name, '') || ')', '') || ', ' || state "
                    "FROM pg_catalog.pg_stat_activity WHERE pid = ANY (pg_catalog.pg_blocking_pids($1))",
                    [pid],
                )
                if found := [row[0] async for row in cursor]:
                    seen[:] = found
                await asyncio.sleep(end.lock_timeout / _LOOKS)

    looking = asyncio.create_task(look(), name="restore-blockers")
    try:
        yield
    except SourceBusy as error:
        if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable) or not seen:
            raise
        raise SourceBusy(
            f"what is to be put back is locked on the source by {'; '.join(seen)}: nothing was changed",
            hint="let that transaction end (COMMIT, or pg_terminate_backend(pid)), or raise lock_timeout; then restore again",
        ) from error
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
