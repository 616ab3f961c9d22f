"""What a target loses is put back from the source while that is written to: rows, tables, schemas, the database itself."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fix_copy import MakeRole, check, make_role, once
from fix_guard import Guarded, named, tables_with_rows
from fix_mirror import contents
from fix_servers import INSTALLED, Cli, Pair, connect, on_all_pairs
from fix_workload import SCHEMA, workload
from pglockstep.demo.servers import ThrowawayServer
from pglockstep.guard import database, watch
from pglockstep.guard.heal import Healed
from pglockstep.postgres.names import QualifiedName
from test_guard_watch import USERS, on_15_and_18

pytestmark = pytest.mark.unguarded

__all__ = ["make_role"]

#: What somebody does to a target, and whether the watch tells of it: a database that is gone tells nobody.
HARM: dict[str, list[str]] = {
    "drop schema": ["DROP SCHEMA public CASCADE", 'DROP SCHEMA "Odd ""Names""" CASCADE'],
    "drop everything of ours too": ["DROP SCHEMA pglockstep CASCADE", "TRUNCATE account CASCADE"],
    "truncate": ["TRUNCATE account, seat, spot CASCADE"],
    "restart": ["TRUNCATE account, scrap RESTART IDENTITY CASCADE"],
    "delete": [
        "DELETE FROM entry; DELETE FROM account; DELETE FROM seat; DELETE FROM spot; DELETE FROM part; DELETE FROM scrap",
        'DELETE FROM "Odd ""Names""".log',
    ],
    "column": ["ALTER TABLE account DROP COLUMN balance CASCADE", "ALTER TABLE part DROP COLUMN v"],
    "key column": ["ALTER TABLE account DROP COLUMN id CASCADE", "ALTER TABLE spot DROP COLUMN n"],
    "column added": [
        "ALTER TABLE seat ADD COLUMN theirs int NOT NULL DEFAULT 1",
        "ALTER TABLE spot RENAME note TO noted",
    ],
    "column changed": ["ALTER TABLE seat ALTER place TYPE text", "ALTER TABLE scrap ALTER v SET NOT NULL"],
    "update": ["UPDATE account SET email = 'theirs' WHERE id = 7"],
    "update all": ['UPDATE account SET big = NULL; UPDATE "Odd ""Names""".log SET n = 1'],
    "insert": [
        "INSERT INTO seat VALUES (1000, 1000)",
        'INSERT INTO "Odd ""Names""".log SELECT line, n, j FROM "Odd ""Names""".log LIMIT 2',
    ],
    "constraints": [
        "ALTER TABLE entry DROP CONSTRAINT entry_account_fkey, DROP CONSTRAINT positive",
        "ALTER TABLE account DROP CONSTRAINT account_email_key, ALTER balance DROP DEFAULT, ALTER balance DROP NOT NULL",
        "ALTER TABLE spot DROP CONSTRAINT spot_pkey",
    ],
    "view and function": [
        "DROP VIEW rich; DROP FUNCTION audit() CASCADE; DROP MATERIALIZED VIEW many; DROP TYPE mood CASCADE"
    ],
    "partition": ["DROP TABLE part_old", "ALTER TABLE account RENAME TO renamed"],
}
#: What triggers on tables tell of; all else is told by event triggers, which need a superuser: without, the poll has to do.
OF_ROWS = {"truncate", "restart", "delete", "update", "update all", "insert"}
#: What takes away the voice of the watch first: the poll has to do.
SILENT = {"drop everything of ours too"}

MORE = """
ALTER TABLE entry ADD CONSTRAINT positive CHECK (amount > -1000000);
CREATE VIEW rich AS SELECT id, balance FROM account WHERE balance > 100;
CREATE MATERIALIZED VIEW many AS SELECT mood, count(*) FROM account GROUP BY mood;
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'the application''s triggers fire'; END$$;
CREATE TRIGGER audited BEFORE DELETE ON seat FOR EACH ROW EXECUTE FUNCTION audit();
CREATE INDEX entry_at ON entry (at) WHERE amount > 0;
COMMENT ON COLUMN account.email IS 'lower case';
GRANT SELECT ON account TO PUBLIC;
"""


