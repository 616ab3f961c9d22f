"""Whether the database that answers is the one that is known, and if not, in what it is another. Pure.

An address proves nothing: behind it may be a new empty volume, an older copy, a server that was set up anew, a standby that
was promoted, or the other end. None of that is a truth to copy.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pglockstep.errors import Side
from pglockstep.postgres.identity import Identity
from pglockstep.units import Lsn

#: promoted: a standby has taken over; older: an older copy of itself; recreated: another database on the same server;
#: empty: another server with no tables; another: another server; swapped: the other end.
How = Literal["promoted", "older", "recreated", "empty", "another", "swapped"]


class Changed(msgspec.Struct, frozen=True):
    """In what an end is another than it was, and a sentence for a person. `goes_on`: nothing is missing for the stream."""

    how: How
    message: str
    goes_on: bool = False


class Known(msgspec.Struct, frozen=True):
    """What is known of one end.

    `pin`: as its target has it written down. `seen`: who it was when all was well, as far as this machine remembers.
    `reached`: up to where in its WAL something was received from it. `other`: the other end, when all was well.
    `generation`: how often it was marked, at least.
    """

    pin: str
    seen: Identity | None = None
    reached: Lsn | None = None
    other: Identity | None = None
    generation: int = 0


def changed(
    side: Side, known: Known, found: Identity, *, has_slot: bool, generation: int | None = None
) -> Changed | None:
    """In what the database that answers now is another than the known one; None if it is the same.

    `has_slot`: the link's slot is there, so that the stream could go on. `generation`: how often it says that it was marked;
    None where it does not say.
    """
    if found.pin != known.pin:
        return _another(side, known, found)
    if known.reached is not None and found.position < known.reached:
        return Changed(
            "older",
            f"the {side} is an older copy of itself: its WAL ends at {found.position}, and up to {known.reached} was received "
            "from it",
        )
    if generation is not None and generation < known.generation:
        return Changed(
            "older",
            f"the {side} is an older copy of itself: it was marked {generation} times, and the target knows of "
            f"{known.generation}",
        )
    seen = known.seen
    if seen is None or seen.timeline == found.timeline:
        return None
    if found.timeline < seen.timeline:
        return Changed(
            "older",
            f"the {side} is an older copy of itself: it is on timeline {found.timeline}, and was on {seen.timeline}",
        )
    promoted = (
        f"the {side} is on timeline {found.timeline}, and was on {seen.timeline}: a standby was promoted"
    )
    if has_slot:
        return Changed("promoted", promoted, goes_on=True)
    return Changed("promoted", f"{promoted}, and it does not have the link's replication slot")


def _another(side: Side, known: Known, found: Identity) -> Changed:
    system, _, oid = known.pin.partition("/")
    if known.other is not None and found.pin == known.other.pin:
        other = "target" if side == "source" else "source"
        return Changed("swapped", f"the {other} answers where the {side} was: the ends were swapped")
    if found.system == system:
        return Changed(
            "recreated",
            f"the {side}'s database was dropped and made anew: {found.database} has the OID {found.database_oid}, and had "
            f"{oid}{_holding(found)}",
        )
    where = f"its system identifier is {found.system}, and was {system}"
    if not found.tables:
        return Changed(
            "empty", f"an empty server answers where the {side} was: {where}, and there is no table"
        )
    return Changed("another", f"another server answers where the {side} was: {where}{_holding(found)}")


def _holding(found: Identity) -> str:
    return "; there is no table in it" if not found.tables else ""
