"""What the faults need: a link whose ends can be cut off, its daemon, a writer that does not give up, and a report.

A pytest plugin (`-p fix_faults`): what is told to `survived` is printed at the end of the run as a table.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from fix_mirror import contents
from fix_proxy import MakeProxy, Proxy, make_proxy
from fix_roads import same_rows
from fix_servers import Cli, Pair, connect, wait_until
from pglockstep.demo.servers import ThrowawayServer

__all__ = ["make_proxy"]

#: Told to the daemon: how long an end may be silent, in seconds.
SILENCE = 3.0

#: Lines are put down twice and one of the two is taken back; what is applied twice, or not at all, leaves a trace.
SCHEMA = """
CREATE TABLE line (n bigint, v text);  -- no key
CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL);
CREATE TABLE bulk (id bigint PRIMARY KEY, v text NOT NULL);
INSERT INTO counter SELECT n, 0 FROM generate_series(0, 9) AS n;
"""


class Link:
    """A link in a configuration file, and the daemon that runs it. `source` and `target` are as the file has them."""

    def __init__(self, cli: Cli, pair: Pair, source: str, target: str, keys: Mapping[str, str]) -> None:
        self._cli = cli
        self.pair = pair
        self.log = cli.directory / "daemon.log"
        self.state = cli.directory / "state"
        self.process: subprocess.Popen[str] | None = None
        given = {"source": source, "target": target, "silence_timeout": f"{SILENCE:g}s"} | dict(keys)
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items())
        (cli.directory / "pglockstep.toml").write_text(f"[links.main]\n{lines}")

    def start(self, *args: str, ready: bool = True, env: Mapping[str, str] | None = None) -> None:
        """Start the daemon, and wait until it streams unless told not to."""
        self.log.touch()
        self.process = self._cli.start("run", *args, env=env, log=self.log)
        if ready:
            self.becomes("streaming", "catching_up")

    @property
    def said(self) -> str:
        """All that daemons of this link have logged."""
        return self.log.read_text()

    @property
    def journal(self) -> Path:
        """Where the journal is."""
        (found,) = (self.state / "journal").iterdir()
        return found

    @property
    def segments(self) -> list[Path]:
        """The journal's files, oldest first."""
        return sorted(self.journal.glob("*.journal"))

    def status(self) -> dict[str, Any]:
        """What ``status --json`` says of the link, and the command's own exit code as `code`."""
        done = self._cli("status", "--json")
        assert done.returncode in (0, 1), done.stderr
        found = json.loads(done.stdout)["links"][0]
        assert isinstance(found, dict)
        return found | {"code": done.returncode}

    def becomes(self, *states: str, within: float = 40.0) -> dict[str, Any]:
        """Wait until ``status`` says one of `states` of a living daemon; returns all that it says then."""

        def found() -> dict[str, Any] | None:
            self.demand_alive()
            status = self.status()
            return status if status["daemon_alive"] and status["state"] in states else None

        status = wait_until(found, within, f"the link to be {' or '.join(states)}")
        assert status is not None
        return status

    def demand_alive(self) -> None:
        """Fail the test with what the daemon said, if it has ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said[-3000:]}"

    def ended(self, within: float = 40.0) -> int:
        """Wait for the daemon's end by itself; returns its exit code."""
        assert self.process is not None
        return self.process.wait(within)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.demand_alive()
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, which has to end it well."""
        assert self.process is not None
        self.demand_alive()
        self.process.terminate()
        assert self.process.wait(20) == 0, self.said[-3000:]

    def run(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command beside the daemon."""
        return self._cli(*args)

    def level(self, within: float = 60.0) -> None:
        """Wait until the target has everything that the source has written by now."""
        mark = time.time_ns()
        with connect(self.pair.source) as source:
            source.execute("INSERT INTO line VALUES (%s, 'level')", [mark])

        def there() -> bool:
            self.demand_alive()
            with suppress(psycopg.OperationalError), connect(self.pair.target) as target:
                return bool(target.execute("SELECT FROM line WHERE n = %s", [mark]).rowcount)
            return False

        wait_until(there, within, f"the target to be level; {self.said[-1500:]}")

    def proven(self) -> None:
        """End the daemon, if one runs; `once` then finds, or makes, both ends identical by the stream alone."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        done = self._cli("once", "--json")
        assert done.returncode == 0, done.stdout + done.stderr + self.said[-3000:]
        found = json.loads(done.stdout)["links"][0]
        assert (found["verdict"], found["copied_rows"]) == ("identical", 0)
        same_rows(self.pair, "after the fault")

    def copied(self) -> None:
        """Make the tables on the source, and the first copy."""
        with connect(self.pair.source) as source:
            source.execute(SCHEMA.encode())
        assert self._cli("once").returncode == 0


# --- ends behind proxies ---------------------------------------------------------------------------


MakeLink = Callable[..., Link]


@pytest.fixture
def link(cli: Cli, pair: Pair) -> Link:
    """A link over the servers' sockets, its first copy made."""
    made = Link(cli, pair, pair.source, pair.target, {})
    made.copied()
    return made


class Wired:
    """A link, its first copy made, with a proxy before either end."""

    def __init__(self, cli: Cli, pair: Pair, make_proxy: MakeProxy) -> None:
        self.source, self.target = make_proxy(pair.source_server.port), make_proxy(pair.target_server.port)
        self.link = Link(
            cli,
            pair,
            through(self.source, pair.source_server, pair.source),
            through(self.target, pair.target_server, pair.target),
            {"connect_timeout": f"{SILENCE:g}s", "lock_timeout": "2s"},
        )
        self.link.copied()

    def __getitem__(self, end: str) -> Proxy:
        return self.source if end == "source" else self.target


