"""Statements made for changes leave on a target what the source has, row by row and to the letter.

The changes are a real server's, recorded from a source; the statements run on a target through a session as
the link's own is; then both ends' rows are compared as text.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from typing import LiteralString, NamedTuple

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from fix_servers import Connection, Servers, all_pairs, connect, drop_database, majors
from pglockstep.apply.applier import Applier
from pglockstep.apply.statements import Statement, TableWriter, truncate
from pglockstep.errors import EXIT_TARGET, ApplyRefused
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.connect import End
from pglockstep.postgres.connect import connect as connect_end
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.messages import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Relation,
    RelationColumn,
    Row,
    Truncate,
    Update,
)
from test_wal_recorded import Recorder

# --- two ends, and statements between them ---------------------------------------------------------


class Mirror:
    """A recorded source, and a target that follows it statement by statement."""

    def __init__(self, source: str, target: str) -> None:
        self._end = End("target", "mirror", target)
        self._runner = asyncio.Runner()
        self._session: AsyncConnection[TupleRow] | None = None
        self._writers: dict[int, TableWriter] = {}
        self.source, self.target = connect(source), connect(target)
        for conn in (self.source, self.target):
            conn.execute("set lock_timeout = '10s'")
            conn.prepare_threshold = None  # the same table has other types in every test
        self._recorder = Recorder(source)

    def both(self, *statements: LiteralString | sql.Composed) -> None:
        """Execute on both ends, each by itself; nothing of it is recorded."""
        for statement in statements:
            self.source.execute(statement)
            self.target.execute(statement)
        self._recorder.payloads()

    def follow(self, *statements: LiteralString | sql.Composed, replica: bool = True) -> list[Statement]:
        """Execute on the source, and repeat the changes on the target: then both have the same rows.

        `replica`: whether triggers and foreign keys are quiet on the target. Returns what was executed there.
        """
        for statement in statements:
            self.source.execute(statement)
        executed = self._runner.run(self._repeat(self._recorder.messages(), replica=replica))
        assert contents(self.target) == contents(self.source)
        return executed

    async def _repeat(self, messages: Sequence[Message], *, replica: bool) -> list[Statement]:
        """Execute the statements for `messages`, each of which has to touch as many rows as it says."""
        conn = self._session = self._session or await connect_end(self._end, "apply")
        Applier(self._end, conn, "mirror", Lsn(0))  # teaches the session how values go out
        await conn.execute(f"SET session_replication_role = {'replica' if replica else 'origin'}")
        tables = {table.name: table for table in await catalog.tables(conn)}
        executed: list[Statement] = []
        for message in messages:
            if isinstance(message, Begin):
                await conn.execute("BEGIN")
                await conn.execute("SET CONSTRAINTS ALL DEFERRED")
            elif isinstance(message, Commit):
                await conn.execute("COMMIT")
            elif isinstance(message, Relation):
                name = QualifiedName(message.schema, message.name)
                self._writers[message.relation_id] = TableWriter(message, tables[name])
            elif isinstance(message, Insert | Update | Delete | Truncate):
                statement = statement_for(message, self._writers)
                cursor = await conn.execute(statement.query, statement.parameters)
                touched = cursor.rowcount
                assert not statement.one_row or touched == 1, f"{statement} touched {touched} rows"
                executed.append(statement)
        return executed

    def clean(self) -> None:
        """Drop everything, and leave the session that knew it."""
        self._leave()
        for conn in (self.source, self.target):
            conn.rollback()
            found = conn.execute(
                "select nspname from pg_namespace where nspname !~ '^(pg_|information_schema)'"
            )
            for (schema,) in found.fetchall():
                conn.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))
            conn.execute("create schema public")
        self._recorder.payloads()

    def close(self) -> None:
        self._leave()
        with self.source, self.target, self._recorder, self._runner:
            pass

    def _leave(self) -> None:
        if self._session is not None:
            self._runner.run(self._session.close())
        self._session = None


def statement_for(change: Insert | Update | Delete | Truncate, writers: dict[int, TableWriter]) -> Statement:
    if isinstance(change, Truncate):
        names = [writers[each].table.name for each in change.relation_ids]
        return truncate(names, restart_identity=change.restart_identity)
    writer = writers[change.relation_id]
    if isinstance(change, Insert):
        return writer.insert(change)
    return writer.update(change) if isinstance(change, Update) else writer.delete(change)


def contents(conn: Connection) -> dict[str, list[str]]:
    """Every table's own rows as text, sorted; columns in the order of their names."""
    tables = conn.execute(
        """select n.nspname, c.relname, array_agg(a.attname::text order by a.attname collate "C")
                  filter (where a.attnum > 0 and not a.attisdropped)
           from pg_class c join pg_namespace n on n.oid = c.relnamespace
           left join pg_attribute a on a.attrelid = c.oid
           where c.relkind = 'r' and n.nspname not in ('pg_catalog', 'information_schema', 'pglockstep')
           group by 1, 2 order by 1, 2"""
    ).fetchall()
    found: dict[str, list[str]] = {}
    for schema, name, columns in tables:
        row = sql.SQL("row({})::text").format(sql.SQL(", ").join(map(sql.Identifier, columns or [])))
        query = sql.SQL("select {} from only {}").format(row, sql.Identifier(schema, name))
        found[f"{schema}.{name}"] = sorted(value for (value,) in conn.execute(query).fetchall())
    return found


