"""From a change to its statement, without a server: what is refused, what is shared, what is told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fix_mirror import statement_for
from pglockstep.apply.statements import TableWriter, truncate
from pglockstep.errors import EXIT_TARGET, ApplyRefused
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.names import QualifiedName
from pglockstep.wal.messages import (
    UNCHANGED,
    Delete,
    Insert,
    Relation,
    RelationColumn,
    Row,
    Update,
)


def column(name: str, *, generated: str = "", identity: str = "") -> Column:
    """A column of type integer."""
    equality = "OPERATOR(pg_catalog.=)"
    return Column(name, "integer", 23, generated=generated, identity=identity, equality=equality)


def writer(
    *columns: Column, key: Sequence[str] = (), identity: str = "d", sent: Sequence[str] | None = None
) -> TableWriter:
    """The writer for a table of these columns, of which the stream carries `sent`, and `key` as the key."""
    names = [each.name for each in columns] if sent is None else sent
    relation = Relation(
        1, "public", "t", identity, tuple(RelationColumn(name, 23, -1, name in key) for name in names)
    )
    return TableWriter(relation, Table(1, QualifiedName("public", "t"), columns, tuple(key)))


def test_a_column_that_the_target_lacks() -> None:
    """A table without a column of the stream is refused before any row, with what to do about it."""
    with pytest.raises(
        ApplyRefused, match=r'public\.t differs .* the target\'s table has no column "B"'
    ) as caught:
        writer(column("a"), sent=["a", "B"])
    assert "same DDL" in caught.value.hint
    assert caught.value.exit_code == EXIT_TARGET
    assert not caught.value.transient


def test_a_column_that_the_source_lacks() -> None:
    """A column that nothing would fill is refused too, unless the target computes it."""
    with pytest.raises(ApplyRefused, match="the source's table has no column b"):
        writer(column("a"), column("b"), sent=["a"])
    assert writer(column("a"), column("b", generated="s"), column("c", generated="v"), sent=["a"])


def test_a_column_that_only_the_target_computes() -> None:
    """A value that the target insists on computing by itself cannot be put there."""
    with pytest.raises(ApplyRefused, match="column b is generated on the target only"):
        writer(column("a"), column("b", generated="s"), sent=["a", "b"])


def typed(theirs: tuple[int, int], ours: tuple[int, int]) -> TableWriter:
    """The writer for a table of one column, whose type's OID and modifier are `theirs` and `ours`."""
    relation = Relation(1, "public", "t", "f", (RelationColumn("a", *theirs, False),))
    column = Column("a", "that type", ours[0], type_modifier=ours[1])
    return TableWriter(relation, Table(1, QualifiedName("public", "t"), (column,)))


#: OIDs of types, and numeric's modifier for a precision and a scale.
INT2, INT4, INT8, TEXT, VARCHAR, NUMERIC, FLOAT4, FLOAT8, TIMESTAMP = (
    21,
    23,
    20,
    25,
    1043,
    1700,
    700,
    701,
    1114,
)
ENUM, OTHER_ENUM = 16_400, 23_456


def numeric(precision: int, scale: int) -> tuple[int, int]:
    return NUMERIC, (precision << 16 | scale) + 4


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ((FLOAT8, -1), (FLOAT4, -1)),
        ((FLOAT4, -1), (FLOAT8, -1)),
        ((TEXT, -1), (INT4, -1)),
        ((INT8, -1), (INT4, -1)),
        ((INT4, -1), numeric(5, 2)),
        (numeric(10, 4), numeric(10, 2)),
        ((NUMERIC, -1), numeric(10, 2)),
        ((TIMESTAMP, -1), (TIMESTAMP, 0)),
    ],
)
def test_a_type_that_would_bend_values(theirs: tuple[int, int], ours: tuple[int, int]) -> None:
    """A column that would round a value, or read it otherwise, is refused before any row."""
    with pytest.raises(ApplyRefused, match="column a is that type on the target only"):
        typed(theirs, ours)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ((INT4, -1), (INT4, -1)),
        ((INT2, -1), (INT8, -1)),
        ((INT4, -1), (NUMERIC, -1)),
        ((VARCHAR, 14), (TEXT, -1)),
        ((VARCHAR, 14), (VARCHAR, 7)),
        (numeric(10, 4), numeric(10, 4)),
        (numeric(10, 4), (NUMERIC, -1)),
        ((ENUM, -1), (OTHER_ENUM, -1)),
    ],
)
def test_a_type_that_holds_every_value(theirs: tuple[int, int], ours: tuple[int, int]) -> None:
    """The same type, a wider one, one that refuses by itself what does not fit, and types of the user are taken."""
    assert typed(theirs, ours)


