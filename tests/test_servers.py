"""Throwaway servers start, crash, come back and vanish; and the fixtures leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from fix_servers import (
    INSTALLED,
    MakeDatabase,
    Pair,
    Servers,
    all_pairs,
    connect,
    drop_database,
    majors,
    on_all_pairs,
    wait_until,
)
from pglockstep.demo.servers import StopMode, ThrowawayServer, reachable, server_user
from pglockstep.errors import LockstepError
from pglockstep.postgres.installations import EMBEDDED_PACKAGE, Installation

NEWEST = INSTALLED[majors[-1]]
AS_ROOT = os.geteuid() == 0

# Starts a server, says where it is, and then waits for whatever happens to it.
OWNER = """
import os, sys
from pglockstep.demo.servers import ThrowawayServer, find_servers
server = ThrowawayServer(find_servers(os.environ)[-1])
server.start()
print(server.pid, server.directory, flush=True)
sys.stdin.read()
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, text=True, check=False
    )
    return state.stdout.strip()[:1] not in ("", "Z")


def one_value(conninfo: str, statement: sql.SQL) -> object:
    with connect(conninfo) as conn:
        row = conn.execute(statement).fetchone()
        assert row is not None
        return row[0]


SYSTEM_IDENTIFIER = sql.SQL("select system_identifier from pg_control_system()")


# --- a server's life -------------------------------------------------------------------------------


@pytest.mark.parametrize("major", majors)
def test_starts_and_leaves_nothing(major: int) -> None:
    """Each installed version starts, is set up for logical replication, and goes without a trace."""
    with ThrowawayServer(INSTALLED[major]) as server:
        pid = server.pid
        assert pid is not None
        with connect(server.conninfo()) as conn:
            assert conn.info.server_version // 10000 == server.major == major
            assert conn.execute("show wal_level").fetchone() == ("logical",)
            assert conn.execute("show server_encoding").fetchone() == ("UTF8",)
            assert conn.execute("show fsync").fetchone() == ("off",)
    assert not server.directory.exists()
    assert not server.socket_dir.exists()
    assert not alive(pid)
    assert server.pid is None


def test_same_server_by_socket_name_and_address(servers: Servers) -> None:
    """The Unix socket, `localhost` and 127.0.0.1 all lead to the same server."""
    server = servers.source(majors[-1])
    seen = {
        one_value(server.conninfo(**extra), SYSTEM_IDENTIFIER)
        for extra in ({}, {"host": "localhost"}, {"host": "127.0.0.1"})
    }
    assert len(seen) == 1


def test_a_wrong_password_is_refused_on_tcp(servers: Servers) -> None:
    """TCP asks everyone for a password, and takes the right one only; the socket trusts."""
    server = servers.source(majors[-1])
    with connect(server.conninfo()) as conn:
        conn.execute("create role test_password login password 'right'")
    try:
        by_tcp = {"user": "test_password", "host": "127.0.0.1"}
        connect(server.conninfo(**by_tcp, password="right")).close()
        connect(server.conninfo(user="test_password")).close()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect(server.conninfo(**by_tcp, password="wrong"))
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            connect(server.conninfo(**by_tcp))
    finally:
        with connect(server.conninfo()) as conn:
            conn.execute("drop role test_password")


def test_a_durable_server_keeps_what_was_committed_before_a_crash() -> None:
    """Killed outright with sessions at work, every process ends; restarted, the commits are there."""
    with ThrowawayServer(NEWEST, name="durable", durable=True) as server:
        working = connect(server.conninfo(application_name="working"))
        working.execute("create table kept as select generate_series(1, 1000) as id")
        working.execute("begin")
        working.execute("insert into kept values (0)")
        with connect(server.conninfo()) as conn:
            assert conn.execute("show fsync").fetchone() == ("on",)
            pids = [pid for (pid,) in conn.execute("select pid from pg_stat_activity").fetchall()]
        assert len(pids) > 3
        before = server.conninfo()
        server.kill()
        assert server.pid is None
        assert not [pid for pid in pids if alive(pid)]
        working.close()

        server.start()
        assert server.conninfo() == before
        assert one_value(before, sql.SQL("select count(*) from kept")) == 1000
        assert "automatic recovery in progress" in server.log_tail(50)