def demand_twins(cli: Cli, pair: Pair) -> None:
    """Both ends hold the same rows and the same schema, by the text of every row and by ``check``."""
    once(cli, pair)
    with connect(pair.source) as source, connect(pair.target) as target:
        assert contents(target) == contents(source)
    found = check(cli, pair)
    assert found["verdict"] == "identical", found


@on_15_and_18
@pytest.mark.parametrize("harm", sorted(HARM))
def test_what_was_lost_is_put_back_under_writers(cli: Cli, pair: Pair, harm: str) -> None:
    """Noticed, healed while two writers go on at the source, brought level; then both ends are twins, watched as before."""
    pair.on_source().execute(SCHEMA)
    pair.on_source().execute(MORE)
    guarded = Guarded(cli, pair)
    tables = guarded.tables
    with workload(pair.source):
        with pair.superuser_on_target() as conn:
            conn.execute("SET session_replication_role = origin")
            conn.execute("ALTER TABLE seat DISABLE TRIGGER audited")
            before = guarded.read()
            suspects = None
            if harm in SILENT or not (guarded.watched.ddl or harm in OF_ROWS):
                for each in HARM[harm]:
                    conn.execute(each.encode())
                assert guarded.polled(before)
            else:
                told_of = guarded.noticed(lambda: [conn.execute(each.encode()) for each in HARM[harm]])
                assert told_of.writes
                suspects = named(guarded.on_target(watch.pending).writes)
        healed = guarded.heal(suspects)
    pair.superuser_on_target().execute("ALTER TABLE seat ENABLE TRIGGER audited")
    assert guarded.on_target(lambda ours: watch.check(ours, tables)).complete
    print(
        f"{harm}: {healed.put_back} rows back, {healed.removed} away, {healed.made}, {dict(healed.seconds)}"
    )
    demand_twins(cli, pair)
    assert healed.made or healed.put_back or healed.removed


# the database is made again, with what only a superuser gives it
@pytest.mark.superusers
@on_15_and_18
def test_a_dropped_database_comes_back_as_it_was(cli: Cli, pair: Pair) -> None:
    """With owner, settings, grants and comment, watched and filled, while the source is written to."""
    pair.on_source().execute(SCHEMA)
    pair.on_source().execute(MORE)
    name = str(conninfo_to_dict(pair.target)["dbname"])
    furnish = """
        ALTER DATABASE {0} SET search_path = "Odd Names", public; ALTER DATABASE {0} SET work_mem = '7MB';
        ALTER DATABASE {0} SET app.colour = 'it''s red'; ALTER ROLE CURRENT_USER IN DATABASE {0} SET statement_timeout = '1h';
        ALTER DATABASE {0} CONNECTION LIMIT 77; COMMENT ON DATABASE {0} IS 'the twin';
        REVOKE TEMPORARY ON DATABASE {0} FROM PUBLIC; GRANT CREATE ON DATABASE {0} TO PUBLIC
    """
    pair.superuser_on_target().execute(sql.SQL(furnish).format(sql.Identifier(name)))
    guarded = Guarded(cli, pair)
    before = guarded.read()
    shape = guarded.remembered.database
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    with workload(pair.source):
        with connect(pair.target_server.conninfo()) as elsewhere:
            elsewhere.execute(drop)
        [trouble] = guarded.polled(before)
        assert trouble.kind == "missing_database"
        healed = guarded.heal()
    assert healed.put_back > 0
    assert guarded.on_target(database.read) == shape
    demand_twins(cli, pair)


