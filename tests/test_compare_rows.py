"""Rows that differ are counted exactly, in one pass and in constant memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from fix_servers import Pair, on_all_pairs
from pglockstep.compare import rows
from pglockstep.compare.checksum import comparable_columns
from pglockstep.compare.rows import Differences, Row, count, count_differences, snapshot
from pglockstep.postgres.catalog import tables
from pglockstep.postgres.connect import End, connect


async def counting(pair: Pair) -> dict[str, Differences]:
    """What differs in each table that is on both ends."""
    async with (
        await connect(End("source", "test", pair.source), "test") as source,
        await connect(End("target", "test", pair.target), "test") as target,
    ):
        there = {table.name: table for table in await tables(target)}
        return {
            table.name.name: await count_differences(
                source, target, table, there[table.name], comparable_columns(table, there[table.name])
            )
            for table in await tables(source)
        }


def differences(pair: Pair) -> dict[str, Differences]:
    return asyncio.run(counting(pair))


def in_transaction(conn: AsyncConnection[TupleRow]) -> bool:
    return conn.info.transaction_status != TransactionStatus.IDLE


def on_both(pair: Pair, *statements: str) -> None:
    for conn in (pair.on_source(), pair.on_target()):
        for statement in statements:
            conn.execute(statement.encode())


@on_all_pairs
def test_missing_extra_and_changed_rows_are_told_apart(pair: Pair) -> None:
    """With a primary key a row that has another content counts once, as changed."""
    on_both(
        pair,
        "create table t (a int, b text, c text, primary key (b, a))",
        "insert into t select n, 'key ' || n % 3, 'content' from generate_series(1, 1000) as n",
    )
    with pair.on_target() as conn:
        conn.execute("delete from t where a <= 10")
        conn.execute("update t set c = null where a > 995")
        conn.execute("insert into t values (0, '', 'more'), (-1, '', 'more')")
    assert differences(pair)["t"] == Differences(missing=10, extra=2, changed=5)


@on_all_pairs
def test_without_a_key_rows_count_as_often_as_they_occur(pair: Pair) -> None:
    """Duplicates are counted, and a row with another content is one missing and one extra."""
    on_both(
        pair,
        "create table t (a int, b text)",
        "insert into t select 1, 'same' from generate_series(1, 500)",
        "insert into t values (2, 'x'), (2, 'x'), (null, null)",
    )
    with pair.on_target() as conn:
        conn.execute("delete from t where ctid in (select ctid from t where a = 1 limit 7)")
        conn.execute("update t set b = 'y' where ctid = (select min(ctid) from t where a = 2)")
        conn.execute("insert into t values (null, null), (null, null)")
    assert differences(pair)["t"] == Differences(missing=8, extra=3, changed=0)


def test_ends_with_different_keys_are_matched_by_content(pair: Pair) -> None:
    """A key that one end lacks, or has over other columns, identifies nothing; its order is no matter."""
    on_both(
        pair,
        "create table lacking (a int, b int); insert into lacking values (1, 1), (2, 2)",
        "create table other (a int, b int); insert into other values (1, 1), (2, 2)",
        "create table turned (a int, b int, c int); insert into turned values (1, 2, 3), (2, 1, 4)",
    )
    pair.on_source().execute(
        """alter table lacking add primary key (a); alter table other add primary key (a);
           alter table turned add primary key (a, b)"""
    )
    pair.on_target().execute(
        """alter table other add primary key (b); alter table turned add primary key (b, a);
           update lacking set b = 9 where a = 1; update other set b = 9 where a = 1;
           update turned set c = 9 where a = 1"""
    )
    moved = Differences(missing=1, extra=1)
    assert differences(pair) == {"lacking": moved, "other": moved, "turned": Differences(changed=1)}


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_streams_of_any_shape_are_matched_to_the_end(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Batches that end at the same row, far apart, or on one side only make no difference to the count."""
    monkeypatch.setattr(rows, "_BATCH", batch)
    on_both(
        pair,
        "create table equal (a int primary key); insert into equal select generate_series(1, 14)",
        "create table apart (a int primary key)",
        "create table gone (a int primary key)",
        "create table come (a int)",
        "create table bare ()",
    )
    pair.on_source().execute(
        """insert into apart select generate_series(1, 20); insert into gone select generate_series(1, 14);
           insert into bare select from generate_series(1, 9)"""
    )
    pair.on_target().execute(
        """insert into apart select generate_series(15, 60);
           insert into come select generate_series(1, 15) / 2;
           insert into bare select from generate_series(1, 4)"""
    )
    assert differences(pair) == {
        "equal": Differences(),
        "apart": Differences(missing=14, extra=40),
        "gone": Differences(missing=14),
        "come": Differences(extra=15),
        "bare": Differences(missing=5),
    }


