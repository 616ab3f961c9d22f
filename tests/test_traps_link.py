"""What is no row event, or comes by another way than tables: each works, or is named with table and way out."""

from __future__ import annotations

import contextlib
import json
import time

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from fix_copy import MakeRole, make_role, nothing_left, refused
from fix_roads import demand_identical, same_rows, still_following, walk_both_roads
from fix_servers import (
    Cli,
    Connection,
    MakeDatabase,
    Pair,
    as_plain_roles,
    connect,
    wait_until,
)
from test_run import daemon, ends_identical

pytestmark = pytest.mark.unguarded

__all__ = ["make_role"]


def ends_of(pair: Pair) -> tuple[str, str, str, str]:
    """The options that name both ends."""
    return "--source", pair.source, "--target", pair.target


# --- the source's users ----------------------------------------------------------------------------


@as_plain_roles
def test_what_users_make_later_stays_theirs(pair: Pair, cli: Cli) -> None:
    """Tables, partitions and children made after the copy, without a key, take every UPDATE and DELETE; `check` names them."""
    source = pair.on_source()
    source.execute(
        "CREATE TABLE root (k int, v text) PARTITION BY LIST (k); CREATE TABLE one PARTITION OF root FOR VALUES IN (1);"
        "CREATE TABLE parent (v text); CREATE TABLE keyed (id int PRIMARY KEY)"
    )
    with daemon(cli, pair):
        source.execute(
            "CREATE TABLE plain (v text); CREATE TABLE made AS SELECT 1 AS n; CREATE TABLE child () INHERITS (parent);"
            "CREATE TABLE two PARTITION OF root FOR VALUES IN (2); CREATE TABLE alike (LIKE keyed);"
            "CREATE TABLE outside (k int, v text); ALTER TABLE root ATTACH PARTITION outside FOR VALUES IN (3);"
            "CREATE UNLOGGED TABLE fast (v text)"
        )
        for table in ("plain", "child", "fast"):
            source.execute(f"INSERT INTO {table} VALUES ('a'), ('a')".encode())
        source.execute("INSERT INTO root VALUES (1, 'a'), (2, 'a'), (3, 'a'); INSERT INTO alike VALUES (1)")
        for statement in (
            "UPDATE plain SET v = 'b'", "UPDATE made SET n = 2", "UPDATE parent SET v = 'b'", "UPDATE root SET v = 'b'",
            "UPDATE root SET k = 2 WHERE k = 1", "UPDATE root SET k = 1 WHERE k = 3", "UPDATE alike SET id = 2",
            "UPDATE fast SET v = 'b'", "DELETE FROM plain", "DELETE FROM parent", "DELETE FROM made", "DELETE FROM two",
        ):  # fmt: skip
            assert source.execute(statement.encode()).rowcount > 0
    done = cli("check", *ends_of(pair))
    assert done.returncode == 1
    for table in ("plain", "made", "child", "two", "alike", "outside", "fast"):
        assert f"public.{table}" in done.stdout + done.stderr


def test_a_key_that_users_drop(pair: Pair, cli: Cli) -> None:
    """A table whose owner drops its key under a running daemon takes UPDATEs again as soon as the daemon has seen it."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")

    def updated() -> bool:
        with contextlib.suppress(psycopg.errors.ObjectNotInPrerequisiteState):
            return source.execute("UPDATE t SET v = 'b'").rowcount == 1
        return False

    with daemon(cli, pair):
        source.execute("ALTER TABLE t DROP CONSTRAINT t_pkey")
        wait_until(updated, 3, "the source's users to be able to write again")


def test_an_identity_on_a_generated_column(pair: Pair, cli: Cli, make_database: MakeDatabase) -> None:
    """The stream has no generated columns, so a key of one cannot name a row: refused at start, by the table's name."""
    for key in ("PRIMARY KEY (twice)", "UNIQUE (twice)"):
        ends = Pair(
            make_database(pair.source_server),
            make_database(pair.target_server),
            pair.source_server,
            pair.target_server,
        )
        with connect(ends.source) as conn:
            conn.execute(
                f"CREATE TABLE t (v int, twice int NOT NULL GENERATED ALWAYS AS (v * 2) STORED, {key})".encode()
            )
            if "UNIQUE" in key:
                conn.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX t_twice_key")
            conn.execute("INSERT INTO t VALUES (1)")
            message, hint = refused(cli("once", *ends_of(ends)), 4)
            assert "public.t" in message
            assert "exclude" in hint
            conn.execute("UPDATE t SET v = 2; DELETE FROM t")


