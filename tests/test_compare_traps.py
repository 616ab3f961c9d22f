"""Keys that read, sort or are cast otherwise than one would think: what is the same is the same, and what differs is found."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_servers import Pair, majors
from pglockstep.compare import ranges, table
from pglockstep.compare.pairing import Pairing, RowKey, Server
from pglockstep.compare.ranges import Key, Range, sorted_alike
from pglockstep.compare.readings import Place, Reader
from pglockstep.compare.suspects import Seen
from pglockstep.errors import Inconclusive
from pglockstep.postgres.catalog import tables
from pglockstep.postgres.connect import End, connect
from test_compare_table import Differences, comparing, differences, on_both, ranges_asked

#: Version 15 knows ICU's collations here.
with_icu = pytest.mark.parametrize("pair", [(15, 15)] if 15 in majors else [], indirect=True, ids=["15"])
#: Capitals and small letters, which "C" sorts apart and "odd" side by side.
NAMES = (
    "INSERT INTO t SELECT chr(65 + n % 26 + 32 * (n / 26 % 2)) || n, 'v' FROM generate_series(1, 500) AS n"
)


@pytest.mark.superusers
@with_icu
@pytest.mark.parametrize("there", ["odd", "C"])
def test_a_key_with_a_collation_of_its_own_is_counted_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    """The database sorts otherwise than the column, and an end otherwise than the other: no row is in two chunks."""
    monkeypatch.setattr(ranges, "CHUNK_ROWS", 20)
    on_both(
        pair,
        "CREATE COLLATION odd (provider = icu, locale = 'en')",
        'CREATE TABLE t (id text COLLATE "odd" PRIMARY KEY, v text)',
        f"{NAMES}; ANALYZE t",
    )
    pair.on_target().execute(f'ALTER TABLE t ALTER id TYPE text COLLATE "{there}"'.encode())
    found = asyncio.run(comparing(pair))["t"]
    assert (found.source_rows, found.target_rows, found.differs) == (500, 500, False)
    pair.on_target().execute("DELETE FROM t WHERE id = 'B1'; INSERT INTO t VALUES ('zz', 'v')")
    assert differences(pair)["t"] == Differences(missing=1, extra=1)


def test_keys_of_other_types_are_compared(pair: Pair) -> None:
    """A number beyond the other end's, a text that is no number, a longer one: no end is asked what it cannot take."""
    on_both(
        pair,
        "CREATE TABLE wider (id int PRIMARY KEY, v text); INSERT INTO wider SELECT n, 'v' FROM generate_series(1, 9) AS n",
        "CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other SELECT n, 'v' FROM generate_series(1, 9) AS n",
        "CREATE TABLE longer (id char(3) PRIMARY KEY, n numeric(4, 2)); INSERT INTO longer VALUES ('a', 1), ('b', 2)",
        "CREATE TABLE finer (id numeric(4, 2) PRIMARY KEY); INSERT INTO finer VALUES (1), (2)",
    )
    pair.on_target().execute(
        """ALTER TABLE wider ALTER id TYPE bigint; INSERT INTO wider VALUES (3000000000, 'more');
           ALTER TABLE other ALTER id TYPE text; INSERT INTO other VALUES ('abc', 'more');
           ALTER TABLE longer ALTER id TYPE varchar(9); INSERT INTO longer VALUES ('a and', 3);
           UPDATE longer SET n = 9 WHERE id = 'b';
           ALTER TABLE finer ALTER id TYPE numeric(9, 2); INSERT INTO finer VALUES (12345.67)"""
    )
    found = differences(pair)
    assert found["wider"] == Differences(extra=1)
    assert found["other"] == Differences(extra=1)
    assert found["finer"] == Differences(extra=1)
    assert found["longer"].extra >= 1


