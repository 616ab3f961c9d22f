"""How a link stands, and writing that down for ``status``. A state directory that cannot be written stops nothing."""

from __future__ import annotations

import logging
import sqlite3
import time
from datetime import UTC, datetime

from pglockstep.compare.verdict import Verdict
from pglockstep.copy.tally import CopyProgress
from pglockstep.errors import ConfigError
from pglockstep.journal.journal import Journal
from pglockstep.link.outlet import BEHIND_AFTER, Outlet
from pglockstep.link.states import Event, State, after
from pglockstep.link.verify import LinkCheck
from pglockstep.observe.state import LinkStatus, StateDirectory

log = logging.getLogger(__name__)


class Standing:
    """The state of one link in this process, and what the state directory knows of it under `key`."""

    def __init__(self, name: str, key: str, state: StateDirectory) -> None:
        self._name = name
        self._key = key
        self._directory = state
        self._status = state.load(key) or LinkStatus()
        self._noted_changes = 0
        self._noted_at = time.monotonic()
        self.now = State.NEW

    @property
    def applied(self) -> str | None:
        """The LSN up to which the target was complete when last noted."""
        return self._status.applied_lsn

    @property
    def link_id(self) -> str:
        """The link's id, as last heard of; empty if never."""
        return self._status.link_id

    def move(self, event: Event, reason: str = "") -> None:
        """Something happened to the link; `reason` tells a person why, where it needs telling."""
        self.now = after(self.now, event)
        self._status.reason = reason
        self._save()

    def belongs_to(self, link_id: str) -> None:
        """The link's id, which names its slot: remembered here too, should the target be lost."""
        self._status.link_id = link_id
        self._save()

    def note_copy(self, how_far: CopyProgress) -> None:
        """Write down how far a first copy is, at most every second."""
        now = time.monotonic()
        if self.now is State.COPYING and now - self._noted_at >= 1.0:
            self._noted_at = now
            self._status.reason = f"copying {how_far.phase}: {how_far.share:.0%} of the rows are there"
            self._save()

    def note(self, journal: Journal, outlet: Outlet | None) -> None:
        """Write down how far the halves of a running link are; without an `outlet` the target is away."""
        status, now = self._status, time.monotonic()
        status.received_lsn = str(journal.position)
        if outlet is None:
            if status.level_at is not None:
                age = (datetime.now(UTC) - status.level_at).total_seconds()
                status.lag_seconds = round(max(0.0, age), 3)
            status.rows_per_second = 0.0
            self._save()
            return
        if not outlet.lag_seconds:
            status.level_at = datetime.now(UTC)
        self.now = after(self.now, Event.FELL_BEHIND if outlet.lag_seconds > BEHIND_AFTER else Event.LEVELLED)
        applier = outlet.applier
        changes = applier.changes.total()
        if changes >= self._noted_changes and now > self._noted_at:
            status.rows_per_second = round((changes - self._noted_changes) / (now - self._noted_at), 1)
        self._noted_changes, self._noted_at = changes, now
        status.applied_lsn = str(applier.progress)
        status.lag_seconds = round(outlet.lag_seconds, 3)
        status.last_applied_at = applier.last_applied_at or status.last_applied_at
        self._save()

    def remember(self, check: LinkCheck) -> None:
        """Keep a verdict; what a daemon beside us writes about itself stays its own."""
        try:
            status = self._directory.load(self._key) or self._status
            status.verified_at, status.verdict = check.checked_at, check.verdict
            status.tables = len(check.tables)
            status.rows = sum(each.target_rows or 0 for each in check.tables)
            self._directory.save(self._key, self._name, status)
        except (OSError, sqlite3.Error, ConfigError) as error:
            self._complain(error)

    def verified(self, since: datetime, verdict: Verdict) -> None:
        """Every table was compared since then, one after the other; a verdict that is newer stays."""
        try:
            status = self._directory.load(self._key) or self._status
            if status.verified_at is None or status.verified_at < since:
                status.verified_at, status.verdict = since, verdict
                self._directory.save(self._key, self._name, status)
        except (OSError, sqlite3.Error, ConfigError) as error:
            self._complain(error)

    def _save(self) -> None:
        try:
            known = self._directory.load(self._key)
            if known is not None:
                self._status.verified_at, self._status.verdict = known.verified_at, known.verdict
                self._status.tables, self._status.rows = known.tables, known.rows
            self._status.state = str(self.now)
            self._directory.save(self._key, self._name, self._status)
        except (OSError, sqlite3.Error, ConfigError) as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        log.warning(
            "the state directory cannot be written: %s",
            error,
            extra={"action": "state.failed", "link": self._name},
        )
