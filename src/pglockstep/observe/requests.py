"""What a person asked of a link, and what came of it: written down first, carried out by whoever has the link's lock.

What is asked is on the disk when the call returns, and stays until it was carried out or refused. Every failure of the file is
a `ConfigError`. A link is found by the fingerprint of its two ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import msgspec

from pglockstep.observe.state import StateDirectory
from pglockstep.postgres.names import QualifiedName


class Resync(msgspec.Struct, frozen=True, kw_only=True):
    """Tables that are to be what they are on the source, and to follow again; `by` whom it was asked, at `at`.

    `rows`: so many rows of the target's may be gone or changed by it, all tables together. `outcome`: what came of it, None
    until then; `refused` if it was not carried out.
    """

    tables: tuple[QualifiedName, ...]
    rows: int
    by: str
    at: datetime
    id: str = ""
    outcome: str | None = None
    refused: bool = False


class Requests:
    """The requests of one state directory."""

    def __init__(self, state: StateDirectory) -> None:
        self._file = state.lasting

    def ask(self, key: str, request: Resync) -> Resync:
        """Write a request down; it comes back with its id."""
        with self._writing() as conn:
            number = conn.execute(
                "INSERT INTO request (key, open, body) VALUES (?, 1, ?)", [key, msgspec.json.encode(request)]
            ).lastrowid
        return msgspec.structs.replace(request, id=str(number))

    def waiting(self, key: str) -> list[Resync]:
        """What was asked of a link and has not been settled, the oldest first."""
        with self._file.telling(), self._file.connected() as conn:
            rows = conn.execute(
                "SELECT id, body FROM request WHERE open AND key = ? ORDER BY id", [key]
            ).fetchall()
        return [_decoded(number, body) for number, body in rows]

    def get(self, id: str) -> Resync:
        """The request of that id, as `ask` returned it."""
        with self._file.telling(), self._file.connected() as conn:
            (body,) = conn.execute("SELECT body FROM request WHERE id = ?", [int(id)]).fetchone()
        return _decoded(int(id), body)

    def settle(self, id: str, outcome: str, *, refused: bool = False) -> Resync:
        """Say what came of a request."""
        with self._writing() as conn:
            (body,) = conn.execute("SELECT body FROM request WHERE id = ?", [int(id)]).fetchone()
            settled = msgspec.structs.replace(_decoded(int(id), body), outcome=outcome, refused=refused)
            conn.execute(
                "UPDATE request SET open = 0, body = ? WHERE id = ?", [msgspec.json.encode(settled), int(id)]
            )
        return settled

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._file.telling(), self._file.writing() as conn:
            yield conn


def _decoded(number: int, body: bytes) -> Resync:
    return msgspec.structs.replace(msgspec.json.decode(body, type=Resync), id=str(number))
