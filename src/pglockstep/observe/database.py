"""A SQLite file of the state directory: its format, its locks, and how its failures are told.

A file of an older format is upgraded in place, in one transaction; one of a newer format is refused. Several processes may
read and write at once: whoever comes second waits. What is `synced` is on the disk when a transaction has ended, also if the
power goes; what is not survives a crash of ours, and costs no wait for the disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from pglockstep.errors import ConfigError

#: What leads from one format to the next: statements.
Format = Sequence[str]


class Database:
    """One file. `formats[n]` are the statements that lead from format n to the one after it."""

    def __init__(self, path: Path, formats: Sequence[Format], *, synced: bool) -> None:
        self._path = path
        self._formats = formats
        self._synced = synced

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """A connection for single statements."""
        with closing(self._connect()) as conn:
            yield conn

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: nobody else writes meanwhile, and either all of it is there afterwards or nothing."""
        with closing(self._connect()) as conn, _transaction(conn):
            yield conn

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Failures of the file inside are raised as `ConfigError`."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise self.unwritable(error) from error

    def unwritable(self, error: Exception) -> ConfigError:
        """What is to be told of a failure."""
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            away = f"mv {self._path} {self._path}.damaged"
            lost = (
                "what it knew of incidents is lost with it" if self._synced else "all of it is found out anew"
            )
            return ConfigError(f"{self._path} is damaged: {error}", hint=f"move it away, {lost}: {away}")
        return ConfigError(
            f"the state directory {self._path.parent} cannot be written: {error}",
            hint="see to its disk and its permissions, or name another one with --state-dir or state_dir",
        )

    def _connect(self) -> sqlite3.Connection:
        # what is synced waits for the disk while it has the lock
        conn = sqlite3.connect(self._path, timeout=30 if self._synced else 5, isolation_level=None)
        try:
            # a file that stays needs no room when the disk is full, and that has to be told
            conn.execute("PRAGMA journal_mode = PERSIST")
            conn.execute("PRAGMA synchronous = FULL")
            if self._format(conn) < len(self._formats):
                with _transaction(conn):
                    # another process may have been quicker
                    for number in range(self._format(conn), len(self._formats)):
                        for statement in self._formats[number]:
                            conn.execute(statement)
                        conn.execute(f"PRAGMA user_version = {number + 1}")
            if not self._synced:
                conn.execute("PRAGMA synchronous = OFF")
        except BaseException:
            conn.close()
            raise
        return conn

    def _format(self, conn: sqlite3.Connection) -> int:
        found = int(conn.execute("PRAGMA user_version").fetchone()[0])
        if found > len(self._formats):
            raise ConfigError(
                f"the state directory {self._path.parent} was written by a newer pglockstep",
                hint="use the newer version, or another --state-dir",
            )
        return found


@contextmanager
def _transaction(conn: sqlite3.Connection) -> Iterator[None]:
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
    conn.execute("COMMIT")
