"""Bringing a link level once, and telling whether it is: by ourselves, or beside whoever holds the link.

Beside a holder nothing is streamed: a barrier is written into the source's WAL, and once the target's progress
has passed it, the ends are compared.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import msgspec

from pglockstep.compare.pace import Pace
from pglockstep.compare.table import Moments
from pglockstep.copy.ends import Ends
from pglockstep.errors import EndError, IncidentOpen, Inconclusive, LinkHeld, TargetLacks
from pglockstep.link import decisions, healing, identities, pinning, remembering, session, takeover
from pglockstep.link.attempts import worth_another_try
from pglockstep.link.drops import Drops
from pglockstep.link.link import Link
from pglockstep.link.matching import Alone, Beside
from pglockstep.link.outlet import Outlet
from pglockstep.link.pipeline import Pipeline
from pglockstep.link.verify import LinkCheck, Scope, verify
from pglockstep.observe.incident import needs_decision
from pglockstep.observe.requests import MomentWanted, Requests
from pglockstep.postgres.connect import translate
from pglockstep.progress import generation
from pglockstep.progress import target as progress
from pglockstep.progress.target import Holder, LinkRecord
from pglockstep.units import LAST_LSN, Lsn, human_bytes


class OnceResult(msgspec.Struct, frozen=True):
    """What ``once`` did, and how the ends stand now."""

    check: LinkCheck
    copied_rows: int
    applied_transactions: int
    applied_changes: int
    lsn: Lsn


class Effort(msgspec.Struct, frozen=True):
    """How much a comparison may ask of the servers.

    `pace`: for so much of the time it works. `max_lag`: it waits while the target is more than so many bytes of WAL behind.
    `fast`: rows are compared by their values.
    """

    pace: float = 1.0
    max_lag: int | None = None
    fast: bool = False


FULL = Effort()


class Level(msgspec.Struct):
    """Both ends at one point, and what brings them to the next; what was done for it until now.

    `copied_rows` by a first copy; the rest by the stream, unless somebody else applies.
    """

    ends: Ends
    moments: Moments
    lsn: Lsn = Lsn(0)
    copied_rows: int = 0
    transactions: int = 0
    changes: int = 0


async def once(link: Link) -> OnceResult:
    """Bring the target level with the source as of now, and prove it."""
    async with levelled(link, "once") as level:
        check = await verify(
            link.config.name,
            level.ends,
            link.selection,
            level.moments,
            Scope(jobs=link.config.jobs, polled=link.polls),
        )
        link.standing.remember(check)
        return OnceResult(check, level.copied_rows, level.transactions, level.changes, level.lsn)


@asynccontextmanager
async def levelled(link: Link, purpose: str, *, copies: bool = True) -> AsyncIterator[Level]:
    """The target level with the source as of now: beside a live holder at a barrier, else by the link's own stream.

    Then the link's lock is ours until the end, and nobody else applies. `copies`: if there was no first copy, it is made; else
    `TargetLacks` is raised.
    """
    await pinning.look_again(link)
    decisions.demand_decided(link)
    async with healing.opened_ends(link, purpose) as ends:
        while link.state.daemon_pid(link.key) or not await session.take_lock(
            ends.target_conn, ends.target, patience=0
        ):
            if (lsn := await _holder_passed_barrier(link, ends)) is not None:
                yield Level(ends, await _beside(link, ends), lsn)
                return
        await takeover.settle(link, ends)
        await healing.stand_again(link, ends.target_conn, ends.target)
        if not copies:
            await _demand_copied(link, ends)
        record, copied_rows = await link.ready(ends)
        await pinning.pin_first(link, ends, anew=bool(copied_rows))
        await decisions.settle(link, ends.target_conn, ends.target)
        await identities.settle(link)
        drops = await Drops.of(link, ends.target_conn, ends.target, record)

        async def advance() -> None:
            await drops.adopt(ends.target_conn, ends.target)
            with translate(ends.source):
                await drops.look(ends.source_conn)
            barrier = await link.barrier(ends, record)
            try:
                pipeline = await _apply_until(link, ends, barrier, careful=False)
            except IncidentOpen:
                # unless the configuration has decided
                await decisions.settle(link, ends.target_conn, ends.target)
                pipeline = await _apply_until(link, ends, barrier, careful=False)
            except EndError as error:
                if error.transient or not worth_another_try(error, tries=1):
                    raise
                # once more, so that the refusal names its statement
                pipeline = await _apply_until(link, ends, barrier, careful=True)
            level.transactions += pipeline.outlet.applier.transactions
            level.changes += pipeline.outlet.applier.changes.total()
            level.lsn = pipeline.outlet.applied
            try:
                await drops.settle(ends.target_conn, ends.target, level.lsn)
            except IncidentOpen:
                await decisions.settle(link, ends.target_conn, ends.target)

        async def applying(work: Callable[[Outlet], Awaitable[None]]) -> None:
            async with link.applying(ends) as pipeline:
                running = asyncio.create_task(pipeline.run(until=LAST_LSN), name="apply")
                try:
                    await work(pipeline.outlet)
                finally:
                    pipeline.outlet.end_at(await link.barrier(ends, record))
                    await running

        moments = Alone(link, record, advance, applying)
        level = Level(ends, moments, copied_rows=copied_rows)
        await moments.advance()
        yield level
        link.gate.save()
        with translate(ends.target):
            await remembering.remember(link, ends.target_conn)


async def _demand_copied(link: Link, ends: Ends) -> None:
    with translate(ends.target):
        record = await progress.read(ends.target_conn)
    if record is None or record.phase != "streaming":
        raise TargetLacks(
            f"link {link.config.name!r} has not been copied yet", hint="pglockstep once makes the first copy"
        )


async def check(link: Link, effort: Effort = FULL) -> LinkCheck:
    """How the ends stand: beside a live holder at a barrier, else as they are. Changes nothing.

    Raises `IncidentOpen` while there is one: how the ends differ then is what is to be decided.
    """
    async with as_it_is(link, "check") as (ends, moments):
        pace = Pace(
            effort.pace, None if moments is None else partial(_not_behind, link, ends, effort.max_lag)
        )
        scope = Scope(jobs=link.config.jobs, pace=pace, fast=effort.fast, polled=link.polls)
        found = await verify(link.config.name, ends, link.selection, moments, scope)
        link.standing.remember(found)
        return found


async def _not_behind(link: Link, ends: Ends, most: int | None) -> None:
    """Return once the target is no more than so many bytes of WAL behind."""
    end = time.monotonic() + 10 * link.config.silence_timeout
    while most is not None:
        with translate(ends.target):
            record = await progress.demand(ends.target_conn)
        with translate(ends.source):
            behind = await session.source_position(ends.source_conn) - (record.progress or 0)
        if behind <= most:
            return
        if time.monotonic() > end:
            raise Inconclusive(
                f"the target stayed more than {human_bytes(most)} behind for {10 * link.config.silence_timeout:.0f} s",
                hint="pglockstep status shows how far; a larger --max-lag compares all the same",
            )
        await asyncio.sleep(0.2)


@asynccontextmanager
async def as_it_is(link: Link, purpose: str) -> AsyncIterator[tuple[Ends, Moments | None]]:
    """Both ends, and what brings them to one point: beside a live holder; None if nobody applies. Changes nothing.

    Raises `IncidentOpen` while there is an incident, or the source is not the one that the target follows.
    """
    await pinning.look_again(link)
    _demand_none_open(link)
    async with pinning.opened(link, purpose) as ends:
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        await _demand_known(link, ends, record)
        try:
            held = await _holder_passed_barrier(link, ends) is not None
        except LinkHeld as error:
            raise Inconclusive(error.message, hint=error.hint) from error
        yield ends, await _beside(link, ends) if held else None


async def _demand_known(link: Link, ends: Ends, record: LinkRecord | None) -> None:
    """Raise `IncidentOpen` unless the source is the one that the target follows."""
    if record is None or record.phase != "streaming":
        return
    with translate(ends.target):
        link.generation = await generation.on_target(ends.target_conn)
    try:
        await pinning.demand_known(link, ends.source_conn, ends.source, record, record.progress)
    except pinning.BeginAgain:
        incident = pinning.open_incident(link)
        assert incident is not None
        raise needs_decision(incident) from None


def _demand_none_open(link: Link) -> None:
    """Raise `IncidentOpen` if there is one; what a daemon is putting right just now is waited for."""
    found = link.open_incidents()
    if all(each.state == "healing" for each in found) and link.state.daemon_pid(link.key) is not None:
        return
    if found:
        raise needs_decision(decisions.undecided(found) or found[0])


async def _apply_until(link: Link, ends: Ends, barrier: Lsn, *, careful: bool) -> Pipeline:
    async with link.applying(ends, careful=careful) as pipeline:
        await pipeline.run(until=barrier)
    return pipeline


async def _beside(link: Link, ends: Ends) -> Beside:
    """What brings the ends to one point while somebody else applies."""
    with translate(ends.target):
        record = await progress.demand(ends.target_conn)

    async def advance() -> None:
        try:
            passed = await _barrier_passed(link, ends, record)
        except LinkHeld as error:
            raise Inconclusive(error.message, hint=error.hint) from error
        if passed is None:
            raise Inconclusive(
                f"whoever held link {link.config.name!r} ended while the ends were compared",
                hint="the same command again compares them as they are now",
            )

    return Beside(link, advance)


async def _holder_passed_barrier(link: Link, ends: Ends) -> Lsn | None:
    """The progress with which the link's holder has passed a barrier set now; None if nobody holds it (any more)."""
    while True:
        with translate(ends.target):
            held = await _holder(link, ends)
            record = await progress.read(ends.target_conn) if held else None
        if held is None:
            return None
        if record is not None and record.phase == "streaming":
            await _demand_known(link, ends, record)
            return await _barrier_passed(link, ends, record)
        # it is still making the first copy
        await asyncio.sleep(0.2)