@pytest.fixture(
    scope="module",
    params=[(majors[-1], majors[-1])],
    ids=lambda pair: f"{pair[0]}-to-{pair[1]}",
)
def mirrored(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Mirror]:
    """A source and a target of the newest version, or of the (source, target) versions it is parametrised with."""
    source, target = servers.source(request.param[0]), servers.target(request.param[1])
    name = f"mirror_{secrets.token_hex(4)}"
    for server in (source, target):
        with connect(server.conninfo()) as conn:
            conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        mirror = Mirror(source.conninfo(name), target.conninfo(name))
        yield mirror
        mirror.close()
    finally:
        drop_database(source, name)
        drop_database(target, name)


@pytest.fixture
def mirror(mirrored: Mirror) -> Iterator[Mirror]:
    """The same, empty."""
    yield mirrored
    mirrored.clean()


#: Run a test once for each pair of versions.
on_all_mirrors = pytest.mark.parametrize(
    "mirrored", all_pairs, indirect=True, ids=[f"{source}-to-{target}" for source, target in all_pairs]
)


# --- values of every type --------------------------------------------------------------------------


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
        for conn in (mirror.source, mirror.target):
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


def change_without_key(mirror: Mirror, table: LiteralString, case: Values) -> None:
    """Fill a table on the source with three rows of each value, then change one of them and delete another."""
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
    mirror.follow()
    assert len(contents(mirror.target)["public.t"]) == 2 * (len(case.values) + case.nullable)


@pytest.mark.parametrize(
    "case", [case for case in TYPES.values() if case.key], ids=[n for n in TYPES if TYPES[n].key]
)
def test_rows_with_a_key(mirror: Mirror, case: Values, request: pytest.FixtureRequest) -> None:
    """A key of every type that can be one finds its row, whether the row, its key or both change."""
    if case.type == "d" and "enum" in case.setup:
        reason = (
            "PostgreSQL has no = for a domain over an enum, and the catalog does not tell which those are"
        )
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
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
        change = change_with_key if case.key else change_without_key
        change(mirror, name, case)
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


# --- what was and was not sent ---------------------------------------------------------------------

#: A value that is kept outside of its row, where the column's storage is external.
BIG = "repeat('x', 5000)"


class Story(NamedTuple):
    """What both ends have, and what then happens on the source."""

    both: tuple[LiteralString, ...]
    source: tuple[LiteralString, ...]


KEYED = "create table t (id int primary key, v text, big text)"
UNKEYED = "create table t (id int, v text, big text)"
FULL = "alter table t replica identity full"
OUTSIDE = "alter table t alter big set storage external"
TWO_ROWS = "insert into t (id, v, big) values (1, 'a', repeat('x', 5000)), (2, null, repeat('y', 5000))"

