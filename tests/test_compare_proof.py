"""At full size: one wrong value among four million rows is found and named, and a thousand of a million are put right."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg
import pytest

from fix_servers import Cli, Connection, Pair

pytestmark = [pytest.mark.soak, pytest.mark.unguarded]

FOUR_MILLION = (
    "CREATE TABLE five (id bigint PRIMARY KEY, n int, name text, f float8, amount numeric)",
    (
        "INSERT INTO five SELECT n, n % 1000, CASE WHEN n % 11 > 0 THEN 'name ' || n END, n % 7, n / 4.0 "
        "FROM generate_series(1, 1000000) AS n"
    ),
    "CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84))",
    "INSERT INTO accounts SELECT n, n % 30, 0, '' FROM generate_series(1, 3000000) AS n",
    "CREATE TABLE bare (a int, b text)",
    "INSERT INTO bare SELECT n % 500, 'b' FROM generate_series(1, 100000) AS n",
    "CREATE TABLE doc (id int PRIMARY KEY, j json, jb jsonb)",
    """INSERT INTO doc SELECT n, '{"a": 1, "b": 2}', '{"a": 1, "b": 2}' FROM generate_series(1, 1000) AS n""",
    "ANALYZE",
)
#: What is done to the target, with the table that it is found in, and what is found there: missing, extra, changed.
PLANTED = {
    "a flipped bit": ("UPDATE five SET n = n # 1 WHERE id = 777777", "five", (0, 0, 1)),
    "NULL turned ''": ("UPDATE five SET name = '' WHERE id = 11 * 4321", "five", (0, 0, 1)),
    "'' is not a blank": ("UPDATE five SET name = name || ' ' WHERE id = 5", "five", (0, 0, 1)),
    "-0 for 0": ("UPDATE five SET f = '-0' WHERE id = 7 * 1234", "five", (0, 0, 1)),
    "a trailing zero": (
        "UPDATE five SET amount = (amount || '0')::numeric WHERE id = 500000",
        "five",
        (0, 0, 1),
    ),
    "a row beyond the largest key": (
        "INSERT INTO accounts VALUES (3000001, 1, 0, '')",
        "accounts",
        (0, 1, 0),
    ),
    "the last row missing": ("DELETE FROM accounts WHERE aid = 3000000", "accounts", (1, 0, 0)),
    "the first row missing": ("DELETE FROM accounts WHERE aid = 1", "accounts", (1, 0, 0)),
    "two rows with their values exchanged": (
        "UPDATE accounts SET abalance = CASE aid WHEN 10 THEN 1 ELSE -1 END WHERE aid IN (10, 2999990)",
        "accounts",
        (0, 0, 2),
    ),
    "a duplicate without a key": ("INSERT INTO bare VALUES (7, 'b')", "bare", (0, 1, 0)),
    "one of the duplicates gone": (
        "DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare WHERE a = 9)",
        "bare",
        (1, 0, 0),
    ),
    "the order of keys in json": ("""UPDATE doc SET j = '{"b": 2, "a": 1}' WHERE id = 9""", "doc", (0, 0, 1)),
}
ALIKE = (
    """UPDATE doc SET jb = '{"b": 2, "a": 1}' WHERE id = 9; UPDATE accounts SET filler = '  ' WHERE aid = 5"""
)


def prepared(conn: Connection) -> None:
    for statement in FOUR_MILLION:
        conn.execute(statement.encode())


def test_each_planted_difference_is_found_and_named(pair: Pair, cli: Cli) -> None:
    """One by one, among 4,101,000 rows; and what only looks otherwise to a person is none."""
    target = pair.on_target()
    for conn in (pair.on_source(), target):
        prepared(conn)
    target.execute(ALIKE)
    done = cli("check", "--source", pair.source, "--target", pair.target)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    for what, (statement, table, counts) in PLANTED.items():
        target.execute(statement.encode())
        done = cli("check", "--source", pair.source, "--target", pair.target, "--json")
        assert done.returncode == 1, what
        found = {each["table"]: each for each in json.loads(done.stdout)["links"][0]["tables"]}
        different = [name for name, each in found.items() if each["verdict"] != "identical"]
        assert different == [table], what
        assert tuple(found[table][each] for each in ("missing", "extra", "changed")) == counts, what
        shown = cli(
            "diff", "--source", pair.source, "--target", pair.target, "--table", f"public.{table}", "--json"
        )
        rows: list[Any] = json.loads(shown.stdout)["links"][0]["rows"]
        assert len(rows) == sum(counts), what
        mended = cli(
            "repair", "--source", pair.source, "--target", pair.target, "--sql", "--table", f"public.{table}"
        )
        assert mended.returncode == 5, "there is no link yet"
        again(pair, table)
        print(f"{what}: found in {json.loads(done.stdout)['links'][0]['seconds']} s", flush=True)


def again(pair: Pair, table: str) -> None:
    """Make a table what it was."""
    target = pair.on_target()
    target.execute(f"TRUNCATE {table}".encode())
    fill = next(each for each in FOUR_MILLION if each.startswith(f"INSERT INTO {table} "))
    target.execute(fill.encode())


def test_a_thousand_of_a_million_rows_are_put_right(pair: Pair, cli: Cli) -> None:
    """400 missing, 300 extra, 300 changed: only they move, and the ends are identical."""
    source, target = pair.on_source(), pair.on_target()
    for statement in FOUR_MILLION[:2]:
        source.execute(statement.encode())
    done = cli("once", "--source", pair.source, "--target", pair.target)
    assert done.returncode == 0, done.stderr
    with psycopg.connect(pair.target, autocommit=True) as conn:
        conn.execute("DELETE FROM five WHERE id % 2500 = 3")
        conn.execute("INSERT INTO five SELECT 2000000 + n, 1, 'x', 1, 1 FROM generate_series(1, 300) AS n")
        conn.execute("UPDATE five SET name = 'changed' WHERE id % 3334 = 7")
    # a session tells what it did when it ends
    time.sleep(1)
    target.execute("SELECT pg_stat_reset()")
    began = time.monotonic()
    done = cli("repair", "--source", pair.source, "--target", pair.target, "--apply", "--yes", "--json")
    print(f"repaired in {time.monotonic() - began:.2f} s, the whole command")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["tables"][0]["repaired"]) == ("identical", 1000)
    target.execute("SELECT pg_stat_clear_snapshot(), pg_sleep(1)")
    counters = "SELECT n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE relname = 'five'"
    assert target.execute(counters.encode()).fetchone() == (400, 300, 300)
