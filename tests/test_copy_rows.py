"""Rows and large objects arrive bit by bit, whatever they hold and however the source's sessions are set up."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from fix_copy import nothing_left, once, refused
from fix_servers import Cli, Pair, connect, on_all_pairs

#: Each type with values that some copy has lost; every value is one row of a table of its own.
VALUES: dict[str, list[str | None]] = {
    "text": [None, "", "null", "\\N", "\\.", "\\", "a\tb\nc\rd\be\fg\vh\x01\x7f", "😀e\u0301\ufeff\u202e", "'\";--", "%s {0} $1"],
    "varchar(3)": ["äöü", "   ", ""],
    "char(4)": ["", "a", "a   ", "\t"],
    '"char"': ["", "a", "\\"],
    "name": ["Ä b", ""],
    "bytea": ["\\x", "\\x00", "\\x5c2e0a0d00ff", "\\x" + "00ff5c" * 400_000],
    "smallint": ["-32768", "32767"],
    "bigint": ["-9223372036854775808", "9223372036854775807"],
    "numeric": ["0.00", "1.0", "1.00", "-0.000000001", "NaN", "Infinity", "-Infinity", "1e1000", "1e-1000", "9" * 2000],
    "numeric(5, 2)": ["-999.99", "NaN"],
    "real": ["NaN", "-0", "Infinity", "-Infinity", "1e-45", "3.4028235e38", "0.1"],
    "float8": ["NaN", "-0", "Infinity", "-Infinity", "5e-324", "1.7976931348623157e308", "0.1", "0.30000000000000004"],
    "money": ["-92233720368547758.08", "1234.5"],
    "boolean": ["t", "f", None],
    "date": ["4713-01-01 BC", "5874897-12-31", "infinity", "-infinity", "2000-02-29"],
    "time": ["00:00:00", "24:00:00", "12:34:56.789012"],
    "timetz": ["24:00:00-15:59", "00:00:00+15:59:59"],
    "timestamp": ["infinity", "-infinity", "0044-03-15 12:00:00.000001 BC", "294276-12-31 23:59:59.999999"],
    "timestamptz": ["infinity", "-infinity", "1000-01-01 00:00:00+00 BC", "1890-01-01 00:00:00+00", "2021-10-31 01:30:00+02"],
    "interval": ["1 year -2 months +3 days -04:05:06.000007", "-178000000 years", "0", "-00:00:00.000001"],
    "json": ["null", '{"b":1, "a" : 2,"a":3}', '"\\u0000"', "1e5000"],
    "jsonb": ["null", '"null"', '{"a": [1.00, -0.0, 1e30]}', '"\\u00e9\\ud83d\\ude00"'],
    "jsonpath": ['$."a b"[*] ? (@ > 1)'],
    "xml": ["<a>&lt;x/&gt;\n</a>", "text & no".replace("&", "&amp;"), '<!DOCTYPE a><a/>'],
    "uuid": ["00000000-0000-0000-0000-000000000000"],
    "bit(3)": ["101"],
    "varbit": ["", "1" * 70],
    "inet": ["::ffff:1.2.3.4/128", "1.2.3.4/8"],
    "cidr": ["10.0.0.0/8", "::/0"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:ff:fe:01:02:03"],
    "point": ["(NaN,-0)", "(Infinity,5e-324)"],
    "line": ["{1,-1,0.1}"],
    "lseg": ["[(0,0),(1,1)]"],
    "box": ["(1,1),(0,0)"],
    "path": ["[(0,0),(1,1)]", "((0,0),(1,1))"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "circle": ["<(0,0),0>"],
    "tsvector": ["'a b':1A 'c''d':2,3B '\\\\e'"],
    "tsquery": ["!'a' & ('b':*AB | 'c''d') <2> 'e'"],
    "int4range": ["empty", "(,)", "[1,5)", "(,5)"],
    "numrange": ["(1.0,2.00]", "[1.50,1.50]"],
    "tstzrange": ['["2000-01-01 00:00:00+00",infinity)'],
    "int8multirange": ["{}", "{[1,2),[5,)}"],
    "int[]": ["{}", "{NULL}", "[-3:-1]={1,2,3}", "{{1,2},{3,4}}"],
    "text[]": ['{}', '{"",NULL,"NULL","a,b","\\\\","\\"","{}"}', '{{"\n"}}'],
    "pg_lsn": ["FFFFFFFF/FFFFFFFF", "0/0"],
    "xid8": ["18446744073709551615"],
    "pg_snapshot": ["10:20:10,14,15"],
    "oid": ["4294967295"],
    "tid": ["(4294967295,65535)"],
    "regclass": ["pg_catalog.pg_class", "4000000000"],
    "regtype": ["int4range[]"],
    "regprocedure": ["pg_catalog.lower(text)"],
    "regnamespace": ["pg_catalog"],
    "feeling": ["it's \"fine\"", "ä,b"],
    "limited": ["5"],
    "duo": ['(1,"a ""b""","{NULL,\\"\\"}")', "(,,)", None],
    "duo[]": ['{"(1,\\"a,b\\",)",NULL}'],
}  # fmt: skip

