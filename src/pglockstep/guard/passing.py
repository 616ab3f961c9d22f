"""A large transaction's changes to one table, as they pass in parts: what is kept of them, and what it can tell. Pure.

Kept are 64-bit hashes of keys, 8 bytes a row, and of values that many updated rows share in which rows they are, a bit of a
byte for each such value. What it promises:

* `lost` is never less than the rows that are gone. It is exact as long as no row of the transaction's own gets another key;
  where some do, each may count as one row more. Two keys with one hash (of 10 million, once in 370,000 such transactions)
  may make it one less.
* `suspicions` has every value that a good part of the updated rows got, and counts it in each run of some thousand updates
  where it was more than one in 64. It counts a row that got the value and lost it again.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from zlib import compress as packed
from zlib import decompress as unpacked

from pglockstep.guard.evidence import Lost, Suspicion
from pglockstep.guard.losses import SHOWN, Key, filled, key_of, key_row, shown
from pglockstep.guard.transaction import Shape, Tally
from pglockstep.wal.messages import UNCHANGED, Delete, Insert, Row, Update, Value

#: How many deleted keys are kept as they are, to show some that stayed lost.
_SAMPLES = 64

#: A value is followed if it is in one of so many rows, of at least so many that were updated in a run; and so many of a
#: column at once.
_SHARE = 64
_RUN = 4096
_FOLLOWED = 16
_FEW = 4

#: So many hashes are looked at at once: a Counter of them takes some ten megabytes.
_BUCKET = 1 << 16


class Hashes:
    """A bag of keys, by their 64-bit hashes."""

    def __init__(self) -> None:
        self._chunks: list[array[int]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, keys: Iterable[Key]) -> None:
        """Put keys in."""
        chunk = array("q", map(hash, keys))
        if chunk:
            self._chunks.append(chunk)
            self._size += len(chunk)

    def buckets(self, count: int) -> list[array[int]]:
        """All hashes, spread over `count` arrays, a power of two: equal ones in the same."""
        chunks, self._chunks = self._chunks, []
        self._chunks = _spread(_given_back(chunks), count)
        return self._chunks


class _Followed:
    """A value of a column: how many rows got it, which ones of each run, and how many new rows came with it.

    Those of a run are marked with a byte for each row, packed; None where it is all of them.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.runs: dict[int, bytes | None] = {}
        self.brought = 0

    def add(self, run: int, got: Sequence[bool]) -> None:
        """These rows of a run got it."""
        rows = got.count(True)
        if rows:
            self.rows += rows
            self.runs[run] = None if rows == len(got) else packed(bytes(got), 1)


