"""What a run of changes comes to: the same as the run itself, for any history; and no guess where it makes no sense."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglockstep.apply.encoding import copy_text
from pglockstep.apply.net import Change, Irregular, Net, net
from pglockstep.wal.messages import UNCHANGED, Delete, Insert, PartialRow, Row, Update, Value

KEYS = [b"1", b"2", b"3", b"4"]
VALUES: list[bytes | None] = [b"a", b"b", b"", None]

History = tuple[dict[Row, Row], list[Change], dict[Row, Row]]


@st.composite
def histories(draw: st.DrawFn, *, composite: bool = False) -> History:
    """Rows before, valid changes of them as the stream has them, and rows after; the key is one or two columns."""
    width = 2 if composite else 1
    keys = st.tuples(*[st.sampled_from(KEYS[:3])] * 2) if composite else st.tuples(st.sampled_from(KEYS))
    values = st.tuples(st.sampled_from(VALUES), st.sampled_from(VALUES))
    before: dict[Row, Row] = draw(st.dictionaries(keys, values))
    rows = dict(before)
    changes: list[Change] = []
    for _ in range(draw(st.integers(1, 25))):
        key: Row = draw(keys)
        blank: Row = (None,) * 2
        if key not in rows:
            rows[key] = draw(values)
            changes.append(Insert(1, key + rows[key]))
        elif draw(st.booleans()):
            del rows[key]
            changes.append(Delete(1, key + blank, old_is_key=True))
        else:
            old = rows.pop(key)
            moved: Row = draw(keys.filter(lambda each: each not in rows))
            rows[moved] = draw(values)
            toasted = draw(st.booleans())
            if toasted:
                # a large value that the transaction did not touch is not sent
                rows[moved] = (rows[moved][0], old[1])
            sent: list[Value] = [*moved, *rows[moved]]
            if toasted:
                sent[width + 1] = UNCHANGED
            new = PartialRow(sent) if toasted else tuple(sent)
            changed = moved != key
            changes.append(Update(1, new, key + blank if changed else None, old_is_key=changed))
    return before, changes, rows


def written(done: Net, width: int = 1) -> list[tuple[Row, Row]]:
    """The updates of a net: each row's key before, and what becomes of it."""
    return [*((row[:width], row) for row in done.updated), *done.moved]


def carried_out(before: dict[Row, Row], done: Net, width: int) -> dict[Row, Row]:
    """The rows after a net: deletes, then updates all at once, then inserts, as a target carries them out."""
    rows = dict(before)
    for key in done.deleted:
        del rows[key]
    taken = [(rows.pop(key), row) for key, row in written(done, width)]
    for old, row in taken:
        full = tuple(o if n is UNCHANGED else n for o, n in zip((None,) * width + old, row, strict=True))
        assert full[:width] not in rows
        rows[full[:width]] = full[width:]
    for row in done.inserted:
        assert row[:width] not in rows
        rows[row[:width]] = row[width:]
    return rows


@given(histories())
def test_any_history_of_rows_with_a_key(history: History) -> None:
    """Inserts, updates, key changes, values left out and deletes, many of one key: the net leaves the same rows."""
    before, changes, after = history
    assert carried_out(before, net(changes, [0]), 1) == after


@given(histories(composite=True))
def test_any_history_of_rows_with_a_key_of_two_columns(history: History) -> None:
    """The same for a key of two columns, whose values repeat by themselves."""
    before, changes, after = history
    assert carried_out(before, net(changes, [0, 1]), 2) == after


@given(histories())
def test_a_net_has_each_row_once(history: History) -> None:
    """However often a row changes, it is written once; one that comes and goes inside of the run is not at all."""
    before, changes, after = history
    done = net(changes, [0])
    touched = [*done.deleted, *(key for key, _ in written(done))]
    assert len(touched) == len(set(touched))
    assert set(touched) <= set(before)
    assert all(key != row[:1] for key, row in done.moved)
    assert len(done) <= len(before) + len(after)