TYPES = """
CREATE TYPE feeling AS ENUM ('it''s "fine"', 'ä,b');
CREATE DOMAIN limited AS int CHECK (VALUE > 3);
CREATE TYPE duo AS (a int, b text, c text[]);
"""


def has_xml(conninfo: str) -> bool:
    """Whether the server was built with libxml."""
    with connect(conninfo) as conn, contextlib.suppress(psycopg.errors.FeatureNotSupported):
        conn.execute("SELECT '<a/>'::xml")
        return True
    return False


def fill(pair: Pair) -> int:
    """Make a table for each type; how many rows there are."""
    rows = 0
    without_xml = not (has_xml(pair.source) and has_xml(pair.target))
    with pair.on_source() as conn, conn.transaction():
        conn.execute(TYPES.encode())
        for number, (kind, values) in enumerate(VALUES.items()):
            if kind == "xml" and without_xml:
                conn.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY, v text)".encode())
                continue
            table = sql.Identifier(f"t{number}")
            conn.execute(sql.SQL("CREATE TABLE {} (id int PRIMARY KEY, v {})").format(table, sql.SQL(kind)))
            for row, value in enumerate(values):
                insert = sql.SQL("INSERT INTO {} VALUES ({}, {}::{})").format(
                    table,
                    row,
                    sql.Literal(value),
                    sql.SQL(kind),
                )
                conn.execute(insert.as_bytes(conn))
                rows += 1
    return rows


def texts(conninfo: str) -> list[tuple[object, ...]]:
    """Every row as text, in settings that show every bit."""
    with connect(conninfo) as conn:
        conn.execute(
            "SET extra_float_digits = 3; SET timezone = 'UTC'; SET datestyle = 'ISO'; SET lc_monetary = 'C'"
        )
        return [
            (number, *row)
            for number in range(len(VALUES))
            for row in conn.execute(f"SELECT id, v::text FROM t{number} ORDER BY id".encode()).fetchall()
        ]


@on_all_pairs
def test_every_type_arrives_exactly(pair: Pair, cli: Cli) -> None:
    """Hostile values of every built-in type, and of enums, domains and composites, are the same text on the target."""
    rows = fill(pair)
    link = once(cli, pair)
    assert (link["verdict"], link["copied_rows"]) == ("identical", rows)
    assert texts(pair.source) == texts(pair.target)


def test_wide_and_long(pair: Pair, cli: Cli) -> None:
    """A table of 1,600 columns, and a row of many megabytes, pass."""
    source = pair.on_source()
    columns = ", ".join(f"c{number} int" for number in range(1599))
    source.execute(
        f"CREATE TABLE wide (id int PRIMARY KEY, {columns}); INSERT INTO wide (id, c1598) VALUES (1, 2)".encode()
    )
    source.execute("CREATE TABLE long (id int PRIMARY KEY, a text, b bytea)")
    source.execute(
        "INSERT INTO long SELECT 1, repeat('ä\\n', 6000000), decode(repeat('00ff', 6000000), 'hex')"
    )
    assert once(cli, pair)["verdict"] == "identical"
    assert pair.on_target().execute("SELECT c1598 FROM wide").fetchall() == [(2,)]


@pytest.mark.parametrize("end", ["source", "target"])
def test_settings_of_a_database_change_nothing(pair: Pair, cli: Cli, end: str) -> None:
    """Settings of the database that change how values look, are read or are found do not reach what arrives."""
    rows = fill(pair)
    with connect(pair.source if end == "source" else pair.target) as conn:
        for setting in (
            "datestyle = 'SQL, DMY'",
            "intervalstyle = 'iso_8601'",
            "timezone = 'Australia/Lord_Howe'",
            "extra_float_digits = -15",
            "bytea_output = 'escape'",
            "search_path = 'nowhere'",
            "row_security = on",
            "default_transaction_read_only = on",
            "default_transaction_isolation = 'serializable'",
            "lc_monetary = 'C.UTF-8'",
            "xmloption = 'document'",
            "standard_conforming_strings = off",
            "escape_string_warning = on",
            "backslash_quote = off",
            "array_nulls = off",
            "client_encoding = 'LATIN1'",
            "statement_timeout = '1ms'",
            "lock_timeout = '1ms'",
            "default_tablespace = ''",
        ):
            name, _, value = setting.partition(" = ")
            conn.execute(
                sql.SQL(
                    "DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET {} = {}', current_database()); END$$"
                ).format(
                    sql.SQL(name),
                    sql.SQL(value.replace("'", "''")),
                )
            )
    link = once(cli, pair)
    assert (link["verdict"], link["copied_rows"]) == ("identical", rows)
    # from its first statement on, which a busy machine may take longer over than the database allows
    patient = {"options": "-c statement_timeout=0"}
    with (
        connect(make_conninfo(pair.source, **patient)) as source,
        connect(make_conninfo(pair.target, **patient)) as target,
    ):
        # whoever looks now looks with the same eyes at both
        for conn in (source, target):
            conn.execute("RESET ALL; SET search_path = public; SET client_encoding = 'UTF8'")
            conn.execute(
                "SET datestyle = 'ISO'; SET timezone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'"
            )
            conn.execute("SET intervalstyle = 'postgres'")
        for number in range(len(VALUES)):
            query = f"SELECT id, v::text FROM t{number} ORDER BY id".encode()
            assert source.execute(query).fetchall() == target.execute(query).fetchall()


