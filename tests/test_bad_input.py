"""Wrong input: each ends with its exit code, one line and one HINT, and changes nothing on either end."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fix_servers import INSTALLED, Cli, MakeDatabase, Pair, connect, wait_until
from pglockstep.demo.servers import ThrowawayServer

COMMANDS = ["once", "check", "run"]


def ends(source: str, target: str) -> list[str]:
    return ["--source", source, "--target", target]


def other(conninfo: str, **changed: str | int) -> str:
    return make_conninfo(conninfo, **changed)


def everything_of_ours(conninfo: str) -> list[tuple[object, ...]]:
    """All that a link could have left in a database."""
    with connect(conninfo) as conn:
        return [
            *conn.execute("SELECT 'slot', slot_name FROM pg_replication_slots").fetchall(),
            *conn.execute("SELECT 'publication', pubname FROM pg_publication").fetchall(),
            *conn.execute(
                "SELECT 'schema', nspname FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1, 2"
            ).fetchall(),
            *conn.execute(
                "SELECT 'identity', relname, relreplident::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384 ORDER BY 2"
            ).fetchall(),
            *conn.execute(
                "SELECT 'table', count(*) FROM pg_tables WHERE schemaname !~ '^(pg_|information)'"
            ).fetchall(),
        ]


@contextlib.contextmanager
def nothing_changes(*conninfos: str) -> Iterator[None]:
    before = [everything_of_ours(each) for each in conninfos]
    yield
    assert [everything_of_ours(each) for each in conninfos] == before


def refused(cli: Cli, arguments: list[str], code: int, *words: str, secret: str = "") -> None:
    """The command ends with `code`, one line that has all `words`, one HINT, an empty stdout and no secret."""
    done = cli(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.strip().splitlines() if " info " not in line]
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("pglockstep: ")
    assert lines[1].startswith("HINT: ")
    assert len(lines[1]) > len("HINT: ")
    for word in words:
        assert word in lines[0], lines[0]
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if secret:
        assert secret not in done.stderr


@pytest.fixture
def filled(pair: Pair) -> Pair:
    """A source with a table that has a key and one that has none."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE keyless (v text)")
    return pair


@pytest.fixture
def login(filled: Pair) -> Iterator[tuple[str, str]]:
    """A role with a password that owns nothing and may not use replication; its TCP connection string."""
    role, password = f"app_{secrets.token_hex(3)}", f"secret-{secrets.token_hex(6)}"
    with connect(filled.source_server.conninfo()) as conn:
        conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'".encode())
    yield other(filled.source, host="127.0.0.1", user=role, password=password), password
    with connect(filled.source_server.conninfo()) as conn:
        conn.execute(f"DROP ROLE {role}".encode())


def test_an_unknown_key(filled: Pair, cli: Cli) -> None:
    """A misspelt key is named with its line, and the right name is in the hint."""
    (cli.directory / "pglockstep.toml").write_text(
        f"[links.main]\nsource = '''{filled.source}'''\ntarget = '''{filled.target}'''\nintervall = '30s'\n"
    )
    with nothing_changes(filled.source, filled.target):
        for command in COMMANDS:
            refused(cli, [command], 3, "pglockstep.toml:4", "intervall")
    assert "interval" in cli("once").stderr.splitlines()[1]


def test_a_missing_file(cli: Cli) -> None:
    """A file that is not there, and no configuration at all."""
    for command in [*COMMANDS, "status"]:
        refused(cli, [command, "-c", "nowhere.toml"], 3, "nowhere.toml")
        refused(cli, [command], 3, "no configuration")


@pytest.mark.parametrize("mode", ["two-way"])
def test_a_mode_that_is_not_built_yet(filled: Pair, cli: Cli, mode: str) -> None:
    """A promised mode that this version does not have ends with 3."""
    (cli.directory / "pglockstep.toml").write_text(
        f"[links.main]\nsource = '''{filled.source}'''\ntarget = '''{filled.target}'''\nmode = '{mode}'\n"
    )
    with nothing_changes(filled.source, filled.target):
        refused(cli, ["once"], 3, mode)


def test_wrong_usage(filled: Pair, cli: Cli) -> None:
    """An unknown command, an unknown option, one end alone, two descriptions of one link."""
    refused(cli, ["onse"], 2, "onse")
    refused(cli, ["once", "--frobnicate"], 2, "--frobnicate")
    refused(cli, ["once", "--source", filled.source], 2, "one end alone")
    refused(cli, ["once", "-c", "x.toml", *ends(filled.source, filled.target)], 2, "--source")


