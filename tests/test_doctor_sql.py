"""``doctor --sql``: what it prints, pasted into psql as it stands, is enough for a whole link by ordinary roles."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fix_copy import check, once
from fix_doctor import Patient, as_role, psql
from fix_servers import Cli, Pair, connect, on_all_pairs
from pglockstep.demo.servers import ThrowawayServer

#: What an application may have made: by its own role, by a superuser, in the open and behind walls.
APPLICATION = """
CREATE ROLE "App owner"; CREATE ROLE reader;
GRANT CREATE ON DATABASE {database} TO "App owner"; REVOKE CONNECT ON DATABASE {database} FROM PUBLIC;
CREATE SEQUENCE numbers; SELECT nextval('numbers'); SELECT lo_from_bytea(0, 'x');
CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (1000);
CREATE TABLE "x
CREATE ROLE evil; --" (id int PRIMARY KEY);
ALTER TABLE "x
CREATE ROLE evil; --" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE TABLE keyless (v text); INSERT INTO keyless VALUES ('x'), ('x');
INSERT INTO root SELECT n, 'r' FROM generate_series(1, 9) AS n;
SET ROLE "App owner";
CREATE SCHEMA "My app";
CREATE TABLE "My app"."User" (id serial PRIMARY KEY, name text UNIQUE, boss int REFERENCES "My app"."User" ON DELETE CASCADE);
CREATE TABLE "My app".secret (id int PRIMARY KEY, v text);
ALTER TABLE "My app".secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY none ON "My app".secret TO reader USING (false);
CREATE FUNCTION "My app".no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep_out BEFORE INSERT ON "My app"."User" FOR EACH ROW WHEN (NEW.name = 'nobody') EXECUTE FUNCTION "My app".no();
CREATE MATERIALIZED VIEW "My app".m AS SELECT count(*) FROM "My app"."User";
GRANT SELECT ON "My app"."User" TO reader;
RESET ROLE;
ALTER TABLE "My app".secret DISABLE ROW LEVEL SECURITY; INSERT INTO "My app".secret VALUES (1, 'x'), (2, 'y');
ALTER TABLE "My app".secret ENABLE ROW LEVEL SECURITY;
INSERT INTO "My app"."User" (name, boss) VALUES ('a', NULL), ('b', 1);
"""

WRITES = """
INSERT INTO "My app"."User" (name, boss) SELECT 'n' || n, 1 FROM generate_series(1, 500) AS n;
UPDATE "My app"."User" SET name = 'c' WHERE id = 2; DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless);
INSERT INTO root VALUES (77, 's'); UPDATE root SET v = 't' WHERE id < 5;
INSERT INTO "My app".secret VALUES (3, 'z'); UPDATE "My app".secret SET v = 'w'; DELETE FROM "My app".secret WHERE id = 1;
SELECT nextval('numbers') FROM generate_series(1, 50);
"""


@pytest.fixture
def application(pair: Pair) -> Iterator[Pair]:
    """A source with an application in it, and what its roles and ours leave on both servers taken away again."""
    with connect(pair.source) as conn:
        name = sql.Identifier(conn.info.dbname).as_string()
        conn.execute(APPLICATION.replace("{database}", name).encode())
        if pair.source_server.major >= 16:
            conn.execute('CREATE SCHEMA "Ext"; CREATE EXTENSION vector SCHEMA "Ext"')
            conn.execute('CREATE TABLE embedding (id int PRIMARY KEY, v "Ext".vector(2))')
            conn.execute("INSERT INTO embedding VALUES (1, '[1,2]')")
    yield pair
    for server, conninfo in ((pair.source_server, pair.source), (pair.target_server, pair.target)):
        clean(server, conninfo)


def clean(server: ThrowawayServer, conninfo: str) -> None:
    with connect(conninfo) as conn:
        for role in ("pglockstep", "App owner", "reader"):
            if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is None:
                continue
            name = sql.Identifier(role)
            if server.major >= 15:
                conn.execute(sql.SQL("REVOKE SET ON PARAMETER session_replication_role FROM {}").format(name))
            conn.execute(sql.SQL("REASSIGN OWNED BY {} TO postgres; DROP OWNED BY {}").format(name, name))
            conn.execute(sql.SQL("DROP ROLE {}").format(name))


def demand_restored(cli: Cli, small: Pair) -> None:
    """A table with a trigger and a foreign key is wiped, held, and put back: that needs the most of these grants."""
    with connect(small.source) as conn:
        users = conn.execute('SELECT count(*) FROM "My app"."User"').fetchone()
        conn.execute('DELETE FROM "My app"."User"')
    assert cli("once", *ends(small)).returncode == 6
    done = cli("incidents", "restore", "1", "--yes", *ends(small))
    assert done.returncode == 0, done.stdout + done.stderr
    with connect(small.source) as conn:
        assert conn.execute('SELECT count(*) FROM "My app"."User"').fetchone() == users
    assert once(cli, small)["verdict"] == "identical"


def ends(pair: Pair) -> list[str]:
    return ["--source", pair.source, "--target", pair.target]


@pytest.mark.superusers
@on_all_pairs
def test_what_it_prints_is_enough(application: Pair, cli: Cli) -> None:
    """Fresh ordinary roles copy, follow live writes, compare and leave no trace, with these grants and no others."""
    pair = application
    done = cli("doctor", "--sql", "--json", *ends(pair))
    assert done.returncode == 0, done.stderr
    script = json.loads(done.stdout)["links"][0]
    printed = cli("doctor", "--sql", *ends(pair)).stdout
    assert script["source"] in printed
    assert script["target"] in printed
    password = str(conninfo_to_dict(pair.source_server.conninfo(host="localhost"))["password"])
    assert password not in printed
    psql(pair.source, script["source"])
    psql(pair.target, script["target"])
    # pasted twice it does no harm, as it knows by now that the roles are there
    again = json.loads(cli("doctor", "--sql", "--json", *ends(pair)).stdout)["links"][0]
    assert "CREATE ROLE pglockstep" not in again["source"] + again["target"]
    psql(pair.source, again["source"])
    psql(pair.target, again["target"])
    for conninfo in (pair.source, pair.target):
        with connect(conninfo) as conn:
            assert conn.execute("SELECT FROM pg_roles WHERE rolname = 'evil'").fetchone() is None

    small = Pair(
        as_role(pair.source, "pglockstep"),
        as_role(pair.target, "pglockstep"),
        pair.source_server,
        pair.target_server,
    )
    for conninfo in (small.source, small.target):
        with connect(conninfo) as conn:
            assert conn.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (
                False,
            )
    findings = Patient(cli, pair, small.source, small.target).findings()
    assert [each for each in findings if each["severity"] == "error"] == []
    (cli.directory / "pglockstep.toml").unlink()
    assert once(cli, small)["verdict"] == "identical"
    with connect(pair.source) as conn:
        conn.execute(WRITES.encode())
    link = once(cli, small)
    assert (link["verdict"], link["applied_changes"] > 500) == ("identical", True)
    assert check(cli, small)["verdict"] == "identical"
    demand_restored(cli, small)
    done = cli("teardown", *ends(small), "--yes")
    assert done.returncode == 0, done.stderr
    with connect(pair.source) as conn:
        assert conn.execute("SELECT count(*) FROM pg_publication").fetchone() == (0,)


@pytest.mark.superusers
def test_an_end_that_cannot_be_read(pair: Pair, cli: Cli) -> None:
    """The other end's part is printed all the same, what is missing is said, and the exit code tells."""
    nowhere = make_conninfo(pair.target, dbname="nowhere", user="sync")
    done = cli("doctor", "--sql", "--source", pair.source, "--target", nowhere)
    assert done.returncode == 1
    assert "CREATE ROLE pglockstep LOGIN REPLICATION;" in done.stdout
    assert "CREATE ROLE sync LOGIN;" in done.stdout
    assert "could not be read" in done.stdout
