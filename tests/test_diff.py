"""`diff` shows the rows that differ, column by column with both values, and nothing that it did not see."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from fix_servers import Cli, Pair, on_all_pairs

pytestmark = pytest.mark.unguarded

TABLES = """
CREATE TABLE "User" (id int PRIMARY KEY, "e-mail" text, n numeric, at timestamptz, tags text[]);
INSERT INTO "User" SELECT n, 'user' || n, n / 4.0, timestamptz '2024-01-01 00:00+00' + n * interval '1 day', '{a,"b c"}'
    FROM generate_series(1, 50) AS n;
CREATE TABLE visit (path text, n int); INSERT INTO visit SELECT '/' || n % 3, n % 2 FROM generate_series(1, 30) AS n;
CREATE TABLE line (a int, b text, v json, PRIMARY KEY (b, a)); INSERT INTO line VALUES (1, 'x', '{"a":1}'), (2, 'y', '1');
"""
HARM = """
UPDATE "User" SET "e-mail" = NULL WHERE id = 3; UPDATE "User" SET "e-mail" = '' WHERE id = 4;
UPDATE "User" SET n = 1.250 WHERE id = 5; UPDATE "User" SET tags = NULL, at = at + interval '1 us' WHERE id = 11;
DELETE FROM "User" WHERE id IN (2, 20); INSERT INTO "User" VALUES (-1, E'a,"b"\\n', 'NaN', 'infinity', '{}');
INSERT INTO visit VALUES ('/0', 0), ('/0', 0), ('/new', NULL);
DELETE FROM visit WHERE ctid IN (SELECT ctid FROM visit WHERE path = '/1' AND n = 1 LIMIT 2);
UPDATE line SET v = '{"a": 1}' WHERE a = 1;
"""


@pytest.fixture
def ends(pair: Pair, cli: Cli) -> Pair:
    """Two ends that differ in ten rows, and nobody who applies."""
    pair.on_source().execute(TABLES.encode())
    done = cli("once", "--source", pair.source, "--target", pair.target)
    assert done.returncode == 0, done.stderr
    pair.on_target().execute(HARM.encode())
    return pair


def diff(cli: Cli, pair: Pair, *more: str, code: int = 1) -> str:
    done = cli("diff", "--source", pair.source, "--target", pair.target, *more)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code > 1 else "")


def found(cli: Cli, pair: Pair, *more: str, code: int = 1) -> dict[str, Any]:
    link: dict[str, Any] = json.loads(diff(cli, pair, "--json", *more, code=code))["links"][0]
    return link


@on_all_pairs
def test_every_row_is_shown_with_both_values(ends: Pair, cli: Cli) -> None:
    """Missing, extra and changed, with a key and without one; NULL is not the empty string, and 1.25 is not 1.250."""
    link = found(cli, ends)
    assert (link["verdict"], link["truncated"]) == ("different", False)
    users = {row["key"]["id"]: row for row in link["rows"] if row["table"] == "User"}
    assert {key: row["kind"] for key, row in users.items()} == {
        "-1": "extra",
        "2": "missing",
        "3": "changed",
        "4": "changed",
        "5": "changed",
        "11": "changed",
        "20": "missing",
    }
    assert list(users) == ["-1", "2", "3", "4", "5", "11", "20"]
    assert users["3"]["columns"] == {"e-mail": {"source": "user3", "target": None}}
    assert users["4"]["columns"] == {"e-mail": {"source": "user4", "target": ""}}
    assert users["5"]["columns"] == {"n": {"source": "1.2500000000000000", "target": "1.250"}}
    assert set(users["11"]["columns"]) == {"at", "tags"}
    assert users["-1"]["columns"]["e-mail"] == {"source": None, "target": 'a,"b"\n'}
    assert users["2"]["columns"]["tags"] == {"source": '{a,"b c"}', "target": None}
    visits = [
        (row["kind"], row["copies"], row["columns"]["path"])
        for row in link["rows"]
        if row["table"] == "visit"
    ]
    assert sorted(visits, key=str) == [
        ("extra", 1, {"source": None, "target": "/new"}),
        ("extra", 2, {"source": None, "target": "/0"}),
        ("missing", 2, {"source": "/1", "target": None}),
    ]
    [line] = [row for row in link["rows"] if row["table"] == "line"]
    assert line["key"] == {"b": "x", "a": "1"}
    assert line["columns"] == {"v": {"source": '{"a":1}', "target": '{"a": 1}'}}


def test_it_reads_well(ends: Pair, cli: Cli) -> None:
    """For a person: what differs in a line, and how to see the rest."""
    said = diff(cli, ends)
    assert 'table public."User": 2 rows missing on the target, 1 extra, 4 changed' in said
    assert "changed  id = 3: \"e-mail\": 'user3' on the source, NULL on the target" in said
    assert 'extra    id = -1: "e-mail" = \'a,"b"\\n\'' in said
    assert "(2 times)" in said
    said = diff(cli, ends, "--limit", "2", "--table", 'public."User"')
    assert "… and 5 more; --limit 7 shows them" in said
    assert "visit" not in said


def test_csv_can_be_read_again(ends: Pair, cli: Cli) -> None:
    """One line for each column; NULL and '' stay apart, as PostgreSQL reads CSV."""
    said = diff(cli, ends, "--csv")
    rows = list(csv.DictReader(io.StringIO(said)))
    assert len({(row["table"], row["key"], row["kind"]) for row in rows if row["table"] == "User"}) == 7
    conn = ends.on_source()
    conn.execute(
        "CREATE TABLE read (link text, schema text, tab text, kind text, copies int, key text, col text, s text, t text)"
    )
    with conn.cursor().copy("COPY read FROM STDIN (FORMAT csv, HEADER)") as copy:
        copy.write(said)
    wanted = "SELECT s, t FROM read WHERE col = 'e-mail' AND key = %s"
    assert conn.execute(wanted, ["id = '3'"]).fetchall() == [("user3", None)]
    assert conn.execute(wanted, ["id = '4'"]).fetchall() == [("user4", "")]
    assert conn.execute(wanted, ["id = '-1'"]).fetchall() == [(None, 'a,"b"\n')]


def test_only_some_rows(ends: Pair, cli: Cli) -> None:
    """A table, or a condition, which may end in a comment; what the condition leaves out is nobody's difference."""
    link = found(cli, ends, "--table", 'public."User"', "--where", "id < 4 -- and no more")
    assert {row["key"]["id"] for row in link["rows"]} == {"-1", "2", "3"}
    assert found(cli, ends, "--where", "false", code=0)["verdict"] == "identical"


