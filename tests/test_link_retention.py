"""The WAL that a source keeps for a link: warned about before it is dropped, and told when it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from fix_copy import refused
from fix_servers import INSTALLED, Cli, MakeDatabase, Pair, Servers, connect, majors, wait_until
from pglockstep.demo.servers import ThrowawayServer
from pglockstep.link.retention import level
from pglockstep.postgres.connect import End
from pglockstep.postgres.connect import connect as connect_end
from pglockstep.postgres.slots import Slot, note_transactions
from pglockstep.progress.slots import LEVELS, near_limit, slot_lost
from pglockstep.units import Lsn
from test_run import Daemon

pytestmark = pytest.mark.unguarded

MB = 1 << 20


def slot(retained: int, limit: int | None = 100 * MB, *, status: str = "extended", reason: str = "") -> Slot:
    """A slot for which so much is kept."""
    return Slot("s", True, status, reason, Lsn(0), retained, limit, Lsn(0))


# --- the rule --------------------------------------------------------------------------------------


def test_the_share_of_what_is_kept() -> None:
    """Percent of the limit; nothing where there is no limit; all of it once the slot is lost."""
    assert [slot(n * MB).share for n in (0, 1, 69, 70, 250)] == [0, 1, 69, 70, 250]
    assert slot(10**12, None).share is None
    assert slot(0, status="lost").share == 100
    assert slot(0, 0).share == 100


def test_each_level_is_said_once() -> None:
    """A level is reached at its threshold and left only well below it, so that no wobble says it again."""
    said, stands = [], 0
    for percent in (10, 69, 70, 71, 69, 70, 84, 85, 84, 86, 90, 79, 86, 64, 70, 100, None, 70):
        before, stands = stands, level(stands, percent)
        if stands > before:
            said.append((percent, stands))
    assert said == [(70, 70), (85, 85), (86, 85), (70, 70), (100, 85), (70, 70)]


@given(st.lists(st.none() | st.integers(0, 300), max_size=30))
def test_no_level_without_its_share(percents: list[int | None]) -> None:
    """At or above a threshold its level, or a higher one, always stands; far below it never does."""
    stands = 0
    for percent in percents:
        stands = level(stands, percent)
        for each in LEVELS:
            if percent is not None and percent >= each:
                assert stands >= each
            if percent is None or percent <= each - 5:
                assert stands < each


def test_what_a_person_reads() -> None:
    """How much, of how much, and that a lost slot means to copy anew, with the server's own word for why."""
    (found,) = near_limit(slot(70 * MB))
    assert "keeps 70 MB of WAL for this link, 70 % of max_slot_wal_keep_size (100 MB)" in found.message
    assert [
        near_limit_of for n in (None, 69) for near_limit_of in near_limit(slot(69 * MB, n and 100 * MB))
    ] == []
    (found,) = near_limit(slot(85 * MB))
    assert "soon" in found.message
    assert "max_slot_wal_keep_size = '200MB'" in found.hint
    lost = slot_lost(slot(0, status="lost", reason="idle_timeout"))
    assert "s was invalidated by the source (idle_timeout)" in lost.message
    assert "copy anew" in lost.hint


# --- on real servers -------------------------------------------------------------------------------


@pytest.fixture
def forgetful(pair: Pair) -> Iterator[Pair]:
    """The same target with a source that keeps no more than 64 MB of WAL, and no slot idle for longer than 2 s."""
    settings = {"max_slot_wal_keep_size": "64MB", "min_wal_size": "32MB", "max_wal_size": "48MB"}
    with ThrowawayServer(INSTALLED[majors[-1]], name="forgetful", settings=settings) as source:
        yield Pair(source.conninfo(), pair.target, source, pair.target_server)


def write(pair: Pair, megabytes: int) -> None:
    """Write so much WAL that is of no use to anybody."""
    with connect(pair.source) as conn:
        for _ in range(megabytes):
            conn.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1048576))")


