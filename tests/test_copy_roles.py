"""A first copy by roles that are no superusers, with the grants that the hints name."""

from __future__ import annotations

import re

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fix_copy import MakeRole, make_role, nothing_left, once, refused
from fix_servers import Cli, Pair, connect

__all__ = ["make_role"]

OWNER, COPIER = 'the "Owner"', "copier"


def as_roles(pair: Pair) -> Pair:
    """The same ends, reached by an owner on the source and the database's owner on the target."""
    with connect(pair.source) as conn:
        conn.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                sql.Identifier(conn.info.dbname), sql.Identifier(OWNER)
            )
        )
        conn.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(OWNER)))
    with connect(pair.target) as conn:
        conn.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                sql.Identifier(conn.info.dbname), sql.Identifier(COPIER)
            )
        )

    def user(conninfo: str, name: str) -> str:
        return make_conninfo("", **(conninfo_to_dict(conninfo) | {"user": name}))

    return Pair(user(pair.source, OWNER), user(pair.target, COPIER), pair.source_server, pair.target_server)


@pytest.mark.superusers
def test_no_superuser_is_needed(make_role: MakeRole, pair: Pair, cli: Cli) -> None:
    """REPLICATION and ownership are enough on the source, an own database on the target; foreign keys need one GRANT."""
    make_role(pair.source_server, OWNER, "LOGIN REPLICATION PASSWORD 's3cr3t'")
    make_role(pair.target_server, COPIER)
    ends = as_roles(pair)
    with connect(ends.source) as conn:
        conn.execute("CREATE SCHEMA app; CREATE TABLE app.a (id serial PRIMARY KEY, v text, j json)")
        conn.execute("CREATE TABLE app.keyless (v text); INSERT INTO app.keyless VALUES ('x'), ('x')")
        conn.execute("INSERT INTO app.a (v) VALUES ('x'); SELECT lo_from_bytea(0, 'x')")
        conn.execute(
            "CREATE VIEW app.v AS SELECT * FROM app.a; CREATE MATERIALIZED VIEW app.m AS SELECT * FROM app.v"
        )
        conn.execute(
            "CREATE FUNCTION app.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; GRANT SELECT ON app.a TO PUBLIC"
        )
        conn.execute("ALTER TABLE app.a ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON app.a USING (id < 0)")
        link = once(cli, ends)
        assert (link["verdict"], link["copied_rows"]) == ("identical", 3)
        conn.execute("UPDATE app.keyless SET v = 'y'; INSERT INTO app.a (v) VALUES ('y')")
        assert once(cli, ends)["verdict"] == "identical"
        conn.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    done = cli("teardown", "--source", ends.source, "--target", ends.target, "--yes")
    assert done.returncode == 0, done.stderr
    with connect(ends.target) as target:
        target.execute("DROP SCHEMA app CASCADE; SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    with connect(ends.source) as conn:
        conn.execute("CREATE TABLE app.b (a int REFERENCES app.a)")
        conn.execute("INSERT INTO app.b VALUES (1)")
    message, hint = refused(cli("once", "--source", ends.source, "--target", ends.target), 5)
    assert "app.a, app.b would fire" in message
    nothing_left(ends, {"app.a": "d", "app.b": "d", "app.keyless": "d"})
    granted = re.search(r"GRANT SET ON PARAMETER .*;", hint)
    assert granted is not None
    with connect(pair.target) as target:
        target.execute(granted[0].encode())
    link = once(cli, ends)
    assert (link["verdict"], link["copied_rows"]) == ("identical", 5)


@pytest.mark.superusers
def test_tables_of_others_are_named(make_role: MakeRole, pair: Pair, cli: Cli) -> None:
    """Only an owner can publish a table, and forced row security would hide rows: both are told beforehand."""
    make_role(pair.source_server, OWNER, "LOGIN REPLICATION PASSWORD 's3cr3t'")
    make_role(pair.target_server, COPIER)
    ends = as_roles(pair)
    with connect(pair.source) as conn:
        conn.execute("CREATE TABLE foreign_one (id int PRIMARY KEY)")
        message, hint = refused(cli("once", "--source", ends.source, "--target", ends.target), 4)
        assert "does not own public.foreign_one" in message
        assert "exclude" in hint
        nothing_left(pair, {"foreign_one": "d"})
        conn.execute("ALTER TABLE foreign_one FORCE ROW LEVEL SECURITY, ENABLE ROW LEVEL SECURITY")
        conn.execute(sql.SQL("ALTER TABLE foreign_one OWNER TO {}").format(sql.Identifier(OWNER)))
        message, hint = refused(cli("once", "--source", ends.source, "--target", ends.target), 4)
        assert "could hide rows of public.foreign_one" in message
        assert "BYPASSRLS" in hint
        nothing_left(pair, {"foreign_one": "d"})