@pytest.mark.parametrize("change", [Update(1, (b"1", b"2")), Delete(1, (b"1", None), old_is_key=True)])
def test_a_change_without_identity(change: Update | Delete) -> None:
    """A change that does not say which row it was is refused, with the statement that helps."""
    with pytest.raises(ApplyRefused, match="does not say which row it was") as caught:
        statement_for(change, {1: writer(column("a"), column("b"))})
    assert "ALTER TABLE public.t REPLICA IDENTITY FULL" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        Update(1, (UNCHANGED, b"2")),
        Update(1, (b"1", b"2"), (UNCHANGED, None), old_is_key=True),
        Delete(1, (UNCHANGED, None), old_is_key=True),
    ],
)
def test_a_key_that_was_not_sent(change: Update | Delete) -> None:
    """A key that was left out is an error that names its column, never a guess."""
    with pytest.raises(ApplyRefused, match="without the old value of column a, which names the row"):
        statement_for(change, {1: writer(column("a"), column("b"), key=["a"])})


@pytest.mark.parametrize(
    "change", [Update(1, (b"1", b"2"), (b"1", UNCHANGED)), Delete(1, (b"1", UNCHANGED), old_is_key=False)]
)
def test_a_whole_row_that_was_not_sent_whole(change: Update | Delete) -> None:
    """Without a key every old value names the row, and none may be missing."""
    with pytest.raises(ApplyRefused, match="without the old value of column b"):
        statement_for(change, {1: writer(column("a"), column("b"), identity="f")})


def test_an_insert_with_a_value_left_out() -> None:
    """A new row is put in whole or not at all."""
    with pytest.raises(ApplyRefused, match="came with a value left out"):
        writer(column("a"), column("b"), key=["a"]).insert(Insert(1, (b"1", UNCHANGED)))


def test_statements_are_shared_by_changes_of_one_shape() -> None:
    """Changes that differ in their values alone use one text, so the server plans it once; others do not."""
    keyed = writer(column("a"), column("b"), key=["a"])
    one, two = (keyed.update(Update(1, (value, value))) for value in (b"1", b"2"))
    assert one.query is two.query
    assert (one.parameters, two.parameters) == ((b"1", b"1", b"1"), (b"2", b"2", b"2"))
    assert keyed.update(Update(1, (b"1", UNCHANGED))).query != one.query
    assert keyed.update(Update(1, (b"1", None))).query is one.query
    assert (
        keyed.delete(Delete(1, (b"1", None), True)).query is keyed.delete(Delete(1, (b"2", None), True)).query
    )

    unkeyed = writer(column("a"), column("b"), identity="f")
    rows: list[Row] = [(b"1", None), (None, b"1"), (None, None), (b"1", b"1")]
    assert len({unkeyed.delete(Delete(1, row, old_is_key=False)).query for row in rows}) == len(rows)


def test_shapes_do_not_pile_up() -> None:
    """A table with as many shapes as rows does not fill the memory with statements."""
    wide = writer(*(column(f"c{number}") for number in range(12)), identity="f")
    for number in range(2**12):
        wide.delete(
            Delete(1, tuple(b"1" if number >> bit & 1 else None for bit in range(12)), old_is_key=False)
        )
    assert len(wide._updates) <= 200


def test_only_the_rows_of_the_table_itself() -> None:
    """Rows of children are never touched: what finds a row looks in this table alone."""
    for each in (writer(column("a"), key=["a"]), writer(column("a"), identity="f")):
        old_is_key = each.relation.replica_identity != "f"
        for statement in (
            each.update(Update(1, (b"1",), (b"2",), old_is_key)),
            each.delete(Delete(1, (b"1",), old_is_key)),
        ):
            assert statement.query.count(b'"public"."t"') == statement.query.count(b'ONLY "public"."t"') > 0
    assert truncate([QualifiedName("a", "b"), QualifiedName("c", "D")], restart_identity=True).query == (
        b'TRUNCATE ONLY "a"."b", ONLY "c"."D" RESTART IDENTITY'
    )


def test_a_statement_tells_what_it_does() -> None:
    """For a person: the verb, the table, and the row's key; long values are cut, and no key is no guess."""
    keyed = writer(column("a"), column("Odd"), column("c"), key=["a", "Odd"])
    delete = keyed.delete(Delete(1, (b"1", b"x" * 70, b"secret"), old_is_key=False))
    assert str(delete) == f"DELETE of public.t where a = '1', \"Odd\" = '{'x' * 60}…'"
    assert (
        str(keyed.insert(Insert(1, (b"1", None, b"3")))) == "INSERT of public.t where a = '1', \"Odd\" = NULL"
    )
    update = keyed.update(Update(1, (b"2", b"\xff", b"3"), (b"1", b"y", None), old_is_key=True))
    assert str(update) == "UPDATE of public.t where a = '1', \"Odd\" = 'y'"
    assert str(writer(column("a"), identity="f").delete(Delete(1, (b"1",), False))) == "DELETE of public.t"
    assert str(truncate([QualifiedName("public", "t")], restart_identity=False)) == "TRUNCATE of public.t"