def test_warned_and_then_lost(cli: Cli, forgetful: Pair) -> None:
    """The daemon warns at each level, also while its target is away; status says it; the lost slot is refused by name."""
    ends = ("--source", forgetful.source, "--target", forgetful.target)
    with connect(forgetful.source) as conn:
        conn.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    running = Daemon(cli, forgetful)
    assert running.status()["source"]["slot_wal_limit_bytes"] == 64 * MB
    assert running.status()["source"]["slot_warning"] is None
    forgetful.target_server.stop()
    with connect(forgetful.source) as open_one:
        # what an open transaction may still write has to be decoded from here on, however much is confirmed; once it has
        # ended, the source's next note of open transactions lets a daemon that lives let go of it all
        open_one.execute("BEGIN")
        open_one.execute("INSERT INTO t VALUES (2)")
        try:
            write(forgetful, 47)
            said = _read_until(running, "of max_slot_wal_keep_size")
            assert "(64 MB)" in said
            assert "ALTER SYSTEM SET max_slot_wal_keep_size = '128MB'" in said
            write(forgetful, 10)
            more = _read_until(running, "of max_slot_wal_keep_size")
            assert more.count("(64 MB)") == 1
            assert int(more.rsplit(" % of max_slot")[0].rsplit(" ")[-1]) >= 85
        finally:
            running.kill()
            forgetful.target_server.start()
        status = cli("status", *ends)
        assert "% of max_slot_wal_keep_size (64 MB): past that" in status.stdout
    write(forgetful, 40)
    with connect(forgetful.source) as conn:

        def lost() -> bool:
            conn.execute("CHECKPOINT")
            return conn.execute("SELECT FROM pg_replication_slots WHERE wal_status = 'lost'").rowcount == 1

        wait_until(lost, 20, "the slot to be lost")
    message, hint = refused(cli("once", *ends), 4)
    assert "was invalidated by the source" in message
    assert "max_slot_wal_keep_size" in hint
    done = cli("status", *ends, "--json")
    assert done.returncode == 1
    assert "invalidated" in json.loads(done.stdout)["links"][0]["source"]["error"]
    # the way out that the hint names
    assert cli("teardown", "--yes", *ends).returncode == 0
    with connect(forgetful.target) as conn:
        conn.execute("DROP TABLE t")
    assert cli("once", *ends).returncode == 0


def _read_until(running: Daemon, text: str) -> str:
    """The lines that the daemon says up to the one with `text`."""
    assert running.process.stdout is not None
    said = ""
    for line in running.process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"the daemon ended without saying {text!r}: {said}")


@pytest.mark.skipif(majors[-1] < 18, reason="a setting that came with PostgreSQL 18")
def test_idle_for_too_long(cli: Cli, pair: Pair) -> None:
    """From 18 on a slot that nobody uses can be timed out: the reason is told, and the setting that did it."""
    with ThrowawayServer(
        INSTALLED[majors[-1]], name="hasty", settings={"idle_replication_slot_timeout": "1s"}
    ) as source:
        ends = ("--source", source.conninfo(), "--target", pair.target)
        with connect(source.conninfo()) as conn:
            conn.execute("CREATE TABLE t (id int PRIMARY KEY)")
            assert cli("once", *ends).returncode == 0

            def lost() -> bool:
                conn.execute("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t")
                conn.execute("CHECKPOINT")
                return (
                    conn.execute("SELECT FROM pg_replication_slots WHERE wal_status = 'lost'").rowcount == 1
                )

            wait_until(lost, 20, "the slot to be timed out")
        message, hint = refused(cli("once", *ends), 4)
        assert "(idle_timeout)" in message
        assert "idle_replication_slot_timeout" in hint


