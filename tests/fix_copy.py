"""What the tests of the first copy share: the real command, what it must not leave behind, roles that go again."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from psycopg import sql

from fix_servers import Cli, Connection, Pair, connect
from pglockstep.demo.servers import ThrowawayServer
from pglockstep.postgres.installations import clients_for

#: Few words, quick refusals: what a test waits for in vain is given up after 6 × this.
IMPATIENT = 'lock_timeout = "300ms"\n'


def configured(cli: Cli, pair: Pair, settings: str) -> None:
    """Write a configuration of one link, `settings` being the rest of its table, where the command finds it."""
    text = f"[links.main]\nsource = {json.dumps(pair.source)}\ntarget = {json.dumps(pair.target)}\n{settings}"
    (cli.directory / "pglockstep.toml").write_text(text)


def answer(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    """The one link of a ``--json`` answer; the exit code must be `code`."""
    assert done.returncode == code, done.stdout + done.stderr
    link = json.loads(done.stdout)["links"][0]
    assert isinstance(link, dict)
    return link


def once(cli: Cli, pair: Pair, code: int = 0) -> dict[str, Any]:
    """``pglockstep once --json``: its one link."""
    return answer(cli("once", "--source", pair.source, "--target", pair.target, "--json"), code)


def check(cli: Cli, pair: Pair, code: int = 0) -> dict[str, Any]:
    """``pglockstep check --json``: its one link."""
    return answer(cli("check", "--source", pair.source, "--target", pair.target, "--json"), code)


def refused(done: subprocess.CompletedProcess[str], code: int) -> tuple[str, str]:
    """The line and the hint of a command that had to fail with `code`; warnings before them are left out."""
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("HINT: "), done.stderr
    assert lines[-2].startswith("pglockstep: "), done.stderr
    assert "Traceback" not in done.stderr
    return lines[-2].removeprefix("pglockstep: "), lines[-1].removeprefix("HINT: ")


def only_on_the_source(source: Connection, *, pause: float = 0) -> None:
    """Make ``public.here()`` for a check of a table: true on the source; the target refuses a row, after `pause` seconds."""
    source.execute(
        sql.SQL(
            "CREATE FUNCTION here() RETURNS bool LANGUAGE plpgsql AS $$BEGIN "
            "IF current_database() ~ '^tgt' THEN PERFORM pg_sleep({}); RAISE 'not here'; END IF; RETURN true; END$$"
        ).format(sql.Literal(pause))
    )


def identities(conn: Connection) -> dict[str, str]:
    """Each table's replica identity, as the catalog has it."""
    rows = conn.execute(
        "SELECT oid::regclass::text, relreplident::text FROM pg_class "
        "WHERE relkind IN ('r', 'p') AND relnamespace >= 2200 AND relnamespace::regnamespace::text !~ '^(pg_|info)'"
    )
    return dict(rows.fetchall())


def ours_on_source(conn: Connection) -> tuple[int, int]:
    """How many slots and publications of ours the source database has."""
    row = conn.execute(
        "SELECT (SELECT count(*) FROM pg_replication_slots "
        "WHERE slot_name ~ '^pglockstep_' AND database = current_database()), "
        "(SELECT count(*) FROM pg_publication WHERE pubname ~ '^pglockstep_')"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def nothing_left(pair: Pair, before: dict[str, str]) -> None:
    """Nothing of ours on either end, the source's replica identities as `before`, nothing of the source on the target."""
    with connect(pair.source) as source, connect(pair.target) as target:
        for conn in (source, target):
            conn.execute("SET client_encoding = 'UTF8'")
        assert ours_on_source(source) == (0, 0)
        assert identities(source) == before
        held = target.execute(
            "SELECT nspname FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_' "
            "UNION ALL SELECT relname FROM pg_class WHERE oid >= 16384 AND relnamespace = 2200 "
            "UNION ALL SELECT oid::text FROM pg_largeobject_metadata"
        ).fetchall()
        assert held == []


def dumped(server: ThrowawayServer, conninfo: str) -> str:
    """The schema as pg_dump of the server's own version writes it, owners and grants included, ours left out."""
    program = clients_for(server.major, os.environ).program("pg_dump")
    arguments = ["--schema-only", "--no-publications", "--no-subscriptions", "--exclude-schema=pglockstep"]
    done = subprocess.run(
        [program, *arguments, "--dbname", conninfo], capture_output=True, text=True, check=True, timeout=60
    )
    frame = r"^\\(un)?restrict \S+$"
    return re.sub(frame, "", done.stdout, flags=re.MULTILINE)


class MakeRole(Protocol):
    def __call__(
        self, server: ThrowawayServer, name: str, options: str = "LOGIN PASSWORD 's3cr3t'"
    ) -> None: ...


@pytest.fixture
def make_role() -> Iterator[MakeRole]:
    """Makes a role on a server; it is gone after the test. To be asked for before databases that it owns things in."""
    made: list[tuple[ThrowawayServer, sql.Identifier]] = []

    def make(server: ThrowawayServer, name: str, options: str = "LOGIN PASSWORD 's3cr3t'") -> None:
        with connect(server.conninfo()) as conn:
            conn.execute(sql.SQL("CREATE ROLE {} {}").format(sql.Identifier(name), sql.SQL(options)))
        made.append((server, sql.Identifier(name)))

    yield make
    for server, name in made:
        with connect(server.conninfo()) as conn:
            if server.major >= 15:
                conn.execute(sql.SQL("REVOKE SET ON PARAMETER session_replication_role FROM {}").format(name))
            conn.execute(sql.SQL("DROP OWNED BY {}").format(name))
            conn.execute(sql.SQL("DROP ROLE {}").format(name))
