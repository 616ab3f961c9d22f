"""Sequences are read as they stand, and one that lags is named."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_servers import Pair, on_all_pairs
from pglockstep.compare.sequences import SequenceBehind, SequenceState, behind, read
from pglockstep.errors import Side
from pglockstep.postgres import sequences
from pglockstep.postgres.connect import End, connect
from pglockstep.postgres.names import QualifiedName

INT8 = st.integers(-(2**63), 2**63 - 1)


def states(side: Side, conninfo: str, names: set[QualifiedName] | None = None) -> list[SequenceState]:
    async def reading() -> list[SequenceState]:
        async with await connect(End(side, "test", conninfo), "test") as conn:
            return await read(conn, names)

    return asyncio.run(reading())


def state(last_value: int, is_called: bool, increment: int = 1) -> SequenceState:
    return SequenceState("public", "s", last_value, is_called, increment, final_value=2**63 - 1)


@on_all_pairs
def test_every_sequence_of_a_user_is_read_as_it_stands(pair: Pair) -> None:
    """Plain, serial, identity, descending and oddly named ones are there; ours and temporary ones not."""
    with pair.on_source() as conn:
        conn.execute("create sequence plain start 7; create sequence short maxvalue 9 cache 3 cycle")
        conn.execute("create table t (a serial, b int generated always as identity (start 100 increment 10))")
        conn.execute("insert into t default values")
        conn.execute('create schema "Odd\'"')
        conn.execute('create sequence "Odd\'"."100% ""Seq" increment -2 maxvalue 50')
        conn.execute('select nextval(\'"Odd\'\'"."100% ""Seq"\'), nextval(\'"Odd\'\'"."100% ""Seq"\')')
        conn.execute("create schema pglockstep")
        conn.execute("create sequence pglockstep.ours")
        conn.execute("create temporary sequence passing")
        found = states("source", pair.source)
    assert found == [
        SequenceState("Odd'", '100% "Seq', 48, True, -2, -(2**63)),
        SequenceState("public", "plain", 7, False, 1, 2**63 - 1),
        SequenceState("public", "short", 1, False, 1, 9, cache=3, cycles=True),
        SequenceState("public", "t_a_seq", 1, True, 1, 2**31 - 1),
        SequenceState("public", "t_b_seq", 100, True, 10, 2**31 - 1),
    ]
    assert [each.next_value for each in found] == [46, 7, 1, 2, 110]


def test_only_the_named_sequences_are_read(pair: Pair) -> None:
    """A caller that leaves tables out can leave their sequences out; a name that is not there is no error."""
    with pair.on_source() as conn:
        conn.execute("create sequence a; create sequence b; create sequence c")
    names = {QualifiedName("public", "b"), QualifiedName("public", "gone")}
    assert [each.name for each in states("source", pair.source, names)] == ["b"]
    assert states("source", pair.source, set()) == []


def test_many_sequences_take_few_statements(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are put together in order, with no sequence lost or read twice."""
    monkeypatch.setattr(sequences, "_AT_ONCE", 7)
    with pair.on_source() as conn:
        conn.execute(
            """do $$ begin
                for i in 1..30 loop execute format('create sequence s%s start %s', i, i); end loop;
            end $$"""
        )
    found = states("source", pair.source)
    assert sorted(each.last_value for each in found) == list(range(1, 31))
    assert [each.name for each in found] == sorted(each.name for each in found)
    assert all(each.name == f"s{each.last_value}" for each in found)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (state(5, True), state(5, True), False),
        (state(5, True), state(6, False), False),
        (state(5, True), state(5, False), True),
        (state(5, True), state(1000, True), False),
        (state(5, True), state(4, True), True),
        (state(5, False), state(1, False), True),
        (state(-5, True, -1), state(-4, True, -1), True),
        (state(-5, True, -1), state(-6, True, -1), False),
        (state(30, True, 10), state(31, True, 10), False),
    ],
)
def test_behind_is_what_would_repeat_a_number(
    source: SequenceState, target: SequenceState, expected: bool
) -> None:
    """A target is behind when its next number is one that the source has passed, whichever way it counts."""
    assert bool(behind([source], [target])) is expected


def test_a_missing_sequence_is_behind_and_a_needless_one_is_not() -> None:
    """What the target lacks is named with no position; what only the target has is the schema's business."""
    missing, extra = SequenceState("b", "x", 9, True, 1, 99), SequenceState("a", "x", 9, True, 1, 99)
    assert behind([missing], [extra]) == [SequenceBehind("b", "x", 10, None)]


@given(INT8, st.booleans(), INT8, st.booleans(), st.integers(-100, 100).filter(bool))
def test_two_ends_are_never_both_behind(
    one: int, one_called: bool, other: int, other_called: bool, increment: int
) -> None:
    """Of two positions one is behind the other exactly when they differ, and never each behind the other."""
    first, second = state(one, one_called, increment), state(other, other_called, increment)
    forth, back = behind([first], [second]), behind([second], [first])
    assert len(forth) + len(back) == (first.next_value != second.next_value)
