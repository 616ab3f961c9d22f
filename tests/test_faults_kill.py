"""Faults: the daemon is killed, at every named failpoint and at random, and stopped for a while as by a debugger."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest

from fix_faults import SILENCE, Link, Survived, Wired, large_transaction, under_way, writing
from fix_servers import Cli, Pair, connect, wait_until
from fix_workload import SCHEMA, workload
from pglockstep import failpoints
from test_run import ends_identical

pytestmark = pytest.mark.unguarded

#: Those that a daemon comes by under load; what comes of the others stands beside what they belong to.
_ELSEWHERE = ("restore.", "heal.", "refill.", "adopt.", "repair.", "poll.")
NAMES = [name for name in failpoints.NAMES if not name.startswith(_ELSEWHERE)]


def dies(link: Link, name: str, count: int = 1) -> None:
    """A daemon under load, which has to die at the failpoint."""
    link.start(env={"PGLOCKSTEP_FAILPOINT": f"{name}:{count}"}, ready=False)
    if name == "progress.move":
        # an idle link, and a source that goes on elsewhere
        with connect(link.pair.source_server.conninfo()) as other:

            def moved() -> bool:
                other.execute("SELECT pg_create_restore_point('elsewhere')")
                return link.process is not None and link.process.poll() is not None

            wait_until(moved, 30 + 10 * count, f"the daemon to die at {name}")
    else:
        assert link.ended(60) == -signal.SIGKILL, link.said[-3000:]
    assert link.process is not None
    assert link.process.returncode == -signal.SIGKILL, link.said[-3000:]


def make_a_gap(link: Link) -> None:
    """Let another state directory do the link's work for a while: the journal here goes on behind a gap."""
    with connect(link.pair.source) as source:
        source.execute("INSERT INTO line VALUES (0, 'elsewhere')")
    done = link.run("once", "--state-dir", link.log.parent / "elsewhere")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(link.log.parent / "elsewhere")


def test_killed_at_every_failpoint(link: Link, survived: Survived) -> None:
    """kill -9 at each named failpoint, under load and during a large transaction: nothing lost, nothing twice."""
    make_a_gap(link)
    # "segment" first: behind the gap a new one is begun, and then the old one may go
    names = sorted(NAMES, key=lambda name: (name != "journal.segment", name != "journal.drop"))
    with writing(link.pair.source):
        for number, name in enumerate(name for name in names if name != "progress.move"):
            if name == "journal.drop":
                os.utime(link.segments[0], (0, 0))
            if name == "apply.part":
                large_transaction(link.pair.source, 8)
            dies(link, name, 1 + number % 3 if name.startswith(("apply.c", "confirm")) else 1)
            survived(f"kill -9 at {name}")
    dies(link, "progress.move")
    survived("kill -9 at progress.move")
    link.proven()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(NAMES))
def test_killed_again_and_again_at(link: Link, survived: Survived, name: str) -> None:
    """kill -9 at one failpoint, the first time it is reached and the n-th; each time both ends are identical afterwards."""
    for number, count in enumerate((1, 2, 3, 5, 8, 13, 21)):
        if name == "progress.move":
            if count > 2:
                break
            dies(link, name, count)
        elif name in ("journal.segment", "journal.drop"):
            if count > 1:
                break
            make_a_gap(link)
            if name == "journal.drop":
                link.start()
                link.stop()
                os.utime(link.segments[0], (0, 0))
            dies(link, name)
        else:
            with writing(link.pair.source):
                large_transaction(link.pair.source, 30, first=1 + 100_000 * number)
                dies(link, name, min(count, 5) if name == "apply.part" else count)
        survived(f"kill -9 at {name}")
        link.proven()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_killed_at_random(pair: Pair, cli: Cli, survived: Survived, kills: int) -> None:
    """kill -9 at random moments, from the first copy on, with tables without a key: nothing lost, nothing twice."""
    pair.on_source().execute(SCHEMA.encode())
    chance = random.Random(kills)
    ends = ("--source", pair.source, "--target", pair.target)
    with workload(pair.source):
        for number in range(kills):
            process = cli.start("run", *ends, log=cli.directory / "daemon.log")
            time.sleep(chance.uniform(0.2, 0.9) if number < 5 else chance.uniform(0.4, 1.4))
            assert process.poll() is None, (cli.directory / "daemon.log").read_text()[-3000:]
            process.kill()
            process.wait()
            survived("kill -9 at random")
    done = cli("once", *ends, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    ends_identical(cli, pair)
    slots = pair.on_source().execute(
        "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    )
    assert slots.fetchone() == (1,)


@pytest.mark.soak
def test_stopped_for_longer_than_an_end_may_be_silent(wired: Wired, survived: Survived) -> None:
    """SIGSTOP, as by a debugger or a machine put to sleep, for longer than silence_timeout: it goes on by itself."""
    link = wired.link
    link.start()
    assert link.process is not None
    with writing(link.pair.source):
        link.process.send_signal(signal.SIGSTOP)
        time.sleep(SILENCE + 1)
        link.process.send_signal(signal.SIGCONT)
        link.level()
    link.becomes("streaming")
    link.proven()
    survived("SIGSTOP for longer than silence_timeout")


@pytest.mark.parametrize(("megabytes", "kills"), [(10, 1), pytest.param(50, 5, marks=pytest.mark.soak)])
def test_killed_in_the_middle_of_a_large_transaction(
    link: Link, survived: Survived, megabytes: int, kills: int
) -> None:
    """kill -9 while a large transaction is being applied: it arrives once, whole."""
    for number in range(kills):
        link.start()
        with writing(link.pair.source), under_way(link, megabytes, first=1 + number * 100_000):
            link.kill()
        link.proven()
        survived("kill -9 in a large transaction")
