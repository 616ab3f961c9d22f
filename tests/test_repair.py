"""`repair` puts just the rows right that differ; and it never takes what the guard would hold, nor what was changed meanwhile."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fix_servers import INSTALLED, Cli, Connection, Pair, on_all_pairs
from pglockstep.config.sections import GuardConfig, LinkConfig
from pglockstep.link import repair, repair_plan
from pglockstep.link.link import Link
from pglockstep.link.verify import Scope
from pglockstep.observe.state import StateDirectory
from test_run import daemon

pytestmark = pytest.mark.unguarded

TABLES = """
CREATE TABLE parent (id int PRIMARY KEY, name text UNIQUE, note text);
CREATE TABLE child (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE CASCADE,
    v json, twice int GENERATED ALWAYS AS (parent * 2) STORED);
CREATE TABLE bare (a int, b text);
CREATE TABLE mail (what text);
CREATE FUNCTION mailed() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    INSERT INTO public.mail VALUES (TG_OP || ' ' || TG_TABLE_NAME); RETURN NULL; END$$;
CREATE TRIGGER mailed AFTER INSERT OR UPDATE OR DELETE ON parent FOR EACH ROW EXECUTE FUNCTION mailed();
ALTER TABLE parent DISABLE TRIGGER mailed;
INSERT INTO parent SELECT n, 'name ' || n, 'note' FROM generate_series(1, 2000) AS n;
INSERT INTO child (parent, v) SELECT 1 + n % 2000, '{"n": 1}' FROM generate_series(1, 4000) AS n;
INSERT INTO bare SELECT n % 100, 'b' FROM generate_series(1, 1000) AS n;
ALTER TABLE parent ENABLE TRIGGER mailed;
"""
#: 30 rows of each kind, and some without a key; unique values change hands
HARM = """
SET session_replication_role = replica;
DELETE FROM parent WHERE id BETWEEN 100 AND 129;
UPDATE parent SET note = 'other' WHERE id BETWEEN 200 AND 229;
INSERT INTO parent SELECT n, 'name ' || n - 2900, 'more' FROM generate_series(3000, 3029) AS n;
UPDATE parent SET name = CASE id WHEN 300 THEN 'a' ELSE 'name 300' END WHERE id IN (300, 301);
UPDATE parent SET name = 'name 301' WHERE id = 300;
DELETE FROM child WHERE id <= 30; UPDATE child SET v = '{"n":  1}' WHERE id BETWEEN 31 AND 60;
UPDATE child SET parent = 7 WHERE id BETWEEN 61 AND 90;
DELETE FROM bare WHERE ctid IN (SELECT ctid FROM bare WHERE a = 5 LIMIT 3);
INSERT INTO bare VALUES (5, 'x'), (6, 'b'), (6, 'b');
RESET session_replication_role;
"""


def content(conn: Connection) -> dict[str, list[Any]]:
    return {
        name: conn.execute(f"SELECT t::text FROM {name} AS t ORDER BY 1".encode()).fetchall()
        for name in ("parent", "child", "bare", "mail")
    }


@pytest.fixture
def ends(pair: Pair, cli: Cli) -> Pair:
    """Two ends that differ, and nobody who applies."""
    pair.on_source().execute(TABLES.encode())
    done = cli("once", "--source", pair.source, "--target", pair.target)
    assert done.returncode == 0, done.stderr
    target = pair.on_target()
    target.execute(HARM.encode())
    # what this session did is in the server's statistics before anybody looks at them
    counters(target)
    return pair


def run(cli: Cli, pair: Pair, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = cli("repair", "--source", pair.source, "--target", pair.target, *more)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def counters(conn: Connection) -> dict[str, tuple[int, ...]]:
    conn.execute(
        "SELECT pg_stat_force_next_flush()" if conn.info.server_version >= 150000 else "SELECT pg_sleep(0.6)"
    )
    conn.execute("SELECT pg_stat_clear_snapshot()")
    rows = conn.execute(
        "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE schemaname = 'public'"
    )
    return {name: tuple(counts) for name, *counts in rows.fetchall()}


@on_all_pairs
def test_only_the_rows_that_differ_move(ends: Pair, cli: Cli) -> None:
    """Counted by the server's own statistics; nothing fires; afterwards the ends are identical, and the file takes it back."""
    target, source = ends.on_target(), ends.on_source()
    harmed = content(target)
    before = counters(target)
    plan = run(cli, ends, code=1).stdout
    assert "public.parent: 30 inserted, 32 updated, 30 deleted" in plan
    assert "public.bare: 3 inserted, 0 updated, 3 deleted" in plan
    assert counters(target) == before
    done = json.loads(run(cli, ends, "--apply", "--yes", "--json").stdout)
    assert (done["verdict"], done["applied"]) == ("identical", True)
    assert content(target) == content(source)
    moved = {
        name: tuple(now - was for now, was in zip(counts, before[name], strict=True))
        for name, counts in counters(target).items()
    }
    # two rows whose unique values change hands go and come; an attempt to update them counts, and is rolled back
    inserted, updated, deleted = moved.pop("parent")
    assert (inserted, deleted) == (32, 32)
    assert updated >= 30
    assert moved == {"child": (30, 60, 0), "bare": (3, 0, 3), "mail": (0, 0, 0)}
    assert "nothing is to be repaired" in run(cli, ends).stdout
    undo = Path(done["undo"])
    assert undo.stat().st_mode & 0o777 == 0o600
    psql(ends, ends.target, undo)
    assert content(target) == harmed


