"""Every built-in type, and types of users over every kind of them, with values that some tool has bent.

`values` all differ to the type's own ``=``, so that each can be a key; `alike` are equal to one of them, but another
text. What stands here is held against the server's own catalog: see `test_traps_values`.
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """A type and values of it. `nullable` is false where the type itself forbids NULL."""

    values: tuple[str, ...]
    alike: tuple[str, ...] = ()
    nullable: bool = True


CONTROL = "a\tb\nc\rd\be\fg\vh\x01\x1f\x7f\x85"
#: What COPY, array and row texts, JSON, SQL and format strings each take for something else.
WORDS = (
    "", " ", "  a ", "NULL", "null", "\\N", "\\.", "\\", "\\\\", "'", '"', "{}", "{NULL}", "()", ",", "(,)", "\\x00",
    CONTROL, "😀e\u0301\ufeff\u202e", "'\";--", "%s %(a)s {0} $1 :x", "\n\\.\n", "\r\n", "ß", "é" * 3000,
)  # fmt: skip

BUILT_IN: dict[str, Kind] = {
    "bool": Kind(("t", "f")),
    "int2": Kind(("-32768", "0", "32767")),
    "int4": Kind(("-2147483648", "0", "2147483647")),
    "int8": Kind(("-9223372036854775808", "0", "9223372036854775807")),
    "numeric": Kind(
        ("0", "1.0", "-0.000000001", "NaN", "Infinity", "-Infinity", "1e1000", "1e-1000", "9" * 300 + ".5"),
        ("0.00", "1.00", "1"),
    ),
    "numeric(5,2)": Kind(("-999.99", "NaN", "0.10")),
    "numeric(3,-2)": Kind(("-12300", "0", "99900")),
    "numeric(3,5)": Kind(("0.00123", "-0.00999", "0.00000")),
    "float4": Kind(
        ("NaN", "0", "Infinity", "-Infinity", "1e-45", "3.4028235e38", "0.1", "16777217"), ("-0",)
    ),
    "float8": Kind(
        ("NaN", "0", "Infinity", "-Infinity", "5e-324", "1.7976931348623157e308", "0.1", "0.30000000000000004"),
        ("-0",),
    ),
    "money": Kind(("-92233720368547758.08", "0", "1234.5")),
    "text": Kind(WORDS),
    "varchar": Kind(WORDS),
    "varchar(6)": Kind(("", "äöü", " ", "\\N", "NULL", "null", "😀😀😀😀😀😀")),
    "bpchar": Kind(("", "a", "\\N", "NULL", " a")),
    "char(6)": Kind(("", "a", " a", "\t", "äöüäöü", "\\N", "NULL")),
    "char": Kind(("", "a", "\\", "\t", "'")),
    "name": Kind(("", "Ä b", 'Odd "name"', "x" * 63, "\\N", "NULL")),
    '"char"': Kind(("", "a", "\\", "'", "\t")),
    "bytea": Kind(("\\x", "\\x00", "\\x5c2e0a0d00ff", "\\x5c4e", "\\x" + "00ff" * 1000)),
    "bit(3)": Kind(("101", "000")),
    "bit varying": Kind(("", "0", "00", "1" * 70)),
    "date": Kind(("4713-01-01 BC", "5874897-12-31", "infinity", "-infinity", "2000-02-29", "0044-03-15 BC")),
    "time": Kind(("00:00:00", "24:00:00", "12:34:56.789012")),
    "timetz": Kind(("24:00:00-15:59", "00:00:00+15:59:59", "03:04:05+00", "04:04:05+01")),
    "timestamp": Kind(
        ("infinity", "-infinity", "0044-03-15 12:00:00.000001 BC", "294276-12-31 23:59:59.999999", "1999-12-31 23:59:59.9")
    ),
    "timestamptz": Kind(
        ("infinity", "-infinity", "1000-01-01 00:00:00+00 BC", "1890-01-01 00:00:00+00", "2021-10-31 01:30:00+02")
    ),
    "timestamptz(3)": Kind(("2024-01-02 03:04:05.678+05:30",)),
    "interval": Kind(
        ("1 year -2 months +3 days -04:05:06.000007", "-178000000 years", "0", "-00:00:00.000001", "1 mon", "24:00:00"),
        ("30 days", "1 day"),
    ),
    "interval day to second(2)": Kind(("1 02:03:04.56", "-1 00:00:00")),
    "json": Kind(("null", '{"b":1, "a" : 2,"a":3}', '"\\u0000"', "1e5000", '""', '"null"', '{"b":1,"a":2,"a":3}')),
    "jsonb": Kind(
        ("null", '"null"', '""', '{"a": [1.0, -0.0, 1e30]}', '"\\u00e9\\ud83d\\ude00"', "{}", "[]", '"\\\\N"'),
        ('{"a": [1.00, 0, 1e30]}',),
    ),
    "jsonpath": Kind(('$."a b"[*] ? (@ > 1)', "$.a", "strict $")),
    "xml": Kind(("<a>&lt;x/&gt;\n</a>", "text &amp; no", "<!DOCTYPE a><a/>", "", "<a/>", "<a></a>")),
    "uuid": Kind(("00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    "inet": Kind(("::ffff:1.2.3.4/128", "1.2.3.4/8", "10.0.0.1", "10.0.0.1/31")),
    "cidr": Kind(("10.0.0.0/8", "::/0", "10.0.0.1/32")),
    "macaddr": Kind(("08:00:2b:01:02:03", "00:00:00:00:00:00")),
    "macaddr8": Kind(("08:00:2b:ff:fe:01:02:03", "ff:ff:ff:ff:ff:ff:ff:ff")),
    "point": Kind(("(NaN,-0)", "(Infinity,5e-324)", "(0,0)", "(-0,0)")),
    "line": Kind(("{1,-1,0.1}", "{2,-2,0.2}")),
    "lseg": Kind(("[(0,0),(1,1)]", "[(1,1),(0,0)]")),
    "box": Kind(("(1,1),(0,0)", "(2,1),(1,0)")),
    "path": Kind(("[(0,0),(1,1)]", "((0,0),(1,1))")),
    "polygon": Kind(("((0,0),(1,1),(2,0))", "((1,1),(0,0),(2,0))")),
    "circle": Kind(("<(0,0),0>", "<(5,5),0>")),
    "tsvector": Kind(("'a b':1A 'c''d':2,3B '\\\\e'", "", "'a' 'b'")),
    "tsquery": Kind(("!'a' & ('b':*AB | 'c''d') <2> 'e'", "'a'")),
    "int4range": Kind(("empty", "(,)", "[1,5)", "(,5)")),
    "int8range": Kind(("empty", "[1,9223372036854775807)")),
    "numrange": Kind(("(1.0,2.0]", "[1.5,1.5]", "[1.0,2.0]"), ("(1.00,2]",)),
    "daterange": Kind(("[2000-01-01,infinity)", "(,2000-01-01)", "empty")),
    "tsrange": Kind(("[2000-01-01 00:00:00,infinity]", "empty")),
    "tstzrange": Kind(('["2000-01-01 00:00:00+00",infinity)', '(,"0044-03-15 00:00:00+00 BC"]')),
    "int4multirange": Kind(("{}", "{[1,2),[5,)}")),
    "int8multirange": Kind(("{}", "{(,)}")),
    "nummultirange": Kind(("{}", "{[1.0,2.0],(3,)}"), ("{[1.00,2],(3,)}",)),
    "datemultirange": Kind(("{}", "{[2000-01-01,infinity)}")),
    "tsmultirange": Kind(("{}", '{["2000-01-01 00:00:00","2001-01-01 00:00:00"]}')),
    "tstzmultirange": Kind(("{}", '{["2000-01-01 00:00:00+00",)}')),
    "oid": Kind(("0", "4294967295")),
    "xid": Kind(("1", "4294967295")),
    "cid": Kind(("0", "4294967295")),
    "xid8": Kind(("0", "18446744073709551615")),
    "tid": Kind(("(4294967295,65535)", "(0,1)")),
    "pg_lsn": Kind(("FFFFFFFF/FFFFFFFF", "0/0")),
    "txid_snapshot": Kind(("10:20:10,14,15", "1:1:")),
    "pg_snapshot": Kind(("10:20:10,14,15", "1:1:")),
    "int2vector": Kind(("1 2", "", "-32768")),
    "oidvector": Kind(("1 2", "", "4294967295")),
    "refcursor": Kind(("", "a cursor", "NULL")),
    "aclitem": Kind(("=r/postgres", "postgres=rw*/postgres")),
    "regclass": Kind(("pg_catalog.pg_class", "4000000000", '"odd \\ ""schema".named')),
    "regcollation": Kind(('"C"', '"POSIX"')),
    "regconfig": Kind(("simple", "english")),
    "regdictionary": Kind(("simple", "english_stem")),
    "regnamespace": Kind(("pg_catalog", '"odd \\ ""schema"')),
    "regoper": Kind(("pg_catalog.||/",)),
    "regoperator": Kind(("*(integer,integer)", "!!(NONE,tsquery)")),
    "regproc": Kind(("now", "4000000000")),
    "regprocedure": Kind(("pg_catalog.lower(text)", "now()")),
    "regrole": Kind(("postgres", "4000000000")),
    "regtype": Kind(("int4range[]", "integer", "4000000000")),
}  # fmt: skip

#: Filled by the server itself only: no user can put a value of them into a table.
OF_THE_SERVER = {
    "gtsvector", "pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
}  # fmt: skip


SETUP = """
CREATE SCHEMA "odd \\ ""schema"; CREATE TABLE "odd \\ ""schema".named (id int PRIMARY KEY);
CREATE TYPE feeling AS ENUM ('it''s "fine"', 'ä,b', '', 'NULL', '\\N', '{');
CREATE TYPE duo AS (a int, b text, c text[]);
CREATE TYPE nested AS (d duo, e feeling, n numeric);
CREATE TYPE jsons AS (a json, b point);
CREATE TYPE span AS RANGE (subtype = text, collation = "C", multirange_type_name = spans);
CREATE DOMAIN d_int AS int CHECK (VALUE > 3);
CREATE DOMAIN d_text AS varchar(4) NOT NULL;
CREATE DOMAIN d_numeric AS numeric(6, 2);
CREATE DOMAIN d_twice AS d_numeric CHECK (VALUE < 100);
CREATE DOMAIN d_enum AS feeling;
CREATE DOMAIN d_array AS int[];
CREATE DOMAIN d_json AS json;
CREATE DOMAIN d_composite AS duo;
CREATE DOMAIN d_range AS span;
CREATE DOMAIN d_multirange AS int4multirange;
"""

OF_USERS: dict[str, Kind] = {
    "int[]": Kind(("{}", "{NULL}", "[-3:-1]={1,2,3}", "{{1,2},{3,4}}", "{1,2,3}")),
    "text[]": Kind(('{}', '{"",NULL,"NULL","a,b","\\\\","\\"","{}"}', '{{"\n"}}', '{"\\\\N"}', '{"\\\\."}')),
    "numeric[]": Kind(("{1.0}", "{NaN,Infinity}"), ("{1.00}",)),
    "feeling": Kind(("it's \"fine\"", "ä,b", "", "NULL", "\\N", "{")),
    "duo": Kind(('(1,"a ""b""","{NULL,\\"\\"}")', "(,,)", '(,"",)', '(2,"\\\\N",{})')),
    "nested": Kind(('("(1,a,{x})",NULL,1.0)', '("(,,)",,)', "(,,)"), ('("(1,a,{x})",NULL,1.00)',)),
    "jsons": Kind(('("{""a"":1}","(0,0)")', '("{""a"": 1}","(-0,0)")', "(,)")),
    "span": Kind(("[a,b]", "empty", "(,)", '["",NULL]')),
    "spans": Kind(("{}", "{[a,b],[x,y]}")),
    "d_int": Kind(("4", "2147483647")),
    "d_text": Kind(("", "NULL", "\\N", "äöü"), nullable=False),
    "d_numeric": Kind(("1.00", "-9999.99", "NaN")),
    "d_twice": Kind(("1.00", "-99.50")),
    "d_enum": Kind(("ä,b", "NULL", "")),
    "d_array": Kind(("{}", "{1,NULL}", "[0:1]={1,2}")),
    "d_json": Kind(("null", '{"a": 1}', '{"a":1}')),
    "d_composite": Kind(('(1,"x,y",{})', "(,,)")),
    "d_range": Kind(("empty", "[a,b)")),
    "d_multirange": Kind(("{}", "{[1,2)}")),
}  # fmt: skip


def kinds(major: int) -> dict[str, Kind]:
    """Every type that two servers both have, of which the older one is of this major version."""
    found = BUILT_IN | OF_USERS
    if major >= 17:
        found["interval"] = Kind(
            (*found["interval"].values, "infinity", "-infinity"), found["interval"].alike
        )
    return found
