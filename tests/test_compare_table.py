"""The rows in which two tables differ are found exactly: however they are cut, and while both ends are in use."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fix_servers import Pair, on_all_pairs
from pglockstep.compare import ranges, table
from pglockstep.compare.pairing import Pairing, Server
from pglockstep.compare.ranges import Range, Size, chunks_of, cut
from pglockstep.compare.readings import Reader, Sums
from pglockstep.compare.sessions import Sessions
from pglockstep.compare.suspects import Reading, Seen, Suspects
from pglockstep.compare.table import Found, Moments, compare
from pglockstep.errors import Inconclusive, SourceError
from pglockstep.postgres.catalog import tables
from pglockstep.postgres.connect import End, connect

SERVERS = (Server(15), Server(15))


class Differences(NamedTuple):
    missing: int = 0
    extra: int = 0
    changed: int = 0


async def comparing(pair: Pair, moments: Moments | None = None) -> dict[str, Found]:
    """What is found in each table that is on both ends."""
    ends = (End("source", "test", pair.source), End("target", "test", pair.target))
    async with await connect(ends[0], "test") as source, await connect(ends[1], "test") as target:
        there = {table.name: table for table in await tables(target)}
        here = await tables(source)
    async with Sessions(ends, 2) as sessions:
        servers = (Server(pair.source_server.major), Server(pair.target_server.major))
        return {
            each.name.name: await compare(Pairing.of(each, there[each.name], servers), sessions, moments)
            for each in here
        }


def differences(pair: Pair) -> dict[str, Differences]:
    found = asyncio.run(comparing(pair))
    return {name: Differences(each.missing, each.extra, each.changed) for name, each in found.items()}


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


@on_all_pairs
def test_what_only_another_version_writes_otherwise_is_the_same(pair: Pair) -> None:
    """A "char" above 127, names that are key words on one end, an interval at its end; and a real difference among them."""
    ends = "'178956970 years 7 mons 2147483647 days 2562047788:00:54.775807'::interval"
    # the widest that 14 to 16 have is infinity since 17
    infinite = {
        conn: "'infinity'::interval" if conn.info.server_version >= 170000 else ends
        for conn in (pair.on_source(), pair.on_target())
    }
    for conn, value in infinite.items():
        conn.execute('create table "json_array" (id int primary key); create domain char_like as "char"')
        conn.execute(
            'create table t (id int primary key, c "char", d char_like, r regclass, a regtype[], i interval, n numeric)'
        )
        conn.execute("insert into t values (2, 'a', 'b', null, null, '1 day', 1)")
        conn.execute(
            f"""insert into t select 1, (-56)::"char", (-1)::"char", '"json_array"', '{{json,text}}', {value}, 1""".encode()
        )
    assert differences(pair)["t"] == Differences()
    pair.on_target().execute(
        """update t set c = (-57)::"char" where id = 1; update t set a = '{text,json}' where id = 2"""
    )
    assert differences(pair)["t"] == Differences(changed=2)


@pytest.fixture(params=[1, 2, 7])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks, parts and portions of a few rows each."""
    rows: int = request.param
    monkeypatch.setattr(ranges, "CHUNK_ROWS", rows)
    monkeypatch.setattr(table, "_ROWS", 4 * rows)
    monkeypatch.setattr(table, "_PART", rows)
    monkeypatch.setattr(table, "_KEYS", rows)
    return rows


