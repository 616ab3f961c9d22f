"""Bringing a link level once, and telling whether it is: by ourselves, or beside whoever holds the link.

Beside a holder nothing is streamed: a barrier is written into the source's WAL, and once the target's progress
has passed it, the ends are compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from pglockstep.compare.pace import UNHURRIED, Pace
from pglockstep.copy.ends import Ends
from pglockstep.errors import EndError, IncidentOpen, Inconclusive, LinkHeld
from pglockstep.link import decisions, healing, identities, pinning, remembering, session, takeover
from pglockstep.link.attempts import worth_another_try
from pglockstep.link.drops import Drops
from pglockstep.link.link import Link
from pglockstep.link.matching import Alone, Beside
from pglockstep.link.outlet import Outlet
from pglockstep.link.pipeline import Pipeline
from pglockstep.link.verify import LinkCheck, Scope, verify
from pglockstep.observe.incident import needs_decision
from pglockstep.postgres.connect import translate
from pglockstep.progress import generation
from pglockstep.progress import target as progress
from pglockstep.progress.target import Holder, LinkRecord
from pglockstep.units import LAST_LSN, Lsn


class OnceResult(msgspec.Struct, frozen=True):
    """What ``once`` did, and how the ends stand now."""

    check: LinkCheck
    copied_rows: int
    applied_transactions: int
    applied_changes: int
    lsn: Lsn


async def once(link: Link) -> OnceResult:
    """Bring the target level with the source as of now, and prove it."""
    await pinning.look_again(link)
    decisions.demand_decided(link)
    async with healing.opened_ends(link, "once") as ends:
        while link.state.daemon_pid(link.key) or not await session.take_lock(
            ends.target_conn, ends.target, patience=0
        ):
            if (lsn := await _holder_passed_barrier(link, ends)) is not None:
                return OnceResult(await _verify_beside(link, ends), 0, 0, 0, lsn)
        await takeover.settle(link, ends)
        await healing.stand_again(link, ends.target_conn, ends.target)
        record, copied_rows = await link.ready(ends)
        await pinning.pin_first(link, ends, anew=bool(copied_rows))
        await decisions.settle(link, ends.target_conn, ends.target)
        await identities.settle(link)
        transactions = changes = 0
        lsn = Lsn(0)

        drops = await Drops.of(link, ends.target_conn, ends.target, record)

        async def advance() -> None:
            nonlocal transactions, changes, lsn
            await drops.adopt(ends.target_conn, ends.target)
            with translate(ends.source):
                await drops.look(ends.source_conn)
            barrier = await session.emit_barrier(ends.source_conn, ends.source, record.id)
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
            transactions += pipeline.outlet.applier.transactions
            changes += pipeline.outlet.applier.changes.total()
            lsn = pipeline.outlet.applied
            try:
                await drops.settle(ends.target_conn, ends.target, lsn)
            except IncidentOpen:
                await decisions.settle(link, ends.target_conn, ends.target)

        async def applying(work: Callable[[Outlet], Awaitable[None]]) -> None:
            async with link.applying(ends) as pipeline:
                running = asyncio.create_task(pipeline.run(until=LAST_LSN), name="apply")
                try:
                    await work(pipeline.outlet)
                finally:
                    pipeline.outlet.end_at(
                        await session.emit_barrier(ends.source_conn, ends.source, record.id)
                    )
                    await running

        await advance()
        moments = Alone(link, record, advance, applying)
        check = await verify(link.config.name, ends, link.selection, moments, Scope(jobs=link.config.jobs))
        link.standing.remember(check)
        link.gate.save()
        with translate(ends.target):
            await remembering.remember(link, ends.target_conn)
        return OnceResult(check, copied_rows, transactions, changes, lsn)


async def check(link: Link, pace: Pace = UNHURRIED) -> LinkCheck:
    """How the ends stand: beside a live holder at a barrier, else as they are. Changes nothing.

    Raises `IncidentOpen` while there is one: how the ends differ then is what is to be decided.
    """
    await pinning.look_again(link)
    _demand_none_open(link)
    async with pinning.opened(link, "check") as ends:
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        await _demand_known(link, ends, record)
        try:
            if await _holder_passed_barrier(link, ends) is not None:
                return await _verify_beside(link, ends, pace)
        except LinkHeld as error:
            raise Inconclusive(error.message, hint=error.hint) from error
        with translate(ends.target):
            record = await progress.read(ends.target_conn)
        found = await verify(
            link.config.name, ends, link.selection, None, Scope(jobs=link.config.jobs, pace=pace)
        )
        link.standing.remember(found)
        return found


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


async def _verify_beside(link: Link, ends: Ends, pace: Pace = UNHURRIED) -> LinkCheck:
    with translate(ends.target):
        record = await progress.demand(ends.target_conn)

    async def advance() -> None:
        if await _barrier_passed(link, ends, record) is None:
            raise Inconclusive(
                f"whoever held link {link.config.name!r} ended while the ends were compared",
                hint="the same command again compares them as they are now",
            )

    scope = Scope(jobs=link.config.jobs, pace=pace)
    found = await verify(link.config.name, ends, link.selection, Beside(link, advance), scope)
    link.standing.remember(found)
    return found


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
    barrier = await session.emit_barrier(ends.source_conn, ends.source, record.id)
    patience = link.config.silence_timeout
    last, deadline = record.progress, time.monotonic() + patience
    end = time.monotonic() + 10 * patience
    while True:
        _demand_none_open(link)
        with translate(ends.target):
            now = await progress.read(ends.target_conn)
            held = await _holder(link, ends)
        if now is not None and now.progress is not None and now.progress >= barrier:
            return now.progress
        if held is None:
            return None
        if now is not None and now.progress != last:
            last, deadline = now.progress, time.monotonic() + patience
        if time.monotonic() > end:
            raise Inconclusive(
                f"the target of link {link.config.name!r} did not catch up within {10 * patience:.0f} s",
                hint="pglockstep status shows how far; try again when it is level",
            )
        if time.monotonic() > deadline:
            raise LinkHeld(
                f"{held.application or 'another session'} (pid {held.pid} on the target) holds link "
                f"{link.config.name!r} but has not moved for {patience}",
                hint="pglockstep status says what it waits for",
            )
        await asyncio.sleep(0.02)
