"""The doctor and the ends themselves: ones that do not answer, standbys, poolers, full servers, links at work."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fix_copy import nothing_left, once, ours_on_source
from fix_doctor import Patient, psql, run
from fix_servers import INSTALLED, Cli, MakeDatabase, Pair, connect, majors, wait_until
from pglockstep.config.sections import LinkConfig
from pglockstep.demo.servers import ThrowawayServer
from pglockstep.doctor.examination import examine
from pglockstep.observe.state import StateDirectory
from test_run import daemon
from test_run_journal import confirmed

NEWEST = INSTALLED[majors[-1]]


@pytest.fixture
def patient(pair: Pair, cli: Cli) -> Patient:
    """A link between two empty databases, reached by superusers."""
    return Patient(cli, pair)


@pytest.fixture(scope="module")
def narrow() -> Iterator[ThrowawayServer]:
    """A server with room for one slot and one WAL sender, which keeps little WAL, and does nothing by itself."""
    settings = {"max_replication_slots": "1", "max_wal_senders": "1", "max_slot_wal_keep_size": "64MB"}
    with ThrowawayServer(NEWEST, name="narrow", settings=settings | {"autovacuum": "off"}) as server:
        yield server


def codes(patient: Patient, *severities: str) -> set[str]:
    """The codes of what is found, of these severities."""
    return {each["code"] for each in patient.findings() if each["severity"] in (severities or ("error",))}


# --- ends that do not answer --------------------------------------------------------------------------------


def test_an_end_that_is_gone_does_not_hide_the_other(patient: Patient) -> None:
    """A server that does not answer is a finding, and the other end is examined all the same."""
    run(patient.pair.target, "CREATE TABLE t (id int)")
    patient.source = "host=127.0.0.1 port=1 dbname=x user=x"
    found = {each["code"]: each for each in patient.findings()}
    assert found["unreachable"]["side"] == "source"
    assert "pg_isready" in found["unreachable"]["fix"]
    assert found["not_empty"]["side"] == "target"
    patient.target = patient.source
    assert [each["side"] for each in patient.find("unreachable")] == ["source", "target"]


def test_a_wrong_password(patient: Patient) -> None:
    """It is told as that, and is shown nowhere."""
    server = patient.pair.source_server
    database = str(conninfo_to_dict(patient.source)["dbname"])
    patient.source = server.conninfo(database, host="127.0.0.1", password="hunter2-wrong")
    patient.configure()
    done = patient.cli("doctor")
    assert done.returncode == 1
    assert "[wrong_password]" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
    patient.source = server.conninfo(database, host="127.0.0.1")
    assert "wrong_password" not in codes(patient)


@pytest.mark.superusers
def test_a_role_and_a_database_that_are_not_there(patient: Patient, request: pytest.FixtureRequest) -> None:
    """Each is made by the fix."""
    server = patient.pair.target_server
    right = patient.target

    def clean() -> None:
        run(server.conninfo(), 'DROP DATABASE IF EXISTS "No where";\nDROP ROLE IF EXISTS "No body"')

    request.addfinalizer(clean)
    patient.target = make_conninfo(right, user="No body")
    (found,) = patient.find("unknown_role")
    patient.mend(found)
    assert "unknown_role" not in codes(patient)
    patient.target = make_conninfo(right, dbname="No where")
    (found,) = patient.find("unknown_database")
    patient.mend(found)
    assert codes(patient) == set()


def test_a_standby_at_either_end(patient: Patient, tmp_path: Path) -> None:
    """A server in recovery is told at both ends, and the rest is still examined."""
    with ThrowawayServer(NEWEST, name="standby") as server:
        run(server.conninfo(), "CREATE DATABASE a;\nCREATE DATABASE b")
        run(server.conninfo("a"), "CREATE UNLOGGED TABLE u (id int)")
        signal = server.data / "standby.signal"
        server.stop()
        signal.touch()
        server.user.owns(signal)
        server.start()
        patient.source, patient.target = server.conninfo("a"), server.conninfo("b")
        found = patient.findings()
        assert [each["side"] for each in found if each["code"] == "standby"] == ["source", "target"]
        assert "unlogged" in {each["code"] for each in found}
        signal.unlink()
        server.restart()
        assert codes(patient) == set()


class Pooler:
    """Stands between a client and a server and, as poolers have to, gives the client a cancel key of its own."""

    def __init__(self, server: ThrowawayServer) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="pgl-", dir="/tmp")
        self._behind = f"{server.socket_dir}/.s.PGSQL.{server.port}"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{self.directory.name}/.s.PGSQL.5432")
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.directory.cleanup()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._behind)
            for pair in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, rekey: bool) -> None:
        # either end may hang up on us at any moment
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                if rekey:
                    data = re.sub(
                        rb"K\x00\x00\x00\x0c.{8}", b"K\x00\x00\x00\x0c\x7f" + b"x" * 7, data, flags=re.S
                    )
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_a_pooler(patient: Patient) -> None:
    """Whoever hands out another cancel key than the server's is told; the server itself is the way out."""
    pooler = Pooler(patient.pair.source_server)
    try:
        patient.source = make_conninfo(patient.source, host=pooler.directory.name, port=5432)
        (found,) = patient.find("pooler")
        assert (found["side"], found["severity"]) == ("source", "warning")
    finally:
        pooler.close()
    patient.source = patient.pair.source
    assert patient.find("pooler") == []


