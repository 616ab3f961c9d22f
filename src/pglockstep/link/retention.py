"""The WAL that a source keeps for a link, against what it is willing to keep: said before it is too late.

A slot that falls further behind than ``max_slot_wal_keep_size`` is dropped by its server, and the link has to be copied
anew. Whether and what to say is pure; `watch` asks the source for as long as the daemon lives, also while the target
is away: that is when WAL piles up. It stops nothing and changes nothing; but while the target is away, and the journal has
what the source could forget, it sees to it that the source can.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.errors import LockstepError
from pglockstep.journal.journal import Journal
from pglockstep.postgres import slots
from pglockstep.postgres.connect import End, answered, connect, ends, translate, translated
from pglockstep.postgres.slots import Slot
from pglockstep.progress.slots import LEVELS, near_limit
from pglockstep.progress.target import slot_name

if TYPE_CHECKING:
    from pglockstep.link.link import Link

log = logging.getLogger(__name__)

#: A level is left only this many percent below it: around a threshold nothing is said twice.
_SLACK = 5
#: Shares of the journal's file system in use at which a person is told, in percent.
_FULL = (90, 97)
#: How often the source is asked, in seconds, and how often it is helped to let WAL go, which it keeps for two such times.
_ASK_EVERY = 3.0
_HELP_EVERY = 6.0


def level(before: int, percent: int | None, levels: Sequence[int] = LEVELS) -> int:
    """The level that stands now, of `levels` or 0, after the one that stood before. Pure."""
    reached = max((each for each in levels if percent is not None and percent >= each), default=0)
    if percent is not None and reached < before and percent > before - _SLACK:
        return before
    return reached


async def watch(link: Link, target_is_away: Callable[[], bool]) -> None:
    """Warn once whenever the WAL kept for a link reaches a level, until cancelled. A source that is away is no matter."""
    if link.polls:
        return
    stands = 0
    helped_at = 0.0
    source, _ = ends(link.config)
    while True:
        try:
            conn = await connect(source, "retention")
            try:
                while True:
                    if link_id := link.standing.link_id:
                        with answered(source, conn), translate(source):
                            slot = await slots.read(conn, slot_name(link_id))
                        before, stands = stands, 0 if slot is None else level(stands, slot.share)
                        for found in near_limit(slot) if slot is not None and stands > before else ():
                            log.warning(
                                "%s; %s", found.message, found.hint, extra=link.about("slot.retained")
                            )
                        if (
                            slot is not None
                            and target_is_away()
                            and time.monotonic() - helped_at >= _HELP_EVERY
                        ):
                            helped_at = time.monotonic()
                            await _help(link, source, conn, slot)
                    await asyncio.sleep(_ASK_EVERY)
            finally:
                await conn.close()
        except LockstepError as error:
            log.debug("the slot was not read: %s", error, extra=link.about("slot.failed"))
            await asyncio.sleep(_ASK_EVERY)


async def _help(link: Link, source: End, conn: AsyncConnection[TupleRow], slot: Slot) -> None:
    """See to it that the source can let go of what is confirmed; where it cannot be helped, it takes longer by itself."""
    try:
        with answered(source, conn):
            await slots.note_transactions(conn, f"{slot.name}_note")
    except psycopg.Error as error:
        if conn.broken:
            raise translated(source, error) from error
        log.debug("the source was not helped: %s", error, extra=link.about("slot.help"))


async def watch_room(link: Link, journal: Journal) -> None:
    """Warn once whenever the file system of the journal reaches a level, until cancelled."""
    stands = 0
    while True:
        percent = journal.usage
        before, stands = stands, level(stands, percent, _FULL)
        if stands > before:
            log.warning(
                "the disk of the journal (%s) is %d %% full: when no room is left, receiving waits and the source keeps its WAL",
                journal.folder,
                percent,
                extra=link.about("journal.room"),
            )
        await asyncio.sleep(_ASK_EVERY)
