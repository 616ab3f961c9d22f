"""One value has one text on every major version: the type's own, or the one that is read instead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from fix_servers import Pair, on_all_pairs
from pglockstep.errors import Side
from pglockstep.postgres.connect import End, connect
from pglockstep.postgres.text_forms import portable

Conn = AsyncConnection[Any]

MOMENTS = (
    "-infinity",
    "infinity",
    "4714-11-24 BC",
    "0001-01-01 BC",
    "1582-10-04",
    "2000-02-29",
    "99999-01-01",
)
TIMES = (*MOMENTS, "1900-01-01 00:00:00.000001", "2000-01-01 24:00", "294276-12-31 23:59:59.999999")
FLOATS = (
    "0",
    "-0",
    "NaN",
    "Infinity",
    "-Infinity",
    "0.1",
    "1e15",
    "1e16",
    "123456.7",
    "1e-37",
    "1.1754944e-38",
)
NETS = (
    "0.0.0.0/0",
    "192.168.1.0/24",
    "10/8",
    "::/0",
    "::1",
    "::ffff:1.2.3.4",
    "2001:db8::/64",
    "::1.2.3.4",
    "1::",
)
LARGEST = "178956970 years 7 mons 2147483647 days 2562047788:00:54.775807"
INTERVALS = ("0", "1 mon", "-1 mon", "1 year 2 mons 3 days 04:05:06.789", "-1 year +2 mons -3 days 04:05:06")

#: For every built-in type that takes text, values in the forms that it takes.
VALUES: dict[str, tuple[str, ...]] = {
    '"char"': ("", "a", "\\", "\x01", "\x7f"),
    "aclitem": ("postgres=r/postgres", "=r*w/postgres", "postgres=arwdDxtXUCTc/postgres"),
    "bit": ("0", "1"),
    "bit varying": ("", "0", "1010101"),
    "boolean": ("t", "f"),
    "box": ("(1,1),(0,0)", "(1e300,-0),(1e-300,0)", "(NaN,Infinity),(0,1)"),
    "bytea": ("", "\\x00ff5c27", "abc\\\\"),
    "character": ("", "a", " "),
    "character varying": ("", "a'\"\\ ,()", "é\U0001f600"),
    "cid": ("0", "4294967295"),
    "cidr": NETS,
    "circle": ("<(0,0),1>", "<(1e300,-0),0>", "<(NaN,0),Infinity>"),
    "date": (*MOMENTS, "5874897-12-31"),
    "datemultirange": ("{}", "{[-infinity,infinity],empty}", "{[2024-01-01,2024-02-01)}"),
    "daterange": ("empty", "[-infinity,infinity]", "[2024-01-01,2024-01-31]", "(,infinity)"),
    "double precision": (*FLOATS, "4.9e-324", "1.7976931348623157e308", "1e22", "123456789012345680"),
    "inet": (*NETS, "192.168.1.5/24", "fe80::1/10"),
    "int2vector": ("", "1 2 -3"),
    "int4multirange": ("{}", "{[1,2),[3,5]}", "{(,)}", "{[1,2),[2,3)}"),
    "int4range": ("empty", "[1,5)", "[1,5]", "(,)", "(,5]", "[5,)"),
    "int8multirange": ("{}", "{[1,2)}"),
    "int8range": ("[1,9223372036854775806]",),
    "integer": ("-2147483648", "0"),
    "interval": (*INTERVALS, "178000000 years", "-2147483648 days", "1 day -00:00:01", LARGEST),
    "bigint": ("-9223372036854775808",),
    "json": ("null", '{"b":1, "a" : [1, 2.0,{}] ,"b":2}', '"\\u0000"', " 1"),
    "jsonb": ("null", '{"bb":2, "a" : [1, 2.0,{}], "c":1e5, "d":1.10, "é":"\\u00e9\\t\\"\\\\/"}', "1e500", "-0"),
    "jsonpath": ("$", 'strict $.a[*] ? (@.b > 1 && @.c == "x")', '$."a b".c', "$.**{2 to last}", "-$.a * (1 + 2)"),
    "line": ("{1,2,3}", "{-0,1,0}", "[(0,0),(1,1)]", "[(0,0),(0,1)]", "[(1,2),(3,7)]"),
    "lseg": ("[(0,0),(1,1)]",),
    "macaddr": ("08:00:2b:01:02:03",),
    "macaddr8": ("08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03"),
    "money": ("0", "-0.01", "1234567.89", "-92233720368547758.08"),
    "name": ("", "a", "x" * 63),
    "numeric": ("0", "-0", "0.000", "1.10", "1e-10", "1e20", "-1e-16383", "NaN", "Infinity", "-Infinity", "1e131071"),
    "nummultirange": ("{[1.10,2.0],(3,)}", "{empty}"),
    "numrange": ("[1.10,2.0]", "(,NaN)", "[-Infinity,Infinity]", "(1,1)", "[1,1]"),
    "oid": ("0", "4294967295"),
    "oidvector": ("", "1 4294967295"),
    "path": ("[(0,0),(1,1)]", "((0,0),(1,1))"),
    "pg_lsn": ("0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848", "1/A"),
    "pg_snapshot": ("10:20:10,14,15", "4294967297:4294967300:4294967298"),
    "point": ("(0,-0)", "(1e300,1e-300)", "(NaN,-Infinity)"),
    "polygon": ("((0,0),(1,1),(2,0))",),
    "real": FLOATS,
    "refcursor": ("", "x"),
    "regclass": ("-", "999999", "pg_class", "pg_catalog.pg_proc_oid_index", "public.json_table", 'public."A.b"'),
    "regcollation": ("-", "999999", '"C"', '"default"'),
    "regconfig": ("-", "999999", "english", "public.json_query"),
    "regdictionary": ("-", "999999", "simple"),
    "regnamespace": ("-", "999999", "pg_catalog", "public", "json_value"),
    "regoper": ("0", "999999", "||/", "public.<~>"),
    "regoperator": ("0", "999999", "+(integer,integer)", "-(none,integer)", 'public.<~>("json_value".json,text)'),
    "regproc": ("-", "999999", "now", "pg_catalog.random", "public.json_scalar"),
    "regprocedure": ("-", "999999", "abs(integer)", "random()", 'public.json_scalar("json_value".json[],int,interval)'),
    "regrole": ("-", "999999", "postgres", "pg_monitor"),
    "regtype": ("-", "999999", "integer", "timestamptz", "numeric[]", '"json_value".json', '"json_value".json[]'),
    "smallint": ("-32768",),
    "text": ("", "a'\"\\ ,()", "é\U0001f600"),
    "tid": ("(0,0)", "(4294967295,65535)"),
    "time without time zone": ("00:00", "24:00", "23:59:59.999999", "04:05:06.1"),
    "time with time zone": ("00:00+15:59", "24:00-15:59", "23:59:59.5+01:02:03"),
    "timestamp without time zone": TIMES,
    "timestamp with time zone": TIMES,
    "tsmultirange": ("{[-infinity,infinity]}", '{["2024-01-01 00:00","2024-01-02")}'),
    "tsquery": ("", "a & b | !c", "a <-> b <3> c", "'a b':*A & c:BD", "!(a|b) & (c <-> d)", "a <-> (b | c)"),
    "tsrange": ("[-infinity,infinity]", '["2024-01-01 00:00","2024-01-02")'),
    "tstzmultirange": ("{}",),
    "tstzrange": ("[-infinity,infinity]", "(,2000-01-01)"),
    "tsvector": ("", "'a b':1A,2B,3C,4D 'c''d' e\\\\f", "z y x y", "a:16383 b:16384", "x:1,1,2"),
    "txid_snapshot": ("10:20:10,14,15",),
    "uuid": ("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",),
    "xid": ("0", "4294967295"),
    "xid8": ("0", "4294967296", "18446744073709551615"),
    "xml": ("<a/>", '<?xml version="1.0"?><a>é</a>', '<?xml version="1.1"?><a/>', "x"),
}  # fmt: skip

#: Names that are key words on one side of the line only, or look like something else.
NAMES = """
create schema json_value;
create type "json_value".json as (a int);
create table public.json_table ();
create table public."A.b" ();
create text search configuration public.json_query (parser = default);
create function public.json_scalar("json_value".json[], int, interval) returns int language sql as 'select 1';
create function public.plus("json_value".json, text) returns int language sql as 'select 1';
create operator public.<~> (leftarg = "json_value".json, rightarg = text, function = public.plus);
"""


def on_both(pair: Pair, work: Callable[[Conn, Conn], Awaitable[None]]) -> None:
    """Do `work` in sessions such as a comparison's, one to either end, that has NAMES."""
    pair.on_source().execute(NAMES.encode())
    pair.on_target().execute(NAMES.encode())

    async def working() -> None:
        async with (
            await session("source", pair.source) as source,
            await session("target", pair.target) as target,
        ):
            await work(source, target)

    asyncio.run(working())