# --- transactions ----------------------------------------------------------------------------------


def test_two_phases_and_interleaved_giants(pair: Pair, cli: Cli) -> None:
    """Transactions prepared, committed later or never, and large ones that overlap: each arrives at its commit, once."""
    pair.on_source().execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE bare (n int); INSERT INTO t VALUES (-1, 'x')"
    )
    number = 0

    def write(conn: Connection) -> None:
        nonlocal number
        number += 1
        base = number * 100_000
        conn.execute(
            f"BEGIN; INSERT INTO t VALUES ({base}, 'prepared'); INSERT INTO bare VALUES (1);"
            f"PREPARE TRANSACTION 'kept {number}'".encode()
        )
        conn.execute(
            f"BEGIN; INSERT INTO t VALUES ({base + 1}, 'never'); PREPARE TRANSACTION 'lost {number}'".encode()
        )
        with connect(pair.source) as one, connect(pair.source) as two:
            one.execute("BEGIN")
            two.execute("BEGIN")
            for part in range(6):
                start = base + 10 + part * 2000
                one.execute(
                    f"INSERT INTO t SELECT n, 'one' FROM generate_series({start}, {start + 999}) AS n".encode()
                )
                two.execute("SAVEPOINT s")
                two.execute(
                    f"INSERT INTO t SELECT n, 'two' FROM generate_series({start + 1000}, {start + 1999}) AS n".encode()
                )
                two.execute("INSERT INTO bare SELECT 2 FROM generate_series(1, 20)")
                if part % 2:
                    two.execute("ROLLBACK TO s")
                conn.execute("UPDATE t SET v = v || '.' WHERE id = -1")
            one.execute("UPDATE t SET v = v || '!' WHERE v = 'one' AND id % 10 = 0")
            two.execute("COMMIT")
            one.execute("ROLLBACK" if number == 2 else "COMMIT")
        conn.execute(f"COMMIT PREPARED 'kept {number}'".encode())
        conn.execute(f"ROLLBACK PREPARED 'lost {number}'".encode())

    walk_both_roads(cli, pair, write, rounds=3)


def test_prepared_before_the_copy_and_committed_after_it(pair: Pair, cli: Cli) -> None:
    """What is prepared when a backlog begins arrives when it is committed, though the daemon was restarted in between."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    demand_identical(cli, pair, "once")
    source.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'slow'")
    source.execute("INSERT INTO t VALUES (2)")
    with daemon(cli, pair) as running:
        still_following(cli, pair, running)
        assert pair.on_target().execute("SELECT id FROM t").fetchall() == [(2,)]
    source.execute("COMMIT PREPARED 'slow'")
    ends_identical(cli, pair)
    same_rows(pair, "after COMMIT PREPARED")


def test_the_source_is_answered_during_a_long_apply(pair: Pair, cli: Cli) -> None:
    """A target that is blocked for longer than wal_sender_timeout does not cost the stream: the same walsender goes on."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute(
        sql.SQL("ALTER DATABASE {} SET wal_sender_timeout = '1s'").format(sql.Identifier(source.info.dbname))
    )
    sender = b"SELECT active_pid FROM pg_replication_slots WHERE active AND database = current_database()"
    with daemon(cli, pair) as running:
        pid = source.execute(sender).fetchone()
        with connect(pair.target) as blocker, connect(pair.target) as looker:
            blocker.execute("BEGIN; LOCK TABLE t IN SHARE MODE")
            source.execute("INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 20000) AS n")
            waiting = b"SELECT FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"
            wait_until(lambda: looker.execute(waiting).rowcount, 20, "the apply to wait")
            time.sleep(3)
            blocker.execute("COMMIT")
        still_following(cli, pair, running)
        assert source.execute(sender).fetchone() == pid
    ends_identical(cli, pair)


