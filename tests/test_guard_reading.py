"""What the poll makes of two readings, and what a schema lacks of another: pure, but for what a server says by itself."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from fix_guard import Guarded
from fix_servers import Cli, Pair
from pglockstep.guard.database import Database, Grant, Setting, creation, furnishing
from pglockstep.guard.missing import Schema, SchemaObject, TableColumn, missing, put_back_by_hand
from pglockstep.guard.reading import Reading, TableReading, judge
from pglockstep.postgres.names import QualifiedName
from test_guard_watch import USER, USERS, on_15_and_18

TABLE = QualifiedName("public", "t")
STANDING = TableReading("public", "t", 100, 200, False, 1000, (("id", "23"), ("v", "25")), 4)
BEFORE = Reading(True, 1, True, 2, (STANDING,))


def now(**changes: object) -> Reading:
    """The reading after `changes` to the table."""
    return msgspec.structs.replace(BEFORE, tables=(msgspec.structs.replace(STANDING, **changes),))


@pytest.mark.parametrize(
    ("reading", "kind", "sure"),
    [
        (Reading(database=False), "missing_database", True),
        (msgspec.structs.replace(BEFORE, database_oid=2), "missing_database", True),
        (msgspec.structs.replace(BEFORE, ours=False), "drop", True),
        (msgspec.structs.replace(BEFORE, event_triggers=1), "foreign_write", True),
        (now(oid=None), "drop", True),
        (now(oid=101), "drop", True),
        (now(columns=(("id", "23"),)), "drop", True),
        (now(columns=(("id", "20"), ("v", "25"))), "foreign_write", True),
        (now(triggers=3), "foreign_write", True),
        (now(file=201, fresh=True, rows=0), "truncate", False),
        (now(rows=10), "delete", False),
        (msgspec.structs.replace(BEFORE, floors=(("public", "t", 4, 5),)), "floor", False),
    ],
)
def test_each_harm_has_its_kind(reading: Reading, kind: str, sure: bool) -> None:
    """One trouble each, certain or not; and a harm that stands is not told twice."""
    [trouble] = judge(BEFORE, reading)
    assert (trouble.kind, trouble.sure) == (kind, sure)
    if reading.database:
        assert judge(reading, reading) == []


def test_what_is_our_own_or_nothing() -> None:
    """Our own TRUNCATE, a rewrite, a smaller estimate of a small table, and a table that nobody knew."""
    assert judge(BEFORE, now(file=201, fresh=True, rows=0), {TABLE}) == []
    assert judge(BEFORE, now(file=201)) == []
    assert judge(BEFORE, now(rows=800)) == []
    assert judge(now(rows=19), now(rows=0)) == []
    assert judge(Reading(True, 1, True, 2), BEFORE) == []


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_estimate_that_rises_is_never_a_loss(rows: int, more: int) -> None:
    """Whatever the table held."""
    assert judge(now(rows=rows), now(rows=rows + more)) == []


def made(kind: str, identity: str, table: str | None = "t", **more: str) -> SchemaObject:
    """An object of a table's."""
    return SchemaObject(
        1, 1, kind, identity, "public" if table else None, table, "r" if table else None, **more
    )


def column(name: str, type_name: str = "integer", *, table: str = "t", not_null: bool = False) -> TableColumn:
    """A column of a table's."""
    return TableColumn("public", table, name, type_name, None, not_null, "", None, False)


def test_what_is_missing_is_told_apart() -> None:
    """Tables, columns gone, added, of another type, stricter and looser; what is left out, and what the target has besides."""
    source = Schema(
        [made("table", "public.t"), made("table", "public.gone", "gone"), made("table", "public.out", "out")],
        [column("a"), column("b", not_null=True), column("c"), column("d"), column("x", table="gone")],
    )
    target = Schema(
        [made("table", "public.t"), made("index", "public.theirs")],
        [
            column("a", "text"),
            column("b"),
            column("c", not_null=True),
            column("e"),
            column("y", table="theirs"),
        ],
    )
    lacks = missing(source, target, {QualifiedName("public", "out")})
    assert lacks.tables == {QualifiedName("public", "gone")}
    assert [each.name for each in lacks.added] == ["a", "d"]
    assert [each.name for each in lacks.dropped] == ["a", "e"]
    assert [each.name for each in lacks.loose] == ["b"]
    assert [each.name for each in lacks.tight] == ["c"]
    assert lacks.altered == {TABLE}
    assert not missing(source, source, ())