STORIES = {
    "NULL is not an empty text": Story(
        (KEYED,),
        (
            "insert into t values (1, null, ''), (2, '', null), (3, 'NULL', '\\N')",
            "update t set v = '' where v is null",
            "update t set v = null, big = '' where id = 2",
        ),
    ),
    "TOAST is left alone": Story(
        (KEYED, OUTSIDE, TWO_ROWS), ("update t set v = 'b'", "update t set v = null")
    ),
    "TOAST is replaced": Story(
        (KEYED, OUTSIDE, TWO_ROWS), ("update t set big = repeat('z', 6000)", "update t set big = null")
    ),
    "the key changes": Story(
        (KEYED, OUTSIDE, TWO_ROWS), ("update t set id = id + 10", "delete from t where id = 11")
    ),
    "the key and TOAST change": Story((KEYED, OUTSIDE, TWO_ROWS), ("update t set id = id + 10, big = v",)),
    "a chain of keys": Story(
        (KEYED, TWO_ROWS), ("update t set id = 3 where id = 1", "update t set id = 1 where id = 2")
    ),
    "TOAST by whole row": Story(
        (UNKEYED, FULL, OUTSIDE, TWO_ROWS),
        ("update t set v = 'b'", "update t set id = 3 where id = 1", "delete from t where id = 3"),
    ),
    "TOAST by whole row with a key": Story(
        (KEYED, FULL, OUTSIDE, TWO_ROWS),
        ("update t set v = 'b'", "update t set id = 3 where id = 1", "delete from t where id = 2"),
    ),
    "a TOASTed key": Story(
        (
            "create table t (k text primary key, v text)",
            "alter table t set (toast_tuple_target = 128), alter k set storage external",
            "insert into t values (repeat('k', 2500), 'a'), (repeat('l', 2500), 'b')",
        ),
        ("update t set v = v || 'c'", "update t set k = k || 'm'", "delete from t where v = 'ac'"),
    ),
    "equal rows": Story(
        ("create table t (v text)", FULL, "insert into t values ('a'), ('a'), ('a'), (null), (null)"),
        (
            "delete from t where ctid = (select min(ctid) from t)",
            "update t set v = 'b' where ctid = (select max(ctid) from t)",
            "insert into t values ('a')",
            "update t set v = 'a'",
        ),
    ),
    "a key of several columns": Story(
        (
            "create table t (a int, b text, v text, primary key (b, a))",
            "insert into t values (1, 'x', ''), (1, 'y', ''), (2, 'x', '')",
        ),
        ("update t set v = b || a", "update t set a = 3 where b = 'y'", "delete from t where a = 2"),
    ),
    "another index as the key": Story(
        (
            "create table t (id int primary key, u text not null)",
            "create unique index by_u on t (u)",
            "alter table t replica identity using index by_u",
            "insert into t values (1, 'a'), (2, 'b')",
        ),
        ("update t set id = id + 10", "update t set u = 'c' where id = 11", "delete from t where u = 'b'"),
    ),
    "an identity that is the key": Story(
        (
            "create table t (id int generated always as identity primary key, v text, big text)",
            OUTSIDE,
            "insert into t (v, big) values ('a', repeat('x', 5000)), ('b', repeat('y', 5000))",
        ),
        (
            "insert into t (v) values ('c')",
            "insert into t (id, v) overriding system value values (77, 'd')",
            "update t set v = v || 'e'",
            "update t set id = default where v = 'ae'",
            "update t set id = default, v = 'f' where v = 'be'",
            "delete from t where v = 'ce'",
        ),
    ),
    "an identity beside the key": Story(
        (
            "create table t (id int primary key, n int generated always as identity, v text, big text)",
            OUTSIDE,
            TWO_ROWS,
        ),
        (
            "update t set v = 'b'",
            "update t set n = default where id = 1",
            "update t set id = 3 where id = 2",
            "update t set id = 4, n = default, big = 'z' where id = 3",
        ),
    ),
    "an identity in a whole row": Story(
        (
            "create table t (n int generated always as identity, v text)",
            FULL,
            "insert into t (v) values ('a'), ('b')",
        ),
        ("update t set v = 'c' where v = 'a'", "update t set n = default", "delete from t where v = 'b'"),
    ),
    "an identity in a whole row with a key": Story(
        (
            "create table t (id int primary key, n int generated always as identity, v text)",
            FULL,
            "insert into t (id, v) values (1, 'a'), (2, null)",
        ),
        ("update t set v = 'c'", "update t set n = default", "update t set id = 3, n = default where id = 1"),
    ),
    "an update of nothing but what stays away": Story(
        (
            "create table t (id int generated always as identity primary key, big text, "
            "twice int generated always as (id * 2) stored)",
            OUTSIDE,
            "insert into t (big) values (repeat('x', 5000)), (repeat('y', 5000))",
        ),
        (
            "update t set big = big",
            "update t set twice = default",
            "update t set big = big || 'z' where id = 2",
        ),
    ),
    "an identity by default": Story(
        ("create table t (id int generated by default as identity primary key, v text)",),
        (
            "insert into t (v) values ('a'), ('b')",
            "update t set id = 7 where v = 'a'",
            "update t set v = 'c'",
        ),
    ),
    "generated columns": Story(
        (
            "create table t (twice int generated always as (n * 2) stored, n int, id int primary key)",
            "insert into t (id, n) values (1, 1), (2, null)",
        ),
        (
            "insert into t (id, n) values (3, 4)",
            "update t set n = 5",
            "update t set id = 9 where id = 1",
            "delete from t where id = 2",
        ),
    ),
    "no columns at all": Story(
        ("create table t ()", FULL, "insert into t default values"),
        (
            "insert into t default values",
            "insert into t default values",
            "delete from t where ctid = (select min(ctid) from t)",
        ),
    ),
    "dropped columns": Story(
        (
            "create table t (a int, id int primary key, b int, v text)",
            "alter table t drop a, drop b",
            "insert into t values (1, 'a')",
        ),
        (
            "insert into t values (2, 'b')",
            "update t set v = 'c'",
            "update t set id = 3 where id = 1",
            "delete from t where id = 2",
        ),
    ),
    "parents and children": Story(
        (
            "create table t (id int primary key, v text)",
            "create table child (extra int, primary key (id)) inherits (t)",
            "insert into t values (1, 'parent'), (2, 'parent')",
            "insert into child values (1, 'child', 0), (2, 'child', 0)",
        ),
        (
            "update only t set v = 'P' where id = 1",
            "update t set v = v || '!' where id = 2",
            "delete from only t where id = 2",
            "truncate only t",
        ),
    ),
    "partitions": Story(
        (
            "create table t (id int primary key, v text) partition by range (id)",
            "create table low partition of t for values from (0) to (10)",
            "create table high (gone int, v text, id int not null)",
            "alter table high drop gone",
            "alter table t attach partition high for values from (10) to (20)",
            "insert into t values (1, 'a'), (2, 'b'), (11, 'c')",
        ),
        (
            "update t set v = v || 'd'",
            "update t set id = id + 10 where id = 2",
            "update t set id = id - 8 where id = 11",
            "delete from t where id = 12",
        ),
    ),
}