def test_a_heal_that_fails_leaves_the_target_as_it_was(cli: Cli, pair: Pair) -> None:
    """A row that the target cannot take rolls back everything; the next heal, with that out of the way, puts all right."""
    pair.on_source().execute(USERS)
    guarded = Guarded(cli, pair)
    with pair.on_target() as conn:
        conn.execute('TRUNCATE "User" CASCADE')
        conn.execute("CREATE UNIQUE INDEX theirs ON post ((author IS NULL))")
    with pytest.raises(Exception, match="theirs"):
        guarded.heal()
    with pair.on_target() as conn:
        assert tables_with_rows(conn) == {'public."User"': 0, "public.post": 0}
        conn.execute("DROP INDEX theirs")
    assert guarded.heal().put_back == 122
    demand_twins(cli, pair)


@on_all_pairs
def test_only_what_differs_is_written(cli: Cli, pair: Pair) -> None:
    """In a table of 100,000 rows three differ: as many are written, the others stay where they are; equal ends stay alone."""
    pair.on_source().execute(
        "CREATE TABLE big (id int PRIMARY KEY, v text, f float8, a numeric[]); "
        "INSERT INTO big SELECT n, repeat(n::text, 5), n / 3.0, ARRAY[n, NULL] FROM generate_series(1, 100000) AS n; "
        "CREATE TABLE bag (v int, w text); INSERT INTO bag SELECT n % 10, repeat('x', 40) FROM generate_series(1, 50000) AS n"
    )
    guarded = Guarded(cli, pair)
    big, bag = QualifiedName("public", "big"), QualifiedName("public", "bag")
    assert not guarded.heal({big, bag}).put_back
    where = "SELECT sum(hashtext(ctid::text)::bigint) FROM big WHERE id NOT IN (5, 6, 777777)"
    with pair.on_target() as conn:
        conn.execute("SET application_name = 'theirs'")
        stood = conn.execute(where.encode()).fetchone()
        conn.execute(
            "UPDATE big SET v = NULL WHERE id = 5; DELETE FROM big WHERE id = 6; INSERT INTO big VALUES (777777)"
        )
        conn.execute(
            "INSERT INTO bag VALUES (3, repeat('x', 40)); "
            "DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE v = 4 LIMIT 7)"
        )
        healed = guarded.heal({big, bag})
        assert (healed.tables[big].put_back, healed.tables[big].removed) == (2, 2)
        assert (healed.tables[bag].put_back, healed.tables[bag].removed) == (7, 1)
        assert healed.tables[big].sent < 200_000
        assert conn.execute(where.encode()).fetchone() == stood
    assert [each.application for each in guarded.on_target(watch.pending).writes] == ["theirs"] * 5
    demand_twins(cli, pair)


def test_a_role_that_may_not_act_as_a_replica_is_known_by_its_token(
    make_role: MakeRole, cli: Cli, pair: Pair
) -> None:
    """Its applies and its heal are no foreign writes; another role's are, and DDL is left to the poll."""
    make_role(pair.target_server, "bare", "LOGIN")
    name = str(conninfo_to_dict(pair.target)["dbname"])
    pair.superuser_on_target().execute(
        sql.SQL("ALTER DATABASE {} OWNER TO bare; ALTER SCHEMA public OWNER TO bare").format(
            sql.Identifier(name)
        )
    )
    bare = replace(pair, target=make_conninfo(pair.target, user="bare"))
    bare.on_source().execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'x' FROM generate_series(1, 50) AS n"
    )
    guarded = Guarded(cli, bare)
    assert guarded.watched.complete
    assert not guarded.watched.ddl
    before = guarded.read()
    with pair.superuser_on_target() as conn:
        conn.execute("DELETE FROM t WHERE id < 9")
        assert [each.row_count for each in guarded.on_target(watch.pending).writes] == [8]
        assert guarded.heal({QualifiedName("public", "t")}).put_back == 8
        assert len(guarded.on_target(watch.pending).writes) == 1
        conn.execute("ALTER TABLE t DROP COLUMN v")
        [trouble] = guarded.polled(before)
        assert (trouble.kind, trouble.sure) == ("drop", True)
    guarded.heal()
    assert len(guarded.on_target(watch.pending).writes) == 1
    demand_twins(cli, bare)


