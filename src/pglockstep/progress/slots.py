"""Whether the stream can go on from a target's progress: the source's identity, its slot, and what it keeps for us.

Reading is apart from judging; the judgements are pure. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from psycopg import AsyncConnection

from pglockstep.errors import IdentityChanged
from pglockstep.findings import Finding
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn, human_bytes

_AGAIN = "pglockstep teardown, empty the target, pglockstep once"

#: Shares of ``max_slot_wal_keep_size`` at which a person is told.
_NEAR = 0.7
_VERY_NEAR = 0.85


class Slot(msgspec.Struct, frozen=True):
    """A replication slot. `limit` is ``max_slot_wal_keep_size`` in bytes, None where there is none."""

    status: str | None
    confirmed: Lsn | None
    retained: int
    limit: int | None


async def read(conn: AsyncConnection, name: str) -> tuple[Slot | None, Lsn]:
    """The slot of that name in this database, and where the source's WAL ends. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT pg_catalog.pg_current_wal_flush_lsn()::text, s.slot_name, s.wal_status, s.confirmed_flush_lsn::text, "
        "pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::bigint, "
        "(SELECT nullif(setting, '-1')::bigint * 1048576 FROM pg_catalog.pg_settings "
        "WHERE name = 'max_slot_wal_keep_size') "
        "FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_replication_slots AS s "
        "ON s.slot_name = $1 AND s.database = pg_catalog.current_database()",
        [name],
    )
    row = await cursor.fetchone()
    assert row is not None
    written, found, status, confirmed, retained, limit = row
    if found is None:
        return None, Lsn.parse(written)
    return Slot(status, Lsn.parse(confirmed) if confirmed else None, retained or 0, limit), Lsn.parse(written)


def identity_findings(record: LinkRecord, identity: str, where: str) -> Iterator[Finding]:
    """Whether the source at `where`, which is `identity`, is the very database that this target was copied from."""
    if record.source_identity != identity:
        yield Finding(
            side="source",
            severity="error",
            code="identity_changed",
            message=f"another database answers as the source ({where}): this target was filled from "
            f"{record.source_identity}, that one is {identity}; nothing was copied",
            fix=f"point `source` at the database it was, or, if this one is meant: {_AGAIN}",
            raises=IdentityChanged,
        )


def slot_findings(record: LinkRecord, slot: Slot | None, written: Lsn) -> Iterator[Finding]:
    """Whether the slot can go on from the target's progress without a gap; `written` is where the WAL ends."""
    if slot is None:
        yield Finding(
            side="source",
            severity="error",
            code="slot_gone",
            message=f"replication slot {record.slot} is gone from the source: what was written there since "
            f"{record.progress or 'the copy began'} cannot be streamed any more",
            fix=f"copy anew: {_AGAIN}",
        )
        return
    if record.progress is not None and written < record.progress:
        yield Finding(
            side="source",
            severity="error",
            code="source_older",
            message=f"the source is older than what the target already has from it: its WAL ends at {written}, the target "
            f"is complete up to {record.progress}; was the source restored from an older copy? nothing was copied",
            fix=f"put the newer source back; or, if this one is meant: {_AGAIN}",
            raises=IdentityChanged,
        )
    if slot.status == "lost":
        yield Finding(
            side="source",
            severity="error",
            code="slot_lost",
            message=f"replication slot {record.slot} was invalidated by the source, which kept "
            f"{human_bytes(slot.retained)} of WAL for it at the end",
            fix=f"copy anew: {_AGAIN}; then raise max_slot_wal_keep_size on the source, or keep the daemon running",
        )
        return
    if slot.confirmed is not None and record.progress is not None and slot.confirmed > record.progress:
        yield Finding(
            side="source",
            severity="error",
            code="slot_ahead",
            message=f"the target is complete up to {record.progress} only, but the source has forgotten everything before "
            f"{slot.confirmed}: was the target restored from an older copy?",
            fix=f"copy anew: {_AGAIN}",
        )
    if slot.limit and slot.retained >= _NEAR * slot.limit:
        soon = "; past it the link is lost, and soon" if slot.retained >= _VERY_NEAR * slot.limit else ""
        doubled = -(-slot.limit // 1048576) * 2
        yield Finding(
            side="source",
            severity="warning",
            code="slot_near_limit",
            message=f"the source keeps {human_bytes(slot.retained)} of WAL for this link, {slot.retained * 100 // slot.limit} % "
            f"of max_slot_wal_keep_size ({human_bytes(slot.limit)}): past that it drops what the target has not got yet{soon}",
            fix=f"ALTER SYSTEM SET max_slot_wal_keep_size = '{doubled}MB';\nSELECT pg_reload_conf();",
            where="on the source, as a superuser",
            otherwise="or let the target catch up: pglockstep run",
        )