def psql(pair: Pair, conninfo: str, script: Path) -> None:
    program = str(INSTALLED[pair.target_server.major].program("psql"))
    arguments = [program, "-X", "-q", "-d", conninfo, "-f", str(script)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.superusers
@on_all_pairs
def test_the_plan_as_sql_does_the_same(ends: Pair, cli: Cli, tmp_path: Path) -> None:
    """What `--sql` prints, run by psql on the target: each statement names its row by what it says."""
    ends.on_target().execute("UPDATE parent SET name = 'name 300' || id WHERE id IN (300, 301)")
    script = tmp_path / "plan.sql"
    script.write_text(run(cli, ends, "--sql", code=1).stdout)
    # a plan in the plan's own order: what holds a unique value goes first
    lines = script.read_text().splitlines(keepends=True)
    begin = next(number for number, line in enumerate(lines) if line == "BEGIN;\n") + 1
    first = [line for line in lines[begin:-1] if line.startswith("DELETE")]
    assert lines[begin : begin + len(first)] == first
    psql(ends, ends.target, script)
    assert content(ends.on_target()) == content(ends.on_source())


def test_beside_a_daemon_under_load(pair: Pair, cli: Cli) -> None:
    """Rows that others write to meanwhile are no hindrance, and the link goes on."""
    pair.on_source().execute(TABLES.encode())
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(pair.source, autocommit=True) as conn:
            number = 0
            while not stop.wait(0.002):
                number += 1
                conn.execute("UPDATE parent SET note = %s WHERE id = %s", [f"n{number}", 1 + number % 2000])
                conn.execute("INSERT INTO bare VALUES (%s, 'live')", [number])

    with daemon(cli, pair) as running:
        running.run("check")
        thread = threading.Thread(target=write)
        thread.start()
        try:
            pair.on_target().execute(
                "SET session_replication_role = replica; DELETE FROM child WHERE id <= 300;"
                "UPDATE child SET parent = 7 WHERE id BETWEEN 301 AND 600; INSERT INTO bare VALUES (-1, 'x')"
            )
            done = json.loads(run(cli, pair, "--apply", "--yes", "--json").stdout)
            assert done["verdict"] == "identical"
            child = next(each for each in done["tables"] if each["table"] == "child")
            assert (child["inserts"], child["updates"], child["repaired"], child["left"]) == (
                300,
                300,
                600,
                0,
            )
        finally:
            stop.set()
            thread.join()
        assert running.run("check")["verdict"] == "identical"


def linked(pair: Pair, directory: Path) -> Link:
    free = GuardConfig(max_delete_fraction=1.0, max_delete_rows=10**9, protect_target="off")
    config = LinkConfig(name="test", source=pair.source, target=pair.target, guard=free)
    state = StateDirectory(directory / "state")
    state.create()
    return Link(config, state)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_row_that_was_changed_meanwhile_is_left_alone(
    ends: Pair, cli: Cli, tmp_path: Path, side: str
) -> None:
    """On either end, between the plan and its turn: left, counted, and its new value is still there."""
    link = linked(ends, tmp_path)
    plan = asyncio.run(repair_plan.plan(link, Scope(), "source-to-target"))
    conn = ends.on_source() if side == "source" else ends.on_target()
    conn.execute("SET session_replication_role = replica")
    conn.execute("UPDATE child SET v = '9' WHERE id = 40; UPDATE child SET v = '8' WHERE id = 41")
    if side == "target":
        conn.execute("INSERT INTO child (id, parent, v) OVERRIDING SYSTEM VALUE VALUES (10, 1, '7')")
        conn.execute("INSERT INTO bare VALUES (5, 'x')")
    done = asyncio.run(repair.apply(link, plan, tmp_path / "undo"))
    left = {name.name: rows for name, rows in done.left.items()}
    assert left == ({"child": 2} if side == "source" else {"child": 3, "bare": 1})
    target = ends.on_target()
    values = target.execute(
        "SELECT id, v::text FROM child WHERE id IN (10, 40, 41, 42) ORDER BY id"
    ).fetchall()
    wanted = {10: '{"n": 1}', 40: "9", 41: "8", 42: '{"n": 1}'}
    assert dict(values) == (wanted if side == "source" else wanted | {10: "7"})
    assert done.verdict == ("identical" if side == "source" else "different")


def test_the_target_may_be_the_one_that_is_right(ends: Pair, cli: Cli) -> None:
    """The other way round: the source gets the target's rows, nothing fires there, and the stream goes on over them."""
    target, source = ends.on_target(), ends.on_source()
    wanted = content(target)
    before = content(source)
    done = json.loads(run(cli, ends, "--direction", "target-to-source", "--apply", "--yes", "--json").stdout)
    assert (done["receiver"], done["verdict"]) == ("source", "identical")
    assert content(source) == content(target) == wanted
    with daemon(cli, ends) as running:
        source.execute("INSERT INTO parent VALUES (9000, 'on', 'and on')")
        assert running.run("check")["verdict"] == "identical"
    psql(ends, ends.source, Path(done["undo"]))
    assert content(source) | {"mail": []} == before | {"mail": []} | {
        "parent": sorted([*before["parent"], ('(9000,on,"and on")',)])
    }


def test_what_the_guard_would_hold_is_refused(pair: Pair, cli: Cli) -> None:
    """More rows than the rules let go, or a floor: exit 6 and nothing changed; announced, it passes once."""
    pair.on_source().execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)"
    )
    pair.on_source().execute("INSERT INTO u SELECT n, 'v' || n FROM generate_series(1, 100) AS n")
    (cli.directory / "pglockstep.toml").write_text(
        f"[links.main]\nsource = {json.dumps(pair.source)}\ntarget = {json.dumps(pair.target)}\n"
        "[links.main.guard]\nprotect_target = 'off'\n"
    )
    assert cli("once").returncode == 0
    target = pair.on_target()
    target.execute("INSERT INTO t SELECT n, 'v' FROM generate_series(1, 100) AS n")
    target.execute("UPDATE u SET v = NULL")
    done = cli("repair", "--apply", "--yes")
    assert done.returncode == 6, done.stdout + done.stderr
    assert "table public.t: 100 of its 100 rows would be gone" in done.stderr
    assert "pglockstep guard allow --table 'public.t' --rows 100 --for 10m" in done.stderr
    assert target.execute("SELECT FROM t").rowcount == 100
    assert cli("guard", "allow", "--table", "public.t", "--rows", "100", "--for", "10m").returncode == 0
    done = cli("repair", "--apply", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert target.execute("SELECT FROM t").rowcount == 0
    target.execute("INSERT INTO t SELECT n, 'v' FROM generate_series(1, 100) AS n")
    assert cli("repair", "--apply", "--yes").returncode == 6
    # the other way round a column would be turned into NULL on the source
    target.execute("DELETE FROM t; UPDATE u SET v = NULL")
    done = cli("repair", "--direction", "target-to-source", "--apply", "--yes")
    assert done.returncode == 6, done.stdout + done.stderr
    assert "v would become NULL in 100 of its 100 rows" in done.stderr
    assert pair.on_source().execute("SELECT FROM u WHERE v IS NULL").rowcount == 0


def test_what_would_fire_is_refused(ends: Pair, cli: Cli) -> None:
    """A trigger that fires for replicas, too, would mail somebody: refused, with what to type."""
    ends.on_target().execute("ALTER TABLE parent ENABLE REPLICA TRIGGER mailed")
    before = content(ends.on_target())
    done = cli("repair", "--source", ends.source, "--target", ends.target, "--apply", "--yes")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "ENABLE" in done.stderr
    assert content(ends.on_target()) == before


@pytest.mark.parametrize("direction", ["source-to-target", "target-to-source"])
def test_killed_before_its_commit_it_has_done_nothing(ends: Pair, cli: Cli, direction: str) -> None:
    """kill -9 with everything written: both ends are as they were, and the same command does it."""
    before = content(ends.on_source()), content(ends.on_target())
    more = ("--direction", direction, "--apply", "--yes")
    done = cli(
        "repair",
        "--source",
        ends.source,
        "--target",
        ends.target,
        *more,
        env={"PGLOCKSTEP_FAILPOINT": "repair.commit"},
    )
    assert done.returncode == -9
    assert (content(ends.on_source()), content(ends.on_target())) == before
    run(cli, ends, *more)
    assert content(ends.on_source()) == content(ends.on_target())


def test_it_asks_first(ends: Pair, cli: Cli) -> None:
    """Without a terminal and without --yes: exit 2, and nothing is done. A link that was never copied is no case for it."""
    before = content(ends.on_target())
    done = cli("repair", "--source", ends.source, "--target", ends.target, "--apply")
    assert done.returncode == 2
    assert "add --yes" in done.stderr
    assert content(ends.on_target()) == before
    ends.on_target().execute("DROP SCHEMA pglockstep CASCADE")
    done = cli(
        "repair", "--source", ends.source, "--target", ends.target, "--state-dir", cli.directory / "other"
    )
    assert done.returncode == 5, done.stdout + done.stderr
    assert "has not been copied yet" in done.stderr


def test_tables_it_cannot_put_right_are_named(ends: Pair, cli: Cli) -> None:
    """A table that the target lacks is left, and said so; the others are repaired."""
    ends.on_target().execute("DROP TABLE bare")
    done = run(cli, ends, "--apply", "--yes", code=1)
    assert "public.bare is left: it is not on the target" in done.stdout
    assert "compared again: identical" in done.stdout
