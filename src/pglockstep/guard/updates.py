"""Which columns of a table a transaction turned into NULL, or into one same value, in too many rows. Pure.

A new row says what a column *is*, and not what it has *become*: one that always is NULL is NULL after every update. So what
is found here is a question for the target, but where the rows' old values are in the stream: there it is the answer.

A row counts once, with what it is at the end; one that was deleted and inserted again was changed as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pglockstep.guard.losses import Key, Standing, filled, key_row
from pglockstep.guard.transaction import Change, Shape
from pglockstep.wal.messages import UNCHANGED, Delete, Insert, PartialRow, Row, Value


class Turned(msgspec.Struct, frozen=True):
    """`column` is `value` now in these rows, known by the keys that they had before. `sure`: and was something else."""

    column: int
    value: Value
    keys: tuple[Row, ...]
    sure: bool

    @property
    def rows(self) -> int:
        """In how many rows."""
        return len(self.keys)


def turned(shape: Shape, changes: Iterable[Change], limit: int) -> list[Turned]:
    """The columns that are NULL, or one same value, after `changes` in more than `limit` rows that they touched.

    Those of which it is sure that they were so before are left out.
    """
    now, before = _images(shape, changes)
    if len(now) <= limit:
        return []
    found = []
    for column, values in enumerate(zip(*now.values(), strict=True)):
        for value, count in Counter(values).most_common():
            if count <= limit:
                break
            if value is not UNCHANGED:
                each = _turned(shape, column, value, now, before)
                if each.rows > limit:
                    found.append(each)
    return found


def _images(shape: Shape, changes: Iterable[Change]) -> tuple[dict[Key, Row], dict[Key, Row]]:
    """What the rows that stood before are at the end, and those of their old images that were sent whole; by their old key."""
    standing = Standing(shape)
    now: dict[Key, Row] = {}
    before: dict[Key, Row] = {}
    for change in changes:
        if isinstance(change, Delete):
            origin = standing.delete(change.old)
            new = None
        elif isinstance(change, Insert):
            origin = standing.insert(change.new)
            new = change.new
        else:
            origin = standing.update(change)
            new = change.new
        if origin is None:
            continue
        if not isinstance(change, Insert) and origin not in now and change.old and not change.old_is_key:
            before.setdefault(origin, change.old)
        if new is None:
            now.pop(origin, None)
        else:
            # what the last update left unchanged an earlier one may have set
            earlier = now.get(origin) or before.get(origin)
            now[origin] = filled(new, earlier, ()) if type(new) is PartialRow and earlier else new
    return now, before


def _turned(
    shape: Shape, column: int, value: Value, now: Mapping[Key, Row], before: Mapping[Key, Row]
) -> Turned:
    origins: Sequence[Key] = [origin for origin, row in now.items() if row[column] == value]
    sure = True
    if column in shape.key:
        place = shape.key.index(column)
        origins = [origin for origin in origins if key_row(shape, origin)[place] != value]
    elif all(origin in before for origin in origins):
        origins = [origin for origin in origins if before[origin][column] != value]
    else:
        sure = False
    return Turned(column, value, tuple(key_row(shape, origin) for origin in origins), sure)