class Passing:
    """What is kept of the parts so far; see the module for what it can tell."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._key_of = key_of(shape)
        self.truncated = False
        self._begin()

    def _begin(self) -> None:
        self.inserted = self.updated = self.deleted = 0
        self._inserts, self._deletes, self._moves = Hashes(), Hashes(), Hashes()
        self._samples: list[Key] = []
        # updates that are not looked at yet
        self._updates: list[Update] = []
        # the keys of those that are, run by run
        self._runs: list[array[int]] = []
        self._followed: list[dict[Value, _Followed]] = [{} for _ in self.shape.columns]
        # whether every update told the whole row of before
        self._whole = True

    def add(self, tally: Tally) -> None:
        """Another part."""
        if tally.truncated:
            self._begin()
            self.truncated = True
        self.inserted += tally.inserted
        self.updated += tally.updated
        self.deleted += tally.deleted
        if self.truncated:
            # the rows that stood are gone, and what comes and goes since is the transaction's own
            return
        if (keys := self._keys(tally)) is not None:
            (self._inserts if tally.inserted else self._deletes).add(keys)
            if tally.deleted and len(self._samples) < _SAMPLES:
                self._samples += keys[: _SAMPLES - len(self._samples)]
            return
        if (rows := self._updated(tally)) is not None:
            self._note(list(map(self._key_of, rows)), rows, None)
            return
        came: list[Row] = []
        went: list[Row] = []
        for change in tally.list_changes():
            if isinstance(change, Insert):
                came.append(change.new)
            elif isinstance(change, Delete):
                went.append(change.old)
            else:
                self._updates.append(change)
        self._inserts.add(map(self._key_of, came))
        self._deletes.add(map(self._key_of, went))
        if len(self._samples) < _SAMPLES:
            self._samples += map(self._key_of, went[: _SAMPLES - len(self._samples)])
        if len(self._updates) >= _RUN:
            self._follow_updates()
        self._bring(came)

    def _keys(self, tally: Tally) -> list[Key] | None:
        """The keys of rows that all came, or all went; None where more has to be known of them."""
        if tally.updated or bool(tally.inserted) == bool(tally.deleted) or tally.values is None:
            return None
        if tally.inserted and any(self._followed):
            # whether they bring a value that many were given
            return None
        key = self.shape.key or range(len(self.shape.columns))
        rows = tally.values(key) if list(key) == sorted(key) else None
        if rows is None:
            return None
        return [row[0] for row in rows] if len(self.shape.key) == 1 else [*rows]

    def _updated(self, tally: Tally) -> list[Row] | None:
        """What a whole run of rows was updated to, none of which got another key; None where more has to be known of them."""
        if tally.updated < _RUN or tally.inserted or tally.deleted or tally.values is None:
            return None
        return tally.values(range(len(self.shape.columns)))

    def lost(self) -> Lost:
        """The rows that stood before and are gone."""
        self._follow_updates()
        if not self._inserts:
            return Lost(self.deleted, self._shown(self._samples))
        fresh = 0
        lost_samples: list[Key] = []
        samples: dict[int, list[Key]] = {}
        count = _buckets(len(self._inserts) + len(self._deletes))
        for key in self._samples:
            samples.setdefault(hash(key) & (count - 1), []).append(key)
        bags = (self._inserts.buckets(count), self._deletes.buckets(count), self._moves.buckets(count))
        for bucket, parts in enumerate(zip(*bags, strict=True)):
            came, went, moved = map(Counter, parts)
            for each, times in came.items():
                # a row that came where one had gone is that row again; one that moved on may not be
                fresh += min(times, max(0, times - went[each]) + moved[each])
            lost_samples += [key for key in samples.get(bucket, ()) if went[hash(key)] > came[hash(key)]]
        return Lost(self.deleted - self.inserted + fresh, self._shown(lost_samples))

    def suspicions(self, limit: int) -> list[Suspicion]:
        """The columns that may have become NULL, or one value, in more than `limit` rows that stood before."""
        self._follow_updates()
        found = []
        everywhere: int | None = None
        for column, values in enumerate(self._followed):
            for value, followed in values.items():
                if followed.rows <= limit:
                    continue
                if len(followed.runs) < len(self._runs) or any(followed.runs.values()):
                    rows = self._stood(followed)
                else:
                    # the rows are those of every other column that has one value
                    rows = everywhere = self._stood(followed) if everywhere is None else everywhere
                if rows > limit:
                    found.append(
                        Suspicion(
                            column,
                            value,
                            rows,
                            self._whole,
                            None,
                            brought=followed.brought,
                            gone=self.deleted,
                        )
                    )
        return found

    def _stood(self, followed: _Followed) -> int:
        """How many of the rows that got the value were not brought by the transaction."""
        count = _buckets(followed.rows + len(self._inserts))
        chunks = (
            self._runs[run] if marks is None else compress(self._runs[run], unpacked(marks))
            for run, marks in followed.runs.items()
        )
        buckets = zip(_spread(chunks, count), self._inserts.buckets(count), strict=True)
        return sum(len(set(those).difference(came)) for those, came in buckets)

    def _follow_updates(self) -> None:
        updates, self._updates = self._updates, []
        if not updates:
            return
        keys: list[Key] = []
        news: list[Row] = []
        moved: list[Key] = []
        olds: list[Row | None] = []
        for update in updates:
            old, new = update.old, update.new
            if old is None:
                key = self._key_of(new)
            else:
                key = self._key_of(old)
                if key != self._key_of(filled(new, old, self.shape.key)):
                    moved.append(key)
            olds.append(None if update.old_is_key else old)
            keys.append(key)
            news.append(new)
        self._moves.add(moved)
        self._note(keys, news, olds)

    def _note(self, keys: Sequence[Key], news: Sequence[Row], olds: Sequence[Row | None] | None) -> None:
        """A run of updates; without `olds` none of them tells anything of the old row."""
        self._whole = self._whole and olds is not None and None not in olds
        self._runs.append(array("q", map(hash, keys)))
        for column, values in enumerate(zip(*news, strict=True)):
            self._follow(column, values, olds)

    def _follow(self, column: int, values: tuple[Value, ...], olds: Sequence[Row | None] | None) -> None:
        followed = self._followed[column]
        sample = Counter(values[:: max(1, len(values) // 256)])
        likely = {value for value, times in sample.items() if times > 1 or len(values) < 256}
        wanted = likely.union(followed)
        # beyond a few it is cheaper to count all of them at once
        counted = Counter(values) if len(wanted) > _FEW else None
        for value in wanted:
            times = values.count(value) if counted is None else counted[value]
            if value is UNCHANGED or not times:
                continue
            if value not in followed:
                if times * _SHARE < len(values) or not _room(followed, times):
                    continue
                followed[value] = _Followed()
            followed[value].add(
                len(self._runs) - 1,
                [each == value for each in values]
                if olds is None
                else [
                    each == value and (old is None or old[column] != value)
                    for each, old in zip(values, olds, strict=True)
                ],
            )

    def _bring(self, came: Sequence[Row]) -> None:
        for column, values in enumerate(self._followed):
            for value, followed in values.items():
                followed.brought += [row[column] for row in came].count(value)

    def _shown(self, keys: Sequence[Key]) -> tuple[str, ...]:
        return shown(self.shape, [key_row(self.shape, key) for key in keys[:SHOWN]])


def _room(followed: dict[Value, _Followed], times: int) -> bool:
    """Whether one more value can be followed: in place of the rarest, if that is rarer."""
    if len(followed) < _FOLLOWED:
        return True
    rarest = min(followed, key=lambda value: followed[value].rows)
    if followed[rarest].rows >= times:
        return False
    del followed[rarest]
    return True


def _buckets(size: int) -> int:
    """Over how many buckets so many hashes are spread."""
    return 1 << max(0, (size // _BUCKET).bit_length())


def _spread(chunks: Iterable[Iterable[int]], count: int) -> list[array[int]]:
    spread = [array("q") for _ in range(count)]
    mask = count - 1
    for chunk in chunks:
        for each in chunk:
            spread[each & mask].append(each)
    return spread


def _given_back(chunks: list[array[int]]) -> Iterator[array[int]]:
    """One after the other, so that they never are in memory twice."""
    while chunks:
        yield chunks.pop()
