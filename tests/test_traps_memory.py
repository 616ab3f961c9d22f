"""Memory in the long run: a transaction of ten million rows, a million transactions behind a target that is away, idling.

A test may take minutes and belongs to `make soak`; the bound is on the daemon and all of its children together.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psycopg
import pytest

from fix_pgbench import Pgbench
from fix_servers import Cli, Connection, Pair, wait_until
from test_run import Daemon, daemon
from test_traps_size import Record

pytestmark = [pytest.mark.unforked, pytest.mark.soak, pytest.mark.timeout(1200)]

#: What the daemon and its children may hold together, in MB: at work, and idle.
AT_WORK, IDLE = 200, 90


class Watched:
    """A daemon's memory, looked at again and again; in MB."""

    def __init__(self, running: Daemon) -> None:
        self._pid = running.process.pid
        self.peak = 0.0

    def look(self) -> float:
        """What it and its children hold now; the largest of these is `peak`."""
        now = sum(map(_resident, self._family())) / 1024
        self.peak = max(self.peak, now)
        return now

    def cpu(self) -> float:
        """The processor time that it has had, in seconds."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def _family(self) -> list[int]:
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        return [self._pid, *map(int, children)]


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def told(record: Record, what: str, figure: float) -> None:
    """Keep a figure with the test's result."""
    record(what, round(figure, 1))
    print(f"{what}: {figure:.1f}", file=sys.stderr)


def reached(pair: Pair, lsn: str) -> bool:
    """Whether the target has everything up to an LSN of the source's."""
    with psycopg.connect(pair.target, autocommit=True) as conn:
        return bool(conn.execute("SELECT FROM pglockstep.progress WHERE lsn >= %s", [lsn]).rowcount)


def wal_end(source: Connection) -> str:
    """Where the source's WAL ends."""
    row = source.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    return str(row[0])


def test_ten_million_rows_in_one_transaction(pair: Pair, cli: Cli, record_property: Record) -> None:
    """They pass through in constant memory, and nothing of them is seen on the target before all of them are."""
    source, target = pair.on_source(), pair.on_target()
    source.execute("CREATE TABLE t (id bigint PRIMARY KEY, a int, v text)")
    with daemon(cli, pair) as running:
        watched = Watched(running)
        began = time.monotonic()
        source.execute(
            "INSERT INTO t SELECT n, n % 1000, md5(n::text) FROM generate_series(1, 10000000) AS n"
        )
        lsn = wal_end(source)
        told(record_property, "seconds to insert", time.monotonic() - began)
        seen = set()

        def level() -> bool:
            watched.look()
            row = target.execute("SELECT count(*) FROM (SELECT FROM t LIMIT 1) AS one").fetchone()
            seen.add(row and row[0])
            return reached(pair, lsn)

        wait_until(level, 900, "the target to have them all")
        told(record_property, "seconds to level", time.monotonic() - began)
        told(record_property, "peak MB", watched.peak)
        assert seen <= {0, 1}
        assert target.execute("SELECT count(*) FROM t").fetchone() == (10_000_000,)
        assert watched.peak <= AT_WORK
    assert cli("check", "--source", pair.source, "--target", pair.target).returncode == 0


def test_a_million_transactions_behind_a_target_that_is_away(
    pair: Pair, cli: Cli, record_property: Record
) -> None:
    """They are received meanwhile, and applied when it is back, in bounded memory; then the daemon idles, for little."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
    with daemon(cli, pair) as running:
        watched = Watched(running)
        time.sleep(5)
        told(record_property, "idle MB", idle := watched.look())
        pair.target_server.stop("fast")
        source.execute("SET synchronous_commit = off")
        source.execute(
            "DO $$ BEGIN FOR n IN 1..1000000 LOOP INSERT INTO t VALUES (n, 'some text'); COMMIT; END LOOP; END $$"
        )
        wait_until(
            lambda: (
                watched.look()
                and source.execute(
                    "SELECT FROM pg_replication_slots WHERE database = current_database() "
                    "AND pg_current_wal_lsn() - confirmed_flush_lsn < 1000000"
                ).rowcount
            ),
            300,
            "all to be received",
        )
        told(record_property, "peak MB while away", watched.peak)
        pair.target_server.start()
        lsn = wal_end(source)
        wait_until(lambda: watched.look() and reached(pair, lsn), 600, "the target to level")
        told(record_property, "peak MB", watched.peak)
        assert watched.peak <= AT_WORK
        assert idle <= IDLE
        time.sleep(5)
        before, began = watched.cpu(), time.monotonic()
        time.sleep(20)
        told(
            record_property,
            "idle, percent of a core",
            100 * (watched.cpu() - before) / (time.monotonic() - began),
        )
        told(record_property, "MB afterwards", watched.look())
    levelled_again(pair, cli)


def levelled_again(pair: Pair, cli: Cli) -> None:
    """Both ends are identical."""
    assert cli("check", "--source", pair.source, "--target", pair.target).returncode == 0


@pytest.mark.superusers
@pytest.mark.parametrize("seconds", [600])
def test_a_target_that_is_away_for_long(pair: Pair, cli: Cli, record_property: Record, seconds: int) -> None:
    """Ten minutes of pgbench with the target stopped: little is received and not confirmed, the source keeps little WAL."""
    source = pair.on_source()
    bench = Pgbench(pair)
    with daemon(cli, pair) as running:
        watched = Watched(running)
        pair.target_server.stop("fast")
        unconfirmed, oldest = 0, 0.0
        # when the source's WAL had come to where
        history: list[tuple[float, int]] = []
        with bench.running(None):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.5)
                watched.look()
                row = source.execute(
                    "SELECT r.sent_lsn - s.confirmed_flush_lsn, s.restart_lsn - '0/0', pg_current_wal_lsn() - '0/0' "
                    "FROM pg_replication_slots AS s JOIN pg_stat_replication AS r ON r.pid = s.active_pid "
                    "WHERE s.database = current_database()"
                ).fetchone()
                if row is None:
                    continue
                now = time.monotonic()
                history.append((now, int(row[2])))
                unconfirmed = max(unconfirmed, int(row[0]))
                written = next((when for when, lsn in history if lsn >= int(row[1])), now)
                oldest = max(oldest, now - written)
                history = [(when, lsn) for when, lsn in history if lsn >= int(row[1])] or history[-1:]
        told(record_property, "WAL written, MB", (history[-1][1]) / 2**20)
        told(record_property, "received and not confirmed at the most, MB", unconfirmed / 2**20)
        told(record_property, "age of the oldest WAL kept at the most, seconds", oldest)
        told(record_property, "peak MB", watched.peak)
        assert unconfirmed <= 16 << 20
        assert watched.peak <= AT_WORK
        pair.target_server.start()
        lsn = wal_end(source)
        wait_until(lambda: watched.look() and reached(pair, lsn), 600, "the target to level")
    levelled_again(pair, cli)