async def session(side: Side, conninfo: str) -> Conn:
    return await connect(End(side, "test", conninfo), "test")


async def texts(conn: Conn, type_name: str, values: list[str]) -> list[tuple[str, str]]:
    """The type's own text of these values, and the one that is to be read; nothing for a value that is refused here."""
    # a column that is called like those of the catalogs that are looked into
    column = sql.Identifier("relname")
    form = (portable(type_name) or sql.SQL("{value}::text")).format(value=column)
    found = []
    for value in values:
        query = sql.SQL("SELECT ROW({})::text, {} FROM (SELECT {}::{}) AS v ({})").format(
            column,
            form,
            sql.Literal(value),
            sql.SQL(type_name),
            column,
        )
        try:
            row = await (await conn.execute(query.as_bytes(), prepare=False)).fetchone()
        except psycopg.Error:
            continue
        assert row is not None
        found.append((row[0], row[1]))
    return found


async def own_text(conn: Conn, type_name: str, value: str) -> str | None:
    """How the server writes this value, as a stream carries it; None if it refuses it."""
    query = sql.SQL("SELECT {}::{}::text").format(sql.Literal(value), sql.SQL(type_name))
    try:
        row = await (await conn.execute(query.as_bytes(), prepare=False)).fetchone()
    except psycopg.Error:
        return None
    assert row is not None
    return str(row[0])


