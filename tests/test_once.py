"""``pglockstep once`` and ``check`` on real pairs of servers of several versions."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from fix_servers import Cli, Pair, on_all_pairs
from fix_workload import SCHEMA, one_transaction

pytestmark = pytest.mark.unguarded


def run_json(cli: Cli, command: str, pair: Pair, *, code: int = 0) -> dict[str, Any]:
    """Run a command with ``--json`` and return its one link; the exit code must be `code`."""
    done = cli(command, "--source", pair.source, "--target", pair.target, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    link = json.loads(done.stdout)["links"][0]
    assert isinstance(link, dict)
    return link


@on_all_pairs
def test_copies_once_and_streams_from_then_on(pair: Pair, cli: Cli) -> None:
    """The first `once` copies; later ones bring every kind of change over by the stream alone."""
    pair.on_source().execute(SCHEMA.encode())
    first = run_json(cli, "once", pair)
    assert first["verdict"] == "identical"
    assert first["copied_rows"] == 200 + 50 + 60 + 20 + 100
    conn, chance = pair.on_source(), random.Random(7)
    for _ in range(400):
        one_transaction(conn, chance)
    assert run_json(cli, "check", pair, code=1)["verdict"] == "different"
    second = run_json(cli, "once", pair)
    assert second["verdict"] == "identical"
    assert second["copied_rows"] == 0
    assert second["applied_transactions"] > 100
    assert second["applied_changes"] > second["applied_transactions"]
    third = run_json(cli, "once", pair)
    assert (third["applied_transactions"], third["copied_rows"]) == (0, 0)
    assert run_json(cli, "check", pair)["verdict"] == "identical"


def test_check_names_what_differs(pair: Pair, cli: Cli) -> None:
    """A row missing, extra or changed on the target, and a column too many, are each counted and named."""
    pair.on_source().execute(SCHEMA.encode())
    run_json(cli, "once", pair)
    target = pair.on_target()
    target.execute("DELETE FROM spot WHERE n < 4")
    target.execute("INSERT INTO spot VALUES ('z', -1)")
    target.execute("UPDATE spot SET note = '' WHERE n = 9")
    target.execute("ALTER TABLE scrap ADD extra int")
    link = run_json(cli, "check", pair, code=1)
    spot = next(table for table in link["tables"] if table["table"] == "spot")
    assert (spot["verdict"], spot["missing"], spot["extra"], spot["changed"]) == ("different", 3, 1, 1)
    assert (spot["source_rows"], spot["target_rows"]) == (100, 98)
    assert any("extra" in difference["name"] for difference in link["schema_differences"])
    others = {table["verdict"] for table in link["tables"] if table["table"] not in ("spot", "scrap")}
    assert others == {"identical"}


def test_check_compares_any_two_databases(pair: Pair, cli: Cli) -> None:
    """`check` needs no link: two databases filled by other means are compared as they are, and nothing is made."""
    for conn in (pair.on_source(), pair.on_target()):
        conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    assert run_json(cli, "check", pair)["verdict"] == "identical"
    pair.on_source().execute("INSERT INTO t VALUES (2, 'b')")
    assert run_json(cli, "check", pair, code=1)["tables"][0]["missing"] == 1
    for conn in (pair.on_source(), pair.on_target()):
        assert conn.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'pglockstep'").fetchone() == (
            0,
        )


def test_a_refreshed_materialised_view_is_no_difference(pair: Pair, cli: Cli) -> None:
    """What a materialised view holds is not compared: it is refreshed, not replicated."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    source.execute("CREATE MATERIALIZED VIEW m AS SELECT * FROM t")
    run_json(cli, "once", pair)
    assert pair.on_target().execute("SELECT id FROM m").fetchall() == [(1,)]
    source.execute("INSERT INTO t VALUES (2)")
    source.execute("REFRESH MATERIALIZED VIEW m")
    assert run_json(cli, "once", pair)["verdict"] == "identical"


def test_sequences_follow(pair: Pair, cli: Cli) -> None:
    """A target sequence that is behind is a difference, and `once` moves it on."""
    source = pair.on_source()
    source.execute("CREATE SEQUENCE s; CREATE TABLE t (id int PRIMARY KEY DEFAULT nextval('s'))")
    run_json(cli, "once", pair)
    source.execute("SELECT setval('s', 41)")
    link = run_json(cli, "check", pair, code=1)
    assert [each["name"] for each in link["sequences_behind"]] == ["s"]
    assert run_json(cli, "once", pair)["sequences_behind"] == []
    assert pair.on_target().execute("SELECT nextval('s')").fetchone() == (42,)


def test_adjacent_transactions_are_neither_lost_nor_doubled(pair: Pair, cli: Cli) -> None:
    """`once` again and again between transactions that share an LSN: every row arrives just once."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (n int)")
    run_json(cli, "once", pair)
    for n in range(6):
        for each in range(25):
            source.execute(f"INSERT INTO t VALUES ({n * 25 + each})".encode())
        assert run_json(cli, "once", pair)["applied_transactions"] == 25
    rows = pair.on_target().execute("SELECT n FROM t ORDER BY n").fetchall()
    assert rows == [(n,) for n in range(150)]


def test_a_foreign_write_stops_with_table_and_key(pair: Pair, cli: Cli) -> None:
    """A row that is gone from the target is never skipped: `once` names it, changes nothing, and resumes when it is back."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    run_json(cli, "once", pair)
    pair.on_target().execute("DELETE FROM t WHERE id = 2")
    source.execute("UPDATE t SET v = 'c' WHERE id = 1")
    source.execute("UPDATE t SET v = 'd' WHERE id = 2")
    done = cli("once", "--source", pair.source, "--target", pair.target)
    assert done.returncode == 5
    assert "public.t where id = '2'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    pair.on_target().execute("INSERT INTO t VALUES (2, 'b')")
    assert run_json(cli, "once", pair)["verdict"] == "identical"


def test_several_links_in_one_file(pair: Pair, cli: Cli, servers: Any, make_database: Any) -> None:
    """A file with two links: each is done, and the exit code is the more serious one."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    other = make_database(pair.target_server)
    config = cli.directory / "pglockstep.toml"
    config.write_text(
        f"[links.a]\nsource = {json.dumps(pair.source)}\ntarget = {json.dumps(pair.target)}\n"
        f"[links.b]\nsource = {json.dumps(pair.source)}\ntarget = {json.dumps(other)}\n"
    )
    done = cli("once", "--json")
    assert done.returncode == 0, done.stderr
    assert [link["name"] for link in json.loads(done.stdout)["links"]] == ["a", "b"]
    pair.on_target().execute("INSERT INTO t VALUES (1)")
    done = cli("check", "--json")
    assert done.returncode == 1
    assert [link["verdict"] for link in json.loads(done.stdout)["links"]] == ["different", "identical"]
    assert cli("check", "b").returncode == 0
    assert cli("check", "c").returncode == 2


@pytest.mark.parametrize("command", ["once", "check"])
def test_json_is_alone_on_stdout(pair: Pair, cli: Cli, command: str) -> None:
    """With --json stdout holds one document, talk goes to stderr."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    done = cli(command, "--source", pair.source, "--target", pair.target, "--json", "-v")
    assert list(json.loads(done.stdout)) == ["links"]
