"""Whether the stream can go on from a target's progress: the source's identity, its slot, and what it keeps for us.

Pure: what is judged was read by `postgres.slots`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pglockstep.errors import IdentityChanged
from pglockstep.findings import Finding
from pglockstep.postgres.slots import Slot
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn, human_bytes

_error = partial(Finding, side="source", severity="error")
_warning = partial(Finding, side="source", severity="warning")

_AGAIN = "pglockstep teardown, empty the target, pglockstep once"

#: Shares of the WAL that a source is willing to keep at which a person is told, in percent.
LEVELS = (70, 85)


def identity_findings(record: LinkRecord, identity: str, where: str) -> Iterator[Finding]:
    """Whether the source at `where`, which is `identity`, is the very database that this target was copied from."""
    if record.source_identity != identity:
        yield _error(
            code="identity_changed",
            message=f"another database answers as the source ({where}): this target was filled from "
            f"{record.source_identity}, that one is {identity}; nothing was copied",
            fix=f"point `source` at the database it was, or, if this one is meant: {_AGAIN}",
            raises=IdentityChanged,
        )


def slot_findings(
    record: LinkRecord, slot: Slot | None, journal: tuple[Lsn, Lsn] | None = None
) -> Iterator[Finding]:
    """Whether the stream can go on from the target's progress without a gap, and for how long.

    `journal`: from where up to where our journal has what the source sent; None if there is none here.
    """
    if slot is None:
        yield _error(
            code="slot_gone",
            message=f"replication slot {record.slot} is gone from the source: what was written there since "
            f"{record.progress or 'the copy began'} cannot be streamed any more",
            fix=f"copy anew: {_AGAIN}",
        )
        return
    known = max((each for each in (record.progress, journal and journal[1]) if each), default=None)
    if known is not None and slot.written < known:
        yield _error(
            code="source_older",
            message=f"the source is older than what the target already has from it: its WAL ends at {slot.written}, what came "
            f"from it reaches up to {known}; was the source restored from an older copy? nothing was copied",
            fix=f"put the newer source back; or, if this one is meant: {_AGAIN}",
            raises=IdentityChanged,
        )
    if slot.lost:
        yield slot_lost(slot)
        return
    if leaves_a_gap(record, slot, journal):
        yield _error(
            code="slot_ahead",
            message=f"the target is complete up to {record.progress} only, but the source has forgotten everything before "
            f"{slot.confirmed}, and no journal here has what lies between: was the target restored from an older copy, or the "
            "state directory lost?",
            fix=f"run where the journal is (state_dir), or copy anew: {_AGAIN}",
        )
    yield from near_limit(slot)


def covers(record: LinkRecord, slot: Slot, journal: tuple[Lsn, Lsn] | None) -> bool:
    """Whether the journal has everything from the target's progress up to what the slot still gives. Pure."""
    if journal is None or record.progress is None:
        return False
    return journal[0] <= record.progress and (slot.confirmed is None or slot.confirmed <= journal[1])


def leaves_a_gap(record: LinkRecord, slot: Slot, journal: tuple[Lsn, Lsn] | None) -> bool:
    """Whether there are transactions that neither the target, nor the journal, nor the slot has any more. Pure."""
    if record.progress is None or slot.confirmed is None or slot.confirmed <= record.progress:
        return False
    return not covers(record, slot, journal)


def slot_left(record: LinkRecord) -> Finding:
    """That the slot is still there with which a link was streamed before it was polled."""
    return _error(
        code="slot_left",
        message="this link was streamed before it is polled: the source still keeps WAL for its replication slot "
        f"{record.slot}, which nobody reads any more",
        fix=f"SELECT pg_drop_replication_slot('{record.slot}');\nDROP PUBLICATION {record.publication};",
        where="on the source",
    )


def slot_lost(slot: Slot) -> Finding:
    """That the source has given a slot up, and what to change so that it does not again."""
    idle = slot.invalidation_reason == "idle_timeout"
    setting = "idle_replication_slot_timeout" if idle else "max_slot_wal_keep_size"
    why = f" ({slot.invalidation_reason})" if slot.invalidation_reason else ""
    return _error(
        code="slot_lost",
        message=f"replication slot {slot.name} was invalidated by the source{why}: what the target has not got yet cannot "
        "be streamed any more",
        fix=f"copy anew: {_AGAIN}; then keep the daemon running, or raise {setting} on the source",
    )


def near_limit(slot: Slot) -> Iterator[Finding]:
    """A warning if the source keeps nearly as much WAL for the slot as it is willing to."""
    if slot.limit is None or slot.share is None or slot.share < LEVELS[0]:
        return
    soon = "; past it the link is lost, and soon" if slot.share >= LEVELS[-1] else ""
    doubled = -(-slot.limit // 1048576) * 2
    yield _warning(
        code="slot_near_limit",
        message=f"the source keeps {human_bytes(slot.retained)} of WAL for this link, {slot.share} % "
        f"of max_slot_wal_keep_size ({human_bytes(slot.limit)}): past that it drops what the target has not got yet{soon}",
        fix=f"ALTER SYSTEM SET max_slot_wal_keep_size = '{doubled}MB';\nSELECT pg_reload_conf();",
        where="on the source, as a superuser",
        otherwise="or let the target catch up: pglockstep run",
    )
