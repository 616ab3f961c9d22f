"""What poll mode needs of a source: to be read, and nothing else. A standby will do, and the doctor asks for no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from psycopg import sql

from fix_copy import refused
from fix_doctor import as_role, psql
from fix_polled import SCHEMA, polled
from fix_servers import INSTALLED, Cli, Pair, connect, majors, on_all_pairs, wait_until
from pglockstep.demo.servers import ThrowawayServer
from test_doctor_sql import APPLICATION, WRITES, clean


def configured(cli: Cli, source: str, target: str) -> None:
    """One link that polls."""
    text = f'[links.main]\nmode = "poll"\ninterval = "1s"\nsource = {json.dumps(source)}\ntarget = {json.dumps(target)}\n'
    (cli.directory / "pglockstep.toml").write_text(text)


@pytest.mark.superusers
@on_all_pairs
def test_what_the_doctor_prints_is_enough(pair: Pair, cli: Cli) -> None:
    """With the grants of ``doctor --sql``, and no others, a fresh role copies and polls; the doctor has nothing against it."""
    with connect(pair.source) as conn:
        name = sql.Identifier(conn.info.dbname).as_string()
        conn.execute(APPLICATION.replace("{database}", name).encode())
    try:
        configured(cli, pair.source, pair.target)
        done = cli("doctor", "--sql", "--json")
        assert done.returncode == 0, done.stderr
        script = json.loads(done.stdout)["links"][0]
        for word in ("REPLICATION", "CREATE ON DATABASE", "INSERT", "session_replication_role", "OWNER TO"):
            assert word not in script["source"], script["source"]
        psql(pair.source, script["source"])
        psql(pair.target, script["target"])
        small = as_role(pair.source, "pglockstep"), as_role(pair.target, "pglockstep")
        configured(cli, *small)
        found = json.loads(cli("doctor", "--json").stdout)["findings"]
        assert [each for each in found if each["severity"] == "error"] == []
        done = cli("once", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        with connect(pair.source) as conn:
            conn.execute(WRITES.encode())
        done = cli("once", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["links"][0]["verdict"] == "identical"
        assert cli("doctor", "--json").returncode == 0
        with connect(pair.source) as conn:
            for query in ("SELECT FROM pg_publication", "SELECT FROM pg_replication_slots"):
                assert conn.execute(query.encode()).rowcount == 0
        assert cli("teardown", "--yes").returncode == 0
    finally:
        for server, conninfo in ((pair.source_server, pair.source), (pair.target_server, pair.target)):
            clean(server, conninfo)


def test_what_is_missing_is_named(pair: Pair, cli: Cli) -> None:
    """A table that may not be read is named, by the doctor and by once; and one whose rows a policy would hide."""
    with polled(cli, pair) as link:
        link.write(
            f'REVOKE SELECT ON "Genre" FROM {link.role}', 'ALTER TABLE "Setting" ENABLE ROW LEVEL SECURITY'
        )
        message, hint = refused(cli("once"), 4)
        assert "Genre" in message
        assert f'GRANT SELECT ON public."Genre" TO {link.role};' in hint
        found = json.loads(cli("doctor", "--json").stdout)["findings"]
        errors = {each["code"] for each in found if each["severity"] == "error"}
        assert errors == {"not_readable", "hidden_rows"}


def test_a_link_that_was_streamed(pair: Pair, cli: Cli) -> None:
    """A slot that nobody reads any more is not left to keep WAL: that is said first, and then polls go on from there."""
    with connect(pair.source) as conn:
        conn.execute(SCHEMA.encode())
    ends = ("--source", pair.source, "--target", pair.target)
    assert cli("once", *ends).returncode == 0
    configured(cli, pair.source, pair.target)
    message, hint = refused(cli("once"), 4)
    assert "slot" in message
    assert "pg_drop_replication_slot" in hint
    found = json.loads(cli("doctor", "--json").stdout)["findings"]
    assert [each["code"] for each in found if each["severity"] == "error"] == ["slot_left"]
    with connect(pair.source) as conn:
        fix = next(each["fix"] for each in found if each["code"] == "slot_left")
        for statement in fix.split("\n"):
            conn.execute(statement.encode())
        conn.execute("""INSERT INTO "Genre" VALUES (100, 'since')""")
    done = cli("once", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["links"][0]["verdict"] == "identical"


@pytest.mark.skipif(not majors, reason="no server is installed")
def test_a_standby_as_the_source(pair: Pair, cli: Cli, tmp_path: Path) -> None:
    """What its primary writes arrives by way of the standby, which takes no writes at all; then it is promoted."""
    primary = pair.source_server
    with connect(pair.source) as conn:
        conn.execute(SCHEMA.encode())
        name = conn.info.dbname
    server = ThrowawayServer(INSTALLED[primary.major], name="standby")
    try:
        program = primary.installation.program("pg_basebackup")
        args: list[str | Path] = [
            program,
            "-D",
            server.data,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "-d",
            primary.conninfo(),
        ]
        code, said = server.user.run(args)
        assert code == 0, said
        with (server.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"unix_socket_directories = '{server.socket_dir}'\n")
        server.start()
        configured(cli, server.conninfo(name), pair.target)
        for command in ("doctor", "once", "check", "status"):
            done = cli(command, "--json")
            assert done.returncode == 0, (command, done.stdout, done.stderr)
        running = cli.start("run")

        def arrives(number: int) -> None:
            with connect(pair.source) as conn:
                conn.execute(f"INSERT INTO \"Genre\" VALUES ({number}, 'n{number}')".encode())
            with pair.on_target() as target:
                query = f'SELECT FROM "Genre" WHERE "GenreId" = {number}'.encode()
                wait_until(lambda: target.execute(query).rowcount, 40, "the row to arrive")

        for number in (100, 101):
            arrives(number)
        assert cli("check", "--json").returncode == 0
        with connect(server.conninfo(name)) as conn:
            conn.execute("SELECT pg_promote()")
            conn.execute("""INSERT INTO "Genre" VALUES (200, 'promoted')""")
        with pair.on_target() as target:
            query = 'SELECT FROM "Genre" WHERE "GenreId" = 200'
            wait_until(lambda: target.execute(query).rowcount, 40, "the row to arrive")
        assert running.poll() is None
        running.terminate()
        assert running.wait(20) == 0
    finally:
        server.close()