def test_tables_of_any_shape_are_compared_to_the_end(pair: Pair, small: int) -> None:
    """Rows before the first boundary, beyond the last, and on one side only: all are seen, however the table is cut."""
    on_both(
        pair,
        "create table equal (a int primary key); insert into equal select generate_series(1, 14)",
        "create table apart (a int primary key)",
        "create table gone (a int primary key)",
        "create table come (a int)",
        "create table bare ()",
        "create table named (a text, b date, c int, primary key (b, a))",
        "insert into named select 'it''s ' || n, date '2024-01-01' + n / 5, n from generate_series(1, 40) as n",
    )
    pair.on_source().execute(
        """insert into apart select generate_series(1, 20); insert into gone select generate_series(1, 14);
           insert into bare select from generate_series(1, 9); delete from named where c = 40; analyze"""
    )
    pair.on_target().execute(
        """insert into apart select generate_series(15, 60);
           insert into come select generate_series(1, 15) / 2;
           insert into bare select from generate_series(1, 4);
           update named set c = -c where c in (1, 20); delete from named where c = 7; analyze"""
    )
    assert differences(pair) == {
        "equal": Differences(),
        "apart": Differences(missing=14, extra=40),
        "gone": Differences(missing=14),
        "come": Differences(extra=15),
        "bare": Differences(missing=5),
        "named": Differences(missing=1, extra=1, changed=2),
    }