def test_wrong_input_is_one_line(ends: Pair, cli: Cli) -> None:
    """A table that is not there, a condition that is no SQL, one that would write: exit 2 and a hint."""
    said = diff(cli, ends, "--table", "public.user", code=2)
    assert (
        'the link carries no table public."user"' in said or "the link carries no table public.user" in said
    )
    assert 'did you mean public."User"?' in said
    said = diff(cli, ends, "--table", "public.visit", "--where", "nonsense >", code=2)
    assert "the condition cannot be asked of public.visit" in said
    said = diff(cli, ends, "--csv", "--json", code=2)
    assert "two forms of one answer" in said
    ends.on_target().execute(
        "CREATE FUNCTION public.wipe() RETURNS bool LANGUAGE sql AS 'DELETE FROM public.visit; SELECT true'"
    )
    ends.on_source().execute(
        "CREATE FUNCTION public.wipe() RETURNS bool LANGUAGE sql AS 'DELETE FROM public.visit; SELECT true'"
    )
    done = cli("diff", "--source", ends.source, "--target", ends.target, "--where", "public.wipe()")
    assert done.returncode not in (0, 1), done.stdout
    assert ends.on_source().execute("SELECT FROM visit").rowcount == 30


def test_identical_ends_have_no_difference(pair: Pair, cli: Cli) -> None:
    """Exit 0, and it says so."""
    pair.on_source().execute(TABLES.encode())
    assert cli("once", "--source", pair.source, "--target", pair.target).returncode == 0
    assert "identical" in diff(cli, pair, code=0)
    assert found(cli, pair, code=0)["rows"] == []