async def _holder(link: Link, ends: Ends) -> Holder | None:
    """Who does the link's work: whoever has its lock, or this machine's daemon, which takes it as soon as it can."""
    held = await progress.holder(ends.target_conn)
    if held is None and (pid := link.state.daemon_pid(link.key)) is not None:
        return Holder(pid, f"pglockstep run {link.config.name}")
    return held


async def _barrier_passed(link: Link, ends: Ends, record: LinkRecord) -> Lsn | None:
    """Set a barrier and wait until another process has applied it; None if that process is gone."""
    async with _barrier_set(link, ends, record) as barrier:
        return await _passed(link, ends, record, barrier)


@asynccontextmanager
async def _barrier_set(link: Link, ends: Ends, record: LinkRecord) -> AsyncIterator[Callable[[], Lsn | None]]:
    """Set a barrier; what tells where it is, once that is known. A daemon that polls is asked for a poll."""
    if not link.polls:
        place = await session.emit_barrier(ends.source_conn, ends.source, record.id)
        yield lambda: place
        return
    if link.state.daemon_pid(link.key) is None:
        # whoever it is can only be waited for
        yield lambda: None
        return
    requests = Requests(link.state)
    asked = MomentWanted(by=f"pid {os.getpid()}", at=datetime.now(UTC), only_passes=True)
    wanted = requests.ask_for_moment(link.key, asked)

    def reached() -> Lsn | None:
        found = requests.moment(wanted.id)
        if found is None or found.refused:
            raise Inconclusive(found.refused if found else "the daemon did not keep what it was asked for")
        return Lsn.parse(found.source) if found.source else None

    try:
        yield reached
    finally:
        requests.forget_moment(wanted.id)


