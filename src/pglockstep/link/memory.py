"""What is known of a link's target from when it stood well: it may lose anything, and then only we know what it was.

Kept in the state directory, so that what happened while nobody looked is seen too. `turn` is for whoever looks at the target or
changes it beside the stream: our own heal must not be taken for somebody else's doing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from contextlib import suppress

import msgspec

from pglockstep.errors import ConfigError
from pglockstep.guard.heal import Remembered
from pglockstep.guard.reading import Reading
from pglockstep.observe.state import StateDirectory
from pglockstep.postgres.names import QualifiedName

log = logging.getLogger(__name__)

#: How often it is written down that estimates have changed, in seconds.
_WRITE_EVERY = 60.0


class Known(msgspec.Struct, frozen=True):
    """A target as it stood. `apart`: tables that do not follow the source, as (schema, name, incident)."""

    remembered: Remembered
    reading: Reading
    apart: tuple[tuple[str, str, str], ...] = ()


class TargetMemory:
    """What is known of the target of the link `key`."""

    def __init__(self, state: StateDirectory, key: str) -> None:
        self._state = state
        self._key = key
        self._known: Known | None = None
        self._loaded = False
        self._written = b""
        self._written_at = 0.0
        self.turn = asyncio.Lock()
        #: tables in which a change of the source's did not find its row, and how that was told; until they are compared
        self.doubts: dict[QualifiedName, str] = {}
        #: heals that were refused in a row
        self.failures = 0

    def known(self) -> Known | None:
        """What is known; None if this target never stood, as far as this directory knows. Raises `ConfigError`."""
        if not self._loaded:
            body = self._state.remembered_target(self._key)
            if body is not None:
                # what another version wrote is found out anew
                with suppress(msgspec.MsgspecError):
                    self._known = msgspec.json.decode(body, type=Known)
            self._loaded = True
        return self._known

    @property
    def is_due(self) -> bool:
        """Whether it is time to read everything anew."""
        return self._known is None or time.monotonic() - self._written_at >= _WRITE_EVERY

    def keep(self, known: Known) -> None:
        """Know this from now on, and write it down. Where that cannot be done it is said, and tried again later."""
        self._known, self._loaded, self._written_at = known, True, time.monotonic()
        body = msgspec.json.encode(known)
        if body == self._written:
            return
        try:
            self._state.remember_target(self._key, body)
        except ConfigError as error:
            log.warning(
                "what the target is was not written down: %s", error, extra={"action": "memory.failed"}
            )
        else:
            self._written = body

    def advance(self, reading: Reading) -> None:
        """The target was read again, and nothing is wrong; written down at once only if more than estimates has changed."""
        known = self.known()
        if known is None:
            return
        now = msgspec.structs.replace(known, reading=_with_what_is_missing(known.reading, reading))
        if _bare(now.reading) != _bare(known.reading):
            self.keep(now)
        else:
            self._known = now

    def unwatched(self) -> None:
        """The watch is about to be put on anew: that triggers go is our own doing."""
        known = self.known()
        if known is not None:
            tables = tuple(msgspec.structs.replace(each, triggers=0) for each in known.reading.tables)
            reading = msgspec.structs.replace(known.reading, tables=tables, event_triggers=0)
            self.keep(msgspec.structs.replace(known, reading=reading))


def after_heal(before: Reading, now: Reading, touched: Collection[QualifiedName]) -> Reading:
    """What stands after a heal that `touched` these tables: of the others it is still known only how they stood before. Pure."""
    known = {each.table: each for each in before.tables}
    tables = tuple(
        each if each.table in touched or each.table not in known else known[each.table] for each in now.tables
    )
    return _with_what_is_missing(before, msgspec.structs.replace(now, tables=tables))


def named_after_heal(
    before: Collection[tuple[str, str, int]],
    now: Collection[tuple[str, str, int]],
    touched: Collection[QualifiedName],
) -> tuple[tuple[str, str, int], ...]:
    """Tables by schema, name and OID after a heal: one that it did not touch, and that is still there, keeps its name. Pure."""
    there = {oid for _, _, oid in now}
    kept = {
        QualifiedName(schema, name): oid
        for schema, name, oid in before
        if oid in there and QualifiedName(schema, name) not in touched
    }
    others = {QualifiedName(schema, name): oid for schema, name, oid in now if oid not in kept.values()}
    return tuple(sorted((*name, oid) for name, oid in (others | kept).items()))


def _with_what_is_missing(before: Reading, now: Reading) -> Reading:
    """A table that is not there is still known as it was: that it is missing must not become what is right. Pure."""
    known = {each.table: each for each in before.tables}
    tables = tuple(
        known[each.table] if each.oid is None and each.table in known else each for each in now.tables
    )
    return msgspec.structs.replace(now, tables=tables)


def _bare(reading: Reading) -> Reading:
    """Without what changes all the time. Pure."""
    tables = tuple(msgspec.structs.replace(each, rows=0, fresh=False) for each in reading.tables)
    return msgspec.structs.replace(reading, tables=tables, floors=())
