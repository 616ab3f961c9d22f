"""A published table that loses its replica identity: its users write on, and the target follows if it can."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from fix_copy import MakeRole, check, configured, identities, make_role
from fix_roads import demand_identical, same_rows
from fix_servers import Cli, Connection, Pair, all_pairs, as_plain_roles, on_all_pairs, wait_until
from test_run import Daemon, daemon, ends_identical

pytestmark = pytest.mark.unguarded

__all__ = ["make_role"]

#: Within what time users can write again: looked at every second, and twice before a table is taken out.
SOON = 4.0


def able(conn: Connection, statement: str) -> Callable[[], bool]:
    """Whether a user's statement is taken, told anew each time."""

    def attempt() -> bool:
        try:
            return conn.execute(statement.encode()).rowcount > 0
        except psycopg.errors.ObjectNotInPrerequisiteState:
            return False
        except psycopg.errors.InvalidColumnReference:
            # what 18 says of generated columns
            return False

    return attempt


def followed(pair: Pair, query: str, expected: list[tuple[object, ...]], patience: float = 10) -> None:
    """Wait until `query` on the target gives `expected`."""
    target = pair.on_target()
    wait_until(
        lambda: target.execute(query.encode()).fetchall() == expected, patience, f"{query} on the target"
    )


def said(running: Daemon, text: str) -> str:
    """The first line that the daemon says with `text` in it."""
    assert running.process.stdout is not None
    lines = []
    for line in running.process.stdout:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError(f"the daemon ended without saying {text!r}: {lines}")


def published(conn: Connection) -> set[str]:
    """The tables in our publication."""
    rows = conn.execute(
        "SELECT tablename FROM pg_publication_tables WHERE pubname ~ '^pglockstep_'"
    ).fetchall()
    return {name for (name,) in rows}


# --- followed on -----------------------------------------------------------------------------------


@on_all_pairs
@as_plain_roles
@pytest.mark.parametrize("dropped_on", ["source", "both"])
def test_the_target_follows_a_table_without_its_key(pair: Pair, cli: Cli, dropped_on: str) -> None:
    """Rows go on to arrive, the target having the key still or not; with it gone, also rows that are twice the same."""
    source, target = pair.on_source(), pair.on_target()
    source.execute(
        'CREATE SCHEMA "Odd\'"; CREATE TABLE "Odd\'"."My ""t" (id int CONSTRAINT k PRIMARY KEY, v text);'
        'INSERT INTO "Odd\'"."My ""t" SELECT n, \'a\' FROM generate_series(1, 100) AS n'
    )
    with daemon(cli, pair) as running:
        for conn in (source, target) if dropped_on == "both" else (source,):
            conn.execute('ALTER TABLE "Odd\'"."My ""t" DROP CONSTRAINT k')
        source.execute('INSERT INTO "Odd\'"."My ""t" VALUES (101, \'between\')')
        wait_until(able(source, 'UPDATE "Odd\'"."My ""t" SET v = \'b\' WHERE id = 1'), SOON, "an update")
        source.execute(
            'UPDATE "Odd\'"."My ""t" SET v = v || \'!\' WHERE id > 50; DELETE FROM "Odd\'"."My ""t" WHERE id = 2'
        )
        source.execute('UPDATE "Odd\'"."My ""t" SET id = id + 1000 WHERE id = 3')
        if dropped_on == "both":
            source.execute("INSERT INTO \"Odd'\".\"My \"\"t\" VALUES (5, 'x'), (5, 'x'), (5, 'y'), (6, NULL)")
            source.execute('UPDATE "Odd\'"."My ""t" SET v = \'z\' WHERE id = 5 AND v = \'y\'')
            source.execute('DELETE FROM "Odd\'"."My ""t" WHERE v IS NULL')
        at = source.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        assert at is not None
        wait_until(
            lambda: target.execute("SELECT FROM pglockstep.progress WHERE lsn >= %s::pg_lsn", at).rowcount,
            20,
            "the target to follow",
        )
        assert running.process.poll() is None
        done = cli("check", "--source", pair.source, "--target", pair.target, "--json")
        link = json.loads(done.stdout)["links"][0]
        assert [each["verdict"] for each in link["tables"]] == ["identical"]
        assert len(link["schema_differences"]) == (1 if dropped_on == "source" else 0)
    same_rows(pair, "after the key was dropped")
    assert list(identities(source).values()) == ["f"]
    assert cli("teardown", "--yes", "--source", pair.source, "--target", pair.target).returncode == 0
    assert list(identities(source).values()) == ["d"]


