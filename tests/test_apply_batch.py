"""Transactions gathered into batches: nothing out of order, nothing committed by halves, nothing taken twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglockstep.apply import batch as batches
from pglockstep.apply.batch import FULL, BatchBuilder
from pglockstep.apply.runs import Batch
from pglockstep.apply.statements import Statement
from pglockstep.errors import ProtocolViolation
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.encode import encode
from pglockstep.wal.messages import (
    Begin,
    Commit,
    Insert,
    LogicalMessage,
    Message,
    Relation,
    RelationColumn,
    Truncate,
)
from pglockstep.wal.pgoutput import decode

NAMES = {1: "a", 2: "b", 3: "c"}


def table_named(name: QualifiedName) -> Table:
    """The target's table of that name."""
    return Table(1, name, (Column("v", "text", 25),))


def builder(**copied: int) -> BatchBuilder:
    """A builder that knows three tables of one column."""
    made = BatchBuilder(
        "link",
        Lsn(100),
        table_named,
        copied={QualifiedName("public", name): Lsn(at) for name, at in copied.items()},
    )
    for oid in NAMES:
        describe(made, oid)
    return made


def describe(made: BatchBuilder, oid: int) -> None:
    """Describe one of the tables, perhaps anew."""
    column = RelationColumn("v", 25, -1, False)
    table = Table(oid, QualifiedName("public", NAMES[oid]), (Column("v", "text", 25),))
    made.describe(Relation(oid, "public", NAMES[oid], "f", (column,)), table)


def row(oid: int, value: object) -> Insert:
    """A row with this value."""
    return Insert(oid, (str(value).encode(),))


def take(made: BatchBuilder, at: int, *changes: Message, size: int = 10, end: int | None = None) -> None:
    """One whole transaction, whose commit record starts at `at`."""
    made.take(Begin(at, 0, 1), 20)
    for change in changes:
        made.take(change, size)
    made.take(Commit(at, end or at + 10, 0), 25)


def sealed(made: BatchBuilder) -> list[Batch]:
    """Everything that can be handed out, in order."""
    found = []
    while made.ready:
        found.append(made.seal())
    return found


def order(found: Sequence[Batch]) -> dict[str, list[str]]:
    """What happens to each table, in order."""
    seen: dict[str, list[str]] = {name: [] for name in NAMES.values()}
    for batch in found:
        for step in batch.steps:
            if isinstance(step, Statement):
                for name in NAMES.values():
                    if f'"{name}"'.encode() in step.query:
                        seen[name].append("truncate")
                continue
            for run in step.values():
                values = [change.new[0] for change in run.changes if isinstance(change, Insert)]
                assert len(values) == len(run.changes)
                seen[run.writer.table.name.name] += [
                    value.decode() for value in values if isinstance(value, bytes)
                ]
    return seen