@as_plain_roles
def test_what_came_from_elsewhere_goes_on(pair: Pair, cli: Cli, make_database: MakeDatabase) -> None:
    """Changes that reached the source by a subscription of its own, or under any origin, are the source's changes too."""
    upstream = make_database(pair.target_server)
    source, admin = pair.on_source(), pair.superuser_on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE bare (v text)")
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    number = 0
    origin = f"other {admin.info.dbname}"
    admin.execute("SELECT pg_replication_origin_create(%s)", [origin])
    with connect(upstream) as publisher:
        publisher.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t")
        slot = f"up_{admin.info.dbname}"
        admin.execute(
            sql.SQL("CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION p WITH (slot_name = {})").format(
                sql.Identifier(slot),
                sql.Literal(pair.target_server.conninfo(publisher.info.dbname)),
                sql.Identifier(slot),
            )
        )
        try:
            wait_until(
                lambda: admin.execute("SELECT FROM pg_subscription_rel WHERE srsubstate = 'r'").rowcount,
                30,
                "the subscription",
            )

            def write(conn: Connection) -> None:
                nonlocal number
                number += 1
                publisher.execute(
                    "INSERT INTO t SELECT n, 'up' FROM generate_series(%s, %s + 300) AS n",
                    [number * 1000] * 2,
                )
                publisher.execute("UPDATE t SET v = v || '!' WHERE id %% 2 = 0", [])
                publisher.execute("DELETE FROM t WHERE id = %s", [number * 1000])
                with connect(admin.info.dsn) as session:
                    session.execute("SELECT pg_replication_origin_session_setup(%s)", [origin])
                    session.execute("BEGIN; SELECT pg_replication_origin_xact_setup('0/1', now())")
                    session.execute("INSERT INTO bare VALUES ('a'), ('a'), (NULL)")
                    session.execute("UPDATE bare SET v = 'b' WHERE ctid = (SELECT min(ctid) FROM bare)")
                    session.execute("COMMIT")
                conn.execute("INSERT INTO bare VALUES ('own')")
                top = b"SELECT count(*), count(*) FILTER (WHERE v ~ '!') FROM t"
                wanted = publisher.execute(top).fetchone()
                wait_until(lambda: conn.execute(top).fetchone() == wanted, 30, "the subscription to follow")

            walk_both_roads(cli, pair, write, rounds=2)
        finally:
            admin.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(slot)))
            admin.execute("SELECT pg_replication_origin_drop(%s)", [origin])


# --- what no row event tells of --------------------------------------------------------------------


def test_what_does_not_follow_is_named(pair: Pair, cli: Cli) -> None:
    """Unlogged tables, large objects, materialised views and foreign tables: `check` and `once` name each."""
    source = pair.superuser_on_source()
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE UNLOGGED TABLE fast (v text); INSERT INTO fast VALUES ('x');"
        "SELECT lo_from_bytea(0, 'x'); CREATE MATERIALIZED VIEW m AS SELECT * FROM t;"
        "CREATE FOREIGN DATA WRAPPER far; CREATE SERVER away FOREIGN DATA WRAPPER far;"
        "CREATE FOREIGN TABLE f (id int) SERVER away"
    )
    names = [
        "unlogged table public.fast", "foreign table public.f", "materialized view public.m", "1 large objects",
    ]  # fmt: skip
    ends = ("--source", source.info.dsn, "--target", pair.superuser_on_target().info.dsn)
    done = cli("once", *ends, "--json")
    assert json.loads(done.stdout)["links"][0]["not_streamed"] == names, done.stderr
    source.execute("INSERT INTO fast VALUES ('y'); INSERT INTO t VALUES (1)")
    done = cli("check", *ends)
    assert done.returncode == 1
    for name in names:
        assert f"note: {name}" in done.stdout
    for conn in (source, pair.superuser_on_target()):
        conn.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")


