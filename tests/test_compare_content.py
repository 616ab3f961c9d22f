"""Fingerprints are equal exactly when two tables hold the same rows."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fix_servers import Pair, drop_database, majors, on_all_pairs
from pglockstep.compare import readings
from pglockstep.compare.pairing import Pairing, Server, comparable_columns
from pglockstep.compare.readings import Place, Reader, Sums
from pglockstep.errors import Inconclusive, SourceError
from pglockstep.postgres.catalog import Column, Table, tables
from pglockstep.postgres.connect import End, connect
from pglockstep.postgres.names import QualifiedName

SERVERS = (Server(15), Server(15))


async def fingerprint(place: Place, table: Table, servers: Sequence[Server] = SERVERS) -> Sums:
    return await Reader(place, Pairing.of(table, table, servers)).sums()


async def taken(place: Place, servers: Sequence[Server]) -> dict[str, Sums]:
    """The sums of every table, by its name."""
    await place.demand_same_hashes()
    return {table.name.name: await fingerprint(place, table, servers) for table in await tables(place.conn)}


def fingerprints(conninfo: str, *prepare: str, servers: Sequence[Server] = SERVERS) -> dict[str, Sums]:
    async def taking() -> dict[str, Sums]:
        end = End("source", "test", conninfo)
        async with await connect(end, "test") as conn:
            for statement in prepare:
                await conn.execute(statement.encode())
            return await taken(Place(end, conn), servers)

    return asyncio.run(taking())


NASTY_VALUES = """
    create type mood as enum ('sad', 'so "so"', 'null');
    create type pair as (a int, b text);
    create domain short as varchar(20) check (value <> 'x');
    create table nasty (
        "i" bigint, n numeric, f4 float4, f8 float8, t text, c char(9), v varchar collate "POSIX", q "char",
        nm name, b bytea, bo boolean, d date, ti time, ttz timetz, ts timestamp, tz timestamptz, iv interval,
        u uuid, j json, jb jsonb, x text[], m mood, p pair, s short, r int4range, mr datemultirange, ip inet,
        cd cidr, mac macaddr, bi bit(3), vb varbit, pt point, tv tsvector, mo money, ps pair[], l pg_lsn,
        "select" oid, gen text generated always as (t || 'ü') stored
    );
