"""One link: brought level once, or kept level for good.

`Link.once` and `Link.run` are the two ways of doing a link's work; whoever holds the lock on the target does
it, and the other waits for a barrier of its own to pass. A transient failure is tried again with growing,
jittered pauses; anything else stops the link with its sentence. An apply that fails is repeated carefully,
so that the refusal names its statement.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.apply.applier import Applier
from pglockstep.compare.sequences import behind
from pglockstep.config import LinkConfig
from pglockstep.copy import first
from pglockstep.copy.first import CopyResult, Ends
from pglockstep.copy.selection import Selection
from pglockstep.copy.source import end_sender, published_tables
from pglockstep.errors import (
    ApplyRefused,
    ConfigError,
    EndError,
    LinkHeld,
    LockstepError,
    SourceError,
    TargetError,
)
from pglockstep.link import session
from pglockstep.link.pipeline import BEHIND_AFTER, Pipeline
from pglockstep.link.states import Event, State, after
from pglockstep.link.verify import LinkCheck, verify
from pglockstep.observe.state import LinkStatus, StateDirectory
from pglockstep.postgres import catalog, privileges, sequences
from pglockstep.postgres.connect import connect, fingerprint, translate
from pglockstep.postgres.replication import ReplicationConnection
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord
from pglockstep.units import Lsn

log = logging.getLogger(__name__)

#: How often a refused apply is repeated before a person is needed, and the pauses between attempts, in seconds.
_CAREFUL_ATTEMPTS = 3
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
#: How often sequences are carried and the state is written down, in seconds.
_SEQUENCES_EVERY = 10.0
_REPORT_EVERY = 1.0


class OnceResult(msgspec.Struct, frozen=True):
    """What ``once`` did, and how the ends stand now."""

    check: LinkCheck
    copied_rows: int
    applied_transactions: int
    applied_changes: int
    lsn: Lsn


class Applying(msgspec.Struct, frozen=True):
    """A pipeline about to run, its applier, and a session on the target beside the applier's."""

    pipeline: Pipeline
    applier: Applier
    watch: AsyncConnection[TupleRow]


