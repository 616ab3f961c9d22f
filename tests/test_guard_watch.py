"""The target's watch on real servers: foreign writes are seen at once, our own and harmless ones never."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import psycopg
import pytest

from fix_copy import MakeRole, make_role
from fix_guard import Guarded, back_to_format_1
from fix_servers import Cli, Pair, connect, majors
from fix_workload import SCHEMA
from pglockstep.guard import reading, watch
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress.target import FORMAT

pytestmark = pytest.mark.unguarded

__all__ = ["make_role"]

#: the newest; the other one in the long tests
on_15_and_18 = pytest.mark.parametrize(
    "pair",
    [
        pytest.param((each, each), marks=[] if each == majors[-1] else pytest.mark.soak)
        for each in (15, 18)
        if each in majors
    ],
    indirect=True,
    ids=lambda pair: str(pair[0]),
)

USERS = """
CREATE TABLE "User" (id int PRIMARY KEY, name text NOT NULL, email text UNIQUE);
INSERT INTO "User" SELECT n, 'user ' || n, n || '@example.org' FROM generate_series(1, 22) AS n;
CREATE TABLE post (id serial PRIMARY KEY, author int REFERENCES "User" ON DELETE CASCADE, body text);
INSERT INTO post (author, body) SELECT 1 + n % 22, 'post ' || n FROM generate_series(1, 100) AS n;
CREATE MATERIALIZED VIEW many AS SELECT count(*) FROM post;
"""
USER = QualifiedName("public", "User")
POST = QualifiedName("public", "post")


@pytest.fixture
def guarded(cli: Cli, pair: Pair) -> Guarded:
    """A small link under watch."""
    pair.on_source().execute(USERS)
    return Guarded(cli, pair)


def foreign(pair: Pair, *statements: str) -> Callable[[], None]:
    """Run statements on the target, each a transaction, as somebody else does."""

    def run() -> None:
        with psycopg.connect(pair.target, autocommit=True, application_name="somebody's psql") as conn:
            for each in statements:
                conn.execute(each.encode())

    return run


def noted(guarded: Guarded) -> list[tuple[str, str | None, int | None]]:
    """What the watch has written down: operation, table and rows."""
    found = guarded.on_target(watch.pending)
    return [(each.operation, each.table_name, each.row_count) for each in found.writes]


@on_15_and_18
def test_a_foreign_write_is_told_with_its_evidence(guarded: Guarded, pair: Pair) -> None:
    """One UPDATE: which table, how many rows, who, by what application, in which transaction; and once only."""
    assert guarded.watched.complete
    found = guarded.noticed(foreign(pair, """UPDATE "User" SET name = 'x' WHERE id < 4"""))
    [write] = found.writes
    assert (write.operation, write.table, write.row_count) == ("UPDATE", USER, 3)
    assert write.application == "somebody's psql"
    assert write.who == pair.on_target().execute("SELECT session_user::text").fetchone()[0]  # type: ignore[index]
    assert write.xid > 0
    assert write.statement is None
    guarded.on_target(lambda conn: watch.dealt_with(conn, found))
    assert not guarded.on_target(watch.pending)


@on_15_and_18
def test_every_kind_of_foreign_write_is_seen(guarded: Guarded, pair: Pair) -> None:
    """INSERT, UPDATE, DELETE with its cascade, TRUNCATE … CASCADE, COPY, an upsert; nothing for no row."""
    with psycopg.connect(pair.target, autocommit=True) as conn:
        conn.execute("""INSERT INTO "User" VALUES (100, 'n', 'e'), (101, 'm', 'f')""")
        conn.execute(
            """INSERT INTO "User" VALUES (100, 'n', 'e') ON CONFLICT (id) DO UPDATE SET name = 'z'"""
        )
        conn.execute("""DELETE FROM "User" WHERE id = 1""")
        conn.execute("""DELETE FROM "User" WHERE id = -1""")
        with conn.cursor().copy('COPY "User" FROM STDIN') as copy:
            copy.write_row((102, "c", "g"))
        conn.execute('TRUNCATE "User" CASCADE')
    assert sorted(noted(guarded), key=str) == [
        ("DELETE", "User", 1),
        ("DELETE", "post", 4),
        ("INSERT", "User", 1),
        ("INSERT", "User", 2),
        ("TRUNCATE", "User", None),
        ("TRUNCATE", "post", None),
        ("UPDATE", "User", 1),
    ]


# event triggers, which see it, need a superuser
@pytest.mark.superusers
@on_15_and_18
def test_foreign_ddl_is_seen_with_its_statement(guarded: Guarded, pair: Pair) -> None:
    """A dropped column, a new table, an index, DROP SCHEMA … CASCADE: each with what it concerned."""
    foreign(pair, 'ALTER TABLE "User" DROP COLUMN email', "CREATE INDEX mine ON post (body)")()
    foreign(pair, "CREATE TABLE theirs (id int)", "DROP SCHEMA public CASCADE")()
    found = guarded.on_target(watch.pending).writes
    assert all(each.is_ddl and each.statement for each in found)
    seen = {(each.operation, each.table_name) for each in found}
    assert {("ALTER TABLE", "User"), ("CREATE INDEX", "post"), ("CREATE TABLE", "theirs")} <= seen
    assert {("DROP SCHEMA", "User"), ("DROP SCHEMA", "post"), ("DROP SCHEMA", None)} <= seen


@on_15_and_18
def test_nothing_harmless_is_told(guarded: Guarded, pair: Pair) -> None:
    """VACUUM FULL, CLUSTER, REINDEX, ANALYZE, reads, temporary tables, a refresh, grants; and the poll agrees."""
    before = guarded.read({USER: 22})
    foreign(
        pair,
        "VACUUM FULL",
        'CLUSTER "User" USING "User_pkey"',
        'REINDEX TABLE "User"',
        "REINDEX TABLE CONCURRENTLY post",
        "ANALYZE",
        'SELECT * FROM "User"',
        'SELECT * FROM "User" WHERE false FOR UPDATE',
        "CREATE TEMP TABLE t (id serial PRIMARY KEY, v text CHECK (v <> '')); INSERT INTO t (v) VALUES ('x'); "
        "ALTER TABLE t ADD COLUMN w int DEFAULT 1; CREATE INDEX ON t (w); TRUNCATE t; DROP TABLE t",
        "CREATE TEMP TABLE u ON COMMIT DROP AS SELECT 1",
        "SELECT 1 AS a INTO TEMP kept",
        "REFRESH MATERIALIZED VIEW many",
        "GRANT SELECT ON post TO PUBLIC",
        "COMMENT ON TABLE post IS 'read by many'",
    )()
    assert noted(guarded) == []
    # ANALYZE puts right what the copying sessions' own statistics may have counted twice: an estimate alone proves nothing
    assert [each for each in reading.judge(before, guarded.read({USER: 22})) if each.sure] == []


@on_15_and_18
def test_our_own_applies_and_commands_are_not_foreign(guarded: Guarded, cli: Cli, pair: Pair) -> None:
    """What the stream brings, TRUNCATE among it, and a whole ``once`` leave no note."""
    with pair.on_source() as source:
        source.execute(
            """TRUNCATE post; INSERT INTO post (author, body) VALUES (1, 'a'); DELETE FROM "User" WHERE id = 9"""
        )
    done = cli("once", "--source", pair.source, "--target", pair.target, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert noted(guarded) == []
    gone = cli("teardown", "--source", pair.source, "--target", pair.target, "--yes")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    with pair.on_target() as target:
        assert target.execute("SELECT FROM pg_trigger WHERE tgname ~ '^pglockstep'").rowcount == 0
        assert target.execute("SELECT FROM pg_event_trigger WHERE evtname ~ '^pglockstep'").rowcount == 0


def test_writes_through_a_partitioned_root_are_seen(cli: Cli, pair: Pair) -> None:
    """A statement on the root fires the root's triggers alone: it has some, and its leaves are known."""
    pair.on_source().execute(SCHEMA)
    guarded = Guarded(cli, pair)
    foreign(pair, "UPDATE part SET v = 0", "DELETE FROM part_new", "TRUNCATE part")()
    root, old, new = (QualifiedName("public", each) for each in ("part", "part_old", "part_new"))
    found = guarded.on_target(watch.pending).writes
    assert [(each.operation, each.table) for each in found[:2]] == [("UPDATE", root), ("DELETE", new)]
    assert {each.table for each in found[2:]} == {root, old, new}
    assert guarded.on_target(lambda conn: watch.leaves(conn, {root})) == {old, new}


