"""The state directory: who works on a link on this machine, and how each link stood when last heard of.

Nothing here decides what is applied: that is the target's own progress. If this directory is lost, nothing
else is. Its SQLite files are safe to read while a daemon writes them.

How links stand, and how many rows their tables hold, is written every second and never synced: a power cut may cost the whole
file, and all of it is found out anew. What must outlast that (:mod:`pglockstep.observe.incidents`) is in a file of its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pglockstep.observe.database import Database, Format
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn

#: Losing the last second of it is harmless.
_STANDING: tuple[Format, ...] = (
    ("CREATE TABLE IF NOT EXISTS link (key TEXT PRIMARY KEY, name TEXT NOT NULL, status BLOB NOT NULL)",),
    ("CREATE TABLE table_rows (key TEXT PRIMARY KEY, lsn TEXT NOT NULL, tables BLOB NOT NULL)",),
)
#: A number is never given twice.
_LASTING: tuple[Format, ...] = (
    (
        """CREATE TABLE incident (
            id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, open INTEGER NOT NULL, body BLOB NOT NULL
        )""",
        "CREATE INDEX incident_open ON incident (id) WHERE open",
        "CREATE TABLE allowance (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, body BLOB NOT NULL)",
    ),
    # what has to be known of a target, which may lose anything
    ("CREATE TABLE target (key TEXT PRIMARY KEY, body BLOB NOT NULL)",),
    # who a link's ends were when all was well
    ("CREATE TABLE pinned (key TEXT PRIMARY KEY, body BLOB NOT NULL)",),
    # what a person asked for
    (
        """CREATE TABLE request (
            id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, open INTEGER NOT NULL, body BLOB NOT NULL
        )""",
    ),
)


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


class TableRows(msgspec.Struct, frozen=True):
    """How many `rows` a table held, None where that was never known; `exact`: it does so as of that LSN, too.

    `filled_since`: since when it has held any, in microseconds since 2000-01-01 UTC, by the source's clock; None if it holds
    none. `lost`: how many were lost within the last window, as of `lost_at`. `passed`: from when on how many came, and how many
    went. `lsn`: where the count is of a later LSN than the others'.
    """

    rows: int | None
    filled_since: int | None = None
    lost: int = 0
    lsn: int | None = None
    lost_at: int | None = None
    passed: tuple[tuple[int, int, int], ...] = ()
    exact: bool = True


class StateDirectory:
    """What one machine remembers of its links. A link is found by `key`, a fingerprint of its two ends.

    `lasting` is the file of what may not be lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._standing = Database(path / "state.sqlite", _STANDING, synced=False)
        self.lasting = Database(path / "incidents.sqlite", _LASTING, synced=True)

    @property
    def path(self) -> Path:
        """The directory itself."""
        return self._path

    def create(self) -> None:
        """Make the directory if need be; raises `ConfigError` where that, or writing, is not allowed."""
        with self._standing.telling():
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for each in (self._standing, self.lasting):
                with each.telling(), each.connected():
                    pass

    def save(self, key: str, name: str, status: LinkStatus) -> None:
        """Remember how a link stands now."""
        status.updated_at = datetime.now(UTC)
        with self._standing.connected() as conn:
            conn.execute(
                "INSERT INTO link (key, name, status) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET name = excluded.name, status = excluded.status",
                [key, name, msgspec.json.encode(status)],
            )

    def load(self, key: str) -> LinkStatus | None:
        """How the link stood when it was last heard of; None if it never was."""
        with suppress(sqlite3.Error, msgspec.MsgspecError), self._standing.connected() as conn:
            row = conn.execute("SELECT status FROM link WHERE key = ?", [key]).fetchone()
            return None if row is None else msgspec.json.decode(row[0], type=LinkStatus)
        return None

    def save_rows(self, key: str, lsn: Lsn, tables: Mapping[QualifiedName, TableRows]) -> None:
        """Remember how many rows the link's tables held as of `lsn`, and of no other table."""
        listed = [(*name, rows) for name, rows in sorted(tables.items())]
        with self._standing.connected() as conn:
            conn.execute(
                "INSERT INTO table_rows (key, lsn, tables) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET lsn = excluded.lsn, tables = excluded.tables",
                [key, str(lsn), msgspec.json.encode(listed)],
            )

    def load_rows(self, key: str) -> tuple[Lsn, dict[QualifiedName, TableRows]] | None:
        """How many rows the link's tables held, and as of which LSN; None if that is not known."""
        with suppress(sqlite3.Error, msgspec.MsgspecError, ValueError), self._standing.connected() as conn:
            row = conn.execute("SELECT lsn, tables FROM table_rows WHERE key = ?", [key]).fetchone()
            if row is not None:
                listed = msgspec.json.decode(row[1], type=list[tuple[str, str, TableRows]])
                return Lsn.parse(row[0]), {QualifiedName(schema, name): rows for schema, name, rows in listed}
        return None

    def remember_target(self, key: str, body: bytes) -> None:
        """Remember what a link's target is, so that it is on the disk when the call returns. Raises `ConfigError`."""
        with self.lasting.telling(), self.lasting.writing() as conn:
            conn.execute(
                "INSERT INTO target (key, body) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET body = excluded.body",
                [key, body],
            )

    def remembered_target(self, key: str) -> bytes | None:
        """What was remembered of a link's target; None if nothing was. Raises `ConfigError`."""
        with self.lasting.telling(), self.lasting.connected() as conn:
            row = conn.execute("SELECT body FROM target WHERE key = ?", [key]).fetchone()
        return None if row is None else bytes(row[0])

    def pin(self, key: str, body: bytes) -> None:
        """Remember who a link's ends are, so that it is on the disk when the call returns. Raises `ConfigError`."""
        with self.lasting.telling(), self.lasting.writing() as conn:
            conn.execute(
                "INSERT INTO pinned (key, body) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET body = excluded.body",
                [key, body],
            )

    def pinned(self, key: str) -> bytes | None:
        """Who a link's ends were; None if that was never remembered. Raises `ConfigError`."""
        with self.lasting.telling(), self.lasting.connected() as conn:
            row = conn.execute("SELECT body FROM pinned WHERE key = ?", [key]).fetchone()
        return None if row is None else bytes(row[0])

    def forget(self, key: str) -> None:
        """Remove what is remembered of a link, its incidents too."""
        with self._standing.telling(), self._standing.writing() as conn:
            conn.execute("DELETE FROM link WHERE key = ?", [key])
            conn.execute("DELETE FROM table_rows WHERE key = ?", [key])
        with self.lasting.telling(), self.lasting.writing() as conn:
            conn.execute("DELETE FROM incident WHERE key = ?", [key])
            conn.execute("DELETE FROM allowance WHERE key = ?", [key])
            conn.execute("DELETE FROM target WHERE key = ?", [key])
            conn.execute("DELETE FROM pinned WHERE key = ?", [key])

    def journal(self, link_id: str) -> Path:
        """Where the journal of a link is kept."""
        return self._path / "journal" / link_id

    @property
    def undo(self) -> Path:
        """Where it is kept how to take repairs back."""
        return self._path / "undo"

    def drop_journal(self, link_id: str) -> None:
        """Remove a link's journal: the link is no more."""
        shutil.rmtree(self.journal(link_id), ignore_errors=True)

    def claim(self, key: str) -> Claim | None:
        """Claim a link's daemon on this machine; None if another living process has it. Raises `ConfigError`."""
        try:
            return self._claimed(key)
        except OSError as error:
            raise self._standing.unwritable(error) from error

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