def test_stops_in_every_mode_and_starts_again() -> None:
    """Stopped and restarted, a server has the same address; stopping a stopped one does nothing."""
    modes: list[StopMode] = ["smart", "fast", "immediate"]
    with ThrowawayServer(NEWEST) as server:
        before = server.conninfo()
        for mode in modes:
            server.restart(mode)
            assert server.conninfo() == before
            connect(before).close()
        server.stop()
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            connect(before)


def test_a_server_that_will_not_stop_is_killed_and_reported() -> None:
    """A smart stop waits for its sessions; past the deadline the server is killed, and that is said."""
    with ThrowawayServer(NEWEST) as server:
        staying = connect(server.conninfo())
        pid = server.pid
        assert pid is not None
        with pytest.raises(LockstepError, match=r"did not stop \(smart\) within 0\.2 s"):
            server.stop("smart", timeout=0.2)
        assert not alive(pid)
        staying.close()


def test_two_servers_side_by_side(servers: Servers) -> None:
    """Source and target of one version are two servers, and each is started once."""
    source, target = servers.source(majors[-1]), servers.target(majors[-1])
    assert source.port != target.port
    assert one_value(source.conninfo(), SYSTEM_IDENTIFIER) != one_value(target.conninfo(), SYSTEM_IDENTIFIER)
    assert servers.source(majors[-1]) is source


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that someone else listens on is given up for the next one."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken, free = listener.getsockname()[1], other.getsockname()[1]
        other.close()
        monkeypatch.setattr("random.sample", lambda *_: [taken, free])
        with ThrowawayServer(NEWEST) as server:
            assert server.port == free
            connect(server.conninfo()).close()


def test_a_failed_start_says_why() -> None:
    """What PostgreSQL wrote to its log before it gave up is in the error, and nothing stays."""
    server = ThrowawayServer(NEWEST, settings={"wal_level": "it's nonsense"})
    with pytest.raises(LockstepError, match=r"did not start.*wal_level.*it's nonsense"), server:
        pass
    assert not server.directory.exists()


def test_a_deep_directory_has_its_socket_elsewhere(open_directory: Path) -> None:
    """A path too long for a Unix socket still makes a server that can be reached by one."""
    base = open_directory / ("deep" * 25)
    base.mkdir()
    with ThrowawayServer(NEWEST, base, "named") as server:
        assert server.directory == base / "named"
        assert len(os.fsencode(server.socket_dir / ".s.PGSQL.65535")) <= 100
        connect(server.conninfo()).close()
    assert list(base.iterdir()) == []
    assert not server.socket_dir.exists()


def test_no_server_outlives_its_owner() -> None:
    """Python killed outright leaves no postmaster: the watchdog stops it."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid, _, directory = owner.stdout.readline().strip().partition(" ")
        try:
            assert alive(int(pid))
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            wait_until(lambda: not alive(int(pid)), what="the end of the postmaster")
            assert not Path(directory, "data", "postmaster.pid").exists()
        finally:
            shutil.rmtree(directory)


# --- binaries that the server's user cannot reach --------------------------------------------------


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A temporary directory that other users can enter, which pytest's own is not."""
    directory = Path(tempfile.mkdtemp()).resolve()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def locked_away(tmp_path: Path) -> Installation:
    """An installation like one in a virtual environment below root's home."""
    embedded = [one for one in INSTALLED.values() if EMBEDDED_PACKAGE in one.bindir.parts]
    if not AS_ROOT or not embedded:
        pytest.skip("needs root, and the PostgreSQL of the extra `embedded`")
    prefix = embedded[-1].bindir.parent
    packages = tmp_path / "packages"
    for part in (prefix, prefix.parent.with_name(prefix.parent.name + ".libs")):
        shutil.copytree(part, packages / part.relative_to(prefix.parent.parent), symlinks=True)
    for directory, _, files in os.walk(packages):
        for path in [Path(directory), *(Path(directory, name) for name in files)]:
            path.chmod(path.stat().st_mode & 0o700)
    bindir = packages / prefix.parent.name / prefix.name / "bin"
    return Installation(version=embedded[-1].version, major=embedded[-1].major, bindir=bindir)