def test_sequences_of_every_kind(pair: Pair, cli: Cli) -> None:
    """Set but not called, counting down, cycling, far ahead on the target: each is carried, never backwards."""
    source, target = pair.on_source(), pair.on_target()
    source.execute(
        "CREATE SEQUENCE fresh START 7; CREATE SEQUENCE called; CREATE SEQUENCE down INCREMENT -3 START 100 "
        "MINVALUE -1000 MAXVALUE 100;"
        "CREATE SEQUENCE small AS smallint CYCLE MAXVALUE 5; CREATE SEQUENCE ahead; CREATE SEQUENCE cached CACHE 50;"
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s serial)"
    )
    demand_identical(cli, pair, "once")
    assert target.execute("SELECT last_value, is_called FROM fresh").fetchone() == (7, False)
    target.execute("SELECT setval('ahead', 1000)")
    for name, times in (("called", 5), ("down", 4), ("small", 3), ("ahead", 2), ("cached", 1)):
        source.execute(f"SELECT nextval('{name}') FROM generate_series(1, {times})".encode())
    source.execute(
        "SELECT setval('fresh', 50, false); INSERT INTO t (s) VALUES (DEFAULT), (DEFAULT), (DEFAULT)"
    )
    with daemon(cli, pair) as running:
        running.run("check")
        state = "SELECT last_value, is_called FROM small"
        assert (
            target.execute(state.encode()).fetchone()
            == source.execute(state.encode()).fetchone()
            == (3, True)
        )
        assert target.execute("SELECT last_value FROM ahead").fetchone() == (1000,)
        # ahead of the source's by no more than the lead
        for name, step, most in (
            ("fresh", 1, 64), ("called", 1, 64), ("down", -3, 64), ("cached", 1, 256), ("t_id_seq", 1, 64), ("t_s_seq", 1, 64)
        ):  # fmt: skip
            following = f"SELECT nextval('{name}')".encode()
            there, here = source.execute(following).fetchone(), target.execute(following).fetchone()
            assert there is not None
            assert here is not None
            assert 0 < (here[0] - there[0]) / step <= most, name


def test_sequences_are_ahead_of_the_rows_they_made(pair: Pair, cli: Cli) -> None:
    """Whoever fails over at any moment gets no number from a sequence that a row already has."""
    source, target = pair.on_source(), pair.on_target()
    source.execute("CREATE TABLE t (id serial PRIMARY KEY)")
    with daemon(cli, pair):
        source.execute("INSERT INTO t SELECT FROM generate_series(1, 20)")
        wait_until(lambda: target.execute("SELECT FROM t").rowcount == 20, 8, "the rows")
        assert target.execute("SELECT last_value > 20 FROM t_id_seq").fetchone() == (True,)


#: DDL on the source alone, then a row that meets it; what is said; the same on the target. `{n}` is the next free key.
DDL = {
    "column added": ("ALTER TABLE t ADD new int", "INSERT INTO t VALUES ({n}, 'x', 5)", "no column new"),
    "column with volatile values": (
        "ALTER TABLE t ADD new text DEFAULT 'x'", "UPDATE t SET v = 'y'", "no column new"
    ),
    "column dropped": ("ALTER TABLE t DROP v", "INSERT INTO t VALUES ({n})", "no column v"),
    "column renamed": ("ALTER TABLE t RENAME v TO w", "UPDATE t SET w = 'y'", "no column w"),
    "key renamed": ("ALTER TABLE t RENAME id TO key", "UPDATE t SET v = 'y'", "no column key"),
    "type changed": ("ALTER TABLE t ALTER id TYPE numeric", "UPDATE t SET v = 'y'", "column id is integer on the target only"),
    "label added": ("ALTER TYPE mood ADD VALUE 'glad' BEFORE 'sad'", "INSERT INTO moods VALUES ({n}, 'glad')", "public.moods"),
    "check loosened": ("ALTER TABLE bound DROP CONSTRAINT small", "INSERT INTO bound VALUES (100)", "public.bound"),
}  # fmt: skip


@pytest.mark.parametrize(
    "backlog", [True, pytest.param(False, marks=pytest.mark.soak)], ids=["in a crowd", "alone"]
)
def test_ddl_on_the_source_is_named(pair: Pair, cli: Cli, backlog: bool) -> None:
    """Each change of a table on the source alone stops the link with table and difference; made on the target too, it goes on."""
    source = pair.on_source()
    source.execute(
        "CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE moods (id int PRIMARY KEY, m mood);"
        "CREATE TABLE bound (v int PRIMARY KEY CONSTRAINT small CHECK (v < 10)); CREATE TABLE crowd (id int PRIMARY KEY, n int)"
    )
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, NULL)")
    demand_identical(cli, pair, "once")
    for number, (ddl, write, said) in enumerate(DDL.values()):
        if backlog:
            source.execute(
                f"INSERT INTO crowd SELECT n, 0 FROM generate_series({number * 1000}, {number * 1000 + 100}) AS n".encode()
            )
            source.execute("UPDATE crowd SET n = n + 1")
        source.execute(ddl.encode())
        source.execute(write.format(n=10 + number).encode())
        message, hint = refused(cli("once", *ends_of(pair)), 5)
        assert said in message, message
        assert hint
        pair.on_target().execute(ddl.encode())
        ends_identical(cli, pair)
        for conn in (source, pair.on_target()):
            for undo in (
                "ALTER TABLE IF EXISTS \"T 2\" RENAME TO t", "ALTER TABLE IF EXISTS s.t SET SCHEMA public",
                "ALTER TABLE t DROP COLUMN IF EXISTS new, ADD COLUMN IF NOT EXISTS v text",
            ):  # fmt: skip
                conn.execute(undo.encode())
            for old, new in (("w", "v"), ("key", "id")):
                if conn.execute(
                    "SELECT FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = %s", [old]
                ).rowcount:
                    conn.execute("ALTER TABLE t DROP COLUMN IF EXISTS v" if old == "w" else "SELECT 1")
                    conn.execute(f"ALTER TABLE t RENAME {old} TO {new}".encode())


