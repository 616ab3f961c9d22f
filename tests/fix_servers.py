"""Real servers for the tests, started when first asked for and stopped with the test run.

A pytest plugin (`-p fix_servers`). Each installed major version gets two servers, a source and a
target, so that 15 → 15 is two different servers too. Databases are made fresh for each test, and
dropped with everything in them that would stay in the way: slots, prepared transactions, sessions.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from fix_forks import Forked, ForkServer
from fix_memory import A_SERVER, is_plenty, room
from pglockstep import compiled
from pglockstep.demo.servers import ThrowawayServer, find_servers

Connection = psycopg.Connection[TupleRow]
T = TypeVar("T")

#: The newest installation of each major version.
INSTALLED = {one.major: one for one in find_servers(os.environ)}
majors: list[int] = sorted(INSTALLED)
#: (source, target): same version, up, down, and up from the middle.
all_pairs: list[tuple[int, int]] = [
    pair for pair in [(15, 15), (15, 18), (18, 16), (16, 18)] if set(pair) <= set(majors)
]
#: Run a test once for each of `all_pairs`.
on_all_pairs = pytest.mark.parametrize(
    "pair", all_pairs, indirect=True, ids=[f"{source}-to-{target}" for source, target in all_pairs]
)


#: Roles that are no superusers: who owns a source's database, and who owns a target's.
OWNER, FOLLOWER = 'plain "Owner"', "plain_follower"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plain-roles",
        action="store_true",
        help="hand out pairs of databases whose owners are no superusers, to every test",
    )
    parser.addoption(
        "--unforked",
        action="store_true",
        help="start Python anew for every command; see fix_forks",
    )
    parser.addoption(
        "--on-disk",
        action="store_true",
        help="keep the servers' files on disk, however much memory there is; see fix_memory",
    )


def pytest_configure() -> None:
    """The tests must not follow the settings of whoever runs them, but for which form of the code they test."""
    for key in [key for key in os.environ if key.startswith("PG") and key != compiled.INTERPRETED]:
        del os.environ[key]
    # an installed command has its bytecode; without it each of the thousands of starts compiles every module anew
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # how long an example takes says more of the machine than of the code
    settings.register_profile("unhurried", deadline=None)
    settings.load_profile("unhurried")
    # a background job of a shell's is started deaf to Ctrl-C, and so would be every command under test
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_until(condition: Callable[[], T], timeout: float = 30.0, what: str = "the condition") -> T:
    """What `condition` returns as soon as that is true; fails the test after `timeout` seconds.

    It is asked again after a pause as long as the answer took: a command that is run for it leaves half of a core to
    those that are waited for.
    """
    deadline = time.monotonic() + timeout
    while True:
        asked = time.monotonic()
        if found := condition():
            return found
        now = time.monotonic()
        if now > deadline:
            pytest.fail(f"waited {timeout:g} s in vain for {what}")
        time.sleep(min(max(0.02, now - asked), 0.25))


# --- servers ---------------------------------------------------------------------------------------


class Servers:
    """The servers of this test run, one source and one target of each major version, in `base` or each in its own place."""

    def __init__(self, base: Path | None = None) -> None:
        self._base = base
        self._running: dict[str, ThrowawayServer] = {}

    def source(self, major: int) -> ThrowawayServer:
        return self._server(f"source-{major}", major)

    def target(self, major: int) -> ThrowawayServer:
        return self._server(f"target-{major}", major)

    def close(self) -> None:
        """Stop every server; what would not stop is reported as one error."""
        failures: list[Exception] = []
        for server in self._running.values():
            try:
                server.close()
            except Exception as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup("servers that would not stop", failures)

    def _server(self, name: str, major: int) -> ThrowawayServer:
        if major not in INSTALLED:
            pytest.fail(f"PostgreSQL {major} is not installed as a server here; there are: {majors}")
        if name not in self._running:
            server = ThrowawayServer(INSTALLED[major], self._base, name)
            self._running[name] = server
            server.start()
        return self._running[name]


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    with contextlib.ExitStack() as stack:
        base = None
        if not request.config.getoption("--on-disk") and is_plenty(A_SERVER * 2 * len(majors) * workers):
            base = stack.enter_context(room())
        running = Servers(base)
        stack.callback(running.close)
        yield running


# --- databases -------------------------------------------------------------------------------------


class MakeDatabase(Protocol):
    def __call__(
        self, server: ThrowawayServer, name: str | None = None, template: str | None = None
    ) -> str: ...


@pytest.fixture
def make_database() -> Iterator[MakeDatabase]:
    """Makes a database on a server and returns its connection string; it is gone after the test."""
    made: list[tuple[ThrowawayServer, str]] = []

    def make(server: ThrowawayServer, name: str | None = None, template: str | None = None) -> str:
        name = name or f"db_{secrets.token_hex(4)}"
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" template {}").format(sql.Identifier(template))
        with connect(server.conninfo()) as conn:
            conn.execute(statement)
        made.append((server, name))
        return server.conninfo(name)

    yield make
    failures: list[Exception] = []
    for server, name in reversed(made):
        try:
            drop_database(server, name)
        except Exception as error:
            failures.append(error)
    if failures:
        raise ExceptionGroup("databases that would not go", failures)


def connect(conninfo: str) -> Connection:
    """An autocommit connection."""
    return psycopg.connect(conninfo, autocommit=True)


def drop_database(server: ThrowawayServer, name: str) -> None:
    """Drop a database if it is there, and all that holds it: slots, prepared transactions, sessions."""
    if server.pid is None:
        server.start()
    with connect(server.conninfo()) as conn:
        prepared = conn.execute("select gid from pg_prepared_xacts where database = %s", [name]).fetchall()
        if prepared:
            # A prepared transaction can be ended from its own database only.
            with connect(server.conninfo(name)) as inside:
                for (gid,) in prepared:
                    inside.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)))
        conn.execute(
            """select pg_terminate_backend(active_pid, 10000) from pg_replication_slots
               where database = %s and active""",
            [name],
        )
        conn.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s", [name]
        )
        conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        # Origins belong to no database and there is room for few: what no session uses is left over.
        for (origin,) in conn.execute("select roname from pg_replication_origin").fetchall():
            with contextlib.suppress(psycopg.errors.ObjectInUse):
                conn.execute("select pg_replication_origin_drop(%s)", [origin])


# --- two ends --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A fresh, empty source database and a fresh, empty target database."""

    source: str
    target: str
    source_server: ThrowawayServer
    target_server: ThrowawayServer
    _opened: list[Connection] = field(default_factory=list, repr=False)

    def on_source(self) -> Connection:
        """A new autocommit connection to the source, closed after the test at the latest."""
        return self._open(self.source)

    def on_target(self) -> Connection:
        """A new autocommit connection to the target, closed after the test at the latest."""
        return self._open(self.target)

    def superuser_on_source(self) -> Connection:
        """As `on_source`, for a test's own preparations that only a superuser may make."""
        return self._open(_as_superuser(self.source_server, self.source))

    def superuser_on_target(self) -> Connection:
        """As `on_target`, for a test's own preparations that only a superuser may make."""
        return self._open(_as_superuser(self.target_server, self.target))

    def close(self) -> None:
        for conn in self._opened:
            conn.close()

    def _open(self, conninfo: str) -> Connection:
        conn = connect(conninfo)
        self._opened.append(conn)
        return conn