def test_a_cast_that_makes_two_keys_one_hides_nothing(pair: Pair) -> None:
    """What a user's cast to text says of an enum is not what tells its rows apart."""
    on_both(
        pair,
        "CREATE TYPE e AS ENUM ('a', 'b', 'c')",
        "CREATE FUNCTION e_text(e) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'b'$$",
        "CREATE CAST (e AS text) WITH FUNCTION e_text(e)",
        "CREATE TABLE t (id e PRIMARY KEY, v text); INSERT INTO t VALUES ('a', '1'), ('b', '2'), ('c', '3')",
    )
    pair.on_target().execute("UPDATE t SET v = 'changed' WHERE id = 'a'")
    assert differences(pair) == {"t": Differences(changed=1)}


def test_a_key_in_another_order_is_not_cut(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other end's index is no help for it: each chunk would be all of the table."""
    monkeypatch.setattr(ranges, "CHUNK_ROWS", 20)
    asked = ranges_asked(monkeypatch)
    on_both(
        pair, "CREATE TABLE t (a int, b int); INSERT INTO t SELECT n, -n FROM generate_series(1, 500) AS n"
    )
    pair.on_source().execute("ALTER TABLE t ADD PRIMARY KEY (a, b); ANALYZE t")
    pair.on_target().execute("ALTER TABLE t ADD PRIMARY KEY (b, a); ANALYZE t; DELETE FROM t WHERE a = 77")
    assert differences(pair) == {"t": Differences(missing=1)}
    assert set(asked) == {ranges.WHOLE}


@pytest.mark.xfail(
    strict=True,
    reason="all of a table that is one chunk is read again for each 20,000 rows in parts that differ: the square in time",
)
@pytest.mark.parametrize("key", ["", "PRIMARY KEY"])
def test_a_table_that_is_not_cut_is_read_a_few_times(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """However many of its rows differ; without a key, and with one that is not cut, such as an enum, citext or char."""
    monkeypatch.setattr(table, "_ROWS", 20)
    monkeypatch.setattr(table, "_PART", 1)
    monkeypatch.setattr(table, "PROVEN", 20)
    read = 0
    rows = Reader.rows

    async def noted(self: Reader, within: Range, parts: int, chosen: Sequence[int]) -> Mapping[RowKey, Seen]:
        nonlocal read
        read += 1
        return await rows(self, within, parts, chosen)

    monkeypatch.setattr(Reader, "rows", noted)
    on_both(
        pair,
        f"CREATE TABLE t (id char(9) {key}, v text); INSERT INTO t SELECT n, 'v' FROM generate_series(1, 500) AS n",
    )
    pair.on_target().execute("UPDATE t SET v = 'w'")
    assert differences(pair)["t"] in (Differences(changed=500), Differences(missing=500, extra=500))
    assert read <= 2 * 4


def test_a_moment_that_is_gone_is_inconclusive(pair: Pair) -> None:
    """A daemon that was killed takes its snapshots along; the condition of a person is not to blame."""
    on_both(pair, "CREATE TABLE t (id int PRIMARY KEY, v text)")
    end = End("source", "test", pair.source)

    async def tried() -> None:
        async with await connect(end, "test") as conn:
            [found] = await tables(conn)
            for where in ("", "v = 'v'"):
                reader = Reader(Place(end, conn), Pairing.of(found, found, (Server(15), Server(15)), where))
                for name in ("00000003-00000002-1", "nothing"):
                    with pytest.raises(Inconclusive, match="the moment was gone"):
                        await reader.rows_as_of(name, [("1",)])

    asyncio.run(tried())


@given(st.permutations([(str(number),) for number in range(12)]))
def test_boundaries_are_in_one_order_on_both_ends(there: list[Key]) -> None:
    """However the other end sorts them: what is left only grows on both, and as much as can be is left."""
    here = sorted(there)
    found = sorted_alike(here, there)
    places = [there.index(key) for key in found]
    assert (found, places) == (sorted(found), sorted(places))
    assert found
    assert sorted_alike(here, here) == here
    assert sorted_alike([], []) == []