@on_all_pairs
def test_a_value_that_is_carried_as_text_has_one_text_on_both_ends(pair: Pair) -> None:
    """Every built-in type: what the source writes and the target takes reads the same there, in the form for it."""

    async def work(source: Conn, target: Conn) -> None:
        wrong = {}
        for type_name, values in VALUES.items():
            for value in values:
                carried = await own_text(source, type_name, value)
                if carried is None:
                    assert type_name == "xml" or value in (LARGEST, "pg_catalog.random"), (type_name, value)
                    continue
                there, here = (
                    await texts(source, type_name, [value]),
                    await texts(target, type_name, [carried]),
                )
                if here and there[0][1] != here[0][1]:
                    wrong[type_name, value] = (there, here)
        assert wrong == {}

    on_both(pair, work)


@on_all_pairs
def test_no_built_in_type_is_forgotten(pair: Pair) -> None:
    """The list of values has every type that either end knows, but for those that take no text at all."""

    async def work(source: Conn, target: Conn) -> None:
        for conn in (source, target):
            cursor = await conn.execute(
                "SELECT oid::regtype::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace"
                " AND typtype NOT IN ('c', 'p') AND (typelem = 0 OR typarray <> 0)"
            )
            known = {row[0] async for row in cursor}
            rest = known - VALUES.keys()
            takes_no_text = {each for each in rest if await own_text(conn, each, "x") is None}
            assert rest == takes_no_text
            assert len(rest) < 10
            assert known >= VALUES.keys()

    on_both(pair, work)


@pytest.mark.parametrize(
    ("pair", "type_name", "value"),
    [
        ((15, 18), "interval", LARGEST),
        ((16, 18), "interval(6)", LARGEST),
        ((15, 18), "interval[]", f'{{"{LARGEST}",NULL,"1 day"}}'),
        ((15, 18), "regclass", "public.json_table"),
        ((15, 18), "regclass[]", "[0:1]={pg_class,public.json_table}"),
        ((18, 15), "regtype", '"json_value".json[]'),
        ((18, 15), "regprocedure", 'public.json_scalar("json_value".json[],int,interval)'),
        ((18, 15), "regoperator", 'public.<~>("json_value".json,text)'),
        ((15, 18), "regproc", "public.json_scalar"),
        ((15, 18), "regnamespace", "json_value"),
        ((15, 18), "regconfig", "public.json_query"),
    ],
    indirect=["pair"],
)
def test_where_the_types_own_texts_differ_the_portable_ones_agree(
    pair: Pair, type_name: str, value: str
) -> None:
    """Those types are not looked after in vain."""

    async def work(source: Conn, target: Conn) -> None:
        carried = await own_text(source, type_name, value)
        assert carried is not None
        [there], [here] = await texts(source, type_name, [value]), await texts(target, type_name, [carried])
        assert there[0] != here[0]
        assert there[1] == here[1]

    on_both(pair, work)