#: From version 18 on a source itself forbids updates of such tables, as long as these columns are not published.
BEFORE_18 = {
    "generated columns in a whole row": Story(
        (
            "create table t (twice int generated always as (n * 2) stored, n int)",
            FULL,
            "insert into t (n) values (1), (1), (null)",
        ),
        ("update t set n = 5 where n is null", "delete from t where ctid = (select min(ctid) from t)"),
    ),
    "nothing but generated columns": Story(
        ("create table t (one int generated always as (1) stored)", FULL, "insert into t values (default)"),
        ("insert into t values (default), (default)", "delete from t where ctid = (select min(ctid) from t)"),
    ),
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_the_target_has_what_the_source_has(mirror: Mirror, story: Story) -> None:
    """Each change leaves on the target the very rows that the source has."""
    tell(mirror, story)


@pytest.mark.parametrize("mirrored", [(one, majors[-1]) for one in majors[:1] if one < 18], indirect=True)
@pytest.mark.parametrize("story", BEFORE_18.values(), ids=BEFORE_18)
def test_generated_columns_of_older_sources(mirror: Mirror, story: Story) -> None:
    """A whole row is found although its generated columns are not in the stream."""
    tell(mirror, story)


def tell(mirror: Mirror, story: Story) -> None:
    """Let a story happen, and follow each change by itself."""
    mirror.both(*story.both)
    assert contents(mirror.target) == contents(mirror.source)
    for statement in story.source:
        assert mirror.follow(statement)


@pytest.mark.skipif(majors[-1] < 18, reason="virtual columns are new in version 18")
def test_virtual_columns(mirror: Mirror) -> None:
    """A virtual generated column is left to the target."""
    mirror.both(
        "create table t (id int primary key, twice int generated always as (id * 2) virtual, v text)",
        "insert into t (id, v) values (1, 'a')",
    )
    mirror.follow(
        "insert into t (id, v) values (2, 'b')", "update t set id = 3 where id = 1", "update t set v = 'c'"
    )


@pytest.mark.parametrize("replica", [True, False], ids=["quiet", "loud"])
def test_rows_that_swap_a_unique_value(mirror: Mirror, replica: bool) -> None:
    """Two rows may swap a deferrable unique value, a key too: the target judges at the end of the transaction."""
    mirror.both(
        "create table t (id int primary key, u int unique deferrable)",
        "insert into t values (1, 10), (2, 20)",
        "create table k (id int primary key deferrable, v text)",
        "alter table k replica identity full",
        "insert into k values (1, 'a'), (2, 'b'), (3, 'c')",
    )
    mirror.follow("update t set u = 30 - u", "update k set id = 4 - id", replica=replica)


def test_columns_in_another_order(mirror: Mirror) -> None:
    """Columns are matched by their names, whatever their order on either end."""
    mirror.source.execute("create table t (a text, id int primary key, b text)")
    mirror.target.execute(
        "create table t (b text, gone int, a text, id int primary key); alter table t drop gone"
    )
    mirror.both("insert into t (id, a, b) values (1, 'a', 'b')")
    mirror.follow(
        "insert into t (id, a, b) values (2, 'c', 'd')",
        "update t set a = b || a",
        "delete from t where id = 1",
    )
    mirror.follow("update t set id = 5")


def test_a_key_on_the_target_alone(mirror: Mirror) -> None:
    """A whole row is looked up by the target's primary key where there is one, and by all values where that may defer."""
    for name, key in (("t", "primary key"), ("d", "primary key deferrable")):
        mirror.source.execute(sql.SQL("create table {} (v text, id int)").format(sql.Identifier(name)))
        mirror.source.execute(sql.SQL("alter table {} replica identity full").format(sql.Identifier(name)))
        mirror.target.execute(
            sql.SQL("create table {} (v text, id int {})").format(sql.Identifier(name), sql.SQL(key))
        )
    statements = mirror.follow(
        "insert into t values ('a', 1), ('b', 2)",
        "update t set v = 'c', id = 3 where id = 1",
        "insert into d values ('a', 1)",
        "delete from d",
    )
    assert statements[2].key == (("id", b"1"),)
    assert statements[4].key == ()


@pytest.mark.parametrize("full", [False, True], ids=["key", "whole row"])
def test_a_table_of_1500_columns(mirror: Mirror, full: bool) -> None:
    """A row about as wide as PostgreSQL allows is inserted, updated by either identity, and deleted."""
    columns = sql.SQL(", ").join(sql.SQL("{} int2").format(sql.Identifier(f"c{n}")) for n in range(1500))
    mirror.both(sql.SQL("create table t ({})").format(columns))
    mirror.both(FULL if full else "alter table t add primary key (c700)")
    all_but = [f"c{n}" for n in range(0, 1500, 7) if n != 700]
    inserted = sql.SQL("insert into t (c700, {}) values (1, {}), (2, {})").format(
        sql.SQL(", ").join(map(sql.Identifier, all_but)),
        *[sql.SQL(", ").join([sql.Literal(5)] * len(all_but))] * 2,
    )
    mirror.follow(inserted, "update t set c0 = 9, c1499 = 8", "update t set c700 = 3 where c700 = 1")
    mirror.follow("delete from t where c700 = 2")
    assert len(contents(mirror.target)["public.t"]) == 1


HOSTILE = [
    "select",
    '"',
    "''",
    "%s %(a)s %%",
    "$1",
    "a b\n;--",
    "ü" * 31 + "x",
    "x" * 63,
    "{}",
    "\\",
    "\U0001f418",
    "Ａ",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(mirror: Mirror, name: str) -> None:
    """Schemas, tables, columns and types may be called anything, in every kind of statement."""
    schema, column, key = sql.Identifier(name), sql.Identifier(name), sql.Identifier("k" + name[:40])
    table = sql.Identifier(name, name)
    kind = sql.Identifier(name, "t" + name[:40])
    mirror.both(
        sql.SQL("create schema {}").format(schema),
        sql.SQL("create type {} as enum ('a', 'b')").format(kind),
        sql.SQL("create table {} ({} {}, {} int generated always as identity)").format(
            table, column, kind, key
        ),
    )
    insert = sql.SQL("insert into {} ({}) values ('a'), ('a'), (null)").format(table, column)
    update = sql.SQL("update {} set {} = 'b'").format(table, column)
    identity = sql.SQL("update {0} set {1} = default where {1} = 1").format(table, key)
    delete = sql.SQL("delete from {} where {} = 2").format(table, key)
    for keyed in (True, False):
        mirror.both(
            sql.SQL("alter table {} add constraint keyed primary key ({})").format(table, key)
            if keyed
            else sql.SQL("alter table {} drop constraint keyed, replica identity full").format(table)
        )
        mirror.follow(insert, update, identity, delete, sql.SQL("truncate {} restart identity").format(table))


# --- truncate --------------------------------------------------------------------------------------

FAMILY = (
    "create table a (id int generated by default as identity primary key)",
    "create table b (id int primary key, a int references a)",
    "create table c (id int primary key, b int references b)",
    "create table other (id int primary key)",
    "insert into a values (default), (default)",
    "insert into b values (1, 1), (2, 2)",
    "insert into c values (1, 1)",
    "insert into other values (1)",
)


@pytest.mark.parametrize("replica", [True, False], ids=["quiet", "loud"])
@pytest.mark.parametrize(
    "statement", ["truncate a, b, c, other", "truncate a cascade", "truncate b, c, other", "truncate c"]
)
def test_truncate_of_a_group(mirror: Mirror, statement: LiteralString, replica: bool) -> None:
    """Tables that refer to one another are emptied by one statement, as on the source, and others are not."""
    mirror.both(*FAMILY)
    (executed,) = mirror.follow(statement, replica=replica)
    assert executed.verb == "TRUNCATE"
    assert contents(mirror.target)["public.c"] == []


def test_truncate_reaches_no_further_than_on_the_source(mirror: Mirror) -> None:
    """A table that refers to the group on the target alone is not emptied for it: the target refuses."""
    mirror.both(*FAMILY)
    mirror.target.execute("create table ours (a int references a); insert into ours values (1)")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="foreign key"):
        mirror.follow("truncate a cascade")
    assert contents(mirror.target)["public.ours"] == ["(1)"]
    assert contents(mirror.target)["public.a"] == ["(1)", "(2)"]


@pytest.mark.parametrize(("restart", "next_value"), [("", 3), ("restart identity", 1)])
def test_truncate_and_the_identity(mirror: Mirror, restart: LiteralString, next_value: int) -> None:
    """A sequence starts again where it did so on the source, and only there."""
    mirror.both(*FAMILY)
    mirror.follow(sql.SQL("truncate a, b, c {}").format(sql.SQL(restart)))
    assert mirror.target.execute("select nextval('a_id_seq')").fetchone() == (next_value,)


def test_truncate_of_parents_and_children(mirror: Mirror) -> None:
    """TRUNCATE of a parent empties its children, ONLY spares them, and one partition goes without the others."""
    mirror.both(
        "create table t (id int)",
        "create table child () inherits (t)",
        "create table p (id int) partition by list (id)",
        "create table one partition of p for values in (1)",
        "create table two partition of p for values in (2)",
        "insert into t values (1)",
        "insert into child values (2)",
        "insert into p values (1), (2)",
    )
    mirror.follow("truncate only t", "truncate one")
    assert [len(rows) for rows in contents(mirror.target).values()] == [1, 0, 0, 1]
    mirror.follow("insert into t values (1); insert into p values (1)", "truncate t", "truncate p")
    assert not any(contents(mirror.target).values())


@pytest.mark.parametrize("replica", [True, False], ids=["quiet", "loud"])
def test_truncate_of_partitioned_families(mirror: Mirror, replica: bool) -> None:
    """Partitioned tables that refer to one another are emptied together, though only their leaves are named."""
    mirror.both(
        "create table p (id int primary key) partition by list (id)",
        "create table p1 partition of p for values in (1)",
        "create table p2 partition of p for values in (2)",
        "create table q (p int references p) partition by list (p)",
        "create table q1 partition of q for values in (1)",
        "create table q2 partition of q for values in (2)",
        "insert into p values (1), (2)",
        "insert into q values (1), (2)",
    )
    mirror.follow("truncate p, q", replica=replica)