def test_unreachable_binaries_are_copied_once(
    locked_away: Installation, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Binaries below a closed directory still make a server; the copy is made once, then reused."""
    monkeypatch.setattr(tempfile, "tempdir", str(open_directory))
    with ThrowawayServer(locked_away) as server:
        connect(server.conninfo()).close()
        copy = server.installation
    assert copy.bindir.is_relative_to(open_directory)
    made = copy.program("postgres").stat().st_ino
    assert reachable(locked_away, server_user()) == copy
    assert copy.program("postgres").stat().st_ino == made

    copy.program("initdb").unlink()
    assert reachable(locked_away, server_user()) == copy, "a copy thinned out by a cleaner is made anew"
    assert copy.has("initdb")
    assert [path.name for path in copy.bindir.parents[3].iterdir()] == [copy.bindir.parents[2].name]


def test_a_planted_copy_is_refused(
    locked_away: Installation, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that another user could have written is never run from."""
    monkeypatch.setattr(tempfile, "tempdir", str(open_directory))
    cache = open_directory / f"pglockstep-postgres-{os.geteuid()}"
    cache.mkdir()
    server_user().owns(cache)
    with pytest.raises(LockstepError, match="belongs to someone else"):
        reachable(locked_away, server_user())
    assert list(cache.iterdir()) == []


# --- the fixtures ----------------------------------------------------------------------------------


@on_all_pairs
def test_a_pair_has_two_empty_ends(pair: Pair, request: pytest.FixtureRequest) -> None:
    """A pair is of the versions asked for, on two servers, with a target name that needs quoting."""
    versions = (pair.source_server.major, pair.target_server.major)
    assert versions == request.node.callspec.params["pair"]
    assert versions in all_pairs
    assert pair.source_server is not pair.target_server
    for conn in (pair.on_source(), pair.on_target()):
        assert conn.autocommit
        assert conn.execute("select count(*) from pg_stat_user_tables").fetchone() == (0,)
    assert {'"', "'", " "} <= set(pair.on_target().info.dbname)


def test_dropping_a_database_frees_all_that_holds_it(servers: Servers, make_database: MakeDatabase) -> None:
    """Slots in use, prepared transactions, sessions and origins do not keep a test's database."""
    server = servers.source(majors[-1])
    conninfo = make_database(server, name="held \"'")
    with connect(conninfo) as conn:
        conn.execute("create table t (id int)")
        conn.execute("select pg_create_logical_replication_slot('held', 'pgoutput')")
        conn.execute("select pg_replication_origin_create('held')")
        conn.execute("create publication held for all tables")
    # psycopg has no replication protocol of its own: pg_recvlogical holds the slot.
    options = (
        "--slot=held --start --no-loop --file=- --option=proto_version=1 --option=publication_names=held"
    )
    receiving = subprocess.Popen(
        [server.installation.program("pg_recvlogical"), f"--dbname={conninfo}", *options.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    staying = connect(conninfo)
    with receiving, connect(server.conninfo()) as conn:
        active = "select 1 from pg_replication_slots where slot_name = 'held' and active"
        wait_until(lambda: conn.execute(active).fetchone(), what="a held slot")
        staying.execute("begin")
        staying.execute("insert into t values (1)")
        staying.execute("prepare transaction 'it''s held'")

        drop_database(server, "held \"'")
        assert receiving.wait(timeout=30) != 0
        for catalog in ("pg_replication_slots", "pg_prepared_xacts", "pg_replication_origin"):
            counted = conn.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(catalog)))
            assert counted.fetchone() == (0,), catalog
    staying.close()


def test_a_database_can_be_made_of_a_template(servers: Servers, make_database: MakeDatabase) -> None:
    """A database made of a template holds what the template holds."""
    server = servers.target(majors[-1])
    with connect(make_database(server, name="like this")) as conn:
        conn.execute("create table t as select 7 as id")
    assert one_value(make_database(server, template="like this"), sql.SQL("select id from t")) == 7