async def _passed(
    link: Link, ends: Ends, record: LinkRecord, barrier: Callable[[], Lsn | None]
) -> Lsn | None:
    patience = link.config.silence_timeout
    last, deadline = record.progress, time.monotonic() + patience
    end = time.monotonic() + 10 * patience
    while True:
        _demand_none_open(link)
        place = barrier()
        with translate(ends.target):
            now = await progress.read(ends.target_conn)
            held = await _holder(link, ends)
        if place is not None and now is not None and now.progress is not None and now.progress >= place:
            return now.progress
        if held is None:
            return None
        polling = place is None and link.state.daemon_pid(link.key) is not None
        if polling or (now is not None and now.progress != last):
            last = None if now is None else now.progress
            deadline = time.monotonic() + patience
        if polling:
            # it takes as long as it takes to compare
            end = time.monotonic() + 10 * patience
        if time.monotonic() > end:
            raise Inconclusive(
                f"the target of link {link.config.name!r} did not catch up within {10 * patience:.0f} s",
                hint="pglockstep status shows how far; try again when it is level",
            )
        if time.monotonic() > deadline:
            who = f"{held.application or 'another session'} (pid {held.pid} on the target)"
            if link.polls and place is None:
                raise LinkHeld(
                    f"{who} holds link {link.config.name!r}, and cannot be asked for a poll from here",
                    hint="the same command beside the daemon, with its state directory; or when that one has ended",
                )
            raise LinkHeld(
                f"{who} holds link {link.config.name!r} but has not moved for {patience}",
                hint="pglockstep status says what it waits for",
            )
        await asyncio.sleep(0.02)