class Link:
    """A configured link. `key` names its pair of ends in the state directory."""

    def __init__(self, config: LinkConfig, state: StateDirectory) -> None:
        self.config = config
        self.key = fingerprint(config.source, config.target)
        self.state = state
        self._selection = Selection.of(config)
        self._status = state.load(self.key) or LinkStatus()
        self._now = State.NEW
        self._lock_was_ours = False
        self._noted_rows = 0
        self._noted_at = time.monotonic()

    # --- once ---------------------------------------------------------------------------------------

    async def once(self) -> OnceResult:
        """Bring the target level with the source as of now, and prove it."""
        async with session.opened(self.config, "once") as ends:
            while not await session.take_lock(ends, patience=0):
                if (lsn := await self._wait_for_holder(ends)) is not None:
                    check = await self._verify(ends, lambda record: self._barrier_passed(ends, record))
                    return OnceResult(check, 0, 0, 0, lsn)
            record, copied = await self._ready(ends)
            transactions = changes = 0

            async def advance(record: LinkRecord) -> Lsn | None:
                nonlocal transactions, changes
                barrier = await session.emit_barrier(ends, record.id)
                try:
                    running = await self._apply_until(ends, barrier, careful=False)
                except EndError as error:
                    if error.transient or not worth_another_try(error, tries=1):
                        raise
                    # again, so that the refusal names its statement
                    running = await self._apply_until(ends, barrier, careful=True)
                transactions += running.applier.transactions
                changes += running.applier.changes.total()
                return running.applier.progress

            lsn = await advance(record) or Lsn(0)
            check = await self._verify(ends, advance)
            self._remember(ends, check)
            return OnceResult(check, copied.rows if copied else 0, transactions, changes, lsn)

    async def _apply_until(self, ends: Ends, barrier: Lsn, *, careful: bool) -> Applying:
        async with self._applying(ends, careful=careful) as running:
            await running.pipeline.run(until=barrier)
        return running

    async def _ready(self, ends: Ends) -> tuple[LinkRecord, CopyResult | None]:
        """The link's record with its first copy made; the lock is ours."""
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        if record is not None:
            session.demand_identity(ends, record)
            if record.phase == "copying":
                log.info("taking back a copy that did not finish", extra=self._extra("copy.undo"))
                await first.undo(ends, record)
                record = None
        if record is not None:
            privileges.demand_source(ends.source_facts, needs_slot=False)
            privileges.demand_target(ends.target_facts, needs_copy=False)
            return record, None
        self._move(Event.COPY_STARTED)
        copied = await first.copy(ends, self.config.name, self._selection, self.config.without_key)
        log.info(
            "copied %d rows of %d tables, complete as of %s",
            copied.rows,
            copied.tables,
            copied.lsn,
            extra=self._extra("copy.done"),
        )
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        assert record is not None
        return record, copied

    @asynccontextmanager
    async def _applying(self, ends: Ends, *, careful: bool) -> AsyncIterator[Applying]:
        """A pipeline ready to run from the target's progress; the lock is ours."""
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        if record is None or record.progress is None:
            raise TargetError(
                "the link's progress is gone from the target",
                hint="did somebody drop schema pglockstep there? pglockstep teardown, empty the target, pglockstep once",
            )
        with translate(ends.source):
            await end_sender(ends.source_conn, record.slot)
        await session.demand_slot(ends, record)
        await session.act_as_replica(ends)
        applier = Applier(
            ends.target,
            ends.target_conn,
            record.id,
            record.progress,
            careful=careful,
            at_barrier=lambda: carry_sequences(ends, ends.target_conn),
        )
        await applier.load_tables()
        watch = await connect(ends.target, "watch")
        try:
            stream = await ReplicationConnection.open(ends.source)
            try:
                await stream.start(record.slot, record.publication, record.progress)
                yield Applying(Pipeline(ends.both, stream, applier, watch), applier, watch)
            finally:
                await stream.close()
        finally:
            await watch.close()
            with suppress(psycopg.Error):
                await ends.target_conn.rollback()

    # --- check --------------------------------------------------------------------------------------

    async def check(self) -> LinkCheck:
        """How the ends stand: beside a live daemon at a barrier, else as they are. Changes nothing."""
        async with session.opened(self.config, "check") as ends:
            if await self._wait_for_holder(ends) is not None:
                check = await self._verify(ends, lambda record: self._barrier_passed(ends, record))
            else:
                check = await self._verify(ends, None)
            self._remember(ends, check)
            return check

    async def _wait_for_holder(self, ends: Ends) -> Lsn | None:
        """Wait until whoever holds the link has passed a barrier set now; None if nobody holds it (any more)."""
        while True:
            with translate(ends.target):
                held = await progress.holder(ends.target_conn)
                record = await progress.read(ends.target_conn) if held else None
            if held is None:
                return None
            if record is not None and record.progress is not None:
                return await self._barrier_passed(ends, record)
            await asyncio.sleep(0.2)

    async def _barrier_passed(self, ends: Ends, record: LinkRecord) -> Lsn | None:
        """Set a barrier and wait until another process has applied it; None if that process is gone."""
        barrier = await session.emit_barrier(ends, record.id)
        last, patience = record.progress, time.monotonic() + self.config.silence_timeout
        while True:
            with translate(ends.target):
                now = await progress.read(ends.target_conn)
                held = await progress.holder(ends.target_conn)
            if now is not None and now.progress is not None and now.progress >= barrier:
                return now.progress
            if held is None:
                return None
            if now is not None and now.progress != last:
                last, patience = now.progress, time.monotonic() + self.config.silence_timeout
            if time.monotonic() > patience:
                raise LinkHeld(
                    f"{held.application or 'another session'} (pid {held.pid} on the target) holds link "
                    f"{self.config.name!r} but has not moved for {self.config.silence_timeout}",
                    hint="pglockstep status says what it waits for",
                )
            await asyncio.sleep(0.02)

    async def _verify(self, ends: Ends, advance: Callable[[LinkRecord], object] | None) -> LinkCheck:
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        if advance is None or record is None:
            return await verify(self.config.name, ends, self._selection, record, None)
        known = record

        async def step() -> None:
            await advance(known)  # type: ignore[misc]

        return await verify(self.config.name, ends, self._selection, record, step)

    # --- run ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the target level until cancelled. Returns never; raises what a person must see to."""
        claim = self.state.claim(self.key)
        if claim is None:
            pid = self.state.daemon_pid(self.key)
            raise LinkHeld(
                f"another daemon (pid {pid}) runs link {self.config.name!r}",
                hint="pglockstep status shows it; stop it first if this one is to take over",
            )
        try:
            await self._run()
        except LockstepError as error:
            self._move(Event.REFUSED, error.message)
            raise
        finally:
            claim.release()

    async def _run(self) -> None:
        tries = 0
        while True:
            before = self._status.applied_lsn
            try:
                await self._attempt(careful=tries > 0)
            except LockstepError as error:
                tries = 1 if self._status.applied_lsn != before else tries + 1
                if not self._lock_was_ours or not worth_another_try(error, tries):
                    raise
                seconds = pause(tries, random.random())
                self._move(Event.END_LOST, error.message)
                log.warning("%s; trying again in %.1f s", error, seconds, extra=self._extra("link.waiting"))
                await asyncio.sleep(seconds)

    async def _attempt(self, *, careful: bool) -> None:
        """Open both ends and stream until something fails."""
        async with session.opened(self.config, "run") as ends:
            if not await session.take_lock(ends):
                raise await self._held_by_other(ends)
            self._lock_was_ours = True
            record, _ = await self._ready(ends)
            await self._warn_of_unpublished(ends, record)
            async with self._applying(ends, careful=careful) as running:
                self._move(Event.STREAM_STARTED)
                log.info("streaming from %s", running.applier.progress, extra=self._extra("stream.start"))
                side = [
                    asyncio.create_task(self._report(running), name="report"),
                    asyncio.create_task(self._carry_sequences(ends, running), name="sequences"),
                ]
                try:
                    await running.pipeline.run()
                finally:
                    for task in side:
                        task.cancel()
                    await asyncio.gather(*side, return_exceptions=True)
                    self._note(running)

    async def _held_by_other(self, ends: Ends) -> LinkHeld:
        with translate(ends.target):
            held = await progress.holder(ends.target_conn)
        who = f"{held.application} (pid {held.pid} on the target)" if held else "another session"
        return LinkHeld(
            f"{who} holds link {self.config.name!r}",
            hint="stop that process first if this one is to take over; pglockstep status shows it",
        )

    async def _warn_of_unpublished(self, ends: Ends, record: LinkRecord) -> None:
        with translate(ends.source):
            tables = [
                table
                for table in await catalog.tables(ends.source_conn)
                if self._selection.carries(*table.name)
            ]
        published = await published_tables(ends.source_conn, ends.source, record.publication)
        if silent := [str(table.name) for table in tables if table.name not in published]:
            log.warning(
                "not in the stream, so the target does not follow them: %s (unlogged, or made after the copy)",
                ", ".join(silent[:10]),
                extra=self._extra("stream.unpublished"),
            )

    async def _report(self, running: Applying) -> None:
        """Write down every second how the link stands."""
        while True:
            behind = running.pipeline.lag_seconds > BEHIND_AFTER
            self._now = after(self._now, Event.FELL_BEHIND if behind else Event.LEVELLED)
            self._note(running)
            await asyncio.sleep(_REPORT_EVERY)

    def _note(self, running: Applying) -> None:
        status, pipeline, applier = self._status, running.pipeline, running.applier
        rows = applier.changes.total()
        elapsed = time.monotonic() - self._noted_at
        status.rows_per_second = (
            round((rows - self._noted_rows) / elapsed, 1) if rows >= self._noted_rows and elapsed > 0 else 0.0
        )
        self._noted_rows, self._noted_at = rows, time.monotonic()
        status.received_lsn = str(pipeline.received)
        status.applied_lsn = str(pipeline.applied)
        status.lag_seconds = round(pipeline.lag_seconds, 3)
        status.last_applied_at = applier.last_applied_at or status.last_applied_at
        status.reason = ""
        self._save()

    async def _carry_sequences(self, ends: Ends, running: Applying) -> None:
        """Carry sequences now and then; a failure waits for the next time."""
        while True:
            await asyncio.sleep(_SEQUENCES_EVERY)
            try:
                await carry_sequences(ends, running.watch)
            except LockstepError as error:
                log.debug("sequences were not carried: %s", error, extra=self._extra("sequences.failed"))

    # --- state --------------------------------------------------------------------------------------

    def _move(self, event: Event, reason: str = "") -> None:
        self._now = after(self._now, event)
        self._status.reason = reason
        self._save()

    def _remember(self, ends: Ends, check: LinkCheck) -> None:
        """Keep the verdict; what the daemon beside us writes about itself stays its own."""
        status = self.state.load(self.key) or LinkStatus()
        status.verified_at, status.verdict = check.checked_at, check.verdict
        status.tables = len(check.tables)
        status.rows = sum(each.target_rows or 0 for each in check.tables)
        self.state.save(self.key, self.config.name, status)

    def _save(self) -> None:
        """Write down how the link stands; a state directory that cannot be written stops nothing."""
        try:
            remembered = self.state.load(self.key)
            if remembered is not None:
                self._status.verified_at, self._status.verdict = remembered.verified_at, remembered.verdict
                self._status.tables, self._status.rows = remembered.tables, remembered.rows
            self._status.state = str(self._now)
            self.state.save(self.key, self.config.name, self._status)
        except (OSError, sqlite3.Error, ConfigError) as error:
            log.warning("the state directory cannot be written: %s", error, extra=self._extra("state.failed"))

    def _extra(self, action: str) -> dict[str, str]:
        return {"action": action, "link": self.config.name}


async def carry_sequences(ends: Ends, target: AsyncConnection[TupleRow]) -> None:
    """Move the target's sequences on, over the session `target`, to where the source's stand; never backwards."""
    with translate(ends.source):
        there = await sequences.read(ends.source_conn)
    with translate(ends.target):
        here = await sequences.read(target)
        late = {(each.schema, each.name) for each in behind(there, here) if each.target_next is not None}
        await sequences.move(target, [each for each in there if (each.schema, each.name) in late])


def worth_another_try(error: LockstepError, tries: int) -> bool:
    """Whether a link that had been running goes on by itself after its `tries`-th failure in a row. Pure."""
    if error.transient:
        return True
    # a refused change may have been refused for what passes: it is repeated with care, a few times
    return type(error) in (ApplyRefused, SourceError, TargetError) and tries <= _CAREFUL_ATTEMPTS


def pause(tries: int, chance: float) -> float:
    """Seconds to wait after the `tries`-th failure in a row; `chance` in [0, 1) spreads many links apart. Pure."""
    return float(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries - 1, 10)) * (0.5 + chance / 2))
