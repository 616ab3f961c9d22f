"""How a link stands, for ``status``: what both ends say now, and what its daemon last wrote down."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.config.sections import LinkConfig
from pglockstep.errors import EndError, LockstepError
from pglockstep.journal import inspection, reader
from pglockstep.journal.folder import room, usable
from pglockstep.link.session import source_position
from pglockstep.link.states import UNHEALTHY, State
from pglockstep.observe.incident import told
from pglockstep.observe.incidents import Incidents
from pglockstep.observe.state import LinkStatus, StateDirectory
from pglockstep.postgres import privileges, slots
from pglockstep.postgres.connect import End, connect, describe, ends, fingerprint, translate
from pglockstep.progress import detached as detached_tables
from pglockstep.progress import target as progress
from pglockstep.progress.slots import near_limit, slot_lost
from pglockstep.progress.target import Holder, LinkRecord, slot_name
from pglockstep.units import Lsn

#: A daemon reports every second; one that has not for so long may be stuck, in seconds.
_SILENT_AFTER = 10.0


class EndOverview(msgspec.Struct, kw_only=True):
    """One end as it answered just now."""

    where: str
    reachable: bool = False
    error: str | None = None
    server_version: int | None = None
    database: str | None = None
    system_identifier: str | None = None
    #: source only: where its WAL ends, and what it keeps for us
    wal_lsn: str | None = None
    slot: str | None = None
    slot_active: bool | None = None
    slot_retained_wal_bytes: int | None = None
    #: source only: how much it would keep (None: any amount), its own word for how that stands, and ours near the end
    slot_wal_limit_bytes: int | None = None
    slot_wal_status: str | None = None
    slot_warning: str | None = None


class LastVerified(msgspec.Struct):
    """When the ends were last compared, and the verdict."""

    at: datetime | None = None
    verdict: str | None = None


class LastBackup(msgspec.Struct):
    """When the last backup was made and verified."""

    at: datetime | None = None
    verified_at: datetime | None = None


class JournalOverview(msgspec.Struct):
    """What this machine keeps of what the source sent: from where up to where without a gap, and how full its disk is."""

    first_lsn: str | None = None
    last_lsn: str | None = None
    bytes: int = 0
    disk_used_percent: int | None = None
    error: str | None = None


class LinkOverview(msgspec.Struct, kw_only=True):
    """A link at a glance. `state` is as of `state_as_of`; it is current only while `daemon_alive`."""

    name: str
    state: str
    daemon_alive: bool
    reason: str
    source: EndOverview
    target: EndOverview
    received_lsn: str | None = None
    applied_lsn: str | None = None
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    last_applied_at: datetime | None = None
    rows_per_second: float = 0.0
    tables: int | None = None
    rows: int | None = None
    #: nothing is held, or which incident holds the link or is being healed
    guard: str
    #: tables that do not follow any more: an incident of theirs was rejected
    detached: list[str] = []
    open_incidents: int = 0
    last_verified: LastVerified
    last_backup: LastBackup
    journal: JournalOverview | None = None
    state_as_of: datetime | None = None

    @property
    def healthy(self) -> bool:
        """Whether both ends answer, the slot stands, no incident is open and the link does not wait for anybody."""
        answers = self.source.reachable and self.target.reachable
        stands = self.source.error is None and self.state not in UNHEALTHY
        return answers and stands and not self.open_incidents


async def overview(link: LinkConfig, state: StateDirectory) -> LinkOverview:
    """Ask both ends and the state directory; an end that does not answer is told, not raised."""
    source_end, target_end = ends(link)
    source, (target, record, holder, detached) = await asyncio.gather(
        _source(source_end), _target(target_end)
    )
    key = fingerprint(link.source, link.target)
    status = state.load(key) or LinkStatus()
    link_id = record.id if record else "" if target.reachable else status.link_id
    if link_id and source.reachable and link.mode != "poll":
        await _slot(source_end, source, slot_name(link_id))
    daemon = state.daemon_pid(key) is not None or (holder is not None and holder.is_daemon)
    applied = status.applied_lsn if record is None or record.progress is None else str(record.progress)
    incidents = Incidents(state).listed([key], only_open=True)
    found = LinkOverview(
        name=link.name,
        state=_state(status, record, target, daemon=daemon),
        daemon_alive=daemon,
        reason=status.reason if daemon or status.state in UNHEALTHY else "",
        source=source,
        target=target,
        received_lsn=status.received_lsn,
        applied_lsn=applied,
        last_applied_at=status.last_applied_at or (None if record is None else record.written_at),
        rows_per_second=status.rows_per_second if daemon else 0.0,
        tables=status.tables,
        rows=status.rows,
        guard=told(incidents, otherwise="nothing is held"),
        detached=detached,
        open_incidents=len(incidents),
        last_verified=LastVerified(status.verified_at, status.verdict),
        last_backup=LastBackup(),
        journal=_journal(
            state, status.link_id if record is None else record.id, status.received_lsn if daemon else None
        ),
        state_as_of=status.updated_at,
    )
    _measure_lag(found, status, record, daemon=daemon)
    silent = (datetime.now(UTC) - status.updated_at).total_seconds() if status.updated_at else 0.0
    if daemon and silent > _SILENT_AFTER and found.state in (State.STREAMING, State.CATCHING_UP):
        found.reason = found.reason or f"its daemon has not reported for {silent:.0f} s"
        found.lag_seconds = round(max(found.lag_seconds or 0.0, silent), 3)
    return found


def _journal(state: StateDirectory, link_id: str, received: str | None) -> JournalOverview | None:
    """What the files say, and whoever writes them, who has `received` as much; None if there are none."""
    folder = state.journal(link_id)
    if not link_id or not folder.is_dir():
        return None
    found = JournalOverview()
    try:
        with usable(folder):
            found.bytes = inspection.bytes_of(folder)
            if (
                extent := reader.extent(folder, None if received is None else Lsn.parse(received))
            ) is not None:
                found.first_lsn, found.last_lsn = map(str, extent)
    except LockstepError as error:
        found.error = error.message
    if (disk := room(folder)) is not None:
        found.disk_used_percent = disk.used_percent
    return found


def _state(status: LinkStatus, record: LinkRecord | None, target: EndOverview, *, daemon: bool) -> str:
    if daemon or status.state in UNHEALTHY or not target.reachable:
        return status.state
    if record is None:
        return State.NEW
    return State.COPYING if record.phase == "copying" else State.STREAMING


def _measure_lag(found: LinkOverview, status: LinkStatus, record: LinkRecord | None, *, daemon: bool) -> None:
    """Lag as it is known: in bytes against the source's end of WAL, in seconds since the target was last level."""
    if found.source.wal_lsn is None or found.applied_lsn is None:
        # nobody knows how far the source is: only how long we have not heard
        if status.updated_at is not None and not daemon:
            age = (datetime.now(UTC) - status.updated_at).total_seconds()
            found.lag_seconds = round(max(0.0, age), 3)
        return
    found.lag_bytes = max(0, Lsn.parse(found.source.wal_lsn) - Lsn.parse(found.applied_lsn))
    if daemon and (found.state == State.STREAMING or record is None):
        found.lag_seconds = status.lag_seconds
    elif record is not None and record.written_at is not None:
        age = (datetime.now(UTC) - record.written_at).total_seconds()
        found.lag_seconds = round(max(0.0, age), 3) if found.lag_bytes else 0.0


