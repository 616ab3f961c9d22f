"""Which rows a transaction took, and which columns it emptied: against what a plain simulation of the table says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglockstep.guard import passing
from pglockstep.guard.losses import key_row, lost_keys, shown
from pglockstep.guard.passing import Passing
from pglockstep.guard.transaction import Change, Shape, Tally
from pglockstep.guard.updates import turned
from pglockstep.postgres.names import QualifiedName
from pglockstep.wal.messages import UNCHANGED, Delete, Insert, PartialRow, Row, Update, Value

NAME = QualifiedName("public", "t")
KEYED = Shape(NAME, ("id", "a", "b"), (0,))
PAIRED = Shape(NAME, ("id", "a", "b"), (0, 1))
BARE = Shape(NAME, ("id", "a"), ())

KEYS = [b"1", b"2", b"3", b"4", b"5"]
VALUES: list[Value] = [b"x", b"y", None]


class History:
    """Rows before and after some changes; each row has a number of its own, which it keeps."""

    def __init__(self, before: dict[Value, Row]) -> None:
        self.before = before
        self.rows = dict(before)
        self.number = {key: index for index, key in enumerate(before)}
        self.first = dict(self.number)
        self.changes: list[Change] = []
        self.moves = 0
        self._next = len(before)

    def insert(self, row: Row) -> None:
        self.rows[row[0]] = row
        self.number[row[0]] = self._next
        self._next += 1
        self.changes.append(Insert(1, row))

    def delete(self, key: Value, *, full: bool) -> None:
        old = self.rows.pop(key)
        del self.number[key]
        self.changes.append(Delete(1, old if full else (key, None, None), old_is_key=not full))

    def update(self, key: Value, row: Row, *, full: bool) -> None:
        old = self.rows.pop(key)
        number = self.number.pop(key)
        self.rows[row[0]] = row
        self.number[row[0]] = number
        moved = row[0] != key
        self.moves += moved
        sent = old if full else (key, None, None) if moved else None
        self.changes.append(Update(1, row, sent, old_is_key=moved and not full))

    def gone(self) -> set[Value]:
        """The keys of before of the very rows that are gone."""
        standing = set(self.number.values())
        return {key for key, number in self.first.items() if number not in standing}


@st.composite
def histories(draw: st.DrawFn, *, moves: bool = True) -> History:
    """Any valid history of a small table with a key."""
    full = draw(st.booleans())
    values = st.tuples(st.sampled_from(VALUES), st.sampled_from(VALUES))
    history = History(
        {key: (key, *draw(values)) for key in draw(st.lists(st.sampled_from(KEYS), unique=True))}
    )
    for _ in range(draw(st.integers(0, 20))):
        key = draw(st.sampled_from(KEYS))
        if key not in history.rows:
            history.insert((key, *draw(values)))
        elif draw(st.booleans()):
            history.delete(key, full=full)
        else:
            free = [each for each in KEYS if each not in history.rows] if moves else []
            history.update(key, (draw(st.sampled_from([key, *free])), *draw(values)), full=full)
    return history


def in_parts(shape: Shape, changes: Sequence[Change], size: int, *, undecoded: bool = True) -> Passing:
    """The same changes, as they pass in parts; with rows of one kind as they are had undecoded."""

    def values(some: Sequence[Change], columns: Sequence[int]) -> list[Row] | None:
        rows = [each.old if isinstance(each, Delete) else each.new for each in some]
        if any(row[at] is UNCHANGED for row in rows for at in columns):
            return None
        return [tuple(row[at] for at in columns) for row in rows]

    parts = Passing(shape)
    for start in range(0, len(changes), size):
        some = changes[start : start + size]
        kinds = [type(change) for change in some]
        inserted, updated, deleted = (kinds.count(each) for each in (Insert, Update, Delete))
        tally = Tally(shape, inserted, updated, deleted, changes=partial(iter, some))
        if undecoded and not any(isinstance(each, Update) and each.old is not None for each in some):
            tally.values = partial(values, some)
        parts.add(tally)
    return parts


@given(histories(moves=False), st.integers(1, 5))
def test_rows_that_keep_their_key(history: History, size: int) -> None:
    """Lost is exactly what stood before and does not stand after: whole, and in parts."""
    expected = set(history.before) - set(history.rows)
    assert set(lost_keys(KEYED, history.changes)) == expected
    lost = in_parts(KEYED, history.changes, size).lost()
    assert lost.rows == len(expected)
    assert set(lost.keys) == {f"id = {key.decode()}" for key in expected if isinstance(key, bytes)}


@given(
    histories(), st.sampled_from([KEYED, PAIRED, Shape(NAME, ("id", "a", "b"), (1, 0))]), st.integers(1, 5)
)
def test_keys_of_rows_that_are_not_decoded(history: History, shape: Shape, size: int) -> None:
    """They say the same of a transaction as the changes do."""
    if shape is not KEYED and any(isinstance(each, (Update, Delete)) for each in history.changes):
        # only the whole row of before would say what its key was
        return
    with patch.object(passing, "_RUN", 2):
        one, other = (in_parts(shape, history.changes, size, undecoded=each) for each in (True, False))
        assert one.suspicions(0) == other.suspicions(0)
        assert one.lost() == other.lost()


@given(histories(), st.integers(1, 5))
def test_rows_that_get_other_keys(history: History, size: int) -> None:
    """A row under another key is not lost, one that is gone is, unless it was inserted again.

    What passes in parts says at least as much as there is.
    """
    lost = lost_keys(KEYED, history.changes)
    assert len(set(lost)) == len(lost)
    assert set(lost) <= history.gone()
    assert len(lost) >= len(history.before) - len(history.rows)
    if not any(isinstance(change, Insert) for change in history.changes):
        assert set(lost) == history.gone()
        assert in_parts(KEYED, history.changes, size).lost().rows == len(lost)
    assert in_parts(KEYED, history.changes, size).lost().rows >= len(lost)


@given(histories(moves=False), st.integers(0, 3))
def test_columns_that_turn(history: History, limit: int) -> None:
    """Of the rows that stood before and still do, exactly those with a new value; where old rows are sent it is sure."""
    found = turned(KEYED, history.changes, limit)
    touched = {change.new[0] for change in history.changes if isinstance(change, (Insert, Update))}
    for column in (1, 2):
        for value in VALUES:
            now = {
                key
                for key, row in history.rows.items()
                if key in history.before and key in touched and row[column] == value
            }
            became = {key for key in now if history.before[key][column] != value}
            reported = [each for each in found if (each.column, each.value) == (column, value)]
            for each in reported:
                assert each.rows > limit
                assert {key for (key,) in each.keys} == (became if each.sure else now)
            if not reported:
                assert len(became) <= limit
    assert all(each.column for each in found)


@given(histories(moves=False), st.integers(0, 3), st.integers(1, 5))
def test_columns_that_turn_in_parts(history: History, limit: int, size: int) -> None:
    """No column that an update turned in too many rows escapes, however the parts fall."""
    if any(isinstance(change, Insert) for change in history.changes):
        return
    found = in_parts(KEYED, history.changes, size).suspicions(limit)
    for column in (1, 2):
        for value in VALUES:
            became = [
                key
                for key, row in history.rows.items()
                if row[column] == value and history.before[key][column] != value
            ]
            if len(became) > limit:
                assert [each for each in found if (each.column, each.value) == (column, value)]
    for each in found:
        assert each.rows > limit


@given(st.lists(st.sampled_from(KEYS), max_size=6), st.data())
def test_rows_without_a_key(before: list[bytes], data: st.DataObject) -> None:
    """A table without a key is a bag: of equal rows as many are lost as there are less of them."""
    bag = Counter((key, b"v") for key in before)
    changes: list[Change] = []
    for _ in range(data.draw(st.integers(0, 15))):
        standing = sorted(bag.elements())
        goes: bool = data.draw(st.booleans())
        if standing and goes:
            row: tuple[bytes, bytes] = data.draw(st.sampled_from(standing))
            bag[row] -= 1
            changes.append(Delete(1, row, old_is_key=False))
        else:
            row = (data.draw(st.sampled_from(KEYS)), b"v")
            bag[row] += 1
            changes.append(Insert(1, row))
    expected = sum((Counter((key, b"v") for key in before) - bag).values())
    assert len(lost_keys(BARE, changes)) == expected
    assert in_parts(BARE, changes, 3).lost().rows == expected


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ([Insert(1, (b"9", None, None)), Delete(1, (b"9", None, None), True)], 0),
        ([Delete(1, (b"1", None, None), True), Insert(1, (b"1", b"x", None))], 0),
        # 1 becomes 2, 2 becomes 3, 3 goes
        (
            [
                Update(1, (b"2", None, None), (b"1", None, None), True),
                Update(1, (b"3", None, None), (b"2", None, None), True),
                Delete(1, (b"3", None, None), True),
            ],
            1,
        ),
        # one row moves away, another takes its place
        (
            [
                Update(1, (b"8", None, None), (b"1", None, None), True),
                Insert(1, (b"1", None, None)),
                Delete(1, (b"8", None, None), True),
            ],
            0,
        ),
        # what came back under its key may get another one
        (
            [
                Delete(1, (b"1", None, None), True),
                Insert(1, (b"1", None, None)),
                Update(1, (b"7", None, None), (b"1", None, None), True),
            ],
            0,
        ),
    ],
)
def test_what_is_no_loss(changes: list[Change], lost: int) -> None:
    """What came and went, what went and came back, and what goes by another key."""
    assert len(lost_keys(KEYED, changes)) == lost


def test_a_new_row_that_moves_on_hides_no_loss_in_parts() -> None:
    """Where it had been an old row came and went: as many inserts as deletes of that key, and a row less that stood."""
    changes: list[Change] = [
        Insert(1, (b"9", None, None)),
        Update(1, (b"8", None, None), (b"9", None, None), True),
        Update(1, (b"9", None, None), (b"1", None, None), True),
        Delete(1, (b"9", None, None), True),
    ]
    assert lost_keys(KEYED, changes) == [b"1"]
    assert in_parts(KEYED, changes, 2).lost().rows == 1


def test_keys_of_several_columns_and_unchanged_values() -> None:
    """A key is all of its columns; a large value in it that an update left alone is that of the old row."""
    moved = Update(1, PartialRow((b"2", UNCHANGED, None)), (b"1", b"a", None), True)
    gone = Delete(1, (b"2", b"a", None), True)
    assert lost_keys(PAIRED, [moved, gone]) == [(b"1", b"a")]
    assert shown(PAIRED, [key_row(PAIRED, (b"1", b"a"))]) == ("id = 1, a = a",)


def test_values_that_were_not_sent() -> None:
    """`UNCHANGED` is no value; what an earlier update of the row set stays set."""
    rows = [b"%d" % number for number in range(10)]
    changes: list[Change] = [Update(1, PartialRow((key, key, UNCHANGED))) for key in rows]
    assert turned(KEYED, changes, 5) == []
    assert in_parts(KEYED, changes, 3).suspicions(5) == []
    first: list[Change] = [Update(1, (key, key, b"same")) for key in rows]
    assert [(each.column, each.value) for each in turned(KEYED, first + changes, 5)] == [(2, b"same")]


def test_rows_that_the_transaction_brought_did_not_turn() -> None:
    """Filling a table and setting a column of it afterwards, in one transaction, empties nothing."""
    rows = [b"%d" % number for number in range(1000)]
    changes: list[Change] = [Insert(1, (key, key, key)) for key in rows]
    changes += [Update(1, (key, key, None)) for key in rows]
    assert turned(KEYED, changes, 5) == []
    assert in_parts(KEYED, changes, 100).suspicions(5) == []


def test_a_value_is_found_among_many() -> None:
    """A column of which every third row becomes the same is noticed in parts, and one with many values is not."""
    changes: list[Change] = [
        Update(1, (b"%d" % number, b"%d" % number, b"same" if number % 3 == 0 else b"%d" % number))
        for number in range(50_000)
    ]
    for undecoded in (True, False):
        (found,) = in_parts(KEYED, changes, 9_000, undecoded=undecoded).suspicions(10_000)
        assert (found.column, found.value, found.rows, found.sure) == (2, b"same", 16_667, False)


def test_values_that_stand_in_a_few_rows_each() -> None:
    """As many values as can be followed, and the rarer ones beside them are not."""
    changes: list[Change] = [
        Update(1, (b"%d" % number, b"%d" % (number % 20), b"%d" % (number % 1000)))
        for number in range(20_000)
    ]
    for undecoded in (True, False):
        found = in_parts(KEYED, changes, 5_000, undecoded=undecoded).suspicions(500)
        assert {each.column for each in found} == {1}
        assert {each.rows for each in found} == {1000}
        assert len(found) == 16


def test_keys_are_shown_in_few_words() -> None:
    """A long key is cut, a NULL is called that; a row without a key shows its first values."""
    assert shown(KEYED, [(b"x" * 500,)])[0].endswith("x…")
    assert len(shown(KEYED, [(b"x" * 500,)])[0]) == 80
    assert shown(BARE, [(b"1", None)]) == ("id = 1, a = NULL",)
    assert len(shown(KEYED, [(b"%d" % number,) for number in range(50)])) == 10
