"""``pglockstep run``: the daemon on real servers that are restarted, crashed and written to meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fix_servers import Cli, Pair, on_all_pairs, wait_until
from fix_workload import SCHEMA, workload
from pglockstep.demo.servers import StopMode

pytestmark = pytest.mark.unguarded

#: A crash, and an orderly end.
STOPS: tuple[StopMode, ...] = ("immediate", "fast")


class Daemon:
    """A running ``pglockstep run`` and the commands beside it."""

    def __init__(
        self,
        cli: Cli,
        pair: Pair,
        *,
        configured: bool = False,
        states: tuple[str, ...] = ("streaming", "catching_up"),
    ) -> None:
        self._cli = cli
        self._states = states
        self._ends = () if configured else ("--source", pair.source, "--target", pair.target)
        self.process = cli.start("run", *self._ends)
        wait_until(self._ready, 30, "the daemon to stream")

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            output = self.process.stdout.read() if self.process.stdout else ""
            raise AssertionError(f"the daemon ended with {self.process.returncode}: {output}")
        status = self.status()
        return bool(status["daemon_alive"] and status["state"] in self._states)

    def status(self) -> dict[str, Any]:
        done = self._cli("status", *self._ends, "--json")
        assert done.returncode in (0, 1), done.stderr
        found = json.loads(done.stdout)["links"][0]
        assert isinstance(found, dict)
        return found

    def run(self, command: str, *, code: int = 0) -> dict[str, Any]:
        done = self._cli(command, *self._ends, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        found = json.loads(done.stdout)["links"][0]
        assert isinstance(found, dict)
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def daemon(cli: Cli, pair: Pair) -> Iterator[Daemon]:
    """A daemon until the block ends; then it must end well on SIGTERM."""
    running = Daemon(cli, pair)
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        assert running.process.wait(20) == 0, running.process.stdout.read() if running.process.stdout else ""


def ends_identical(cli: Cli, pair: Pair) -> None:
    """Without a daemon: `once` levels the target by the stream alone, and both ends are identical."""
    done = cli("once", "--source", pair.source, "--target", pair.target, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    link = json.loads(done.stdout)["links"][0]
    assert (link["verdict"], link["copied_rows"]) == ("identical", 0)


@on_all_pairs
def test_follows_a_live_workload(pair: Pair, cli: Cli) -> None:
    """The daemon copies and follows writers; as soon as they rest, check beside it says identical."""
    pair.on_source().execute(SCHEMA.encode())
    with daemon(cli, pair) as running:
        with workload(pair.source):
            time.sleep(3)
        link = running.run("check")
        assert (link["verdict"], link["lag_bytes"]) == ("identical", 0)
        assert running.run("once")["applied_transactions"] == 0
    ends_identical(cli, pair)


def test_check_under_load_never_says_different(pair: Pair, cli: Cli) -> None:
    """Beside a live daemon and live writers a check is never falsely different, and never gives up."""
    pair.on_source().execute(SCHEMA.encode())
    with daemon(cli, pair), workload(pair.source):
        for _ in range(6):
            done = cli("check", "--source", pair.source, "--target", pair.target)
            assert done.returncode == 0, done.stdout + done.stderr


def test_a_planted_difference_is_found_under_load(pair: Pair, cli: Cli) -> None:
    """A wrong row in a quiet table is found beside a live daemon, however busy the other tables are."""
    source = pair.on_source()
    source.execute(SCHEMA.encode())
    source.execute("CREATE TABLE quiet (id int PRIMARY KEY, v text); INSERT INTO quiet VALUES (1, NULL)")
    with daemon(cli, pair), workload(pair.source):
        pair.on_target().execute("UPDATE quiet SET v = ''")
        done = cli("check", "--source", pair.source, "--target", pair.target, "--json")
        assert done.returncode == 1
        tables = {table["table"]: table for table in json.loads(done.stdout)["links"][0]["tables"]}
        assert (tables["quiet"]["verdict"], tables["quiet"]["changed"]) == ("different", 1)


def test_either_end_may_vanish_and_return(pair: Pair, cli: Cli) -> None:
    """Servers stopped, crashed and restarted under load: the daemon waits, says so, and goes on by itself."""
    pair.on_source().execute(SCHEMA.encode())
    with daemon(cli, pair) as running:
        for mode in STOPS:
            with workload(pair.source):
                time.sleep(0.5)
                pair.target_server.stop(mode)
                wait_until(lambda: running.status()["state"] == "waiting", 20, "the daemon to wait")
                assert running.status()["daemon_alive"]
                assert running.status()["reason"]
                pair.target_server.start()
                wait_until(lambda: running.status()["state"] == "streaming", 40, "the daemon to stream again")
        for mode in STOPS:
            with workload(pair.source):
                time.sleep(0.5)
            pair.source_server.stop(mode)
            wait_until(lambda: running.status()["state"] == "waiting", 20, "the daemon to wait")
            pair.source_server.start()
            wait_until(lambda: running.status()["state"] == "streaming", 40, "the daemon to stream again")
        assert running.run("check")["verdict"] == "identical"
    ends_identical(cli, pair)


def test_ends_between_commits_and_goes_on(pair: Pair, cli: Cli) -> None:
    """SIGTERM under load ends the daemon with 0 and the target at a commit; the next start goes on from there."""
    pair.on_source().execute(SCHEMA.encode())
    for _ in range(3):
        with daemon(cli, pair), workload(pair.source, pause=0.0005):
            time.sleep(1)
    ends_identical(cli, pair)
    running = Daemon(cli, pair)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(20) == 130


def test_a_second_daemon_is_refused(pair: Pair, cli: Cli) -> None:
    """A second daemon on one link ends with 8 at once, and so does teardown."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    with daemon(cli, pair):
        second = cli("run", "--source", pair.source, "--target", pair.target)
        assert second.returncode == 8
        assert "HINT" in second.stderr
        torn = cli("teardown", "--yes", "--source", pair.source, "--target", pair.target)
        assert torn.returncode == 8