def test_a_difference_met_while_the_target_works(pair: Pair, cli: Cli) -> None:
    """A table that differs is met in the stream while earlier rows are being applied: they stay, and the table is named."""
    source = pair.on_source()
    source.execute("CREATE TABLE crowd (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY)")
    demand_identical(cli, pair, "once")
    source.execute("INSERT INTO crowd VALUES (1)")
    overseer = pair.superuser_on_source()
    with connect(pair.target) as blocker, connect(pair.target) as looker:
        blocker.execute("BEGIN; LOCK TABLE crowd IN SHARE MODE")
        process = cli.start("once", *ends_of(pair))
        waiting = b"SELECT FROM pg_locks WHERE NOT granted AND relation = 'crowd'::regclass"
        wait_until(lambda: looker.execute(waiting).rowcount, 20, "the apply to wait")
        source.execute("ALTER TABLE t ADD new int; INSERT INTO t VALUES (1, 1)")
        wait_until(lambda: _sent_all(overseer), 20, "the source to have sent it")
        # nobody tells when it has been read
        time.sleep(0.5)
        blocker.execute("COMMIT")
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 5, said
    assert "public.t" in said
    assert "no column new" in said
    assert pair.on_target().execute("SELECT id FROM crowd").fetchall() == [(1,)]
    pair.on_target().execute("ALTER TABLE t ADD new int")
    ends_identical(cli, pair)


def _sent_all(source: Connection) -> bool:
    """Whether every walsender of this database has sent all there is."""
    level = "SELECT bool_and(sent_lsn >= pg_current_wal_lsn()) FROM pg_stat_replication WHERE pid IN "
    ours = "(SELECT active_pid FROM pg_replication_slots WHERE database = current_database())"
    return source.execute((level + ours).encode()).fetchone() == (True,)


def test_rows_that_ddl_changes_in_silence(pair: Pair, cli: Cli) -> None:
    """A column with a volatile default, made on both ends, has other values on each: no event tells, and `check` finds it."""
    source, target = pair.on_source(), pair.on_target()
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 50)")
    demand_identical(cli, pair, "once")
    for conn in (target, source):
        conn.execute("ALTER TABLE t ADD u uuid DEFAULT gen_random_uuid()")
    done = cli("check", *ends_of(pair))
    assert done.returncode == 1
    assert "public.t" in done.stdout
    # what comes later comes as the source has it
    source.execute("UPDATE t SET u = gen_random_uuid(); INSERT INTO t VALUES (51)")
    ends_identical(cli, pair)
    same_rows(pair, "after new values")


@as_plain_roles
def test_row_security_hides_nothing(pair: Pair, cli: Cli) -> None:
    """Policies that hide every row, forced or not, hide none from the copy, the stream and the comparison, or are refused."""
    source = pair.on_source()
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE bare (v text); INSERT INTO t VALUES (1, 'a')"
    )
    for table in ("t", "bare"):
        source.execute(
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON {table} USING (false)".encode()
        )

    def write(conn: Connection) -> None:
        conn.execute(
            "INSERT INTO t SELECT max(id) + 1, 'b' FROM t; UPDATE t SET v = v || '.'; INSERT INTO bare VALUES ('x'), ('x')"
        )
        conn.execute("UPDATE bare SET v = 'y' WHERE ctid = (SELECT min(ctid) FROM bare)")

    walk_both_roads(cli, pair, write, rounds=15)
    for conn in (source, pair.on_target()):
        conn.execute("ALTER TABLE t FORCE ROW LEVEL SECURITY")
    pair.superuser_on_source().execute("UPDATE t SET v = 'forced'")
    done = cli("once", *ends_of(pair))
    if source.info.user == "postgres":
        assert done.returncode == 0, done.stderr
        same_rows(pair, "under forced policies")
    else:
        message, hint = refused(done, 5)
        assert "public.t" in message
        assert "row-level security" in message
        assert hint


