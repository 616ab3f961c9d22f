"""The last transaction of a copy, with the row that says so: everything that must wait until all tables stand at one point.

Foreign keys, triggers, policies and the rest in the archive's own order, large objects, materialised views, sequences,
owners, grants. A copy that is killed in here repeats just this.
"""

from __future__ import annotations

from collections.abc import Sequence

from pglockstep.copy.crew import PURPOSE
from pglockstep.copy.ends import Ends
from pglockstep.copy.large_objects import copy_large_objects
from pglockstep.copy.snapshot import mark
from pglockstep.postgres import ownership, privileges, restore, sequences
from pglockstep.postgres.connect import connect, translate
from pglockstep.postgres.dump import Entry, SchemaArchive
from pglockstep.postgres.moments import Moment, use_snapshot
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn


async def finish(
    ends: Ends, record: LinkRecord, moment: Moment, archive: SchemaArchive, rest: Sequence[Entry], lsn: Lsn
) -> None:
    """Make what of the archive is left, and the target complete as of `lsn`."""
    major = ends.target_facts.major
    script = await archive.script(rest, target_major=major)
    grants = await archive.grants(target_major=major)
    source = await connect(ends.source, "copy-out")
    try:
        target = await connect(ends.target, PURPOSE)
        try:
            await mark(ends, record, source)
            async with source.transaction(force_rollback=True), target.transaction():
                with translate(ends.source):
                    await use_snapshot(source, moment.snapshot)
                    wanted = await ownership.owners(source)
                if await privileges.can_act_as_replica(target):
                    # event triggers of the user's, made half way, must not fire for what follows
                    await target.execute("SET LOCAL session_replication_role = replica")
                await restore.drop_public(source, target, ends.both)
                await copy_large_objects(source, target, ends.both)
                await restore.run_script(target, ends.target, script, what="indexes and constraints")
                await restore.refresh_materialized_views(source, target, ends.both)
                with translate(ends.source):
                    states = await sequences.read(source)
                with translate(ends.target):
                    await sequences.move(target, states)
                await ownership.give_to_owners(target, ends.target, wanted)
                await ownership.grant(target, ends.target, grants)
                with translate(ends.target):
                    await progress.repeat_identities(target, await progress.identities(target))
                    await progress.complete_copy(target, record.id, lsn)
        finally:
            await target.close()
    finally:
        await source.close()