def test_large_objects_arrive_under_their_own_oids(pair: Pair, cli: Cli) -> None:
    """Large objects, empty, of several pieces, of exactly one piece, and with holes, are the same on the target."""
    source = pair.on_source()
    piece = 1 << 20
    source.execute("SELECT lo_from_bytea(70001, ''), lo_from_bytea(70002, 'x')")
    source.execute("SELECT lo_from_bytea(70003, decode(repeat('00ff5c', 1200000), 'hex'))")
    source.execute(f"SELECT lo_from_bytea(70004, decode(repeat('ab', {piece}), 'hex'))".encode())
    with source.transaction():
        source.execute("SELECT lo_create(70005)")
        source.execute("SELECT lo_lseek64(lo_open(70005, 131072), 5000000, 0), lowrite(0, 'end')")
    source.execute("SELECT lo_create(4294967290)")
    link = once(cli, pair)
    assert any("6 large objects" in each for each in link["not_streamed"])
    content = "SELECT oid, md5(lo_get(oid)), length(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid"
    target = pair.on_target()
    found = target.execute(content).fetchall()
    assert found == source.execute(content).fetchall()
    assert [row[2] for row in found] == [0, 1, 3_600_000, piece, 5_000_003, 0]
    source.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    target.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")


def in_encoding(pair: Pair, end: str, encoding: str) -> None:
    """Make one end's empty database anew in another encoding."""
    server, conninfo = (
        (pair.source_server, pair.source) if end == "source" else (pair.target_server, pair.target)
    )
    with connect(conninfo) as conn:
        row = conn.execute("SELECT current_database()").fetchone()
        assert row is not None
    name = sql.Identifier(row[0])
    with connect(server.conninfo()) as conn:
        conn.execute(sql.SQL("DROP DATABASE {}").format(name))
        conn.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(
                name, sql.Literal(encoding)
            )
        )


@pytest.mark.superusers
def test_latin1_becomes_utf8(pair: Pair, cli: Cli) -> None:
    """Text of a LATIN1 database means the same in a UTF-8 target, names included."""
    in_encoding(pair, "source", "LATIN1")
    source = pair.on_source()
    source.execute(
        'CREATE TABLE "Größe" (id int PRIMARY KEY, "ä" text); INSERT INTO "Größe" VALUES (1, \'naïve ÿ\')'
    )
    source.execute(
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT 'é'$$; COMMENT ON FUNCTION f IS 'ü'"
    )
    assert once(cli, pair)["verdict"] == "identical"
    assert pair.on_target().execute('SELECT "ä", f() FROM "Größe"').fetchall() == [("naïve ÿ", "é")]


@pytest.mark.superusers
def test_what_latin1_cannot_hold_is_refused(pair: Pair, cli: Cli) -> None:
    """UTF-8 text that a LATIN1 target has no letter for ends the copy; nothing is left behind."""
    in_encoding(pair, "target", "LATIN1")
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, '😀')")
    message, _ = refused(cli("once", "--source", pair.source, "--target", pair.target), 5)
    assert "LATIN1" in message
    nothing_left(pair, {"t": "d"})


@pytest.mark.superusers
def test_sql_ascii_is_refused(pair: Pair, cli: Cli) -> None:
    """Bytes of no known encoding are not converted by a guess: SQL_ASCII goes to SQL_ASCII only."""
    in_encoding(pair, "source", "SQL_ASCII")
    pair.on_source().execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, E'a\\xc3\\xa4')"
    )
    message, hint = refused(cli("once", "--source", pair.source, "--target", pair.target), 5)
    assert "SQL_ASCII" in message
    assert "ENCODING 'SQL_ASCII' TEMPLATE template0" in hint
    nothing_left(pair, {"t": "d"})
    in_encoding(pair, "target", "SQL_ASCII")
    assert once(cli, pair)["verdict"] == "identical"
