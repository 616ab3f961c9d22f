"""Taking everything of ours off both ends: slot, publication, replica identities, our schema. Nothing else."""

from __future__ import annotations

import msgspec

from pglockstep.config.sections import LinkConfig
from pglockstep.copy import first
from pglockstep.copy.ends import Ends
from pglockstep.copy.source import drop_publication, drop_slot, end_work
from pglockstep.errors import LinkHeld
from pglockstep.link import session
from pglockstep.observe.state import LinkStatus, StateDirectory
from pglockstep.postgres.connect import fingerprint, translate
from pglockstep.progress import target as progress
from pglockstep.progress.target import slot_name


class Removed(msgspec.Struct, frozen=True):
    """What was taken off; nothing if the link was never set up. `half_made` if tables of an unfinished copy remain."""

    name: str
    slot: str | None
    identities_set_back: int
    half_made: bool = False
    polled: bool = False


async def teardown(link: LinkConfig, state: StateDirectory) -> Removed:
    """Remove the link's objects: the source first, then the target's record of them. Safe to repeat."""
    key = fingerprint(link.source, link.target)
    if (pid := state.daemon_pid(key)) is not None:
        raise LinkHeld(
            f"a daemon (pid {pid}) is running link {link.name!r}",
            hint=f"stop it first: kill {pid}, then teardown again",
        )
    async with session.opened(link, "teardown") as ends:
        if not await session.take_lock(ends.target_conn, ends.target):
            raise LinkHeld(
                f"another process holds link {link.name!r}", hint="stop it first; pglockstep status shows it"
            )
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        if record is None:
            status = state.load(key)
            slot = await _forgotten_by_the_target(ends, status)
            state.forget(key)
            if status is not None and status.link_id:
                state.drop_journal(status.link_id)
            return Removed(link.name, slot, 0)
        session.demand_identity(ends.source, ends.source_facts, record)
        with translate(ends.target):
            changed = await progress.identities(ends.target_conn)
        half_made = await first.undo(ends, record, leave_tables=True)
        state.forget(key)
        state.drop_journal(record.id)
        return Removed(link.name, record.slot, len(changed), half_made, link.mode == "poll")


async def _forgotten_by_the_target(ends: Ends, status: LinkStatus | None) -> str | None:
    """The target was emptied or made anew: remove what this machine knows to be ours on the source."""
    if status is None or not status.link_id:
        return None
    name = slot_name(status.link_id)
    await end_work(ends.source_conn, ends.source, status.link_id)
    with translate(ends.source):
        cursor = await ends.source_conn.execute(
            "SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 "
            "UNION ALL SELECT FROM pg_catalog.pg_publication WHERE pubname = $1",
            [name],
        )
        found = cursor.rowcount
    await drop_slot(ends.source_conn, ends.source, name)
    await drop_publication(ends.source_conn, ends.source, name)
    return name if found else None