# --- what is on the servers -----------------------------------------------------------------------------------


def test_wal_level(patient: Patient) -> None:
    """The fix is what makes a server decodable, after the restart that it names."""
    with ThrowawayServer(NEWEST, name="replica", settings={"wal_level": "replica"}) as server:
        patient.source = server.conninfo()
        (found,) = patient.find("wal_level")
        assert "restart" in found["fix"]
        psql(patient.source, found["fix"])
        server.restart()
        assert codes(patient) == set()


def test_no_client_programs(pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without pg_dump for this source is told what to install, and everything else beside it."""
    run(pair.source, "CREATE UNLOGGED TABLE u (id int)")
    monkeypatch.setattr("pglockstep.postgres.installations.installations", lambda _: [])
    link = LinkConfig(name="main", source=pair.source, target=pair.target)
    found = asyncio.run(examine(link, StateDirectory(tmp_path)))
    one = next(each for each in found if each.code == "no_client")
    assert one.fix == f"apt install postgresql-client-{pair.source_server.major}"
    assert "unlogged" in {each.code for each in found}


def test_one_database_twice(patient: Patient) -> None:
    """The same database as both ends is told, and nothing else of it that would only mislead."""
    patient.target = patient.source
    assert codes(patient) == {"same_database"}
    patient.target = patient.pair.target
    assert codes(patient) == set()


def test_bytes_of_no_encoding(patient: Patient, make_database: MakeDatabase) -> None:
    """SQL_ASCII can be carried only to SQL_ASCII; the fix names the source's encoding."""
    server = patient.pair.target_server
    make_database(server, "ascii")
    run(
        server.conninfo(),
        "DROP DATABASE ascii;\nCREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0",
    )
    patient.target = server.conninfo("ascii")
    (found,) = patient.find("encoding")
    assert "ENCODING 'UTF8'" in found["fix"]
    assert {"collation_differs"} <= codes(patient, "info")
    patient.target = patient.pair.target
    assert codes(patient) == set()


@pytest.mark.superusers
def test_transactions_that_a_copy_would_wait_for(patient: Patient, make_database: MakeDatabase) -> None:
    """A prepared one, here or in another database, and one that stays open: each is ended by its fix."""
    other = make_database(patient.pair.source_server, "other \"Odd' one")
    for conninfo, gid in ((patient.source, "it's"), (other, 'another "')):
        run(conninfo, "CREATE TABLE t (id int PRIMARY KEY)")
        with connect(conninfo) as conn:
            name = sql.Literal(gid)
            conn.execute(sql.SQL("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION {}").format(name))
    found = patient.find("prepared_transaction")
    assert len(found) == 2
    for each in found:
        patient.mend(each)
    with psycopg.connect(patient.source, application_name="forgetful") as conn:
        conn.execute("INSERT INTO t VALUES (2)")
        (one,) = wait_until(lambda: patient.find("open_transaction"), what="a transaction that is old enough")
        assert f"pid {conn.info.backend_pid} (forgetful)" in one["message"]
        patient.mend(one)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    assert codes(patient, "error", "warning") == set()


@pytest.mark.superusers
def test_what_does_not_follow_is_told(patient: Patient) -> None:
    """Notes name their things and are no errors; the text begins with the conclusion."""
    run(
        patient.source,
        "CREATE TABLE keyless (v text);\nCREATE MATERIALIZED VIEW m AS SELECT 1;\n"
        "CREATE FOREIGN DATA WRAPPER w;\nCREATE SERVER s FOREIGN DATA WRAPPER w;\nCREATE FOREIGN TABLE f (a int) SERVER s",
    )
    found = {each["code"]: each for each in patient.findings() if each["severity"] == "info"}
    assert {"no_identity", "materialized_views", "foreign_tables", "disk"} <= found.keys()
    assert "public.keyless" in found["no_identity"]["message"]
    assert found["materialized_views"]["fix"] == "REFRESH MATERIALIZED VIEW public.m;"
    done = patient.cli("doctor")
    assert done.returncode == 0
    assert done.stdout.startswith("main: it can work: ")
    assert "fix, on the target" in done.stdout


# --- servers with little room, and links at work -----------------------------------------------------------------


def test_no_free_slot_and_no_free_sender(patient: Patient, narrow: ThrowawayServer) -> None:
    """Both are told at once, and both fixes, after the restart that they name, make room."""
    patient.source = narrow.conninfo()
    run(patient.source, "SELECT pg_create_physical_replication_slot('taken')")
    with psycopg.connect(patient.source, replication="database", autocommit=True):
        found = {each["code"]: each for each in patient.findings()}
        assert {"no_free_slot", "no_free_sender"} <= found.keys()
        psql(patient.source, found["no_free_slot"]["fix"])
        psql(patient.source, found["no_free_sender"]["fix"])
    narrow.restart()
    assert codes(patient) == set()
    run(
        patient.source,
        "SELECT pg_drop_replication_slot('taken');\nALTER SYSTEM RESET max_replication_slots;\n"
        "ALTER SYSTEM RESET max_wal_senders",
    )
    narrow.restart()


def test_a_link_at_work(pair: Pair, cli: Cli, narrow: ThrowawayServer, make_database: MakeDatabase) -> None:
    """A healthy link is no fault: its target is its own, and so is the last slot. What endangers it is told."""
    source = make_database(narrow)
    patient = Patient(cli, pair, source=source)
    link = Pair(source, pair.target, narrow, pair.target_server)
    run(source, "CREATE TABLE t (id int PRIMARY KEY)")
    once(cli, link)
    assert codes(patient, "error", "warning") == set()
    patient.target = "host=127.0.0.1 port=1 dbname=x user=x"
    assert codes(patient, "error", "warning") == {"unreachable"}
    patient.target = pair.target
    run(source, "CREATE TABLE late (id int PRIMARY KEY)")
    (found,) = patient.find("not_published")
    assert "public.late" in found["message"]
    run(
        source,
        "DROP TABLE late;\n" + "INSERT INTO t SELECT count(*) FROM t;\nSELECT pg_switch_wal();\n" * 4,
    )
    (found,) = patient.find("slot_near_limit")
    assert found["severity"] == "warning"
    psql(source, found["fix"])
    wait_until(lambda: patient.find("slot_near_limit") == [], what="the new limit")
    patient.source, patient.target = patient.target, patient.source
    assert "swapped" in codes(patient)
    patient.source, patient.target = patient.target, patient.source
    with connect(source) as conn:
        conn.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        assert codes(patient) == {"slot_gone"}
        assert ours_on_source(conn) == (0, 1)


def test_a_slot_that_is_ahead_of_an_absent_target(pair: Pair, cli: Cli) -> None:
    """What the target has not got yet is in the journal: no fault. Without the journal it is one, and a damaged one another."""
    run(pair.source, "CREATE TABLE t (id int PRIMARY KEY, v text)")
    patient = Patient(cli, pair)
    with daemon(cli, pair) as running, connect(pair.source) as source:
        pair.target_server.stop("fast")
        source.execute("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(1, 1000) AS n")
        wait_until(lambda: confirmed(source) < 100_000, 20, "the source to be told")
        running.kill()
    pair.target_server.start()
    assert codes(patient, "error", "warning") == set()
    folder = cli.directory / "state" / "journal"
    folder.rename(cli.directory / "journal")
    assert codes(patient) == {"slot_ahead"}
    (cli.directory / "journal").rename(folder)
    (segment,) = folder.glob("*/*.journal")
    content = bytearray(segment.read_bytes())
    content[20] ^= 1
    segment.write_bytes(content)
    (found,) = patient.find("journal")
    assert (found["side"], found["severity"]) == ("here", "error")
    assert f"{segment} is damaged at byte 0" in found["message"]


def test_it_changes_nothing(
    pair: Pair, cli: Cli, narrow: ThrowawayServer, make_database: MakeDatabase
) -> None:
    """Not one transaction on either server writes anything: no transaction number is used up, no slot made."""
    source, target = make_database(narrow), make_database(narrow)
    run(source, "CREATE TABLE t (id int PRIMARY KEY REFERENCES t);\nCREATE TABLE keyless (v text)")
    patient = Patient(cli, pair, source=source, target=target)

    def next_transaction() -> object:
        with connect(narrow.conninfo()) as conn:
            return conn.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())").fetchone()

    before = next_transaction()
    assert codes(patient) == set()
    patient.configure()
    assert cli("doctor", "--sql").returncode == 0
    assert next_transaction() == before
    nothing_left(Pair(source, target, narrow, narrow), {"t": "d", "keyless": "d"})