def test_every_way_to_lose_an_identity(pair: Pair, cli: Cli) -> None:
    """Its index dropped, NOTHING said, a deferrable key instead, the key's column dropped, in a leaf: all are set to FULL."""
    source = pair.on_source()
    source.execute(
        "CREATE TABLE indexed (id int NOT NULL, v text); CREATE UNIQUE INDEX i ON indexed (id);"
        "ALTER TABLE indexed REPLICA IDENTITY USING INDEX i; CREATE TABLE nothing (id int PRIMARY KEY, v text);"
        "CREATE TABLE later (id int CONSTRAINT k PRIMARY KEY, v text); CREATE TABLE column_gone (id int PRIMARY KEY, v text);"
        "CREATE TABLE root (id int, v text) PARTITION BY LIST (id); CREATE TABLE leaf PARTITION OF root FOR VALUES IN (1);"
        "ALTER TABLE leaf ADD CONSTRAINT kl PRIMARY KEY (id); CREATE TABLE sound (id int PRIMARY KEY, v text)"
    )
    names = ("indexed", "nothing", "later", "column_gone", "leaf")
    for name in (*names, "sound"):
        source.execute(f"INSERT INTO {name} VALUES (1, 'a')".encode())
    with daemon(cli, pair) as running:
        pair.on_target().execute("ALTER TABLE column_gone DROP COLUMN id")
        source.execute(
            "DROP INDEX i; ALTER TABLE nothing REPLICA IDENTITY NOTHING; ALTER TABLE column_gone DROP COLUMN id;"
            "ALTER TABLE later DROP CONSTRAINT k, ADD CONSTRAINT k PRIMARY KEY (id) DEFERRABLE;"
            "ALTER TABLE leaf DROP CONSTRAINT kl"
        )
        for name in names:
            wait_until(able(source, f"UPDATE {name} SET v = 'b'"), SOON, name)
            followed(pair, f"SELECT v FROM {name}", [("b",)])
        assert running.process.poll() is None
        assert identities(source) == dict.fromkeys(names, "f") | {"root": "d", "sound": "d"}
    assert cli("teardown", "--yes", "--source", pair.source, "--target", pair.target).returncode == 0
    assert identities(source) == {
        # an index that is gone cannot be set again
        "indexed": "n", "nothing": "n", "later": "d", "column_gone": "d", "leaf": "d", "root": "d", "sound": "d",
    }  # fmt: skip


def test_while_the_target_is_away(pair: Pair, cli: Cli) -> None:
    """Users do not wait for the target to come back; what their table had is written down there as soon as it has."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    running = Daemon(cli, pair)
    pair.target_server.stop("fast")
    try:
        source.execute("ALTER TABLE t DROP CONSTRAINT t_pkey")
        wait_until(able(source, "UPDATE t SET v = 'b'"), SOON, "an update")
        assert "sets it back to DEFAULT, once the target is back" in said(
            running, "lost its replica identity"
        )
    finally:
        pair.target_server.start()
    followed(pair, "SELECT v FROM t", [("b",)])
    followed(pair, "SELECT table_name, before FROM pglockstep.replica_identity", [("t", "d")], patience=40)
    running.kill()
    assert cli("teardown", "--yes", "--source", pair.source, "--target", pair.target).returncode == 0
    assert identities(source) == {"t": "d"}


def test_while_the_first_copy_is_made(pair: Pair, cli: Cli) -> None:
    """A table is published before it is copied: its users can write from then on, whatever becomes of its key."""
    source, other = pair.on_source(), pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    # a slot waits for what is under way
    other.execute("BEGIN; SELECT pg_current_xact_id()")
    process = cli.start("run", "--source", pair.source, "--target", pair.target)
    wait_until(lambda: published(source) == {"t"}, 20, "the table to be published")
    source.execute("ALTER TABLE t DROP CONSTRAINT t_pkey")
    wait_until(able(source, "UPDATE t SET v = 'b'"), SOON, "an update")
    other.execute("COMMIT")
    wait_until(
        lambda: pair.on_target().execute("SELECT to_regclass('t')").fetchone() != (None,), 30, "the copy"
    )
    followed(pair, "SELECT id, v FROM t", [(1, "b")])
    source.execute("DELETE FROM t")
    followed(pair, "SELECT id, v FROM t", [])
    process.terminate()
    assert process.wait(20) == 0
    ends_identical(cli, pair)


@as_plain_roles
def test_without_a_daemon(pair: Pair, cli: Cli) -> None:
    """`once`, started by a clock, sees to it as well."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int CONSTRAINT k PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    demand_identical(cli, pair, "once")
    for conn in (source, pair.on_target()):
        conn.execute("ALTER TABLE t DROP CONSTRAINT k")
    update = able(source, "UPDATE t SET v = 'b'")
    assert not update()
    demand_identical(cli, pair, "once")
    assert update()
    demand_identical(cli, pair, "once")


