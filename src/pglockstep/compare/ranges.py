"""A table in chunks by its key: half open, and without an end at both ends, so that no row is outside of all. Pure.

Boundaries are only where to cut. Keys that the two ends sort differently, as collations of two systems may do, can fall into
different chunks, or into two; then these differ, and their rows are looked at and found to be the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from pglockstep.compare.content import base_name
from pglockstep.postgres.catalog import Table

#: Values of the columns of a key, as text.
Key = tuple[str, ...]

#: A chunk is about so many rows and bytes: what one statement reads in a moment.
CHUNK_ROWS = 250_000
CHUNK_BYTES = 64 << 20
#: How many rows of a sample stand for a chunk.
_SAMPLED = 50

#: Types that every server orders, and writes and reads as text without loss.
_ORDERED = {
    "smallint", "integer", "bigint", "oid", "numeric", "real", "double precision", "uuid", "bytea", "date", "text",
    "character varying", "timestamp without time zone", "timestamp with time zone",
}  # fmt: skip


class Range(msgspec.Struct, frozen=True):
    """The rows from `low` on and before `high`; None where there is no such end."""

    low: Key | None = None
    high: Key | None = None


WHOLE = Range()


class Size(msgspec.Struct, frozen=True):
    """How large a table is: rows as its server estimates them, and bytes without what is kept out of line."""

    rows: float = 0
    bytes: int = 0


def chunks_of(sizes: Sequence[Size]) -> int:
    """In how many chunks a table is read that has these sizes on its ends."""
    return max(1, *(round(max(each.rows / CHUNK_ROWS, each.bytes / CHUNK_BYTES)) for each in sizes))


def share_to_sample(size: Size, chunks: int) -> float:
    """How much of a table is read to find out where to cut it, in percent."""
    return min(100.0, 100.0 * chunks * _SAMPLED / max(size.rows, 1.0))


def is_ordered(tables: Sequence[Table], key: Sequence[str]) -> bool:
    """Whether tables with this key can be cut by it: both have an index that it is the order of."""
    # in another order of its columns each chunk would be all of the table
    return (
        bool(key)
        and tables[0].primary_key == tables[1].primary_key
        and all(
            base_name(column) in _ORDERED
            for table in tables
            for column in table.columns
            if column.name in key
        )
    )


def sorted_alike(boundaries: Sequence[Key], there: Sequence[Key]) -> list[Key]:
    """Those of the `boundaries`, as one end sorts them, that the other has in the same order, which is `there`.

    Else its ranges would overlap, and rows be counted twice.
    """
    place = {key: number for number, key in enumerate(there)}
    # the longest run of places that only grow
    ends: list[int] = []
    last: list[Key] = []
    before: dict[Key, Key | None] = {}
    for key in boundaries:
        at = bisect_left(ends, place[key])
        before[key] = last[at - 1] if at else None
        ends[at : at + 1], last[at : at + 1] = [place[key]], [key]
    found: list[Key] = []
    key_of = last[-1] if last else None
    while key_of is not None:
        found.append(key_of)
        key_of = before[key_of]
    return found[::-1]


def cut(boundaries: Sequence[Key], chunks: int) -> list[Range]:
    """About `chunks` ranges between some of these sorted boundaries."""
    step = max(1, len(boundaries) // max(1, chunks - 1))
    chosen = list(boundaries[step // 2 :: step]) if chunks > 1 else []
    ends: list[Key | None] = [None, *dict.fromkeys(chosen), None]
    return [Range(low, high) for low, high in pairwise(ends)]
