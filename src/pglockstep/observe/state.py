"""The state directory: who works on a link on this machine, and how each link stood when last heard of.

Nothing here decides what is applied: that is the target's own progress. If this directory is lost, nothing
else is. One SQLite file, safe to read while a daemon writes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pglockstep.errors import ConfigError

_FORMAT = 1


class LinkStatus(msgspec.Struct, kw_only=True):
    """How a link stood at `updated_at`. LSNs as text, times in UTC, lag in seconds."""

    link_id: str = ""
    state: str = "new"
    reason: str = ""
    received_lsn: str | None = None
    applied_lsn: str | None = None
    lag_seconds: float | None = None
    last_applied_at: datetime | None = None
    #: when the target last had everything that had been received
    level_at: datetime | None = None
    rows_per_second: float = 0.0
    tables: int | None = None
    rows: int | None = None
    verified_at: datetime | None = None
    verdict: str | None = None
    updated_at: datetime | None = None


class StateDirectory:
    """What one machine remembers of its links. A link is found by `key`, a fingerprint of its two ends."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """The directory itself."""
        return self._path

    def create(self) -> None:
        """Make the directory if need be; raises `ConfigError` where that, or writing, is not allowed."""
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connect().close()
        except (OSError, sqlite3.Error) as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"the state directory {self._path} cannot be written: {error}",
            hint="see to its disk and its permissions, or name another one with --state-dir or state_dir",
        )

    def _connect(self) -> sqlite3.Connection:
        conn = sqlite3.connect(self._path / "state.sqlite", timeout=5, isolation_level=None)
        # a file that stays needs no room when the disk is full, and that has to be told
        conn.execute("PRAGMA journal_mode = PERSIST")
        found = conn.execute("PRAGMA user_version").fetchone()[0]
        if found > _FORMAT:
            conn.close()
            raise ConfigError(
                f"the state directory {self._path} was written by a newer pglockstep",
                hint="use the newer version, or another --state-dir",
            )
        if found == 0:
            conn.execute(
                "CREATE TABLE IF NOT EXISTS link (key TEXT PRIMARY KEY, name TEXT NOT NULL, status BLOB NOT NULL)"
            )
            conn.execute(f"PRAGMA user_version = {_FORMAT}")
        # losing the last second of it is harmless
        conn.execute("PRAGMA synchronous = OFF")
        return conn

    def save(self, key: str, name: str, status: LinkStatus) -> None:
        """Remember how a link stands now."""
        status.updated_at = datetime.now(UTC)
        with closing(self._connect()) as conn:
            conn.execute(
                "INSERT INTO link (key, name, status) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET name = excluded.name, status = excluded.status",
                [key, name, msgspec.json.encode(status)],
            )

    def load(self, key: str) -> LinkStatus | None:
        """How the link stood when it was last heard of; None if it never was."""
        with suppress(sqlite3.Error, msgspec.MsgspecError), closing(self._connect()) as conn:
            row = conn.execute("SELECT status FROM link WHERE key = ?", [key]).fetchone()
            return None if row is None else msgspec.json.decode(row[0], type=LinkStatus)
        return None

    def forget(self, key: str) -> None:
        """Remove what is remembered of a link."""
        with closing(self._connect()) as conn:
            conn.execute("DELETE FROM link WHERE key = ?", [key])

    def journal(self, link_id: str) -> Path:
        """Where the journal of a link is kept."""
        return self._path / "journal" / link_id

    def drop_journal(self, link_id: str) -> None:
        """Remove a link's journal: the link is no more."""
        shutil.rmtree(self.journal(link_id), ignore_errors=True)

    def claim(self, key: str) -> Claim | None:
        """Claim a link's daemon on this machine; None if another living process has it. Raises `ConfigError`."""
        try:
            return self._claimed(key)
        except OSError as error:
            raise self._unwritable(error) from error

    def _claimed(self, key: str) -> Claim | None:
        descriptor = os.open(self._path / f"{key}.daemon", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for attempt in range(5):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # `daemon_pid` holds it for an instant
                if attempt == 4:
                    os.close(descriptor)
                    return None
                time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return Claim(descriptor)

    def daemon_pid(self, key: str) -> int | None:
        """The process that runs this link's daemon on this machine; None if none lives."""
        try:
            descriptor = os.open(self._path / f"{key}.daemon", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 32).strip()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(descriptor)
        return None


class Claim:
    """A claim on a link's daemon; it ends with the process at the latest."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the claim up."""
        os.close(self._descriptor)