def _as_superuser(server: ThrowawayServer, conninfo: str) -> str:
    return server.conninfo(str(conninfo_to_dict(conninfo)["dbname"]), client_encoding="UTF8")


@pytest.fixture
def plain_roles(request: pytest.FixtureRequest) -> bool:
    """Whether `pair` hands out databases of owners that are no superusers; see `as_plain_roles`."""
    wanted = request.config.getoption("--plain-roles") and not request.node.get_closest_marker("superusers")
    return bool(getattr(request, "param", wanted))


#: Run a test as owners that are no superusers, and among the long tests as superusers too.
as_plain_roles = pytest.mark.parametrize(
    "plain_roles",
    [True, pytest.param(False, marks=pytest.mark.soak)],
    indirect=True,
    ids=["plain", "superusers"],
)


def _hand_over(server: ThrowawayServer, conninfo: str, role: str, options: str) -> str:
    """Give a database to a role, made if need be, that has just the `options`; returns the role's connection string."""
    name, database = sql.Identifier(role), sql.Identifier(str(conninfo_to_dict(conninfo)["dbname"]))
    with connect(server.conninfo()) as conn:
        if not conn.execute("select from pg_roles where rolname = %s", [role]).rowcount:
            # asked for over the network alone
            password = sql.Literal(server.password)
            conn.execute(
                sql.SQL("create role {} login password {} {}").format(name, password, sql.SQL(options))
            )
            if server.major >= 15:
                conn.execute(sql.SQL("grant set on parameter session_replication_role to {}").format(name))
        conn.execute(sql.SQL("alter database {} owner to {}").format(database, name))
    return make_conninfo(conninfo, user=role)