def test_forced_row_security_on_the_target(pair: Pair, cli: Cli, make_role: MakeRole) -> None:
    """A target role that forced policies would blind is refused before anything is changed, with the grant that helps."""
    make_role(pair.target_server, "blinded", "LOGIN")
    target = pair.superuser_on_target()
    target.execute(sql.SQL("ALTER DATABASE {} OWNER TO blinded").format(sql.Identifier(target.info.dbname)))
    source = pair.superuser_on_source()
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE POLICY p ON t USING (false); INSERT INTO t VALUES (1)"
    )
    source.execute(
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE TABLE bare (v text)"
    )
    ends = ("--source", source.info.dsn, "--target", make_conninfo(target.info.dsn, user="blinded"))
    try:
        message, hint = refused(cli("once", *ends), 5)
        assert "public.t" in message
        assert "BYPASSRLS" in hint
        nothing_left(pair, {"t": "d", "bare": "d"})
        target.execute("ALTER ROLE blinded BYPASSRLS")
        assert cli("once", *ends).returncode == 0
        source.execute("UPDATE t SET id = 2; INSERT INTO t VALUES (3)")
        assert cli("once", *ends).returncode == 0
        same_rows(pair, "with BYPASSRLS")
    finally:
        target.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO postgres").format(sql.Identifier(target.info.dbname))
        )
        target.execute("REASSIGN OWNED BY blinded TO postgres; DROP OWNED BY blinded")


@as_plain_roles
@pytest.mark.parametrize("end", ["source", "target"])
def test_settings_of_a_database_bend_nothing(pair: Pair, cli: Cli, end: str) -> None:
    """What one end's database sets for its sessions changes no value on its way through the stream."""
    conn = pair.on_source() if end == "source" else pair.on_target()
    name = sql.Identifier(conn.info.dbname)
    for setting, value in {
        "datestyle": "German, DMY", "intervalstyle": "sql_standard", "timezone": "Asia/Kathmandu", "extra_float_digits": "-5",
        "bytea_output": "escape", "array_nulls": "off", "xmloption": "document", "standard_conforming_strings": "off",
        "transform_null_equals": "on", "default_transaction_isolation": "serializable", "search_path": "nowhere",
        "statement_timeout": "60s", "quote_all_identifiers": "on", "client_encoding": "LATIN1", "row_security": "off",
    }.items():  # fmt: skip
        conn.execute(
            sql.SQL("ALTER DATABASE {} SET {} = {}").format(name, sql.SQL(setting), sql.Literal(value))
        )
    source = pair.on_source()
    source.execute("SET search_path = public")
    columns = "d date, z timestamptz, i interval, f float8, r real, b bytea, a text[], m money, x text"
    source.execute(
        f"CREATE TABLE public.t (id int PRIMARY KEY, {columns}); CREATE TABLE public.bare ({columns})".encode()
    )
    number = 0

    def write(conn: Connection) -> None:
        nonlocal number
        conn.execute(
            "SET search_path = public; SET datestyle = ISO; SET client_encoding = UTF8; SET standard_conforming_strings = on;"
            "SET array_nulls = on"
        )
        values = (
            "'2001-02-03', '2001-02-03 04:05:06.7+09', '-1 year 2 days -00:00:01', 0.1234567890123456, 1.1234567, "
            "'\\x00ff5c', '{NULL,\"NULL\",\"\\\\\\\\\"}', 12.34, 'é\\😀'"
        )
        for _ in range(20):
            number += 1
            conn.execute(f"INSERT INTO t VALUES ({number}, {values})".encode())
            conn.execute(f"INSERT INTO bare VALUES ({values})".encode())
            conn.execute(
                f"UPDATE t SET d = d + 1, f = f / 3, i = i * 2, b = b || '\\x5c' WHERE id = {number}".encode()
            )
        conn.execute("UPDATE bare SET f = f + 1 WHERE ctid = (SELECT min(ctid) FROM bare)")
        conn.execute("DELETE FROM bare WHERE ctid = (SELECT max(ctid) FROM bare)")

    walk_both_roads(cli, pair, write, rounds=5)