def test_status_tells_is_and_was(pair: Pair, cli: Cli) -> None:
    """Status speaks of a live daemon as *is*, of a state read from disk as *was*, and of a new link as new."""
    ends = ("--source", pair.source, "--target", pair.target)
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    assert json.loads(cli("status", *ends, "--json").stdout)["links"][0]["state"] == "new"
    with daemon(cli, pair) as running:
        assert " is streaming" in cli("status", *ends).stdout
        pair.on_source().execute("INSERT INTO t VALUES (1)")
        wait_until(lambda: running.status()["lag_bytes"] == 0, 20, "the target to be level")
        status = running.status()
        assert (status["lag_seconds"], status["source"]["reachable"]) == (0.0, True)
        assert status["source"]["slot_active"]
    done = cli("status", *ends)
    assert " was streaming" in done.stdout
    assert "no daemon" in done.stdout
    assert done.returncode == 0


def test_a_quiet_database_does_not_pin_the_wal(pair: Pair, cli: Cli) -> None:
    """Work in another database of the source's server moves the slot on, though nothing in it is for us."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    with daemon(cli, pair) as running:
        import psycopg

        with psycopg.connect(pair.source_server.conninfo(), autocommit=True) as other:
            other.execute(
                "CREATE TABLE IF NOT EXISTS noise AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
            )
            position = other.execute("SELECT pg_current_wal_lsn()").fetchone()
            other.execute("DROP TABLE noise")
        assert position is not None

        def moved() -> bool:
            confirmed = pair.on_source().execute(
                "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s",
                [position[0], running.status()["source"]["slot"]],
            )
            return confirmed.fetchone() == (True,)

        wait_until(moved, 40, "the slot to move on")


def test_a_refused_change_stops_the_daemon_with_its_name(pair: Pair, cli: Cli) -> None:
    """A change that the target refuses is tried a few times, then the daemon ends with table and reason; nothing is skipped."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)")
    running = Daemon(cli, pair)
    pair.on_target().execute("ALTER TABLE t ADD CONSTRAINT small CHECK (v < 10)")
    source.execute("INSERT INTO t VALUES (2, 2)")
    source.execute("INSERT INTO t VALUES (3, 30)")
    try:
        assert running.process.wait(30) == 5
    except subprocess.TimeoutExpired:
        running.kill()
        raise
    assert running.process.stdout is not None
    output = running.process.stdout.read()
    assert "public.t where id = '3'" in output
    assert "small" in output
    assert running.status()["state"] == "stopped"
    assert pair.on_target().execute("SELECT id FROM t ORDER BY id").fetchall() == [(1,), (2,)]
    pair.on_target().execute("ALTER TABLE t DROP CONSTRAINT small")
    ends_identical(cli, pair)
