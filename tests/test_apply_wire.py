"""What travels as it was sent comes to the same as what is decoded, netted and encoded again."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglockstep import compiled
from pglockstep.apply import encoding
from pglockstep.apply.encoding import copy_text, wire_last, wire_text, wire_values
from pglockstep.apply.net import Irregular, net
from pglockstep.apply.runs import Run
from pglockstep.apply.sets import Step, TableSets
from pglockstep.apply.statements import TableWriter
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.names import QualifiedName
from pglockstep.wal.encode import encode
from pglockstep.wal.messages import (
    UNCHANGED,
    Binary,
    Delete,
    Insert,
    Relation,
    RelationColumn,
    Row,
    Update,
    Value,
)

WIDTH = 3
NAME = QualifiedName("public", "t")
#: No text of PostgreSQL's holds a zero byte, and `copy_text` says that it counts on that.
BYTES = st.binary(max_size=300).map(lambda value: value.replace(b"\0", b"0"))
VALUES = st.none() | st.text("ab\\\t\n\rN", max_size=4).map(str.encode) | BYTES
ROWS = st.tuples(*[VALUES] * WIDTH)
KINDS = st.sampled_from(["insert", "update", "delete"])

interpreted = not compiled.is_compiled()


def change(kind: str, row: Row) -> Insert | Update | Delete:
    """A change that says this one row."""
    if kind == "insert":
        return Insert(1, row)
    return Update(1, row) if kind == "update" else Delete(1, row, old_is_key=False)


def as_sent(kind: str, rows: list[Row]) -> list[bytes]:
    """The messages that a server would send."""
    return [encode(change(kind, row)) for row in rows]


def writer(key: tuple[int, ...]) -> TableWriter:
    """A table of three texts with that key."""
    columns = tuple(RelationColumn(f"c{index}", 25, -1, index in key) for index in range(WIDTH))
    table = Table(1, NAME, tuple(Column(each.name, "text", 25, equality="pg_catalog.=") for each in columns))
    return TableWriter(Relation(1, *NAME, "d", columns), table)


@given(KINDS, st.lists(ROWS, min_size=1), st.sets(st.integers(0, WIDTH - 1), min_size=1))
def test_the_text_is_that_of_the_decoded_rows(kind: str, rows: list[Row], columns: set[int]) -> None:
    """Any bytes in any columns, all of them or some: what is copied says the same."""
    wanted = sorted(columns)
    text = wire_text(as_sent(kind, rows), WIDTH, wanted)
    assert text == (None if interpreted else copy_text([tuple(row[at] for at in wanted) for row in rows]))


@given(KINDS, st.lists(ROWS, min_size=1), st.sets(st.integers(0, WIDTH - 1), min_size=1))
def test_the_values_are_those_of_the_decoded_rows(kind: str, rows: list[Row], columns: set[int]) -> None:
    """Any bytes in any columns, all of them or some."""
    wanted = sorted(columns)
    values = wire_values(as_sent(kind, rows), WIDTH, wanted)
    assert values == (None if interpreted else [tuple(row[at] for at in wanted) for row in rows])


@given(st.lists(ROWS, min_size=1), st.sets(st.integers(0, WIDTH - 1), min_size=1))
def test_the_last_of_each_key(rows: list[Row], columns: set[int]) -> None:
    """Keys are told apart however their values are cut; one with a NULL names nothing, and is left to the decoder."""
    wanted = sorted(columns)
    sent = as_sent("update", rows)
    last = {tuple(row[at] for at in wanted): each for row, each in zip(rows, sent, strict=True)}
    nothing = interpreted or any(None in key for key in last)
    assert wire_last(sent, WIDTH, wanted) == (None if nothing else list(last.values()))


@given(KINDS, ROWS, st.data())
def test_what_is_no_whole_row_is_left_to_the_decoder(kind: str, row: Row, data: st.DataObject) -> None:
    """Cut short anywhere, a byte too long, too wide, a value that was not sent or is binary: never half a row."""
    (whole,) = as_sent(kind, [row])
    short = whole[: data.draw(st.integers(6, len(whole) - 1))]
    other: list[Value] = list(row)
    strangers: list[Value] = [UNCHANGED, Binary(b"x")]
    other[data.draw(st.integers(0, WIDTH - 1))] = data.draw(st.sampled_from(strangers))
    (strange,) = as_sent(kind, [tuple(other)])
    for message in (short, whole + b"n", strange):
        assert wire_text([whole, message], WIDTH, range(WIDTH)) is None
        assert wire_values([whole, message], WIDTH, range(WIDTH)) is None
    assert wire_text([whole], WIDTH + 1, range(WIDTH + 1)) is None


def moved(steps: list[Step]) -> list[tuple[object, ...]]:
    """What steps do, the order of rows left out."""
    return [(each.verb, each.copy, Counter(each.data.splitlines()), each.rows, each.then) for each in steps]


@given(
    KINDS,
    st.lists(st.tuples(*[st.sampled_from([b"a", b"b\t", b"c\\", b"d\n"])] * WIDTH), min_size=1, max_size=12),
    st.permutations(range(WIDTH)),
    st.integers(1, WIDTH),
)
def test_the_steps_are_those_of_the_net(kind: str, rows: list[Row], order: list[int], size: int) -> None:
    """A run of one kind, keys of several columns in any order, the same row twice: as if it had been decoded."""
    key = tuple(order[:size])
    run = Run(writer(key))
    run.writer.key = key
    for each in as_sent(kind, rows):
        run.take(each, each[0])
    assert len(run.rows) == len(run) == len(rows)
    sets = TableSets(run.writer, 1)
    try:
        expected = moved(sets.steps(net([change(kind, row) for row in rows], key)))
    except Irregular:
        if kind == "insert":
            # two rows of one key clash on the target, and are then repeated one by one
            return
        with pytest.raises(Irregular):
            sets.of(run)
        return
    found = moved(sets.of(run))
    if kind == "delete":
        # the text has the key's columns as they stand in the row, and says so
        assert len(found) == len(expected) == 1
        assert found[0][3:] == expected[0][3:]
        assert key != tuple(sorted(key)) or found == expected
    else:
        assert found == expected


@given(st.lists(st.tuples(KINDS, ROWS), min_size=2, max_size=12), st.data())
def test_a_run_keeps_what_it_was_given(changes: list[tuple[str, Row]], data: st.DataObject) -> None:
    """However kinds are mixed, and wherever two runs are joined, the changes and their numbers are all there, in order."""
    expected = [change(kind, row) for kind, row in changes]
    first, second = Run(writer((0,))), Run(writer((0,)))
    at = data.draw(st.integers(1, len(expected) - 1))
    for index, each in enumerate(expected):
        run = first if index < at else second
        sent = encode(each)
        run.take(sent, sent[0])
    first.add(second)
    assert len(first) == len(expected)
    counted = Counter(type(each) for each in expected)
    assert (first.inserted, first.updated, first.deleted) == (
        counted[Insert],
        counted[Update],
        counted[Delete],
    )
    alike = all(type(one) is type(other) for one, other in pairwise(expected))
    assert bool(first.rows) is alike
    assert first.changes == expected


def test_an_update_with_an_old_row_is_no_such_row() -> None:
    """It says two rows; only the decoder knows which is which."""
    run = Run(writer((0,)))
    sent = encode(Update(1, (b"a", b"b", b"c"), (b"z", None, None), old_is_key=True))
    run.take(sent, sent[0])
    assert not run.rows
    assert run.changes == [Update(1, (b"a", b"b", b"c"), (b"z", None, None), old_is_key=True)]


def test_the_compiled_half_is_in_use() -> None:
    """Where it was built, rows do not take the long way."""
    assert (encoding._fast is None) is interpreted