def test_a_wrong_password(filled: Pair, cli: Cli, login: tuple[str, str]) -> None:
    """A password that the server refuses: exit 4 or 5, and the password is nowhere."""
    wrong = other(login[0], password="hunter2-wrong")
    with nothing_changes(filled.source, filled.target):
        for command in COMMANDS:
            refused(
                cli, [command, *ends(wrong, filled.target)], 4, "source", "password", secret="hunter2-wrong"
            )
        refused(cli, ["once", *ends(filled.source, wrong)], 5, "target", "password", secret="hunter2-wrong")


def test_a_role_without_replication(filled: Pair, cli: Cli, login: tuple[str, str]) -> None:
    """A role that may not decode: the hint is the ALTER ROLE that lets it."""
    with nothing_changes(filled.source, filled.target):
        for command in ("once", "run"):
            refused(cli, [command, *ends(login[0], filled.target)], 4, "replication", secret=login[1])
    assert "ALTER ROLE" in cli("once", *ends(login[0], filled.target)).stderr


def test_a_stopped_server(filled: Pair, cli: Cli) -> None:
    """A server that is not there: 4 for the source, 5 for the target, 4 for both."""
    gone = "host=127.0.0.1 port=1 dbname=x user=x connect_timeout=2"
    with nothing_changes(filled.source, filled.target):
        for command in COMMANDS:
            refused(cli, [command, *ends(gone, filled.target)], 4, "source")
            refused(cli, [command, *ends(filled.source, gone)], 5, "target")
            refused(cli, [command, *ends(gone, gone)], 4, "source")


def test_a_database_that_does_not_exist(filled: Pair, cli: Cli) -> None:
    """A database name that the server does not know."""
    refused(cli, ["once", *ends(other(filled.source, dbname="nowhere"), filled.target)], 4, "nowhere")
    refused(cli, ["once", *ends(filled.source, other(filled.target, dbname="nowhere"))], 5, "nowhere")


@pytest.mark.superusers
def test_the_same_database_twice(filled: Pair, cli: Cli) -> None:
    """One database as both ends, also by another host name: exit 3 before anything is touched."""
    password = str(conninfo_to_dict(filled.source_server.conninfo(host="localhost"))["password"])
    twins = [
        filled.source,
        other(filled.source, host="localhost", password=password),
        other(filled.source, host="127.0.0.1", password=password),
    ]
    with nothing_changes(filled.source):
        for twin in twins:
            for command in COMMANDS:
                refused(cli, [command, *ends(filled.source, twin)], 3, "same database", secret=password)


@pytest.mark.parametrize(
    "ddl",
    [
        "CREATE TABLE mine (id int)",
        "CREATE VIEW mine AS SELECT 1",
        "CREATE SEQUENCE mine",
        "CREATE MATERIALIZED VIEW mine AS SELECT 1",
        "CREATE TABLE mine (id int) PARTITION BY LIST (id)",
    ],
)
def test_a_target_that_is_not_empty(filled: Pair, cli: Cli, ddl: str) -> None:
    """A target with any relation of a user's is refused with what it holds."""
    pair = filled
    pair.on_target().execute(ddl.encode())
    with nothing_changes(pair.source, pair.target):
        for command in ("once", "run"):
            refused(cli, [command, *ends(pair.source, pair.target)], 5, "not empty", "public.mine")


