"""What a run of changes to one table comes to: rows that go, rows that change, rows that come. Pure.

A set can only stand for the run if every change speaks of a row that the changes before it leave room for.
Where one does not, `Irregular` is raised, and the run has to be repeated change by change: never a guess.

What a set may not know is that other unique values are handed from row to row inside the run: whoever applies
it has to be ready for a clash, and then repeats the run in the source's own order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import cast

import msgspec

from pglockstep.wal.messages import UNCHANGED, Delete, Insert, PartialRow, Row, Update

Change = Insert | Update | Delete


class Irregular(Exception):
    """A run of changes that no set stands for."""


class Net(msgspec.Struct, frozen=True):
    """What a run comes to, to be carried out in this order.

    Keys are tuples of the key's values before the run. `updated` are rows that keep their key, `moved` rows that
    get another one, with the key that they had; in both some values may be `UNCHANGED`. `removed` is for a table
    without a key: whole rows, and of how many equal ones each is one.
    """

    deleted: Sequence[Row] = ()
    removed: Sequence[tuple[Row, int]] = ()
    updated: Sequence[Row] = ()
    moved: Sequence[tuple[Row, Row]] = ()
    inserted: Sequence[Row] = ()

    def __len__(self) -> int:
        return sum(map(len, (self.deleted, self.removed, self.updated, self.moved, self.inserted)))


def net(changes: Sequence[Change], key: Sequence[int]) -> Net:
    """What `changes`, in order, come to. `key`: the positions of the key's columns, none for a table without."""
    rows = [_whole(change.new) for change in changes if isinstance(change, Insert)]
    if len(rows) == len(changes):
        return Net(inserted=rows)
    return _by_key(changes, key) if key else _by_row(changes)


def _by_key(changes: Sequence[Change], key: Sequence[int]) -> Net:
    # one value stands for itself, several are a tuple
    key_of: Callable[[Row], object] = itemgetter(*key)
    inserted: dict[object, Row] = {}
    updated: dict[object, Row] = {}
    # of updated rows that got another key: which they had before the run
    origins: dict[object, object] = {}
    left: set[object] = set()
    deleted: dict[object, None] = {}
    for change in changes:
        if isinstance(change, Update):
            new = change.new
            old = change.old
            if old is None:
                now = before = key_of(new)
            else:
                before = key_of(old)
                new = _key_filled(new, old, key)
                now = key_of(new)
            if type(new) is PartialRow and _names_nothing(now):
                raise Irregular
            if before in inserted:
                new = _merged(inserted[before], new)
                if now != before:
                    del inserted[before]
                    _demand_free(now, inserted, updated)
                inserted[now] = new
                continue
            if before in updated:
                new = _merged(updated[before], new)
                if now != before:
                    del updated[before]
            elif before in deleted or before in left:
                raise Irregular
            if now != before:
                _demand_free(now, inserted, updated)
                origins[now] = origins.pop(before, before)
                left.add(origins[now])
            updated[now] = new
        elif isinstance(change, Insert):
            new = _whole(change.new)
            now = key_of(new)
            _demand_free(now, inserted, updated)
            inserted[now] = new
        else:
            before = key_of(change.old)
            if before in inserted:
                del inserted[before]
            elif before in updated:
                del updated[before]
                deleted[origins.pop(before, before)] = None
            elif before in deleted or before in left:
                raise Irregular
            else:
                deleted[before] = None
    single = len(key) == 1
    moved = [(origin, updated.pop(now)) for now, origin in origins.items() if origin != now]
    return Net(
        deleted=[_key_row(each, single) for each in deleted],
        updated=list(updated.values()),
        moved=[(_key_row(origin, single), row) for origin, row in moved],
        inserted=list(inserted.values()),
    )


def _key_row(key: object, single: bool) -> Row:
    return cast(Row, (key,) if single else key)


def _by_row(changes: Sequence[Change]) -> Net:
    """Without a key a table is a bag of rows: an update takes one out and puts another in."""
    added: dict[Row, int] = {}
    removed: dict[Row, int] = {}
    for change in changes:
        if not isinstance(change, Insert):
            old = change.old
            if old is None or change.old_is_key or type(old) is PartialRow:
                raise Irregular
            _move(old, added, removed)
        if not isinstance(change, Delete):
            new = change.new
            if type(new) is PartialRow:
                if isinstance(change, Insert):
                    raise Irregular
                assert change.old is not None
                new = _merged(change.old, new)
            _move(new, removed, added)
    return Net(
        removed=list(removed.items()),
        inserted=[row for row, count in added.items() for _ in range(count)],
    )


def _move(row: Row, out_of: dict[Row, int], into: dict[Row, int]) -> None:
    """One more `row` in `into`, or one less in `out_of`, which comes to the same."""
    if count := out_of.get(row, 0):
        if count == 1:
            del out_of[row]
        else:
            out_of[row] = count - 1
    else:
        into[row] = into.get(row, 0) + 1


def _demand_free(key: object, inserted: dict[object, Row], updated: dict[object, Row]) -> None:
    if key in inserted or key in updated:
        raise Irregular


def _whole(row: Row) -> Row:
    if type(row) is PartialRow:
        raise Irregular
    return row


def _key_filled(new: Row, old: Row, key: Sequence[int]) -> Row:
    """`new` with the key's unchanged values, which the server sends in the old row alone."""
    if type(new) is not PartialRow or all(new[index] is not UNCHANGED for index in key):
        return new
    filled = list(new)
    for index in key:
        if filled[index] is UNCHANGED:
            filled[index] = old[index]
    return row_of(filled)


def _names_nothing(key: object) -> bool:
    return key is UNCHANGED or (isinstance(key, tuple) and any(value is UNCHANGED for value in key))


def _merged(before: Row, new: Row) -> Row:
    """`new` with what it leaves unchanged taken from `before`."""
    if type(new) is not PartialRow:
        return new
    return row_of([old if value is UNCHANGED else value for old, value in zip(before, new, strict=True)])


def row_of(values: Sequence[object]) -> Row:
    """A row of these values, marked as partial if one of them is `UNCHANGED`."""
    partial = any(value is UNCHANGED for value in values)
    return PartialRow(values) if partial else tuple(values)  # type: ignore[arg-type]
