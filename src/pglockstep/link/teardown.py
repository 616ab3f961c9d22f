"""Taking everything of ours off both ends: slot, publication, replica identities, our schema. Nothing else."""

from __future__ import annotations

import msgspec

from pglockstep.config import LinkConfig
from pglockstep.copy import first
from pglockstep.errors import LinkHeld
from pglockstep.link import session
from pglockstep.observe.state import StateDirectory
from pglockstep.postgres.connect import fingerprint, translate
from pglockstep.progress import target as progress


class Removed(msgspec.Struct, frozen=True):
    """What was taken off; nothing if the link was never set up."""

    name: str
    slot: str | None
    identities_set_back: int


async def teardown(link: LinkConfig, state: StateDirectory) -> Removed:
    """Remove the link's objects: the source first, then the target's record of them. Safe to repeat."""
    key = fingerprint(link.source, link.target)
    if (pid := state.daemon_pid(key)) is not None:
        raise LinkHeld(
            f"a daemon (pid {pid}) is running link {link.name!r}",
            hint=f"stop it first: kill {pid}, then teardown again",
        )
    async with session.opened(link, "teardown") as ends:
        if not await session.take_lock(ends):
            raise LinkHeld(
                f"another process holds link {link.name!r}", hint="stop it first; pglockstep status shows it"
            )
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        if record is None:
            state.forget(key)
            return Removed(link.name, None, 0)
        session.demand_identity(ends, record)
        with translate(ends.target):
            changed = await progress.identities(ends.target_conn)
        await first.undo(ends, record)
        state.forget(key)
        return Removed(link.name, record.slot, len(changed))
