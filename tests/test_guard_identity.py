"""Whether the one that answers is the one that is known: judged without a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglockstep.guard.identity import Changed, Known, changed
from pglockstep.postgres.identity import Identity
from pglockstep.units import Lsn

SEEN = Identity("7001", 1, 16384, "shop", "0/2000000", 12)
TARGET = Identity("7002", 1, 20000, "shop", "0/9000000", 12)
KNOWN = Known(SEEN.pin, SEEN, Lsn.parse("0/1800000"), TARGET, 5)


def judged(*, has_slot: bool = True, generation: int | None = 5, **found: Any) -> Changed | None:
    """What is said of a source that is as it was, but for `found`."""
    return changed(
        "source", KNOWN, msgspec.structs.replace(SEEN, **found), has_slot=has_slot, generation=generation
    )


@pytest.mark.parametrize(
    ("found", "how", "says"),
    [
        ({"system": "7003"}, "another", "another server answers where the source was: its system identifier is 7003"),
        ({"system": "7003", "tables": 0}, "empty", "an empty server answers where the source was"),
        ({"system": "7003", "tables": 0, "written": "0/1"}, "empty", "and was 7001"),
        ({"database_oid": 16500}, "recreated", "dropped and made anew: shop has the OID 16500, and had 16384"),
        ({"database_oid": 16500, "tables": 0}, "recreated", "there is no table in it"),
        ({"system": "7002", "database_oid": 20000}, "swapped", "the target answers where the source was"),
        ({"written": "0/17FFFFF"}, "older", "its WAL ends at 0/17FFFFF, and up to 0/1800000 was received"),
        ({"written": "0/17FFFFF", "timeline": 2}, "older", "older copy of itself"),
        ({"generation": 4, "written": "F/0"}, "older", "it was marked 4 times, and the target knows of 5"),
        ({"timeline": 2, "has_slot": False}, "promoted", "does not have the link's replication slot"),
    ],
)  # fmt: skip
def test_another_one(found: dict[str, Any], how: str, says: str) -> None:
    """Each way in which an end can be another one has its word and a sentence that names what differs; none is gone on with."""
    answer = judged(**found)
    assert answer is not None
    assert answer.how == how
    assert says in answer.message
    assert not answer.goes_on


def test_the_same_one() -> None:
    """What changes by itself is no change: WAL, tables, a mark that is ahead of the target's or was taken away, a new name."""
    assert judged() is None
    assert judged(written="0/1800000") is None
    assert judged(written="F/0", tables=0, database="renamed") is None
    assert judged(generation=6) is None
    assert judged(generation=None) is None
    assert judged(has_slot=False) is None


def test_a_promoted_standby_goes_on_where_nothing_is_missing() -> None:
    """With the slot and all that was received there is nothing to decide; one that lacks some of it is an older copy."""
    answer = judged(timeline=2)
    assert answer is not None
    assert answer.goes_on
    assert "timeline 2, and was on 1: a standby was promoted" in answer.message
    older = changed(
        "source",
        msgspec.structs.replace(KNOWN, seen=msgspec.structs.replace(SEEN, timeline=3)),
        SEEN,
        has_slot=True,
    )
    assert older is not None
    assert older.how == "older"


def test_nothing_is_remembered() -> None:
    """Without a state directory the target's record alone tells who its source is."""
    bare = Known(SEEN.pin)
    assert changed("source", bare, msgspec.structs.replace(SEEN, timeline=9), has_slot=False) is None
    answer = changed("source", bare, TARGET, has_slot=True)
    assert answer is not None
    assert answer.how == "another"


IDENTITIES = st.builds(
    Identity,
    st.sampled_from(["7001", "7002", "7003"]),
    st.integers(1, 3),
    st.sampled_from([16384, 16500, 20000]),
    st.sampled_from(["shop", "other"]),
    st.integers(0, 1 << 34).map(lambda each: str(Lsn(each))),
    st.integers(0, 3),
)


@given(
    pinned=IDENTITIES,
    found=IDENTITIES,
    other=st.none() | IDENTITIES,
    reached=st.none() | st.integers(1, 1 << 34).map(Lsn),
    known=st.integers(0, 3),
    marked=st.none() | st.integers(0, 3),
    has_slot=st.booleans(),
)
def test_never_gone_on_with_a_stranger(
    pinned: Identity,
    found: Identity,
    other: Identity | None,
    reached: Lsn | None,
    known: int,
    marked: int | None,
    has_slot: bool,
) -> None:
    """Nothing is gone on with but the same database, with a WAL that has all that was received, and every mark."""
    answer = changed(
        "source",
        Known(pinned.pin, pinned, reached, other, known),
        found,
        has_slot=has_slot,
        generation=marked,
    )
    follows = answer is None or answer.goes_on
    same = found.pin == pinned.pin
    whole = (reached is None or found.position >= reached) and (marked is None or marked >= known)
    assert follows == (
        same
        and whole
        and (found.timeline == pinned.timeline or (has_slot and found.timeline > pinned.timeline))
    )
    assert answer is None or (answer.message and "\n" not in answer.message)