def test_a_transaction_that_is_prepared_is_not_refused(guarded: Guarded, pair: Pair) -> None:
    """A NOTIFY would keep it from being prepared; it is told of when it is committed."""
    conn = pair.on_target()
    conn.execute("""BEGIN; INSERT INTO "User" VALUES (100, 'n', 'e'); PREPARE TRANSACTION 'theirs'""")
    assert noted(guarded) == []
    found = guarded.noticed(lambda: conn.execute("COMMIT PREPARED 'theirs'"))
    assert [each.table for each in found.writes] == [USER]


def test_a_rolled_back_write_is_not_told(guarded: Guarded, pair: Pair) -> None:
    """Nothing happened."""
    with pair.on_target() as conn:
        conn.execute("""BEGIN; DELETE FROM "User"; ROLLBACK""")
    assert noted(guarded) == []


def test_any_role_can_write_and_none_can_forge(make_role: MakeRole, guarded: Guarded, pair: Pair) -> None:
    """A role with INSERT alone writes as ever; it reads nothing of ours, calls nothing, and its token is not taken."""
    make_role(pair.target_server, "writer", "LOGIN")
    pair.superuser_on_target().execute(
        'GRANT INSERT ON "User" TO writer; GRANT CREATE ON SCHEMA public TO writer'
    )
    with connect(psycopg.conninfo.make_conninfo(pair.target, user="writer")) as conn:
        conn.execute("SET pglockstep.token = 'guessed'")
        conn.execute("SET search_path = pg_temp")
        conn.execute("""INSERT INTO public."User" VALUES (100, 'n', 'e')""")
        for forbidden in (
            "SELECT * FROM pglockstep.watch",
            "SELECT pglockstep.note('DELETE', 'public', 'User', 1, NULL, NULL)",
            "CREATE TABLE public.mine (); CREATE TRIGGER t AFTER INSERT ON public.mine EXECUTE FUNCTION pglockstep.note_write()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(forbidden.encode())
    [write] = [each for each in guarded.on_target(watch.pending).writes if not each.is_ddl]
    assert (write.who, write.table) == ("writer", USER)


def test_our_own_trouble_is_never_the_writers(guarded: Guarded, pair: Pair) -> None:
    """With our tables gone, or broken, a foreign write goes through in the mode "watch"."""
    with pair.on_target() as conn:
        conn.execute("DROP TABLE pglockstep.foreign_write")
        conn.execute("""UPDATE "User" SET name = 'still works' WHERE id = 1""")
        conn.execute("DROP SEQUENCE pglockstep.foreign_write_number; DROP FUNCTION pglockstep.is_ours()")
        conn.execute("""UPDATE "User" SET name = 'still works' WHERE id = 2""")
        conn.execute('ALTER TABLE "User" ADD COLUMN extra int')
        conn.execute("DROP SCHEMA pglockstep CASCADE")
        conn.execute("""UPDATE "User" SET name = 'still works' WHERE id = 3""")


def test_what_is_kept_is_bounded(guarded: Guarded, pair: Pair) -> None:
    """Beyond so many only the number grows, and the reader knows that there were more."""
    with pair.on_target() as conn:
        conn.execute("SELECT setval('pglockstep.foreign_write_number', 9998)")
        for _ in range(5):
            conn.execute("""UPDATE "User" SET name = 'x' WHERE id = 1""")
    found = guarded.on_target(watch.pending)
    assert (len(found.writes), found.more, found.upto) == (2, True, 10003)
    guarded.on_target(lambda conn: watch.dealt_with(conn, found))
    assert not guarded.on_target(watch.pending)
    pair.on_target().execute("""UPDATE "User" SET name = 'y' WHERE id = 1""")
    assert len(guarded.on_target(watch.pending).writes) == 1


@on_15_and_18
def test_block_refuses_foreign_writes_with_a_sentence(cli: Cli, pair: Pair) -> None:
    """Rows, of superusers too, and DDL where event triggers may be made; ours go through, temporary tables as well; off again."""
    pair.on_source().execute(USERS)
    guarded = Guarded(cli, pair, "block")
    conn = pair.on_target()
    rows = ("""UPDATE "User" SET name = 'x'""", 'TRUNCATE "User" CASCADE')
    ddl = (
        'ALTER TABLE "User" DROP COLUMN email',
        "CREATE TABLE theirs ()",
        "DROP TABLE post CASCADE",
        "DROP SCHEMA public CASCADE",
    )
    for statement in (*rows, *(ddl if guarded.watched.ddl else ())):
        with pytest.raises(
            psycopg.errors.ReadOnlySqlTransaction, match="pglockstep keeps this database identical"
        ) as error:
            conn.execute(statement.encode())
        assert "Write to the source instead" in (error.value.diag.message_hint or "")
    conn.execute("CREATE TEMP TABLE t AS SELECT 1; DROP TABLE t; REFRESH MATERIALIZED VIEW many")
    conn.execute("VACUUM FULL post")
    pair.on_source().execute("""UPDATE "User" SET name = 'from the source'""")
    assert cli("once", "--source", pair.source, "--target", pair.target).returncode == 0
    guarded.on_target(lambda conn: watch.install(conn, guarded.tables, "watch"))
    conn.execute("""UPDATE "User" SET name = 'x' WHERE id = 1""")
    assert noted(guarded) == [("UPDATE", "User", 1)]
    guarded.on_target(watch.remove)
    conn.execute("""UPDATE "User" SET name = 'y' WHERE id = 1""")
    assert len(noted(guarded)) == 1
    guarded.on_target(lambda conn: watch.install(conn, guarded.tables, "block"))
    gone = cli("teardown", "--source", pair.source, "--target", pair.target, "--yes")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    conn.execute("""UPDATE "User" SET name = 'z' WHERE id = 1""")


def test_a_watch_that_was_taken_off_is_seen_and_put_back(guarded: Guarded, pair: Pair) -> None:
    """A dropped trigger, a disabled one, an event trigger gone: the poll tells, `install` puts just that back."""
    before = guarded.read()
    with pair.superuser_on_target() as conn:
        conn.execute('DROP TRIGGER pglockstep_delete ON "User"; ALTER TABLE post DISABLE TRIGGER USER')
        conn.execute("DROP EVENT TRIGGER IF EXISTS pglockstep_ddl")
    found = {each.message: each.table for each in reading.judge(before, guarded.read())}
    # an event trigger's going is of no table; without a superuser there is none
    assert set(found.values()) == ({USER, POST, None} if guarded.watched.ddl else {USER, POST})
    standing = guarded.on_target(lambda conn: watch.check(conn, guarded.tables))
    assert set(standing.unwatched) == {USER, POST}
    again = guarded.on_target(lambda conn: watch.install(conn, guarded.tables))
    assert again.complete
    assert again.ddl == guarded.watched.ddl
    assert reading.judge(before, guarded.read()) == []


def test_a_target_of_the_first_format_is_upgraded(guarded: Guarded, pair: Pair) -> None:
    """What an older version left gets what the watch needs, and keeps what it had."""
    with pair.on_target() as conn:
        back_to_format_1(conn)
        link = conn.execute("SELECT id FROM pglockstep.link").fetchone()
        assert guarded.on_target(lambda ours: watch.install(ours, guarded.tables)).complete
        conn.execute("""UPDATE "User" SET name = 'x' WHERE id = 1""")
        assert conn.execute("SELECT version FROM pglockstep.format").fetchone() == (FORMAT,)
        assert conn.execute("SELECT id FROM pglockstep.link").fetchone() == link
    assert len(noted(guarded)) == 1


@pytest.mark.soak
@on_15_and_18
def test_how_soon_it_is_noticed(guarded: Guarded, pair: Pair) -> None:
    """Ten foreign updates, each told of; the median is printed."""
    conn = pair.on_target()
    after = []
    for number in range(10):
        update = f"""UPDATE "User" SET name = '{number}' WHERE id = 1""".encode()
        found = guarded.noticed(partial(conn.execute, update))
        guarded.on_target(partial(watch.dealt_with, seen=found))
        assert guarded.noticed_after is not None
        after.append(guarded.noticed_after)
    print(
        f"noticed after {statistics.median(after) * 1000:.0f} ms in the median, {max(after) * 1000:.0f} ms at most"
    )
