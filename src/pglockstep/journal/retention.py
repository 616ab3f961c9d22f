"""What of a journal may go: nothing that anybody still needs, and of the rest what is too old or too much. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from pglockstep.units import Lsn


class Kept(msgspec.Struct, frozen=True):
    """A segment: up to where all that is in it reaches, its bytes, and when it was last written.

    `until` is None while a transaction that begins in it, or goes on in it, may go on in the newest segment.
    """

    number: int
    until: Lsn | None
    size: int
    written_at: datetime


def droppable(
    kept: Sequence[Kept], needed: Lsn, now: datetime, *, keep_size: int, keep_age: timedelta
) -> list[int]:
    """The numbers of the segments that go, oldest first. `kept`: all but the one being written, oldest first.

    `needed`: the LSN from which on somebody still needs what is in the journal; `keep_size` in bytes.
    """
    total = sum(each.size for each in kept)
    gone = []
    for each in kept:
        if (
            each.until is None
            or each.until > needed
            or (total <= keep_size and now - each.written_at <= keep_age)
        ):
            break
        gone.append(each.number)
        total -= each.size
    return gone