def test_a_slot_made_anew_is_no_slot_of_ours(cli: Cli, pair: Pair) -> None:
    """A slot of the same name made later has forgotten what came before: refused, never streamed from."""
    ends = ("--source", pair.source, "--target", pair.target)
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    assert cli("once", *ends).returncode == 0
    name = source.execute(
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
    ).fetchone()
    source.execute("SELECT pg_drop_replication_slot(%s)", name)
    source.execute("INSERT INTO t VALUES (1)")
    assert name is not None
    source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", name)
    source.execute("INSERT INTO t VALUES (2)")
    message, hint = refused(cli("once", *ends), 4)
    assert "has forgotten everything before" in message
    assert "copy anew" in hint
    done = cli("run", *ends)
    assert (done.returncode, message in done.stderr) == (4, True)
    assert pair.on_target().execute("SELECT FROM t").rowcount == 0


def test_no_drop_of_a_database_by_accident(cli: Cli, pair: Pair) -> None:
    """A source that is being streamed cannot be dropped, even by force: PostgreSQL's own guard, told by its own error."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    name = pair.on_source().info.dbname
    running = Daemon(cli, pair)
    with connect(pair.source_server.conninfo()) as conn:
        with pytest.raises(psycopg.errors.ObjectInUse):
            conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
        assert running.process.poll() is None
    ends = ("--source", pair.source, "--target", pair.target)
    running.process.terminate()
    assert running.process.wait(20) == 0
    assert cli("teardown", "--yes", *ends).returncode == 0
    pair.close()
    with connect(pair.source_server.conninfo()) as conn:
        conn.execute(f'DROP DATABASE "{name}"'.encode())


# --- helping the source to let go ------------------------------------------------------------------


@pytest.mark.parametrize("major", majors)
@pytest.mark.parametrize("role", ["superuser", "plain"])
def test_noting_transactions_lets_wal_go(
    servers: Servers, make_database: MakeDatabase, major: int, role: str
) -> None:
    """With a transaction open all the time a slot keeps its WAL until two notes have been written: here, by us."""
    database = make_database(servers.source(major))
    with connect(database) as conn, connect(database) as writer:
        conn.execute("CREATE TABLE t (id int)")
        conn.execute("CREATE PUBLICATION p FOR TABLE t")
        conn.execute("SELECT pg_create_logical_replication_slot('kept', 'pgoutput')")
        kept = "SELECT restart_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = 'kept'"
        receive = (
            "SELECT count(*) FROM pg_logical_slot_get_binary_changes('kept', NULL, NULL, 'proto_version', '1', "
            "'publication_names', 'p')"
        )
        ours = database
        if role == "plain":
            conn.execute(f"CREATE ROLE noting_{major} LOGIN REPLICATION")
            ours = make_conninfo(database, user=f"noting_{major}")
        try:

            async def note() -> None:
                session = await connect_end(End("source", "test", ours), "test")
                try:
                    await note_transactions(session, "kept_note")
                except psycopg.errors.QueryCanceled:
                    # it waits for the open transaction to end, and the note is written before
                    pass
                finally:
                    await session.close()

            writer.autocommit = False
            writer.execute("INSERT INTO t VALUES (1)")
            conn.execute(receive)
            (before,) = conn.execute(kept).fetchone() or (None,)
            conn.execute("INSERT INTO t SELECT generate_series(1, 1000)")
            (now,) = conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone() or (None,)
            for _ in range(2):
                asyncio.run(note())
                # transactions come and go, but there is always one
                with connect(database) as another:
                    another.autocommit = False
                    another.execute("INSERT INTO t VALUES (2)")
                    writer.commit()
                    writer.execute("INSERT INTO t VALUES (1)")
                    another.commit()
                conn.execute(receive)
            asyncio.run(note())
            conn.execute(receive)
            assert before <= now <= (conn.execute(kept).fetchone() or (0,))[0]
            assert (
                conn.execute("SELECT FROM pg_replication_slots WHERE slot_name = 'kept_note'").rowcount == 0
            )
        finally:
            writer.rollback()
            if role == "plain":
                conn.execute(f"DROP ROLE noting_{major}")