def ranges_asked(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """The ranges whose sums are asked for from now on, as they are."""
    asked: list[Range] = []
    sums = Reader.sums

    async def noted(self: Reader, within: Range = ranges.WHOLE) -> Sums:
        asked.append(within)
        return await sums(self, within)

    monkeypatch.setattr(Reader, "sums", noted)
    return asked


def test_a_large_table_is_cut_by_the_keys_of_both_ends(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million keys of the target beyond the source's last are many chunks, and the one missing row before them is found."""
    monkeypatch.setattr(ranges, "CHUNK_ROWS", 5_000)
    asked = ranges_asked(monkeypatch)
    on_both(
        pair,
        "create table t (a bigint primary key)",
        "insert into t select generate_series(1, 1000)",
        "analyze t",
    )
    pair.on_target().execute(
        "insert into t select generate_series(1001, 100000); delete from t where a = 500; analyze t"
    )
    assert differences(pair)["t"] == Differences(missing=1, extra=99000)
    assert len(set(asked)) > 10
    assert None in {each.low for each in asked}
    assert None in {each.high for each in asked}


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


def test_a_table_that_cannot_be_read_says_why(pair: Pair) -> None:
    """A lock, a dropped table and a cancelled statement prove nothing; a missing privilege is the end's error."""
    on_both(pair, "create table t (a int primary key); insert into t values (1)")
    ends = (
        End("source", "test", pair.source, lock_timeout=0.2),
        End("target", "test", pair.target, lock_timeout=0.2),
    )

    async def tried() -> Found:
        async with await connect(ends[0], "test") as conn:
            [found] = await tables(conn)
        async with Sessions(ends, 1) as sessions:
            pairing = Pairing.of(found, found, SERVERS)
            with pytest.raises(Inconclusive, match=message):
                await compare(pairing, sessions, None)
            # the sessions are as good as before
            prepare.rollback()
            return await compare(pairing, sessions, None)

    with pair.on_target() as prepare:
        prepare.autocommit = False
        prepare.execute("lock t in access exclusive mode")
        message = "it is locked on the target"
        assert not asyncio.run(tried()).differs

    async def gone() -> None:
        async with await connect(ends[0], "test") as conn:
            [found] = await tables(conn)
        pair.on_source().execute("drop table t")
        async with Sessions(ends, 1) as sessions:
            with pytest.raises(Inconclusive, match="it was dropped or altered on the source meanwhile"):
                await compare(Pairing.of(found, found, SERVERS), sessions, None)

    asyncio.run(gone())


@pytest.mark.superusers
def test_what_may_not_be_read_is_an_error(pair: Pair) -> None:
    """A role without SELECT gets the end's own error, with the hint what to grant."""
    on_both(pair, "create table t (a int primary key); insert into t values (1)")
    pair.on_source().execute("drop role if exists nobody_reads; create role nobody_reads login")
    try:
        ends = (
            End("source", "test", f"{pair.source} user=nobody_reads"),
            End("target", "test", pair.target),
        )

        async def tried() -> None:
            async with await connect(ends[1], "test") as conn:
                [found] = await tables(conn)
            async with Sessions(ends, 1) as sessions:
                await compare(Pairing.of(found, found, SERVERS), sessions, None)

        with pytest.raises(SourceError, match="permission denied"):
            asyncio.run(tried())
    finally:
        pair.on_source().execute("drop role nobody_reads")


# --- the pure core ------------------------------------------------------------------------------------------

SMALL = st.integers(0, 3)
KEYED = st.dictionaries(st.tuples(st.sampled_from("abcd")), SMALL)
BAGS = st.dictionaries(st.tuples(SMALL, SMALL), st.integers(1, 3))


def reading(content: dict[tuple[str], int], version: int = 0) -> Reading:
    return {key: Seen((value, value), f"{version}") for key, value in content.items()}


@given(KEYED, KEYED)
def test_with_keys_the_counts_are_those_of_sets(
    source: dict[tuple[str], int], target: dict[tuple[str], int]
) -> None:
    """Keys of one side are missing or extra; keys of both with other content are changed."""
    suspects = Suspects()
    suspects.add(reading(source), reading(target))
    suspects.compare(suspects.open, reading(source), reading(target))
    assert suspects.open == []
    assert Counter(each.kind for each in suspects.different) == Counter(
        missing=len(source.keys() - target.keys()),
        extra=len(target.keys() - source.keys()),
        changed=sum(source[key] != target[key] for key in source.keys() & target.keys()),
    )


@given(BAGS, BAGS)
def test_without_keys_the_counts_are_those_of_bags(
    source: dict[tuple[int, int], int], target: dict[tuple[int, int], int]
) -> None:
    """Equal rows count as often as they occur."""
    there: Reading = {key: Seen((copies,), "") for key, copies in source.items()}
    here: Reading = {key: Seen((copies,), "") for key, copies in target.items()}
    suspects = Suspects()
    suspects.add(there, here)
    suspects.compare(suspects.open, there, here)
    found: Counter[str] = Counter()
    for each in suspects.different:
        found[each.kind] += each.copies
    one, other = Counter(source), Counter(target)
    assert (found["missing"], found["extra"]) == ((one - other).total(), (other - one).total())


@given(KEYED, st.integers(0, 4))
def test_a_row_that_fell_into_two_chunks_is_one_row(content: dict[tuple[str], int], at: int) -> None:
    """Where the ends sort keys differently, one has a row in this chunk and the other in that."""
    keys = sorted(content)
    one = {key: content[key] for key in keys[:at]}
    other = {key: content[key] for key in keys[at:]}
    suspects = Suspects()
    suspects.add(reading(one), reading(other))
    suspects.add(reading(other), reading(one))
    assert suspects.open == []


STATES = st.lists(st.sampled_from([None, 1, 2, 3]), min_size=4, max_size=30)


@given(STATES, st.data())
def test_a_row_that_only_lags_is_never_different(states: list[int | None], data: st.DataObject) -> None:
    """Whatever becomes of a row: a target that has every state of it, later, is never called different."""
    suspects = Suspects()
    key = ("k",)

    def seen(at: int) -> Reading:
        # every state is a version of its own
        state = states[at]
        return {} if state is None else {key: Seen((state, state), str(at))}

    at = 0
    suspects.add({key: Seen((0, 0), "")}, {})
    while at < len(states) - 1 and suspects.open:
        before = at
        # the target has what the source had at `before` at least, and nothing that it has not had yet
        last = data.draw(st.integers(before, len(states) - 1))
        target = data.draw(st.integers(before, last))
        suspects.judge([key], seen(before), seen(target), seen(last))
        at = last + 1
    assert suspects.different == []


@given(KEYED)
def test_what_stands_still_and_differs_twice_is_different(content: dict[tuple[str], int]) -> None:
    """Once is not enough: what was committed may be seen late. Twice, in the same versions, is."""
    source = reading(content)
    target: Reading = {key: Seen((9, 9), "t") for key in content}
    suspects = Suspects()
    suspects.add(source, target)
    suspects.judge(suspects.open, source, target, source)
    assert suspects.different == []
    suspects.judge(suspects.open, source, target, source)
    assert len(suspects.different) == len(content)


@given(st.lists(st.integers(0, 1000), unique=True).map(sorted), st.integers(1, 50))
def test_every_key_is_in_exactly_one_range(boundaries: list[int], chunks: int) -> None:
    """However a table is cut: half open, and without an end at both ends."""
    found = cut([(str(each),) for each in boundaries], chunks)
    for key in range(-2, 1003):
        inside = [
            each
            for each in found
            if (each.low is None or int(each.low[0]) <= key)
            and (each.high is None or key < int(each.high[0]))
        ]
        assert len(inside) == 1
    assert len(found) <= 2 * chunks + 1


def test_a_table_is_cut_by_its_larger_end() -> None:
    """An empty target does not make one chunk of a large source."""
    assert chunks_of((Size(10_000_000, 0), Size(0, 0))) == chunks_of((Size(0, 0), Size(10_000_000, 0))) == 40
    assert chunks_of((Size(10, 100), Size(0, 0))) == 1
    assert chunks_of((Size(10, 10 << 30), Size())) > 100


# --- against the truth --------------------------------------------------------------------------------------

CELLS = st.sampled_from([None, "", "0", "-0", "|", "~t", "NULL", "a", "A", "a ", "é"])
KEYS = st.integers(-3, 12)


def truth(one: list[tuple[object, ...]], other: list[tuple[object, ...]], keyed: bool) -> Differences:
    if not keyed:
        source, target = Counter(one), Counter(other)
        return Differences((source - target).total(), (target - source).total())
    there, here = {row[0]: row for row in one}, {row[0]: row for row in other}
    return Differences(
        len(there.keys() - here.keys()),
        len(here.keys() - there.keys()),
        sum(there[key] != here[key] for key in there.keys() & here.keys()),
    )


@pytest.mark.parametrize("examples", [150, pytest.param(3000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("keyed", [True, False])
def test_what_is_found_is_the_truth(pair: Pair, small: int, keyed: bool, examples: int) -> None:
    """Random pairs of small tables, cut into chunks and parts of any size: the difference is exactly theirs."""
    ends = (End("source", "test", pair.source), End("target", "test", pair.target))
    on_both(
        pair,
        f"create unlogged table t (a int {'primary key' if keyed else ''}, b text, c float8, d numeric)",
    )
    rows = st.lists(
        st.tuples(
            KEYS, CELLS, st.sampled_from(["0", "-0", "NaN", None]), st.sampled_from(["1.0", "1.00", None])
        ),
        max_size=14,
        unique_by=(lambda row: row[0]) if keyed else None,
    )
    fill = "insert into public.t select * from unnest($1::int[], $2::text[], $3::float8[], $4::numeric[])"

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(one=rows, other=rows, mixed=st.randoms(), alike=st.booleans())
    def holds(
        one: list[tuple[object, ...]], other: list[tuple[object, ...]], mixed: object, alike: bool
    ) -> None:
        if alike:
            other = [*one]
            mixed.shuffle(other)  # type: ignore[attr-defined]

        async def taking() -> Found:
            for conn, content in ((there, one), (here, other)):
                await conn.execute("truncate public.t")
                await conn.execute(
                    fill, [list(each) for each in zip(*content, strict=True)] or [[], [], [], []]
                )
                await conn.execute("analyze public.t")
            return await compare(pairing, sessions, None)

        found = runner.run(taking())
        assert Differences(found.missing, found.extra, found.changed) == truth(one, other, keyed)
        assert (found.source_rows, found.target_rows) == (len(one), len(other))

    with asyncio.Runner() as runner:
        there, here = (runner.run(connect(end, "test")) for end in ends)
        [source] = runner.run(tables(there))
        [target] = runner.run(tables(here))
        pairing = Pairing.of(source, target, SERVERS)
        sessions = Sessions(ends, 2)
        holds()
        runner.run(sessions.__aexit__())
        for conn in (there, here):
            runner.run(conn.close())