"""
NASTY_ROWS = [
    "insert into nasty values (default)",
    """insert into nasty values (
        -9223372036854775808, 'NaN', 'NaN', '-Infinity', '', 'a', '', 'x', 'name', '',
        false, '4713-01-01 BC', '24:00', '24:00+14:59', '294276-01-01', '-infinity', '-1 year 2 days -3.5 s',
        'ffffffff-ffff-ffff-ffff-ffffffffffff', '{"b":1,"a" : null}', 'null', '{}', 'null', row(null, null),
        '', 'empty', '{}', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '101', '', '(-0,1e-300)',
        'a:1A ''it''''s'':2', '-1234.5', '{}', '16/B374D848', 4294967295)""",
    r"""insert into nasty values (9223372036854775807, '1.500', 1e-45, 5e-324,
        E'NULL\n\t"''\\,(){}🐘', 'a  b', '\', '"', '100% "x"', '\x00ff', true, 'infinity',
        '23:59:59.999999', '00:00-15:59', '0001-01-01 00:00:00 BC',
        '2024-02-29 12:00+00', '1 mon 30 days 24:00', null, 'null', '{"a": 1.0, "b": 1.00}',
        '[0:2]={NULL,"NULL",""}', 'so "so"', row(1, 'x, "y"'), 'ä', '(,1)', '{[2020-01-01,2020-02-01)}',
        '1.2.3.4', '::/0', '00:00:00:00:00:00', '000', '1', '(1,2)', '', '0',
        array[row(1, null)::pair, null], '0/0', 0)""",
    """insert into nasty (t, b, x)
        select repeat('ẞ', 300000), decode(repeat('00', 500000), 'hex'), array_fill(''::text, array[999])""",
    "insert into nasty (i) select null from generate_series(1, 3)",
]


@on_all_pairs
def test_the_same_rows_have_one_fingerprint_on_every_version(pair: Pair) -> None:
    """Equal rows of many types, entered in another order on other versions, sum up to the same numbers."""
    for end, rows in ((pair.on_source(), NASTY_ROWS), (pair.on_target(), NASTY_ROWS[::-1])):
        end.execute(NASTY_VALUES)
        for row in rows:
            end.execute(row)
    source, target = fingerprints(pair.source), fingerprints(pair.target)
    assert source == target
    assert source["nasty"].rows == 7


TOLD_APART = [
    ("a text", "(null)", "('')"),
    ("a text", "('NULL')", "(null)"),
    ("a text", "('')", "('\"\"')"),
    ("a text, b text", "('a,', 'b')", "('a', ',b')"),
    ("a text, b text", "('x', null)", "(null, 'x')"),
    ("a text, b text", "('a|', 'b')", "('a', '|b')"),
    ("a text, b text", "('|1|', '')", "('', '|1|')"),
    ("a int, b text", "(1, '2')", "(12, '')"),
    ("a int, b int", "(null, 1)", "(1, null)"),
    ("a text, b int", "(null, 1)", "('1', null)"),
    ("a text", "('~t')", "(null)"),
    ("a int, b json, c json", "(1, '1', null)", "(1, null, '1')"),
    ("a numeric, b text[]", "(null, '{~t}')", "(1, '{~t}')"),
    ("a bool, b bool", "(true, null)", "(null, true)"),
    ("a varchar(9), b bpchar", "('a', ' ')", "('a ', '')"),
    ("a timestamptz", "('infinity')", "('-infinity')"),
    ("a text, b text", "('a', 'b'), ('c', 'd')", "('a', 'd'), ('c', 'b')"),
    ("a text", "('a'), ('a')", "('b'), ('b')"),
    ("a text", "('a')", "('a'), ('a')"),
    ("a text", "('a'), ('b'), ('b')", "('a'), ('a'), ('b')"),
    ("a text", "(E'a\\nb')", "('a\\nb')"),
    ("a bpchar", "('a ')", "('a')"),
    ("a numeric", "(1.0)", "(1.00)"),
    ("a float8", "(0)", "('-0')"),
    ("a float8", "(0.1)", "('0.10000000000000002')"),
    ("a time", "('00:00')", "('24:00')"),
    ("a interval", "('1 day')", "('24 hours')"),
    ("a jsonb", "(null)", "('null')"),
    ("a json", "('{\"a\":1}')", "('{\"a\": 1}')"),
    ("a text[]", "(null)", "('{}')"),
    ("a text[]", "('{NULL}')", "('{\"NULL\"}')"),
    ("a text[]", "('[0:0]={a}')", "('{a}')"),
    ("a int4range", "(null)", "('empty')"),
    ("a bytea", "('\\x00')", "('')"),
    ("a inet", "('10.0.0.0/8')", "('10.0.0.0/9')"),
    ("a pg_namespace", "(null)", "(row(null, null, null, null))"),
]


def test_rows_that_a_client_can_tell_apart_have_other_fingerprints(pair: Pair) -> None:
    """What checksums get wrong: NULL as '', moved separators, swapped values, cancelled duplicates."""
    with pair.on_source() as conn:
        for number, (columns, *both) in enumerate(TOLD_APART):
            for name, values in zip(("one", "other"), both, strict=True):
                conn.execute(f"create table {name}_{number} ({columns})".encode())
                conn.execute(f"insert into {name}_{number} values {values}".encode())
    found = fingerprints(pair.source)
    assert len(found) == 2 * len(TOLD_APART)
    alike = [
        case for number, case in enumerate(TOLD_APART) if found[f"one_{number}"] == found[f"other_{number}"]
    ]
    assert alike == []


TEXTS = st.sampled_from(
    [None, "", "NULL", ",", '"', '""', "\\", "(", ")", " ", "'", "a", "a,", ",a", "\n", "é", "e\u0301"]
)


def test_fingerprints_are_equal_exactly_when_the_multisets_of_rows_are(pair: Pair) -> None:
    """Random small tables of nasty texts: same rows, same fingerprint; other rows, another fingerprint."""

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data(), width=st.integers(0, 3), seed=st.integers())
    def holds(data: st.DataObject, width: int, seed: int) -> None:
        rows = st.lists(st.tuples(*[TEXTS] * width), max_size=5)
        one = data.draw(rows)
        other = data.draw(rows | st.just(random.Random(seed).sample(one, len(one))))
        few = msgspec.structs.replace(table, columns=table.columns[:width])

        async def taking() -> tuple[Sums, Sums]:
            both = []
            for content in (one, other):
                await conn.execute("truncate public.t")
                for row in content:
                    values = [*row, None, None, None][:3]
                    await conn.execute("insert into public.t values ($1, $2, $3)", values)
                both.append(await fingerprint(Place(end, conn), few))
            return both[0], both[1]

        first, second = runner.run(taking())
        assert (first == second) == (Counter(one) == Counter(other))

    with pair.on_source() as plain:
        plain.execute("create unlogged table t (a text, b varchar, c text)")
    with asyncio.Runner() as runner:
        end = End("source", "test", pair.source)
        conn = runner.run(connect(end, "test"))
        [table] = runner.run(tables(conn))
        holds()
        runner.run(conn.close())


def test_a_cast_to_text_of_a_users_own_hides_nothing(pair: Pair) -> None:
    """What counts is what a type writes, not what a cast that somebody defined makes of it."""
    with pair.on_source() as conn:
        conn.execute("create type mood as enum ('sad', 'happy')")
        conn.execute("create function flat(mood) returns text immutable language sql return 'mood'")
        conn.execute("create cast (mood as text) with function flat(mood)")
        conn.execute("create table one as select 'sad'::mood as m")
        conn.execute("create table other as select 'happy'::mood as m")
    found = fingerprints(pair.source)
    assert found["one"] != found["other"]


@on_all_pairs
def test_the_widest_and_the_narrowest_table_can_be_compared(pair: Pair) -> None:
    """1,600 columns work and each counts; so do no columns at all, and no rows."""
    wide = ", ".join(f"c{number} smallint" for number in range(1600))
    for end in (pair.on_source(), pair.on_target()):
        end.execute(f"create table wide ({wide}); create table bare (); create table empty (a int)".encode())
        end.execute("insert into wide (c0, c1599) values (1, 2); insert into bare default values")
    source = fingerprints(pair.source)
    assert source == fingerprints(pair.target)
    assert source["empty"] == Sums(0, 0, 0)
    assert source["bare"].rows == 1
    pair.on_target().execute("update wide set c1599 = null")
    assert fingerprints(pair.target)["wide"] != source["wide"]


def test_hostile_names_are_only_names(pair: Pair) -> None:
    """Quotes, braces, percent and dollar signs in identifiers do no harm."""
    name = '"a\'b""c; {0} %s $1 – é"'
    with pair.on_source() as conn:
        conn.execute(f"create schema {name}; create table {name}.{name} ({name} int)".encode())
        conn.execute(f"insert into {name}.{name} values (1), (2)".encode())
    [found] = fingerprints(pair.source).values()
    assert found.rows == 2


def test_children_are_tables_of_their_own(pair: Pair) -> None:
    """A row in an inheritance child is not a row of its parent."""
    with pair.on_source() as conn:
        conn.execute("create table parent (a int); create table child () inherits (parent)")
        conn.execute("insert into child values (1)")
    found = fingerprints(pair.source)
    assert (found["parent"].rows, found["child"].rows) == (0, 1)


def test_columns_that_both_ends_store_are_compared() -> None:
    """Stored generated columns count; virtual ones, and those of one end only, do not."""

    def table(*columns: Column) -> Table:
        return Table(oid=1, name=QualifiedName("public", "t"), columns=columns)

    a, b, c = (Column(name, "integer", 23) for name in "abc")
    stored, virtual = Column("s", "integer", 23, generated="s"), Column("v", "integer", 23, generated="v")
    plain = Column("v", "integer", 23)
    assert comparable_columns(table(a, stored, virtual, b), table(c, b, virtual, stored, a)) == (
        "a",
        "s",
        "b",
    )
    assert (
        comparable_columns(table(plain), table(virtual))
        == comparable_columns(table(virtual), table(plain))
        == ()
    )


@pytest.mark.skipif(max(majors, default=0) < 18, reason="virtual columns came with version 18")
def test_virtual_columns_are_not_computed(pair: Pair) -> None:
    """A virtual column that fails to compute is nobody's business in a comparison."""
    with pair.on_source() as conn:
        conn.execute("create table t (a int, b int generated always as (1 / a) virtual)")
        conn.execute("insert into t values (0)")
    assert fingerprints(pair.source)["t"].rows == 1


def test_texts_are_hashed_as_bytes_whatever_their_collation(pair: Pair) -> None:
    """Several collations in one row do not clash, and one that calls 'a' and 'A' equal hides nothing."""
    with pair.on_source() as conn:
        for name, value in (("one", "a"), ("other", "A")):
            conn.execute(f'create table {name} (a text collate "C", b text collate "POSIX", c text)'.encode())
            conn.execute(f"insert into {name} values ('x', 'y', '{value}')".encode())
        if conn.execute("select from pg_collation where collprovider = 'i'").fetchone():
            conn.execute(
                "create collation blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
            conn.execute("alter table one alter c type text collate blind")
            conn.execute("alter table other alter c type text collate blind")
    found = fingerprints(pair.source)
    assert found["one"] != found["other"]


@pytest.mark.superusers
@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "SQL_ASCII"])
def test_the_encoding_of_a_database_makes_no_difference(pair: Pair, encoding: str) -> None:
    """The same characters stored in other bytes have the same fingerprint."""
    setup = """create table t (a text, b text); insert into t values ('é, "ü"', 'ß'), ('ascii', null)"""
    pair.on_source().execute(setup.encode())
    name = f"encoded_{encoding.lower()}"
    admin = pair.on_target()
    admin.execute(f"create database {name} encoding '{encoding}' locale 'C' template template0".encode())
    try:
        conninfo = pair.target_server.conninfo(name)
        with psycopg.connect(conninfo, autocommit=True, client_encoding="UTF8") as conn:
            conn.execute(setup.encode())
        both = (Server(15), Server(15, encoding))
        assert fingerprints(conninfo, servers=both) == fingerprints(pair.source, servers=both)
    finally:
        drop_database(pair.target_server, name)


@pytest.mark.superusers
def test_rows_hidden_by_a_policy_are_an_error_not_a_difference(pair: Pair) -> None:
    """A role that may not see every row gets an error from the server, never a fingerprint of some."""
    with pair.on_source() as conn:
        conn.execute("create table t (a int); insert into t values (1), (2)")
        conn.execute("alter table t enable row level security")
        conn.execute("drop role if exists compare_reader; create role compare_reader")
        conn.execute("grant select on t to compare_reader")
    try:
        with pytest.raises(SourceError):
            fingerprints(pair.source, "set role compare_reader")
    finally:
        pair.on_source().execute("drop owned by compare_reader; drop role compare_reader")


def test_a_server_that_hashes_otherwise_is_inconclusive(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of another byte order or of a future version are never taken for a difference."""
    pair.on_source().execute("create table t (a int)")
    monkeypatch.setattr(readings, "PROBE_HASH", 1)
    with pytest.raises(Inconclusive):
        fingerprints(pair.source)
