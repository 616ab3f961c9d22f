"""A link that polls, and what may happen to it: kills, ends that go away, foreign writes, locks, DDL, and much at once."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fix_copy import refused
from fix_polled import Polled, polled
from fix_servers import Cli, Pair, wait_until


@pytest.mark.parametrize(
    "failpoint",
    [
        "poll.part:3",
        "poll.commit",
        "journal.written",
        "apply.part:2",
        "apply.commit",
        "apply.committed",
        "progress.move",
    ],
)
def test_killed(pair: Pair, cli: Cli, failpoint: str) -> None:
    """Killed in the midst of a large poll, before and after: the next run has everything, and nothing twice."""
    with polled(cli, pair) as link:
        link.once()
        link.write(
            """INSERT INTO "Track" ("Name") SELECT repeat('x', 100) || n FROM generate_series(1, 60000) AS n""",
            """INSERT INTO "Play" SELECT n % 7, '2025-01-01', '1' FROM generate_series(1, 3000) AS n""",
            """UPDATE "Genre" SET "Name" = 'g' || "GenreId" """,
        )
        done = cli("once", env={"PGLOCKSTEP_FAILPOINT": failpoint})
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
        if failpoint != "progress.move":
            assert done.returncode == -signal.SIGKILL
        link.once()
        assert link.same()


@pytest.mark.parametrize("failpoint", ["poll.part:3", "apply.part:2", "apply.committed:2"])
def test_daemon_killed(pair: Pair, cli: Cli, failpoint: str) -> None:
    """As before, with a daemon after a daemon."""
    with polled(cli, pair) as link:
        link.once()
        first = cli.start("run", env={"PGLOCKSTEP_FAILPOINT": failpoint})
        link.write(
            """INSERT INTO "Track" ("Name") SELECT repeat('x', 100) || n FROM generate_series(1, 60000) AS n"""
        )
        link.write("""INSERT INTO "Genre" VALUES (100, 'one')""")
        try:
            wait_until(lambda: first.poll() is not None or link.same(), 60, "the daemon to die")
        finally:
            first.kill()
            first.wait()
        link.write(
            """INSERT INTO "Genre" VALUES (101, 'two')""", """DELETE FROM "Genre" WHERE "GenreId" = 100"""
        )
        running = link.start()
        link.arrives()
        link.check()
        assert running.process.poll() is None


def test_ends_away(pair: Pair, cli: Cli) -> None:
    """Either end goes away and comes back; what was written meanwhile arrives."""
    with polled(cli, pair) as link:
        link.once()
        running = link.start()
        pair.target_server.stop("immediate")
        link.write("""INSERT INTO "Genre" SELECT n, 'away ' || n FROM generate_series(100, 400) AS n""")
        wait_until(lambda: running.status()["state"] == "waiting", 40, "the daemon to miss it")
        pair.target_server.start()
        link.arrives()
        pair.source_server.stop("fast")
        wait_until(lambda: running.status()["state"] == "waiting", 40, "the daemon to miss it")
        pair.source_server.start()
        link.admin.close()
        link.admin = pair.superuser_on_source()
        link.write("""DELETE FROM "Genre" WHERE "GenreId" = 100""")
        link.arrives()
        wait_until(lambda: running.status()["state"] == "streaming", 40, "all to be well")
        assert running.process.poll() is None


@pytest.mark.parametrize("watched", ["watch", "off"])
def test_a_foreign_write_on_the_target(pair: Pair, cli: Cli, watched: str) -> None:
    """What others do to the target is undone: by the watch, or without one by the next poll that comes to it."""
    settings = f'[links.shop.guard]\nprotect_target = "{watched}"\n'
    with polled(cli, pair, settings=settings) as link:
        link.once()
        running = link.start()
        with pair.on_target() as target:
            target.execute("""UPDATE "Genre" SET "Name" = 'wrong' WHERE "GenreId" = 3""")
            target.execute("""DELETE FROM "Play" WHERE "TrackId" = 4""")
            target.execute("""INSERT INTO "Setting" VALUES ('foreign', '1')""")
        # the server of the source says that nothing has happened there: so every table has its turn only now and then
        wait_until(link.same, 60, "the target to be put right")
        link.write("""INSERT INTO "Genre" VALUES (100, 'since')""")
        link.arrives()
        link.check()
        assert running.process.poll() is None


def test_a_wiped_target(pair: Pair, cli: Cli) -> None:
    """The target is healed from the source as ever: rows, tables, and the schema of ours."""
    with polled(cli, pair) as link:
        link.once()
        running = link.start()
        for statement in (
            """TRUNCATE "Artist" CASCADE""",
            """DROP TABLE "Track" CASCADE""",
            "DROP SCHEMA pglockstep CASCADE",
        ):
            with pair.on_target() as target:
                target.execute(statement)
            link.write("""INSERT INTO "Play" VALUES (77, '2025-01-01', '1')""")

            def healed() -> bool:
                try:
                    return link.same()
                except psycopg.Error:
                    return False

            wait_until(healed, 60, f"the target to be healed after {statement}")
        wait_until(lambda: running.status()["open_incidents"] == 0, 30, "the incidents to be over")
        link.check()
        link.demand_untouched()


def test_a_locked_table(pair: Pair, cli: Cli) -> None:
    """One table that is locked on the source holds up no other; it follows as soon as it can be read."""
    with polled(cli, pair, settings='lock_timeout = "300ms"\n') as link:
        link.once()
        running = link.start()
        with pair.superuser_on_source() as other, other.transaction():
            other.execute("""LOCK TABLE "Track" IN ACCESS EXCLUSIVE MODE""")
            other.execute("""INSERT INTO "Track" ("Name") VALUES ('locked')""")
            link.write("""INSERT INTO "Genre" VALUES (100, 'not locked')""")
            link.arrives('"Genre"')
        link.arrives()
        assert running.process.poll() is None


def test_columns_that_differ(pair: Pair, cli: Cli) -> None:
    """A column that the target lacks stops the link, which names it; with it there all goes on."""
    with polled(cli, pair) as link:
        link.once()
        link.write("""ALTER TABLE "Genre" ADD COLUMN "Extra" int DEFAULT 7""")
        message, _ = refused(cli("once"), 5)
        assert "Genre" in message
        assert "Extra" in message
        with pair.on_target() as target:
            target.execute("""ALTER TABLE "Genre" ADD COLUMN "Extra" int DEFAULT 7""")
        link.once()
        assert link.same()


def test_a_new_table(pair: Pair, cli: Cli) -> None:
    """A table made after the copy is named, and comes in by a resync."""
    with polled(cli, pair) as link:
        link.once()
        link.write("CREATE TABLE late (id int PRIMARY KEY)", "INSERT INTO late VALUES (1), (2)")
        link.grant()
        done = cli("once")
        assert done.returncode == 1
        assert "public.late" in done.stderr
        done = cli("resync", "public.late", "--yes")
        assert done.returncode == 0, done.stderr
        link.write("INSERT INTO late VALUES (3)")
        link.once()
        assert link.same("late")
        link.demand_untouched()


def test_an_interrupted_copy(pair: Pair, cli: Cli) -> None:
    """A first copy that is killed is gone on with, from another moment, and ends consistent."""
    with polled(cli, pair) as link:
        for failpoint in ("journal.write", "poll.commit"):
            cli("once", env={"PGLOCKSTEP_FAILPOINT": failpoint})
        link.once()
        assert link.same()


def test_not_empty(pair: Pair, cli: Cli) -> None:
    """A target that holds something is not filled."""
    with polled(cli, pair):
        with pair.on_target() as target:
            target.execute("CREATE TABLE theirs (id int)")
        message, _ = refused(cli("once"), 5)
        assert "not empty" in message


def test_a_busy_source(pair: Pair, cli: Cli) -> None:
    """Rows that change all the time, and checks beside it: never a false difference, never in doubt."""
    with polled(cli, pair) as link:
        link.once()
        link.start()
        stop = _writing(link)
        try:
            for _ in range(5):
                link.check()
        finally:
            stop()
        link.arrives()


def _writing(link: Polled) -> Any:
    import threading

    ended = threading.Event()

    def write() -> None:
        with link.pair.superuser_on_source() as conn:
            number = 0
            while not ended.wait(0.002):
                number += 1
                conn.execute(
                    f"""UPDATE "Genre" SET "Name" = 'n{number}' WHERE "GenreId" = {1 + number % 5}""".encode()
                )
                conn.execute(f"""INSERT INTO "Play" VALUES ({number}, '2025-01-01', '1')""".encode())

    thread = threading.Thread(target=write)
    thread.start()

    def stop() -> None:
        ended.set()
        thread.join()

    return stop


def test_a_source_that_hangs(pair: Pair, cli: Cli) -> None:
    """A source that stops answering, in the midst of a large poll or between two, is missed, and gone on with when it answers."""
    with polled(cli, pair, settings='silence_timeout = "3s"\nconnect_timeout = "3s"\n') as link:
        link.once()
        running = link.start()
        link.write(
            """INSERT INTO "Track" ("Name") SELECT repeat('x', 100) || n FROM generate_series(1, 150000) AS n"""
        )
        link.write("""INSERT INTO "Genre" VALUES (100, 'before')""")
        link.admin.close()
        pids = _family(pair.source_server.pid or 0)
        try:
            _signalled(pids, signal.SIGSTOP)
            wait_until(lambda: running.status()["state"] == "waiting", 60, "the daemon to miss its source")
        finally:
            _signalled(pids, signal.SIGCONT)
            link.admin = pair.superuser_on_source()
        link.arrives('"Genre"', '"Track"')
        wait_until(lambda: running.status()["state"] == "streaming", 40, "all to be well")
        assert running.process.poll() is None


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _signalled(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