@given(st.lists(st.sampled_from([(b"a", None), (b"a", b""), (b"b", b"x")]), max_size=6), st.data())
def test_any_history_of_rows_without_a_key(before: list[Row], data: st.DataObject) -> None:
    """Rows without a key, duplicates among them, are a bag: the net leaves the same bag."""
    some = st.sampled_from([(b"a", None), (b"a", b""), (b"b", b"x"), (b"c", b"y")])
    bag = Counter(before)
    changes: list[Change] = []
    for _ in range(data.draw(st.integers(1, 25))):
        present = sorted(bag.elements(), key=repr)
        if not present or data.draw(st.booleans()):
            new: Row = data.draw(some)
            changes.append(Insert(1, new))
            bag[new] += 1
            continue
        old: Row = data.draw(st.sampled_from(present))
        bag[old] -= 1
        if data.draw(st.booleans()):
            changes.append(Delete(1, old, old_is_key=False))
            continue
        new = data.draw(some)
        if new[1] == old[1] and data.draw(st.booleans()):
            changes.append(Update(1, PartialRow((new[0], UNCHANGED)), old))
        else:
            changes.append(Update(1, new, old))
        bag[new] += 1
    done = net(changes, [])
    result = Counter(before)
    for row, count in done.removed:
        result[row] -= count
        assert result[row] >= 0
    result.update(done.inserted)
    assert +result == +bag
    assert not {row for row, _ in done.removed} & set(done.inserted)


ROW = (b"1", b"a", b"x")
PARTIAL = PartialRow((b"1", b"b", UNCHANGED))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ([Insert(1, ROW), Insert(1, ROW), Delete(1, (b"2", None, None), True)], [0]),
        ([Update(1, ROW), Insert(1, ROW)], [0]),
        ([Delete(1, ROW, True), Delete(1, ROW, True)], [0]),
        ([Delete(1, ROW, True), Update(1, ROW)], [0]),
        ([Update(1, (b"2", b"a", b"x")), Update(1, (b"2", b"a", b"x"), ROW, True)], [0]),
        ([Update(1, (b"2", b"a", b"x"), ROW, True), Update(1, ROW)], [0]),
        ([Update(1, (b"2", b"a", b"x"), ROW, True), Delete(1, ROW, True)], [0]),
        ([Insert(1, PARTIAL)], [0]),
        ([Insert(1, PARTIAL)], []),
        ([Update(1, PartialRow((UNCHANGED, b"b", b"x")))], [0]),
        ([Update(1, PartialRow((b"1", UNCHANGED, b"x")))], [0, 1]),
        ([Update(1, ROW)], []),
        ([Delete(1, ROW, True)], []),
    ],
)
def test_a_run_that_makes_no_sense(changes: list[Change], key: list[int]) -> None:
    """A row that comes twice, goes twice, or is not named is never guessed at."""
    with pytest.raises(Irregular):
        net(changes, key)


def test_an_unchanged_key_comes_from_the_old_row() -> None:
    """A large key that an update did not touch is sent with the old row alone; it still names the row."""
    (updated,) = net([Update(1, PartialRow((UNCHANGED, b"b")), (b"1", b"a"), False)], [0]).updated
    assert updated == (b"1", b"b")


# --- COPY's text -----------------------------------------------------------------------------------

SPECIAL = [b"\\", b"\n", b"\t", b"\r", b"\\N", b"\\.", b"f", b"r", b"n", b"", b"\x01", "é😀".encode()]


def read(text: bytes) -> list[Row]:
    """What COPY would read: the text format after PostgreSQL's manual."""
    escapes = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\"}

    def value(raw: bytes) -> bytes | None:
        if raw == b"\\N":
            return None
        parts = raw.split(b"\\")
        out, at = parts[0], 1
        while at < len(parts):
            if parts[at]:
                out += escapes[parts[at][:1]] + parts[at][1:]
                at += 1
            else:
                out += b"\\" + parts[at + 1]
                at += 2
        return out

    assert text.endswith(b"\n")
    return [tuple(value(each) for each in line.split(b"\t")) for line in text[:-1].split(b"\n")]


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.tuples(*[st.none() | st.lists(st.sampled_from(SPECIAL), max_size=4).map(b"".join)] * width),
            min_size=1,
        )
    )
)
def test_the_text_of_a_copy(rows: list[Row]) -> None:
    """Whatever COPY reads as its own is escaped, NULL is not an empty text, and nothing else changes."""
    assert read(copy_text(rows)) == rows