#: Two of these fill a batch.
_large = Insert(1, (b"." * (FULL * 2 // 3),))

#: A change: a row of one table or a TRUNCATE of some; and whether a table is described anew before it.
CHANGES = st.one_of(
    st.sampled_from([1, 2, 3]),
    st.lists(st.sampled_from([1, 2, 3]), min_size=1, unique=True).map(tuple),
    st.sampled_from(["1", "2"]),
)


@given(st.lists(st.lists(CHANGES, max_size=6), max_size=8), st.data())
def test_every_table_sees_its_changes_in_order(
    transactions: list[list[int | tuple[int, ...] | str]], data: st.DataObject
) -> None:
    """However transactions are gathered, cut off and described anew, each table's changes keep their order."""
    made = builder()
    wanted: dict[str, list[str]] = {name: [] for name in NAMES.values()}
    found: list[Batch] = []
    number = 0
    for index, changes in enumerate(transactions):
        made.take(Begin(100 + index * 10, 0, 1), 20)
        for change in changes:
            number += 1
            if isinstance(change, str):
                describe(made, int(change))
            elif isinstance(change, tuple):
                made.take(Truncate(change, False, False), 10)
                for oid in change:
                    wanted[NAMES[oid]].append("truncate")
            else:
                # some are so large that a batch is full in the middle of the transaction
                made.take(row(change, number), data.draw(st.sampled_from([10, 10, FULL // 2])))
                wanted[NAMES[change]].append(str(number))
        made.take(Commit(100 + index * 10, 110 + index * 10, 0), 25)
        if data.draw(st.booleans()):
            found += sealed(made)
    found += sealed(made)
    assert order(found) == wanted
    # what comes in parts is committed with its last one
    assert not found or found[-1].commit is not None
    assert sum(batch.transactions for batch in found) == sum(
        any(not isinstance(change, str) for change in changes) for changes in transactions
    )


def test_complete_transactions_only() -> None:
    """What has begun is not handed out with what is complete."""
    made = builder()
    take(made, 100, row(1, "x"))
    made.take(Begin(110, 0, 1), 20)
    made.take(row(1, "y"), 10)
    (batch,) = sealed(made)
    assert order([batch])["a"] == ["x"]
    assert batch.commit == Commit(100, 110, 0)
    assert made.in_transaction


def test_a_large_transaction_comes_in_parts() -> None:
    """It stands behind the complete ones before it, and only its last part has a commit."""
    made = builder()
    take(made, 100, row(1, "before"))
    made.take(Begin(110, 0, 1), 20)
    for number in range(5):
        made.take(row(1, number), FULL // 2)
    made.take(Commit(110, 120, 0), 25)
    take(made, 120, row(1, "after"))
    found = sealed(made)
    assert order(found)["a"] == ["before", "0", "1", "2", "3", "4", "after"]
    assert [batch.commit is not None for batch in found] == [True, False, False, True]
    assert [batch.transactions for batch in found] == [1, 0, 0, 2]


def test_batches_are_bounded_by_bytes_and_by_changes() -> None:
    """Many small changes fill a batch as few large ones do."""
    made = builder()
    for number in range(FULL // 64 + 1):
        take(made, 100 + number, row(1, number), size=0, end=101 + number)
    assert made.full == 1


def test_what_was_applied_before_is_left_out() -> None:
    """A transaction whose commit record starts before the position is skipped, one that starts just there is not."""
    made = builder()
    take(made, 99, row(1, "old"), end=100)
    assert not made.ready
    take(made, 100, row(1, "new"))
    take(made, 100, row(1, "again"))
    assert order(sealed(made))["a"] == ["new"]


def test_what_was_copied_later_is_left_out_for_that_table() -> None:
    """A table that was copied as of a later moment skips what it holds, its share of a TRUNCATE included."""
    made = builder(b=150)
    take(made, 140, row(1, "1"), row(2, "1"), Truncate((1, 2), False, False), Truncate((2,), False, True))
    take(made, 150, row(1, "2"), row(2, "2"))
    found = sealed(made)
    assert order(found) == {"a": ["1", "truncate", "2"], "b": ["2"], "c": []}
    assert not found[0].carry


def fed(made: BatchBuilder, payloads: Sequence[bytes]) -> list[Batch]:
    """Everything that comes of these payloads, with descriptions and full batches seen to."""
    found, at = [], 0
    while (at := made.feed(payloads, at)) < len(payloads):
        if made.full > 1:
            found += sealed(made)
        else:
            relation = decode(payloads[at])
            assert isinstance(relation, Relation)
            describe(made, relation.relation_id)
            at += 1
    return found + sealed(made)


def test_feeding_payloads_is_taking_messages() -> None:
    """A description, or two full batches, stop it just before what has to wait; nothing is taken twice."""
    messages: list[Message] = []
    for at in range(100, 160, 10):
        messages += [Begin(at, 0, 1), row(1, at), row(2, at), Truncate((2,), False, False)]
        messages += [Relation(2, "public", "b", "f", (RelationColumn("v", 25, -1, False),)), row(2, at + 1)]
        messages += [Insert(1, (str(at).encode().ljust(FULL, b"."),)), Commit(at, at + 10, 0)]
    taken = builder()
    for message in messages:
        if isinstance(message, Relation):
            describe(taken, message.relation_id)
        else:
            taken.take(message, len(encode(message)))
    payloads = list(map(encode, messages))
    made = builder()
    assert made.feed(payloads) == 4
    assert made.feed(payloads, 5) == 12
    wanted = sealed(taken)
    found = fed(builder(), payloads)
    assert order(found) == order(wanted)
    assert [batch.size for batch in found] == [batch.size for batch in wanted]
    assert [batch.commit for batch in found] == [batch.commit for batch in wanted]


def test_two_full_batches_stop_feeding() -> None:
    """What is more stays where it is, until one of the two is handed out."""
    made = builder()
    payloads = [
        encode(message)
        for at in range(100, 160, 10)
        for message in (Begin(at, 0, 1), _large, Commit(at, at + 10, 0))
    ]
    assert made.feed(payloads) == 12
    assert made.feed(payloads, 12) == 12
    made.seal()
    assert made.feed(payloads, 12) == 18


def test_one_by_one() -> None:
    """With care, each transaction is a batch of its own."""
    made = builder()
    made.one_by_one = True
    for number in range(3):
        take(made, 100 + number * 10, row(1, number))
    assert [order([batch])["a"] for batch in sealed(made)] == [["0"], ["1"], ["2"]]


def test_sequences_are_wanted_at_our_barrier_alone() -> None:
    """The message of another link, or of an application, is not ours."""
    for content, wanted in ((b"link", True), (b"other", False), (b"\xff", False)):
        made = builder()
        take(made, 100, LogicalMessage(True, 100, batches.BARRIER_PREFIX, content))
        (batch,) = sealed(made)
        assert batch.carry is wanted


@pytest.mark.parametrize(
    "messages",
    [
        [row(1, "x")],
        [Commit(100, 110, 0)],
        [Begin(100, 0, 1), Begin(100, 0, 1)],
        [Begin(100, 0, 1), row(9, "x")],
        [Truncate((1,), False, False)],
    ],
)
def test_a_stream_that_makes_no_sense(messages: list[Message]) -> None:
    """A change outside of a transaction or of a table that was not described is a violation, never a guess."""
    made = builder()
    *before, last = messages
    for message in before:
        made.take(message, 10)
    with pytest.raises(ProtocolViolation):
        made.take(last, 10)