def test_checks_and_defaults_are_put_back_by_their_own_statement() -> None:
    """Only of tables that are there; names are quoted, definitions are the server's own."""
    check = made("table constraint", '"odd Name" on public.t', part="odd Name", definition="CHECK (a > 0)")
    default = made("default value", "for public.t.v", part='We"ird', definition="'x'::text")
    new = made("default value", "for public.gone.v", "gone", part="v", definition="1")
    lacks = missing(
        Schema([check, default, new, made("table", "public.gone", "gone")], []), Schema([], []), ()
    )
    assert [each.as_string() for each in put_back_by_hand(lacks.by_hand)] == [
        'ALTER TABLE "public"."t" ADD CONSTRAINT "odd Name" CHECK (a > 0)',
        """ALTER TABLE "public"."t" ALTER COLUMN "We""ird" SET DEFAULT 'x'::text""",
    ]


def test_a_database_is_made_as_its_server_spells_it() -> None:
    """libc, ICU and the built-in provider; lists of names are set from the session, so that each stays a name."""
    plain = Database("x", "me", "UTF8", "C", "C")
    assert creation(plain).as_string() == (
        """CREATE DATABASE "x" OWNER "me" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' """
        """TABLESPACE "pg_default" CONNECTION LIMIT  -1"""
    )
    icu = msgspec.structs.replace(plain, provider="i", locale="de", rules="&a < b")
    assert "LOCALE_PROVIDER icu ICU_LOCALE 'de' ICU_RULES '&a < b'" in creation(icu).as_string()
    builtin = msgspec.structs.replace(plain, provider="b", locale="C.UTF-8")
    assert "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'" in creation(builtin).as_string()
    furnished = msgspec.structs.replace(
        plain, grants=(Grant("", "CONNECT", False),), settings=(Setting("r", "search_path", 'a, "B"'),)
    )
    assert [each.as_string() for each in furnishing(furnished)] == [
        'REVOKE ALL ON DATABASE "x" FROM PUBLIC',
        'REVOKE ALL ON DATABASE "x" FROM "me"',
        'GRANT CONNECT ON DATABASE "x" TO PUBLIC',
        """SELECT pg_catalog.set_config('search_path', 'a, "B"', true)""",
        'ALTER ROLE "r" IN DATABASE "x" SET "search_path" FROM CURRENT',
    ]


@on_15_and_18
@pytest.mark.parametrize(
    ("harm", "kind", "sure"),
    [
        ("DROP SCHEMA public CASCADE", "drop", True),
        ('TRUNCATE "User" CASCADE', "truncate", False),
        ('DELETE FROM "User"', "delete", False),
        ('ALTER TABLE "User" DROP COLUMN email', "drop", True),
        ('ALTER TABLE "User" RENAME TO gone', "drop", True),
        ("DROP SCHEMA pglockstep CASCADE", "drop", True),
    ],
)
def test_what_the_poll_alone_sees(cli: Cli, pair: Pair, harm: str, kind: str, sure: bool) -> None:
    """Whatever the watch did not tell; how soon after the commit, reading every 50 ms, is printed."""
    pair.on_source().execute(USERS)
    guarded = Guarded(cli, pair)
    before = guarded.read()
    deadline = time.monotonic() + 30
    while next(each for each in before.tables if each.table == USER).rows < 20:
        # an estimate: the copying sessions tell what they wrote as they end, and ANALYZE may have counted it before
        assert time.monotonic() < deadline
        time.sleep(0.05)
        before = guarded.read()
    with pair.on_target() as conn:
        conn.execute(sql.SQL("SET session_replication_role = replica"))
        conn.execute(harm.encode())
    found = guarded.polled(before)
    print(f"{harm}: found by the poll after {guarded.noticed_after:.2f} s")
    assert (kind, sure) in {(each.kind, each.sure) for each in found}
