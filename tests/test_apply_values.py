"""Values of every type arrive as they were, and find their row: by a key, and by the whole row to the letter."""

from __future__ import annotations

from typing import LiteralString, NamedTuple

import psycopg
import pytest
from psycopg import sql

from fix_mirror import Mirror, contents, on_all_mirrors
from fix_servers import all_pairs


class Values(NamedTuple):
    """Values of one type, all different, though some of them may be equal to its ``=``."""

    type: LiteralString
    values: tuple[LiteralString, ...]
    setup: LiteralString = ""
    key: bool = True
    nullable: bool = True


#: Values that look alike, types whose ``=`` is missing, coarse or elsewhere, and forms that depend on settings.
TYPES = {
    "numeric": Values("numeric", ("1.0", "1.00", "-0.5", "NaN", "Infinity", "1e-20"), key=False),
    "numeric key": Values("numeric(6,2)", ("1.0", "2.50", "NaN")),
    "float8": Values(
        "float8", ("NaN", "0", "-0", "Infinity", "0.1", "1e-300", "123456789012345678"), key=False
    ),
    "float4 key": Values("float4", ("NaN", "0.1", "-Infinity", "1e-20")),
    "text": Values("text", ("", " ", "a", "A", "a ", "\\n", "NULL", "ü\n'\"$1%s")),
    "varchar": Values("varchar(5)", ("", "a", "a ", "ab   ")),
    "varchar any": Values("varchar", ("", "a", "a ")),
    "char": Values("char(5)", ("", "a", " a", "abcde")),
    "char1": Values("char", ("a", "b", "")),
    "bpchar": Values("bpchar", ("a", "b", "a b")),
    "name": Values("name", ("", "a", 'Odd "name"')),
    "one byte": Values('"char"', ("a", "", "'")),
    "collated": Values('text collate "C"', ("a", "A", "ä")),
    "bool": Values("bool", ("t", "f")),
    "bytea": Values("bytea", ("", "\\x00ff", "\\x00")),
    "bit": Values("bit(3)", ("101", "000")),
    "varbit": Values("varbit", ("", "0", "00")),
    "date": Values("date", ("2024-02-29", "0044-03-15 BC", "infinity", "-infinity")),
    "timestamp": Values("timestamp(3)", ("2024-01-02 03:04:05.678", "0001-01-01 BC", "infinity")),
    "timestamptz": Values("timestamptz", ("2024-01-02 03:04:05.678901+05:30", "-infinity")),
    "timetz": Values("timetz", ("03:04:05+00", "04:04:05+01")),
    "interval": Values(
        "interval", ("1 mon", "30 days", "1 day", "24:00:00", "-1 year 2 days -3.5 s"), key=False
    ),
    "interval key": Values("interval", ("1 mon", "-1 day 02:03:04")),
    "money": Values("money", ("1234.5", "-1")),
    "uuid": Values("uuid", ("00000000-0000-0000-0000-000000000001", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    "inet": Values("inet", ("10.0.0.1", "10.0.0.1/8", "::1")),
    "cidr": Values("cidr", ("10.0.0.0/8", "::/0")),
    "macaddr8": Values("macaddr8", ("08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03:04:06")),
    "json": Values("json", ('{"a":1}', '{"a": 1}', '{"a":1,"a":1}', "null"), key=False),
    "jsonb": Values("jsonb", ('{"a": 1.0, "b": 2}', '{"a": 1.00, "b": 2}', "null"), key=False),
    "jsonb key": Values("jsonb", ('{"a": [1, null]}', "null", "[]")),
    "jsonpath": Values("jsonpath", ("$.a", '$."b"[*]'), key=False),
    "xml": Values("xml", ("<a/>", "<a></a>", "text"), key=False),
    "box": Values("box", ("(1,1),(0,0)", "(2,1),(1,0)", "(3,3),(0,0)"), key=False),
    "point": Values("point", ("(0,0)", "(-0,0)", "(0.1,1e300)"), key=False),
    "line": Values("line", ("{1,2,3}", "{2,4,6}"), key=False),
    "lseg": Values("lseg", ("[(0,0),(1,1)]", "[(1,1),(0,0)]"), key=False),
    "path": Values("path", ("((0,0),(1,1))", "[(0,0),(1,1)]"), key=False),
    "polygon": Values("polygon", ("((0,0),(1,1),(1,0))", "((1,1),(0,0),(1,0))"), key=False),
    "circle": Values("circle", ("<(0,0),1>", "<(5,5),1>"), key=False),
    "tsvector": Values("tsvector", ("'a':1 'b':2", "'a' 'b'")),
    "tsquery": Values("tsquery", ("'a' & 'b'", "'a' | !'b'")),
    "oid": Values("oid", ("0", "4294967295")),
    "xid": Values("xid", ("1", "4294967295"), key=False),
    "pg_lsn": Values("pg_lsn", ("0/0", "16/B374D848")),
    "regclass": Values("regclass", ("pg_class", "pg_type")),
    "regtype": Values("regtype", ("integer", "text[]")),
    "int2vector": Values("int2vector", ("1 2", ""), key=False),
    "standard's own": Values("information_schema.sql_identifier", ("a", "B")),
    "oidvector": Values("oidvector", ("1 2", "")),
    "aclitem": Values("aclitem", ("=r/postgres", "postgres=r/postgres"), key=False),
    "array": Values("int[]", ("{}", "{1,NULL}", "[0:1]={1,2}", "{1,2}", "{{1},{2}}")),
    "text array": Values("varchar(3)[]", ("{}", "{NULL}", '{"nil",""}', '{"a b"}')),
    "json array": Values("json[]", ('{"{\\"a\\":1}"}', "{}"), key=False),
    "range": Values("int4range", ("empty", "[1,5)", "(,)")),
    "float range": Values("numrange", ("[1.0,2)", "[1.00,2)", "[1.0,2]"), key=False),
    "multirange": Values("int4multirange", ("{}", "{[1,2),[5,6)}")),
    "range of the user": Values(
        "s.spans", ("[a,b]", "empty"), "create schema s; create type s.spans as range (subtype = text)"
    ),
    "enum": Values(
        "mood", ("sad", "ok", "it's \"$1%s"), """create type mood as enum ('ok', 'sad', 'it''s "$1%s')"""
    ),
    "enum array": Values("mood[]", ("{sad,ok}", "{}"), "create type mood as enum ('ok', 'sad')"),
    "oddly named enum": Values(
        """"s ""%s"."ty(pe) $1[]" """,
        ("ok", "sad"),
        """create schema "s ""%s"; create type "s ""%s"."ty(pe) $1[]" as enum ('ok', 'sad')""",
    ),
    "domain": Values("small", ("1", "9"), "create domain small as int check (value < 10)"),
    "domain of text": Values(
        "short", ("", "a"), "create domain short as varchar(4) not null", nullable=False
    ),
    "domain of a domain": Values(
        "b", ("1.0", "2.25"), "create domain a as numeric(5,2); create domain b as a"
    ),
    "domain of an enum": Values(
        "d", ("sad", "ok"), "create type mood as enum ('ok', 'sad'); create domain d as mood"
    ),
    "domain of an array": Values("d", ("{1}", "{}"), "create domain d as int[]"),
    "domain of json": Values("d", ('{"a":1}', '{"a": 1}'), "create domain d as json", key=False),
    "composite": Values("pair", ("(1,a)", "(,)", '(2,"x,y")'), "create type pair as (x int, y text)"),
    "composite with json": Values(
        "pair", ("(1,{})", "(,)", "(1,[])"), "create type pair as (x int, y json)", key=False
    ),
    "composite array": Values("pair[]", ('{"(1,a)",NULL}', "{}"), "create type pair as (x int, y text)"),
    "domain of a composite": Values(
        "d", ("(1,a)", "(2,)"), "create type pair as (x int, y text); create domain d as pair"
    ),
    "row of a table": Values("other", ("(1,a)", "(2,)"), "create table other (x int primary key, y text)"),
    "citext": Values(
        "ext.citext", ("a", "A", "b"), "create schema ext; create extension citext schema ext", key=False
    ),
    "citext key": Values("ext.citext", ("a", "b"), "create schema ext; create extension citext schema ext"),
    "blind to case": Values(
        "text collate ci",
        ("a", "A", "b"),
        "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        key=False,
    ),
    "blind to case key": Values(
        "text collate ci",
        ("a", "b"),
        "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    ),
}


def typed(mirror: Mirror, case: Values) -> None:
    """Make the type on both ends; skips the test where one of the servers has no such type."""
    try:
        for conn in (mirror.source, mirror.target, mirror.sets):
            conn.execute(case.setup)
            conn.execute(sql.SQL("create table probe (v {})").format(sql.SQL(case.type)))
            conn.execute("insert into probe values (%s)", [case.values[0]])
            conn.execute("drop table probe")
    except psycopg.errors.FeatureNotSupported as error:
        pytest.skip(f"this server was built without it: {error}")


def fill(mirror: Mirror, table: LiteralString, case: Values, copies: int) -> None:
    """Insert rows of every value into a table (v, n) of the source."""
    insert = sql.SQL("insert into {} values (%s, 0)").format(sql.Identifier(table))
    for value in case.values * copies:
        mirror.source.execute(insert, [value])


def change_without_key(mirror: Mirror, table: LiteralString, case: Values, *, follow: bool = True) -> None:
    """Fill a table on the source with three rows of each value, then change one of them and delete another.

    `follow`: value by value, because what goes wrong with one could be made good by the next.
    """
    fill(mirror, table, case, copies=3)
    name = sql.Identifier(table)
    if case.nullable:
        mirror.source.execute(sql.SQL("insert into {} values (null, 0), (null, 0), (null, 0)").format(name))
    for row in range(len(case.values) + case.nullable):
        one = sql.SQL(
            """where ctid = (select min(ctid) from {table} where n = 0 and v::text collate "C" is not distinct
                   from (select distinct v::text collate "C" from {table} order by 1 offset {row} limit 1))"""
        ).format(table=name, row=row)
        mirror.source.execute(sql.SQL("update {} set n = {} {}").format(name, row + 1, one))
        mirror.source.execute(sql.SQL("delete from {} {}").format(name, one))
        if follow:
            mirror.follow()


def change_with_key(mirror: Mirror, table: LiteralString, case: Values) -> None:
    """Fill a table on the source with one row of each value; change rows, then a key, and delete one."""
    fill(mirror, table, case, copies=1)
    name, free = sql.Identifier(table), sql.Literal(case.values[0])
    for statement in (
        sql.SQL("update {0} set n = 1"),
        sql.SQL("delete from {0} where ctid = (select min(ctid) from {0})"),
        sql.SQL("update {0} set v = {1}, n = 2 where ctid = (select max(ctid) from {0})"),
    ):
        mirror.source.execute(statement.format(name, free))


@pytest.mark.parametrize("case", TYPES.values(), ids=TYPES)
def test_rows_without_a_key(mirror: Mirror, case: Values) -> None:
    """Without a key a change finds its row by all values, to the letter, and touches one of its equals alone."""
    typed(mirror, case)
    create = sql.SQL("create table t (v {}, n int)").format(sql.SQL(case.type))
    mirror.both(create, "alter table t replica identity full")
    change_without_key(mirror, "t", case)
    assert len(contents(mirror.target)["public.t"]) == 2 * (len(case.values) + case.nullable)


@pytest.mark.parametrize(
    "case", [case for case in TYPES.values() if case.key], ids=[n for n in TYPES if TYPES[n].key]
)
def test_rows_with_a_key(mirror: Mirror, case: Values) -> None:
    """A key of every type that can be one finds its row, whether the row, its key or both change."""
    typed(mirror, case)
    mirror.both(sql.SQL("create table t (v {} primary key, n int)").format(sql.SQL(case.type)))
    change_with_key(mirror, "t", case)
    mirror.follow()
    mirror.follow("delete from t")


@on_all_mirrors
def test_values_of_every_type_between_all_versions(mirror: Mirror) -> None:
    """Whatever the two versions are: types that both have are found by value and by key, from one to the other."""
    plain = {name: case for name, case in TYPES.items() if not case.setup and case.type != "xml"}
    for name, case in plain.items():
        mirror.both(sql.SQL("create table {} (v {}, n int)").format(sql.Identifier(name), sql.SQL(case.type)))
        identity = "add primary key (v)" if case.key else "replica identity full"
        mirror.both(sql.SQL("alter table {} {}").format(sql.Identifier(name), sql.SQL(identity)))
    for name, case in plain.items():
        if case.key:
            change_with_key(mirror, name, case)
        else:
            change_without_key(mirror, name, case, follow=False)
    mirror.follow()


@pytest.mark.parametrize("mirrored", all_pairs[:1], indirect=True)
@pytest.mark.parametrize("name", ["xml", "citext", "citext key", "blind to case", "blind to case key"])
def test_what_the_system_servers_add(mirror: Mirror, name: str) -> None:
    """XML, citext and collations that are blind to case: in the full builds that the oldest version here may be."""
    case = TYPES[name]
    typed(mirror, case)
    key = sql.SQL("primary key" if case.key else "")
    mirror.both(sql.SQL("create table t (v {} {}, n int)").format(sql.SQL(case.type), key))
    if case.key:
        change_with_key(mirror, "t", case)
    else:
        mirror.both("alter table t replica identity full")
        change_without_key(mirror, "t", case)
    mirror.follow()
    mirror.follow("delete from t where n = 0")