async def _source(end: End) -> EndOverview:
    found = EndOverview(where=describe(end.conninfo))
    try:
        conn = await connect(end, "status")
        try:
            await _introduce(found, end, conn)
            with translate(end):
                found.wal_lsn = str(await source_position(conn))
        finally:
            await conn.close()
    except LockstepError as error:
        found.error = error.message
    return found


async def _target(end: End) -> tuple[EndOverview, LinkRecord | None, Holder | None, list[str]]:
    found = EndOverview(where=describe(end.conninfo))
    try:
        conn = await connect(end, "status")
        try:
            await _introduce(found, end, conn)
            with translate(end):
                record = await progress.read(conn)
                apart = [] if record is None else await detached_tables.listed(conn)
                return found, record, await progress.holder(conn), [str(each) for each in apart]
        finally:
            await conn.close()
    except LockstepError as error:
        found.error = error.message
    return found, None, None, []


async def _introduce(found: EndOverview, end: End, conn: AsyncConnection[TupleRow]) -> None:
    with translate(end):
        facts = await privileges.facts(conn)
    found.reachable = True
    found.server_version = facts.version
    found.database = facts.database
    found.system_identifier = facts.system_identifier


async def _slot(end: End, found: EndOverview, name: str) -> None:
    try:
        conn = await connect(end, "status")
        try:
            with translate(end):
                slot = await slots.read(conn, name)
        finally:
            await conn.close()
    except EndError as error:
        found.error = error.message
        return
    if slot is None:
        found.error = f"replication slot {name} is gone"
        return
    found.slot, found.slot_active, found.slot_retained_wal_bytes = slot.name, slot.active, slot.retained
    found.slot_wal_limit_bytes, found.slot_wal_status = slot.limit, slot.wal_status
    if slot.lost:
        found.error = slot_lost(slot).message
    for warning in near_limit(slot):
        found.slot_warning = warning.message