@pytest.fixture
def wired(cli: Cli, pair: Pair, make_proxy: MakeProxy) -> Wired:
    """A link with a proxy before either end."""
    return Wired(cli, pair, make_proxy)


def through(proxy: Proxy, server: ThrowawayServer, conninfo: str) -> str:
    """The connection string of the same database through a proxy, as the same role."""
    return make_conninfo(conninfo, host="127.0.0.1", port=proxy.port, password=server.password)


# --- looking ---------------------------------------------------------------------------------------


def confirmed_up_to(link: Link, lsn: str) -> bool:
    """Whether the source was told to forget everything before `lsn`."""
    with connect(link.pair.source) as source:
        found = source.execute(
            "SELECT FROM pg_replication_slots WHERE database = current_database() AND confirmed_flush_lsn >= %s::pg_lsn",
            [lsn],
        )
        return bool(found.rowcount)


def rows_of(conninfo: str) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    with connect(conninfo) as conn:
        return contents(conn)


# --- load ------------------------------------------------------------------------------------------


class Writer:
    """Writes line after line to a source until it is closed; a source that is away is waited for."""

    def __init__(self, conninfo: str, pause: float) -> None:
        self._conninfo = conninfo
        self._pause = pause
        self._end = threading.Event()
        self._failed: Exception | None = None
        #: how many transactions the source is known to have committed
        self.committed = 0
        self._thread = threading.Thread(target=self._run, name="writer")
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        assert self._failed is None, self._failed

    def _run(self) -> None:
        number = 0
        while not self._end.is_set():
            try:
                with connect(self._conninfo) as conn:
                    while not self._end.wait(self._pause):
                        number += 1
                        _write(conn, number)
                        self.committed += 1
            except psycopg.OperationalError:
                self._end.wait(0.1)
            except Exception as error:
                self._failed = error
                return


def _write(conn: psycopg.Connection[Any], number: int) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO line VALUES (%s, 'x'), (%s, 'x')", [number, number])
        conn.execute("UPDATE counter SET n = n + 1 WHERE id = %s", [number % 10])
        if number % 3 == 0:
            conn.execute(
                "DELETE FROM line WHERE ctid = (SELECT min(ctid) FROM line WHERE n = %s)", [number - 1]
            )


@contextmanager
def writing(conninfo: str, *, pause: float = 0.005) -> Iterator[Writer]:
    """A writer beside the block; at its end everything that was acknowledged is still there."""
    with connect(conninfo) as conn:
        before = _count(conn)
    writer = Writer(conninfo, pause)
    try:
        yield writer
    finally:
        writer.close()
    with connect(conninfo) as conn:
        assert _count(conn) - before >= writer.committed


def _count(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT sum(n) FROM counter").fetchone()
    return int(row[0]) if row else 0


def large_transaction(conninfo: str, megabytes: int, *, first: int = 1) -> None:
    """One transaction of so many megabytes that no compression makes small, with ids from `first` on."""
    rows = megabytes * 500
    with connect(conninfo) as conn:
        conn.execute(
            """INSERT INTO bulk SELECT %s + n, (SELECT string_agg(md5(random()::text || n || k), '')
               FROM generate_series(1, 62) AS k) FROM generate_series(0, %s) AS n""",
            [first, rows - 1],
        )


@contextmanager
def under_way(link: Link, megabytes: int, *, first: int = 1) -> Iterator[None]:
    """The block runs while a large transaction of the source's is being applied: part of it is there, unseen."""
    with connect(link.pair.target) as target:
        size = b"SELECT pg_relation_size('bulk') FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
        row = target.execute("SELECT pg_relation_size('bulk'), count(*) FROM bulk").fetchone()
        assert row is not None
        before, rows = row
        large_transaction(link.pair.source, megabytes, first=first)
        wait_until(
            lambda: max((each for (each,) in target.execute(size)), default=0) > before + 3_000_000,
            60,
            "part of the large transaction to be applied",
        )
        assert target.execute("SELECT count(*) FROM bulk").fetchone() == (rows,)
    yield


# --- the report ------------------------------------------------------------------------------------


Survived = Callable[..., None]


@pytest.fixture
def survived(record_property: Callable[[str, object], None]) -> Survived:
    """Notes that the link has survived a fault, so many times, for the report at the end of the run."""

    def note(fault: str, times: int = 1) -> None:
        record_property("fault", fault)
        record_property("times", times)

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """After a long run: each fault, how often it was brought about, and how it went."""
    if config.getoption("markexpr") != "soak":
        return
    times: Counter[str] = Counter()
    lost: dict[str, str] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if outcome != "passed" and "test_faults" in report.nodeid:
                lost[report.nodeid.partition("::")[2]] = outcome
            told = [
                value for name, value in getattr(report, "user_properties", []) if name in ("fault", "times")
            ]
            if report.when == "call":
                for fault, count in zip(told[::2], told[1::2], strict=True):
                    times[str(fault)] += int(count)
    if not times and not lost:
        return
    terminalreporter.section("faults survived")
    width = max(map(len, [*times, *lost]))
    for fault, count in sorted(times.items()):
        terminalreporter.line(f"{fault:<{width}}  {count:>5}  identical afterwards")
    for name, outcome in sorted(lost.items()):
        terminalreporter.line(f"{name:<{width}}      1  {outcome}")
