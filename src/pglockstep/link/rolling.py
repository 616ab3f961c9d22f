"""Verification that never ends: every `interval` a share of the tables is compared, at a low pace, while the stream goes on.

A table that differs is in doubt: whoever watches the target has it compared under the lock, and that is an incident of kind
`foreign_write`, healed or held as the configuration says. Where the target is not protected, it is only told.

A pass over all tables takes twenty turns, or as many as it takes to read no more than a bounded number of bytes in each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from pglockstep.compare.pace import Pace
from pglockstep.compare.pairing import Pairing, Server
from pglockstep.compare.readings import Reader
from pglockstep.compare.sessions import Sessions
from pglockstep.compare.table import Found, Matched, compare
from pglockstep.compare.verdict import Verdict
from pglockstep.errors import EndError, Inconclusive, LockstepError
from pglockstep.link.link import Link
from pglockstep.link.looking import following
from pglockstep.link.matching import taken
from pglockstep.link.outlet import Outlet
from pglockstep.link.session import emit_barrier
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import connect, ends, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress.target import LinkRecord

log = logging.getLogger(__name__)

#: A turn takes so large a share of the tables, and stops after so many bytes.
_SHARE: Final = 20
_BYTES: Final = 256 << 20
#: How much of the time a turn works.
_PACE: Final = 0.25
#: How long the target may take to pass a barrier, and how often it is looked, in seconds.
_PATIENCE: Final = 30.0
_LOOK_EVERY: Final = 0.02


class Pass:
    """Which tables were compared, when, and what came of it. Pure."""

    def __init__(self) -> None:
        self._known: dict[QualifiedName, tuple[datetime, Verdict]] = {}
        self._looked_at: dict[QualifiedName, datetime] = {}

    def turn(self, tables: Sequence[QualifiedName]) -> list[QualifiedName]:
        """Those of the tables whose turn it may be, the longest not compared first; what is gone is forgotten."""
        self._known = {name: self._known[name] for name in tables if name in self._known}
        self._looked_at = {name: self._looked_at[name] for name in tables if name in self._looked_at}
        never = datetime.min.replace(tzinfo=UTC)
        # those that differ, too: while nobody heals them they would take every turn
        return sorted(tables, key=lambda name: (self._looked_at.get(name, never), name))

    def note(self, name: QualifiedName, at: datetime, verdict: Verdict) -> None:
        """A table was compared; one that differs is not known until it is compared again."""
        self._looked_at[name] = at
        if verdict == "different":
            self._known.pop(name, None)
        else:
            self._known[name] = (at, verdict)

    def over_all(self, tables: Sequence[QualifiedName]) -> tuple[datetime, Verdict] | None:
        """Since when all of the tables are known to be the same, and whether they are; None while some are not known."""
        if not tables or any(name not in self._known for name in tables):
            return None
        found = [self._known[name] for name in tables]
        worst: Verdict = (
            "inconclusive" if any(verdict != "identical" for _, verdict in found) else "identical"
        )
        return min(at for at, _ in found), worst


class Inside:
    """One point for both ends, for the process that applies, while it does."""

    def __init__(self, link: Link, record: LinkRecord, outlet: Callable[[], Outlet | None]) -> None:
        self._link = link
        self._record = record
        self._outlet = outlet

    async def advance(self) -> None:
        """As `Moments` says."""
        source = ends(self._link.config)[0]
        conn = await connect(source, "compare")
        try:
            barrier = await emit_barrier(conn, source, self._record.id)
        finally:
            await conn.close()
        end = time.monotonic() + _PATIENCE
        while True:
            if self._applying().applied >= barrier:
                return
            if time.monotonic() > end:
                raise Inconclusive(f"the target did not catch up within {_PATIENCE:.0f} s")
            await asyncio.sleep(_LOOK_EVERY)

    @asynccontextmanager
    async def matched(self) -> AsyncIterator[Matched]:
        """As `Moments` says."""
        async with AsyncExitStack() as kept:
            yield await taken(self._link, self._record, self._applying(), kept)

    def _applying(self) -> Outlet:
        outlet = self._outlet()
        if outlet is None:
            raise Inconclusive("nothing is being applied at the moment")
        return outlet


async def verify(link: Link, record: LinkRecord, outlet: Callable[[], Outlet | None]) -> None:
    """Compare a share of the tables every `interval`, until cancelled."""
    if link.polls:
        # every poll is such a turn
        return
    known, said = Pass(), ""
    while True:
        await asyncio.sleep(link.config.interval)
        if outlet() is None or link.open_incidents():
            continue
        try:
            await _turn(link, known, Inside(link, record, outlet))
        except LockstepError as error:
            # an end that is away is told of by whoever works there; and what stays as it is need not be told every time
            passes = (isinstance(error, EndError) and error.transient) or str(error) == said
            level = logging.DEBUG if passes else logging.WARNING
            log.log(level, "tables were not verified: %s", error, extra=link.about("verify.failed"))
            said = str(error)


async def _turn(link: Link, known: Pass, moments: Inside) -> None:
    both = ends(link.config)
    async with Sessions(both, 1, Pace(_PACE)) as sessions:
        tables, servers = await _tables(link, sessions)
        waiting = known.turn(sorted(tables))
        left, read = -(-len(waiting) // _SHARE), 0
        for name in waiting:
            if left <= 0 or read >= _BYTES:
                break
            pairing = Pairing.of(*tables[name], servers)
            read += await _size(sessions, pairing)
            left -= 1
            found = None
            try:
                found = await compare(pairing, sessions, moments)
            except Inconclusive as error:
                log.info("table %s was not verified: %s", name, error, extra=link.about("verify.failed"))
            except LockstepError:
                # the others have their turns before it is tried again
                known.note(name, datetime.now(UTC), "inconclusive")
                raise
            known.note(name, datetime.now(UTC), _verdict(found))
            if found is not None and found.differs:
                _doubt(link, name, found)
        if (result := known.over_all(sorted(tables))) is not None:
            link.standing.verified(*result)


def _verdict(found: Found | None) -> Verdict:
    if found is None:
        return "inconclusive"
    return "different" if found.differs else "inconclusive" if found.reason else "identical"


def _doubt(link: Link, name: QualifiedName, found: Found) -> None:
    said = f"{found.missing} rows of {name} are missing on the target, {found.extra} extra, {found.changed} changed"
    if link.rules.of(name).protect_target == "off":
        log.warning("%s; the target is not protected", said, extra=link.about("verify.differs"))
        return
    log.error("%s", said, extra=link.about("verify.differs"))
    link.memory.doubts[name] = said


async def _tables(
    link: Link, sessions: Sessions
) -> tuple[Mapping[QualifiedName, tuple[Table, Table]], list[Server]]:
    """The tables that follow, as both ends have them; and what either server is."""
    async with sessions.pair() as (source, target):
        with translate(source.end):
            there = {each.name: each for each in await catalog.tables(source.conn)}
        with translate(target.end):
            here = {each.name: each for each in await catalog.tables(target.conn)}
            names = await following(link, target.conn)
        return (
            {name: (there[name], here[name]) for name in names if name in there and name in here},
            [Server.of(source.conn), Server.of(target.conn)],
        )


async def _size(sessions: Sessions, pairing: Pairing) -> int:
    async with sessions.pair() as (source, _):
        return (await Reader(source, pairing).size()).bytes