@pytest.mark.parametrize("pair", [(18, 16), (18, 15)], indirect=True)
def test_a_function_that_is_one_of_several_on_one_end_only(pair: Pair) -> None:
    """`random()` has its schema's name in front where the server knows other functions called so."""

    async def work(source: Conn, target: Conn) -> None:
        random = "1598"
        [there], [here] = await texts(source, "regproc", [random]), await texts(target, "regproc", ["random"])
        assert (there[0], here[0]) == ("(pg_catalog.random)", "(random)")
        assert there[1] == here[1] == "'pg_catalog'.'random'"

    on_both(pair, work)


def test_every_char_has_a_text_of_its_own(pair: Pair) -> None:
    """All 256 of them, zero among them, in or out of an array."""

    async def work(source: Conn, _: Conn) -> None:
        for type_name, value in (('"char"', 'n::int4::"char"'), ('"char"[]', 'ARRAY[n::int4::"char"]')):
            form = portable(type_name)
            assert form is not None
            query = sql.SQL(
                "SELECT count(DISTINCT {}) FROM (SELECT "
                + value
                + " AS v FROM generate_series(-128, 127) AS n) AS s"
            ).format(form.format(value=sql.Identifier("v")))
            row = await (await source.execute(query.as_bytes())).fetchone()
            assert row is not None
            assert row[0] == 256

    on_both(pair, work)


ARRAYS: dict[str, list[str]] = {
    "regclass[]": [
        "{}", "{NULL}", "{-}", "{pg_class}", "{pg_class,NULL}", "{NULL,pg_class}", "{pg_class,pg_class}",
        "{{pg_class},{pg_class}}", "{{pg_class,pg_class}}", "[0:1]={pg_class,pg_class}",
    ],
    "interval[]": ["{}", "{NULL}", "{00:00:00}", '{"1 day"}', '{"1 day","1 day"}', '{{"1 day"},{"1 day"}}'],
    '"char"[]': ["{}", "{NULL}", '{""}', "{a}", "{a,a}", "{{a},{a}}", "[2:3]={a,a}", '{","}'],
    "regtype": ["int4", "int4[]", "int2vector", "int2[]", '"json_value".json', '"json_value".json[]', "-", "text"],
    "regprocedure": ["int4(int8)", "int4(float8)", "now()", 'public.json_scalar("json_value".json[],int,interval)'],
    "regoperator": ["-(none,int4)", "-(int4,int4)", "-(int8,int8)", "+(int4,int4)"],
}  # fmt: skip


def test_values_that_differ_have_texts_that_differ(pair: Pair) -> None:
    """NULL members, empty ones, bounds and dimensions of arrays; arguments of functions and operators."""

    async def work(source: Conn, _: Conn) -> None:
        for type_name, values in ARRAYS.items():
            found = await texts(source, type_name, values)
            assert len(found) == len(values), type_name
            assert len({text for _, text in found}) == len(values), found

    on_both(pair, work)


def test_null_stays_null(pair: Pair) -> None:
    """In every form: NULL is not the text of anything."""

    async def work(source: Conn, _: Conn) -> None:
        for type_name in VALUES:
            for name in (type_name, f"{type_name}[]"):
                if form := portable(name):
                    query = sql.SQL("SELECT {} IS NULL FROM (SELECT NULL::" + name + ") AS s (v)").format(
                        form.format(value=sql.Identifier("v"))
                    )
                    assert await (await source.execute(query.as_bytes())).fetchone() == (True,), name

    on_both(pair, work)


def test_only_the_built_in_types_of_those_names_have_a_form() -> None:
    """A user's type of the same name, an ordinary one, and what stands alike everywhere are read as they are."""
    plain = [
        "text",
        "integer",
        "interval_of_mine",
        'public."interval"',
        'public."char"',
        "character(1)",
        "jsonpath",
    ]
    assert [portable(each) for each in [*plain, *(f"{each}[]" for each in plain)]] == [None] * 2 * len(plain)
    for name in ("interval", "interval(3)", "interval day to second(3)", '"char"', "regclass"):
        assert portable(name) is not None
        assert portable(f"{name}[]") is not None
        assert portable(name) != portable(f"{name}[]")
