"""Which rows stood before a transaction and are gone after it: exactly, for changes that are held in memory. Pure.

A row is known by its key; where there is none, by all of its values, and equal rows by their number. What comes back is
not lost: a key that was deleted and inserted again is the same row, and so is a row that got another key. A row that the
transaction itself brought is none that stood before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import cast

from pglockstep.guard.transaction import Change, Shape
from pglockstep.postgres.names import quote_if_needed
from pglockstep.wal.messages import UNCHANGED, Insert, PartialRow, Row, Update, Value

#: How many lost rows are shown to a person, and how much of each.
SHOWN = 10
_WIDTH = 80

#: What a row is known by: its key's one value, or the tuple of several.
Key = Value | Row
KeyOf = Callable[[Row], Key]


class Standing:
    """Follows rows through the changes of one table: which were brought, which moved to another key, and which are gone.

    Each is held by the key that it has now, or had when it went; a row that stood before, by its key of that time.
    """

    __slots__ = ("_gone", "_key_of", "_moved", "brought", "shape")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.brought: dict[Key, int] = {}
        self._moved: dict[Key, list[Key]] = {}
        self._gone: dict[Key, list[Key]] = {}
        self._key_of = key_of(shape)

    def delete(self, old: Row) -> Key | None:
        """A row went; if it is one that stood before, its key of that time."""
        at = self._key_of(old)
        if _less(self.brought, at):
            return None
        origin = self._leave(at)
        self._gone.setdefault(at, []).append(origin)
        return origin

    def insert(self, new: Row) -> Key | None:
        """A row came; if it is one that stood before, its key of that time."""
        at = self._key_of(new)
        if gone := self._gone.get(at):
            origin = gone.pop()
            if origin != at and at in gone:
                # of several that went from here rather the one whose key this is
                gone.remove(at)
                gone.append(origin)
                origin = at
            if not gone:
                del self._gone[at]
            self._settle(origin, at)
            return origin
        self.brought[at] = self.brought.get(at, 0) + 1
        return None

    def update(self, change: Update) -> Key | None:
        """A row changed; if it is one that stood before, its key of that time."""
        old, new = change.old, change.new
        if old is None:
            at = now = self._key_of(new)
        else:
            at, now = self._key_of(old), self._key_of(filled(new, old, self.shape.key))
        if at == now:
            if at in self.brought:
                return None
            moved = self._moved.get(at)
            return moved[-1] if moved else at
        if _less(self.brought, at):
            self.brought[now] = self.brought.get(now, 0) + 1
            return None
        origin = self._leave(at)
        self._settle(origin, now)
        return origin

    def lost(self) -> list[Key]:
        """The keys of the rows that stood before and are gone."""
        brought = dict(self.brought)
        # a row at its very key, brought after it had moved on, stands for it
        return [origin for gone in self._gone.values() for origin in gone if not _less(brought, origin)]

    def _leave(self, at: Key) -> Key:
        moved = self._moved.get(at)
        if not moved:
            return at
        origin = moved.pop()
        if not moved:
            del self._moved[at]
        return origin

    def _settle(self, origin: Key, at: Key) -> None:
        if origin != at:
            self._moved.setdefault(at, []).append(origin)


def lost_keys(shape: Shape, changes: Iterable[Change]) -> list[Key]:
    """The keys of the rows that stood before `changes` and are gone after them."""
    standing = Standing(shape)
    for change in changes:
        if isinstance(change, Insert):
            standing.insert(change.new)
        elif isinstance(change, Update):
            # without a new key, or another row where that is the key, nothing comes or goes
            if change.old is not None:
                standing.update(change)
        else:
            standing.delete(change.old)
    return standing.lost()


def key_of(shape: Shape) -> KeyOf:
    """What tells a row's key."""
    if not shape.key:
        return _itself
    return cast(KeyOf, itemgetter(*shape.key))


def _itself(row: Row) -> Key:
    return row


def key_row(shape: Shape, key: Key) -> Row:
    """The values of a key, as many as it has columns."""
    return cast(Row, (key,) if len(shape.key) == 1 else key)


def filled(new: Row, old: Row, wanted: Sequence[int]) -> Row:
    """`new` with those values of `old` that an update left unchanged: at the positions `wanted`, at all if there are none."""
    if type(new) is not PartialRow:
        return new
    return tuple(
        before if value is UNCHANGED and (not wanted or index in wanted) else value
        for index, (before, value) in enumerate(zip(old, new, strict=True))
    )


def shown(shape: Shape, keys: Sequence[Row]) -> tuple[str, ...]:
    """Some of `keys`, each with the values of its columns, for a person: ``id = 7``; of a row without a key its first values."""
    return tuple(_shown(shape, key) for key in keys[:SHOWN])


def _shown(shape: Shape, key: Row) -> str:
    pairs = zip(shape.key or range(len(shape.columns)), key, strict=False)
    text = ", ".join(f"{quote_if_needed(shape.columns[index])} = {_text(value)}" for index, value in pairs)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _text(value: Value) -> str:
    if value is None:
        return "NULL"
    # a value beyond what is shown need not be decoded
    return "…" if value is UNCHANGED else value[: 4 * _WIDTH].decode(errors="replace")


def _less(counts: dict[Key, int], key: Key) -> bool:
    """Take one of `key` away; false if there is none."""
    count = counts.get(key)
    if not count:
        return False
    if count == 1:
        del counts[key]
    else:
        counts[key] = count - 1
    return True