@pytest.fixture
def pair(
    request: pytest.FixtureRequest, servers: Servers, make_database: MakeDatabase, plain_roles: bool
) -> Iterator[Pair]:
    """Two ends of the newest version, or of the (source, target) versions it is parametrised with."""
    newest = majors[-1] if majors else 0
    source_major, target_major = getattr(request, "param", (newest, newest))
    source, target = servers.source(source_major), servers.target(target_major)
    mark = secrets.token_hex(4)
    there = make_database(source, f"src_{mark}")
    # Names need quoting somewhere, always: a missing quote is found by every test.
    here = make_database(target, f"tgt \"Odd' {mark}")
    if plain_roles:
        there = _hand_over(source, there, OWNER, "replication")
        here = _hand_over(target, here, FOLLOWER, "")
    ends = Pair(source=there, target=here, source_server=source, target_server=target)
    yield ends
    ends.close()


# --- the command -----------------------------------------------------------------------------------


@dataclass
class Cli:
    """The real command, in a process and a directory of its own, with a state of its own.

    `unguarded`: a link that is given by its two ends is one in which rows may come and go as they like, on both ends.
    `forks`: where commands are forked; None to have Python started for each of them.
    """

    directory: Path
    unguarded: bool = False
    forks: ForkServer | None = None
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(
        self, *args: str | Path, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        with self._begin(args, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def start(
        self, *args: str | Path, env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start the command; stdout and stderr are one pipe, or the end of `log`. What still runs after the test is killed."""
        with contextlib.ExitStack() as opened:
            stdout = opened.enter_context(log.open("a")) if log else subprocess.PIPE
            process = self._begin(args, env, stdout=stdout, stderr=subprocess.STDOUT)
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()
            with process:
                process.wait()

    def _begin(
        self, args: tuple[str | Path, ...], env: Mapping[str, str] | None, **files: Any
    ) -> subprocess.Popen[str]:
        arguments, environment = self._arguments(args), self._environment(env)
        files["stdin"] = subprocess.DEVNULL
        if self.forks is not None:
            return Forked(self.forks, arguments, cwd=self.directory, env=environment, **files)
        command = [sys.executable, "-m", "pglockstep", *arguments]
        return subprocess.Popen(command, cwd=self.directory, env=environment, text=True, **files)

    def _arguments(self, args: tuple[str | Path, ...]) -> list[str]:
        told = list(map(str, args))
        if self.unguarded and "--source" in told and "--target" in told:
            ends = {}
            for side in ("source", "target"):
                at = told.index(f"--{side}")
                ends[side] = told[at + 1]
                del told[at : at + 2]
            told += ["-c", str(self._link_without_rules(ends))]
        return told

    def _link_without_rules(self, ends: Mapping[str, str]) -> Path:
        text = "".join(f"{side} = {json.dumps(end)}\n" for side, end in ends.items())
        path = self.directory / f"unguarded-{zlib.crc32(text.encode()):08x}.toml"
        rules = "[links.default.guard]\nprotect_target = 'off'\n[links.default.guard.tables.'*.*']\njudge = false\n"
        # in one piece: a daemon that starts at this moment must not read half a file
        whole = path.with_suffix(f".{time.monotonic_ns()}")
        whole.write_text(f"[links.default]\n{text}{rules}")
        return whole.replace(path)

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        return (
            usual_environment() | {"PGLOCKSTEP_STATE_DIR": str(self.directory / "state")} | dict(extra or {})
        )


def usual_environment() -> dict[str, str]:
    """What commands under test find in their environment, but for what a test gives them."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "PGLOCKSTEP_"))}
    return ours | {compiled.INTERPRETED: os.environ.get(compiled.INTERPRETED, "")}


@pytest.fixture(scope="session")
def forks(request: pytest.FixtureRequest) -> Iterator[ForkServer | None]:
    """Where the commands of this test run are forked; None if it is to be `--unforked`."""
    if request.config.getoption("--unforked"):
        yield None
        return
    server = ForkServer(usual_environment())
    yield server
    server.close()


@pytest.fixture
def cli(tmp_path: Path, request: pytest.FixtureRequest, forks: ForkServer | None) -> Iterator[Cli]:
    """The command; a test that is marked `unguarded` wipes what it likes, and one marked `unforked` starts it anew."""
    marked = request.node.get_closest_marker
    command = Cli(
        tmp_path,
        unguarded=marked("unguarded") is not None,
        forks=None if marked("unforked") else forks,
    )
    yield command
    command.close()