@pytest.mark.soak
@on_15_and_18
def test_how_soon_a_small_table_is_back(cli: Cli, pair: Pair) -> None:
    """22 rows of "User", wiped in each way on a server where NOTIFY may be used, under load; the times are printed."""
    pair.on_source().execute(USERS)
    pair.on_source().execute(SCHEMA)
    settings = {"max_prepared_transactions": "0"}
    with ThrowawayServer(INSTALLED[pair.target_server.major], name="notifies", settings=settings) as server:
        with connect(server.conninfo()) as maintenance:
            maintenance.execute("CREATE DATABASE twin")
            ends = Pair(pair.source, server.conninfo("twin"), pair.source_server, server)
            guarded = Guarded(cli, ends)
            user = QualifiedName("public", "User")
            with workload(pair.source):
                for harm in ('DELETE FROM "User"', 'TRUNCATE "User" CASCADE', "DROP SCHEMA public CASCADE"):
                    with ends.on_target() as conn:
                        found = guarded.noticed(partial(conn.execute, harm.encode()))
                    noticed = guarded.noticed_after
                    began = time.monotonic()
                    healed = guarded.heal(named(found.writes))
                    took = time.monotonic() - began
                    assert guarded.rows(user) == 22
                    print(f"{harm}: noticed {noticed:.3f} s, back {took:.2f} s, {told(healed)}")
                    guarded.on_target(partial(watch.dealt_with, seen=guarded.on_target(watch.pending)))
                    guarded.remember()
                before = guarded.read()
                maintenance.execute("DROP DATABASE twin WITH (FORCE)")
                began = time.monotonic()
                [trouble] = guarded.polled(before)
                assert trouble.kind == "missing_database"
                healed = guarded.heal()
                print(f"DROP DATABASE: back {time.monotonic() - began:.2f} s, {told(healed)}")
            assert guarded.rows(user) == 22
        demand_twins(cli, ends)
        ends.close()


def told(healed: Healed) -> str:
    """Where the time went."""
    return ", ".join(f"{what} {seconds:.2f}" for what, seconds in healed.seconds.items())


@pytest.mark.soak
@on_15_and_18
def test_how_long_a_million_rows_take(cli: Cli, pair: Pair) -> None:
    """All of them lost by TRUNCATE and by DELETE, half of them, one of them; beside a raw binary COPY; printed."""
    pair.on_source().execute(
        "CREATE TABLE big (id int PRIMARY KEY, at timestamptz, name text, amount numeric, note text); "
        "INSERT INTO big SELECT n, now(), 'name ' || n, n / 7.0, repeat('x', 40) FROM generate_series(1, 1000000) AS n"
    )
    guarded = Guarded(cli, pair)
    big = QualifiedName("public", "big")
    harms = (
        "TRUNCATE big",
        "DELETE FROM big",
        "DELETE FROM big WHERE id % 2 = 0",
        "UPDATE big SET name = '' WHERE id = 7",
    )
    with pair.on_source() as source, pair.on_target() as target:
        target.execute("CREATE TABLE raw (LIKE big INCLUDING ALL)")
        began = time.monotonic()
        with (
            source.cursor().copy("COPY big TO STDOUT (FORMAT binary)") as out,
            target.cursor().copy("COPY raw FROM STDIN (FORMAT binary)") as into,
        ):
            for chunk in out:
                into.write(chunk)
        print(f"raw binary COPY: {time.monotonic() - began:.2f} s")
        target.execute("DROP TABLE raw")
        for harm in harms:
            target.execute(harm.encode())
            began = time.monotonic()
            healed = guarded.heal({big})
            print(f"{harm}: {healed.put_back} rows, {time.monotonic() - began:.2f} s, {told(healed)}")
            assert guarded.rows(big) == 1_000_000
    demand_twins(cli, pair)
