"""What a person asked of a link, and what came of it: written down first, carried out by whoever has the link's lock.

What is asked is on the disk when the call returns, and stays until it was carried out or refused. Every failure of the file is
a `ConfigError`. A link is found by the fingerprint of its two ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Literal

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


class MomentWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who compares asks whoever applies for two snapshots that show one moment, and lets go of them afterwards.

    `source` and `target` are their names, once they are there; `refused` says why there are none. `only_passes`: a link that
    polls is only to poll, and `source` is up to where the target then comes.
    """

    by: str
    at: datetime
    id: str = ""
    source: str = ""
    target: str = ""
    refused: str = ""
    only_passes: bool = False
    kind: Literal["moment"] = "moment"


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
        return [_decoded(number, body) for number, body in rows if _kind(body) == "resync"]

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

    # --- snapshots: what is asked for is soon forgotten -----------------------------------------------------

    def ask_for_moment(self, key: str, wanted: MomentWanted) -> MomentWanted:
        """Write down that snapshots are wanted; it comes back with its id."""
        with self._writing() as conn:
            number = conn.execute(
                "INSERT INTO request (key, open, body) VALUES (?, 1, ?)", [key, msgspec.json.encode(wanted)]
            ).lastrowid
        return msgspec.structs.replace(wanted, id=str(number))

    def moments_wanted(self, key: str) -> list[MomentWanted]:
        """Those who want snapshots of a link, or have them, the oldest first."""
        with self._file.telling(), self._file.connected() as conn:
            rows = conn.execute(
                "SELECT id, body FROM request WHERE open AND key = ? ORDER BY id", [key]
            ).fetchall()
        return [_moment(number, body) for number, body in rows if _kind(body) == "moment"]

    def moment(self, id: str) -> MomentWanted | None:
        """What became of it; None once it is forgotten."""
        with self._file.telling(), self._file.connected() as conn:
            row = conn.execute("SELECT body FROM request WHERE id = ?", [int(id)]).fetchone()
        return None if row is None else _moment(int(id), row[0])

    def answer(self, wanted: MomentWanted) -> None:
        """Write down the names, or the refusal."""
        with self._writing() as conn:
            conn.execute(
                "UPDATE request SET body = ? WHERE id = ?", [msgspec.json.encode(wanted), int(wanted.id)]
            )

    def forget_moment(self, id: str) -> None:
        """Whoever asked is done with them."""
        with self._writing() as conn:
            conn.execute("DELETE FROM request WHERE id = ?", [int(id)])

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._file.telling(), self._file.writing() as conn:
            yield conn


class _Kind(msgspec.Struct, frozen=True):
    kind: str = "resync"


def _kind(body: bytes) -> str:
    return msgspec.json.decode(body, type=_Kind).kind


def _moment(number: int, body: bytes) -> MomentWanted:
    return msgspec.structs.replace(msgspec.json.decode(body, type=MomentWanted), id=str(number))


def _decoded(number: int, body: bytes) -> Resync:
    return msgspec.structs.replace(msgspec.json.decode(body, type=Resync), id=str(number))