def test_functions_and_schemas_do_not_fill_a_target(filled: Pair, cli: Cli) -> None:
    """A target with no relation is empty, whatever else its owner has prepared there."""
    target = filled.on_target()
    target.execute(
        "CREATE SCHEMA prepared; CREATE FUNCTION prepared.f() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    )
    assert cli("once", *ends(filled.source, filled.target)).returncode in (0, 1)


@pytest.fixture(scope="module")
def lesser() -> Iterator[dict[str, ThrowawayServer]]:
    """Servers that cannot be a source: one without logical WAL, one with a single slot."""
    newest = INSTALLED[max(INSTALLED)]
    with (
        ThrowawayServer(newest, name="replica-wal", settings={"wal_level": "replica"}) as replica,
        ThrowawayServer(newest, name="one-slot", settings={"max_replication_slots": "1"}) as crowded,
    ):
        yield {"replica": replica, "crowded": crowded}


def test_wal_level_replica(pair: Pair, cli: Cli, lesser: dict[str, ThrowawayServer]) -> None:
    """A source without logical WAL: the hint is the ALTER SYSTEM that changes it."""
    source = lesser["replica"].conninfo()
    with connect(source) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS keyless (v text)")
    with nothing_changes(source, pair.target):
        for command in ("once", "run"):
            refused(cli, [command, *ends(source, pair.target)], 4, "wal_level = replica")
    assert "ALTER SYSTEM SET wal_level" in cli("once", *ends(source, pair.target)).stderr


def test_no_free_slot(pair: Pair, cli: Cli, lesser: dict[str, ThrowawayServer]) -> None:
    """A source whose slots are all taken: nothing is made, no table is altered."""
    source = lesser["crowded"].conninfo()
    with connect(source) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS keyless (v text)")
        conn.execute("SELECT pg_create_logical_replication_slot('taken', 'pgoutput')")
    with nothing_changes(source, pair.target):
        for command in ("once", "run"):
            refused(cli, [command, *ends(source, pair.target)], 4, "no free replication slot", "1 of 1")


@pytest.mark.superusers
def test_a_standby_or_swapped_ends(filled: Pair, cli: Cli) -> None:
    """Ends that were swapped after the first copy: the old source is not empty and not ours, and stays as it is."""
    assert cli("once", *ends(filled.source, filled.target)).returncode == 0
    with nothing_changes(filled.source, filled.target):
        refused(cli, ["once", *ends(filled.target, filled.source)], 5, "not empty")


def test_another_source_under_a_known_target(filled: Pair, cli: Cli, make_database: MakeDatabase) -> None:
    """A different database at the source's address is an identity incident: exit 6 before a byte moves; a daemon waits."""
    assert cli("once", *ends(filled.source, filled.target)).returncode == 0
    stranger = make_database(filled.source_server)
    arguments = ends(stranger, filled.target)
    with nothing_changes(stranger, filled.target):
        # which says it in its log, too, where it is opened
        assert cli("check", *arguments).returncode == 6
        refused(cli, ["once", *arguments], 6, "dropped and made anew")
        running = cli.start("run", *arguments)
        wait_until(
            lambda: json.loads(cli("status", *arguments, "--json").stdout)["links"][0]["state"] == "held",
            20,
            "the daemon to hold",
        )
        running.terminate()
        assert running.wait(20) == 0


def test_a_slot_that_is_gone(filled: Pair, cli: Cli) -> None:
    """A slot dropped behind our back is said so; nothing is copied over what the target holds."""
    assert cli("once", *ends(filled.source, filled.target)).returncode == 0
    source = filled.on_source()
    source.execute("INSERT INTO t VALUES (7)")
    source.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ '^pglockstep'"
    )
    refused(cli, ["once", *ends(filled.source, filled.target)], 4, "slot", "gone")
    assert filled.on_target().execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_a_refused_without_key(filled: Pair, cli: Cli) -> None:
    """``without_key = "refuse"`` names the tables and touches none."""
    (cli.directory / "pglockstep.toml").write_text(
        f"[links.main]\nsource = '''{filled.source}'''\ntarget = '''{filled.target}'''\nwithout_key = 'refuse'\n"
    )
    with nothing_changes(filled.source, filled.target):
        refused(cli, ["once"], 4, "public.keyless")


def test_a_state_directory_that_cannot_be_written(filled: Pair, cli: Cli) -> None:
    """A state directory under a file: exit 3, with the way out."""
    (cli.directory / "file").write_text("")
    with nothing_changes(filled.source, filled.target):
        refused(
            cli,
            ["once", "--state-dir", str(cli.directory / "file" / "x"), *ends(filled.source, filled.target)],
            3,
            "state",
        )


@pytest.mark.unforked
def test_no_password_in_the_process_list(filled: Pair, cli: Cli) -> None:
    """While a first copy runs, neither our own command line nor any child's shows the password."""
    server = filled.source_server
    source = server.conninfo(str(conninfo_to_dict(filled.source)["dbname"]), host="localhost")
    password = str(conninfo_to_dict(source)["password"])
    filled.on_source().execute("INSERT INTO keyless SELECT repeat('x', 500) FROM generate_series(1, 100000)")
    process = cli.start("once", *ends(source, filled.target))
    ours = ""
    children: set[str] = set()
    while process.poll() is None:
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (each / "cmdline").read_bytes().decode(errors="replace")
                if each.name == str(process.pid):
                    ours = command or ours
                elif "pg_dump" in command:
                    children.add(command + (each / "environ").read_bytes().decode(errors="replace"))
    assert process.returncode == 0
    assert children
    assert not [text for text in children if password in text]
    assert ours.startswith("pglockstep once")
    assert password not in ours