def test_a_table_that_is_locked(pair: Pair, cli: Cli) -> None:
    """A reader in the way is not waited for long, as others would wait behind us; said once; set as soon as it has gone."""
    source, reader, user = pair.on_source(), pair.on_source(), pair.on_source()
    source.execute("CREATE TABLE t (id int CONSTRAINT k PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    with daemon(cli, pair) as running:
        # the key goes while the reader waits for the table, which gets it before anybody sees that
        source.execute("BEGIN; ALTER TABLE t DROP CONSTRAINT k")
        reader.pgconn.send_query(b"BEGIN; SELECT FROM t")
        waiting = b"SELECT FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"
        wait_until(lambda: user.execute(waiting).rowcount == 1, 10, "the reader to wait")
        source.execute("COMMIT")
        line = said(running, "lost its replica identity")
        assert "locked by others" in line
        assert f"pid {reader.info.backend_pid}" in line
        for number in range(20):
            began = time.monotonic()
            user.execute("INSERT INTO t VALUES (%s, 'c')", [number + 10])
            assert time.monotonic() - began < 1.0
            time.sleep(0.1)
        while reader.pgconn.get_result():
            pass
        reader.execute("COMMIT")
        wait_until(able(source, "UPDATE t SET v = 'b'"), SOON, "an update")
        followed(pair, "SELECT DISTINCT v FROM t", [("b",)])


# --- taken out -------------------------------------------------------------------------------------


def demand_taken_out(running: Daemon, pair: Pair, reason: str) -> None:
    """Table t takes its users' writes and is not followed any more, which was said; table other is followed."""
    source = pair.superuser_on_source()
    wait_until(able(source, "UPDATE t SET v = 5"), SOON, "an update")
    line = said(running, "taken out of publication")
    assert "table public.t has lost its replica identity" in line
    assert reason in line
    assert "DOES NOT FOLLOW IT ANY MORE" in line
    assert "pglockstep teardown" in line
    source.execute("DELETE FROM t; INSERT INTO other VALUES (2)")
    followed(pair, "SELECT id FROM other ORDER BY id", [(1,), (2,)])
    followed(pair, "SELECT v FROM t", [(1,)])
    assert published(source) == {"other"}
    assert running.process.poll() is None


def two_tables(pair: Pair, more: str = "") -> Connection:
    """A table t with a key, `more` columns and one row, and another table."""
    source = pair.on_source()
    source.execute(f"CREATE TABLE t (id int CONSTRAINT k PRIMARY KEY, v int {more})".encode())
    source.execute(
        "CREATE TABLE other (id int PRIMARY KEY); INSERT INTO t VALUES (1, 1); INSERT INTO other VALUES (1)"
    )
    return source


@as_plain_roles
def test_where_full_is_not_wanted(pair: Pair, cli: Cli) -> None:
    """Under `without_key = "refuse"` no identity is touched: the table leaves the stream, and its users can write."""
    source = two_tables(pair)
    configured(cli, pair, 'without_key = "refuse"\n')
    process = cli.start("run")
    target = pair.on_target()
    wait_until(
        lambda: target.execute("SELECT to_regclass('pglockstep.progress')").fetchone() != (None,),
        20,
        "our schema",
    )
    wait_until(lambda: target.execute("SELECT FROM pglockstep.progress").rowcount, 20, "the copy")
    # a key that is replaced is no key that is lost
    source.execute("BEGIN; ALTER TABLE t DROP CONSTRAINT k, ADD CONSTRAINT k PRIMARY KEY (id, v); COMMIT")
    source.execute("ALTER TABLE t DROP CONSTRAINT k")
    running = Daemon.__new__(Daemon)
    running.process = process
    demand_taken_out(running, pair, 'without_key = "refuse"')
    check(cli, pair, 1)
    assert identities(source) == {"t": "d", "other": "d"}


@pytest.mark.parametrize("plain_roles", [True], indirect=True, ids=["plain"])
def test_where_the_table_is_not_ours(pair: Pair, cli: Cli, make_role: MakeRole) -> None:
    """A table that was given to somebody else cannot be altered by us; out of our own publication we may take it."""
    make_role(pair.source_server, "somebody_else", "")
    two_tables(pair)
    superuser = pair.superuser_on_source()
    try:
        with daemon(cli, pair) as running:
            superuser.execute(
                "BEGIN; ALTER TABLE t OWNER TO somebody_else; ALTER TABLE t DROP CONSTRAINT k; COMMIT"
            )
            demand_taken_out(running, pair, "may not alter it")
    finally:
        superuser.execute("DROP TABLE t")


@pytest.mark.parametrize("plain_roles", [True], indirect=True, ids=["plain"])
def test_where_nothing_is_ours(pair: Pair, cli: Cli, make_role: MakeRole) -> None:
    """May we do neither, a person is told what to type; with that typed the users can write, and the target follows."""
    make_role(pair.source_server, "somebody_else", "")
    two_tables(pair)
    superuser = pair.superuser_on_source()
    try:
        with daemon(cli, pair) as running:
            name = superuser.execute("SELECT pubname FROM pg_publication").fetchone()
            assert name is not None
            superuser.execute(
                sql.SQL("ALTER PUBLICATION {} OWNER TO postgres").format(sql.Identifier(name[0]))
            )
            superuser.execute(
                "BEGIN; ALTER TABLE t OWNER TO somebody_else; ALTER TABLE t DROP CONSTRAINT k; COMMIT"
            )
            line = said(running, "may not help")
            assert "table public.t has no replica identity" in line
            assert not able(superuser, "UPDATE t SET v = 5")()
            superuser.execute(line.rsplit("as a superuser: ")[1].encode())
            assert able(superuser, "UPDATE t SET v = 5")()
            followed(pair, "SELECT v FROM t", [(5,)])
    finally:
        superuser.execute("DROP TABLE t")


@pytest.mark.parametrize("pair", [each for each in all_pairs if each[0] != 16], indirect=True)
def test_generated_columns(pair: Pair, cli: Cli) -> None:
    """From 18 on FULL would be refused for a generated column's sake, so the table leaves the stream; before, FULL it is."""
    source = two_tables(pair, ", twice int GENERATED ALWAYS AS (v * 2) STORED")
    with daemon(cli, pair) as running:
        source.execute("ALTER TABLE t DROP CONSTRAINT k")
        if pair.source_server.major >= 18:
            demand_taken_out(running, pair, "generated columns")
            check(cli, pair, 1)
        else:
            wait_until(able(source, "UPDATE t SET v = 5"), SOON, "an update")
            followed(pair, "SELECT v, twice FROM t", [(5, 10)])
            assert identities(source) == {"t": "f", "other": "d"}


@pytest.mark.skipif(all_pairs[-1][1] < 18, reason="of PostgreSQL 18")
@pytest.mark.parametrize("kind", ["STORED", "VIRTUAL"])
def test_a_generated_column_added(pair: Pair, cli: Cli, kind: str) -> None:
    """One added to a table that is FULL has 18 refuse its users' updates too: the table leaves the stream."""
    source = two_tables(pair)
    source.execute("ALTER TABLE t DROP CONSTRAINT k")
    with daemon(cli, pair) as running:
        source.execute(f"ALTER TABLE t ADD twice int GENERATED ALWAYS AS (v * 2) {kind}".encode())
        demand_taken_out(running, pair, "generated columns")
        check(cli, pair, 1)