def test_large_tables_need_little_memory(pair: Pair) -> None:
    """A table of 200,000 wide rows is matched within a few megabytes of ours."""
    fill = "insert into t select n, repeat(md5(n::text), 10) from generate_series(1, 200000) as n"
    on_both(pair, "create unlogged table t (a int primary key, b text)", fill)
    pair.on_target().execute("update t set b = '' where a % 1000 = 0; delete from t where a > 150000")
    tracemalloc.start()
    try:
        assert differences(pair)["t"] == Differences(missing=50000, changed=150)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000


def test_a_snapshot_does_not_move_and_ends_as_it_began(pair: Pair) -> None:
    """Inside, what others commit is not seen and nothing is written; a caller's transaction stays open."""
    with pair.on_source() as conn:
        conn.execute("create table t (a int)")

    async def checking() -> None:
        async with await connect(End("source", "test", pair.source), "test") as conn:
            async with snapshot(conn):
                before = await (await conn.execute("select count(*) from public.t")).fetchone()
                pair.on_source().execute("insert into t values (1)")
                assert await (await conn.execute("select count(*) from public.t")).fetchone() == before
                async with snapshot(conn):
                    pass
                assert in_transaction(conn)
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    await conn.execute("insert into public.t values (2)")
            assert not in_transaction(conn)

    asyncio.run(checking())


def test_an_error_of_one_end_is_told_as_it_is_and_leaves_both_usable(pair: Pair) -> None:
    """A table that is gone on one end raises the server's own error; no transaction stays open on either."""
    on_both(pair, "create table t (a int primary key)")

    async def checking() -> None:
        async with (
            await connect(End("source", "test", pair.source), "test") as source,
            await connect(End("target", "test", pair.target), "test") as target,
        ):
            [table] = await tables(source)
            pair.on_target().execute("drop table t")
            with pytest.raises(psycopg.errors.UndefinedTable):
                await count_differences(source, target, table, table, ["a"])
            for conn in (source, target):
                assert not in_transaction(conn)
                await conn.execute("select 1")

    asyncio.run(checking())


SMALL = st.integers(0, 3)
ROWS = st.lists(st.tuples(SMALL, SMALL, SMALL, st.integers(1, 3)), max_size=12)


def expanded(found: Sequence[Row]) -> list[tuple[int, int, int]]:
    return [(key0, key1, content) for key0, key1, content, copies in found for _ in range(copies)]


@given(ROWS, ROWS)
def test_counts_add_up(source: list[Row], target: list[Row]) -> None:
    """Whatever the rows: the counts explain the two sizes, are mirrored, and are zero only for equal rows."""
    found = count(source, target)
    ours, theirs = expanded(source), expanded(target)
    assert len(ours) - len(theirs) == found.missing - found.extra
    assert count(target, source) == Differences(found.extra, found.missing, found.changed)
    assert (found == Differences()) == (sorted(ours) == sorted(theirs))
    assert found.missing + found.changed <= len(ours)


@given(st.dictionaries(st.tuples(SMALL, SMALL), SMALL), st.dictionaries(st.tuples(SMALL, SMALL), SMALL))
def test_with_unique_keys_the_counts_are_those_of_sets(
    source: dict[tuple[int, int], int], target: dict[tuple[int, int], int]
) -> None:
    """Keys of one side are missing or extra; keys of both with other content are changed."""

    def stream(content: dict[tuple[int, int], int]) -> list[Row]:
        return sorted((*key, value, 1) for key, value in content.items())

    assert count(stream(source), stream(target)) == Differences(
        missing=len(source.keys() - target.keys()),
        extra=len(target.keys() - source.keys()),
        changed=sum(source[key] != target[key] for key in source.keys() & target.keys()),
    )
