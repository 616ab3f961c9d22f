"""kill -9 while the guard is at work: what is held stays held, what was decided is carried out once, and nothing is lost."""

from __future__ import annotations

import contextlib
import random
import signal
import time

import pytest

from fix_copy import refused
from fix_servers import Cli, Pair
from fix_shop import Shop, load
from pglockstep import failpoints

#: Where a restore, and the levelling behind it, may be cut short; in the order in which it comes by.
CUTS = [
    "restore.begun",
    "restore.commit",
    "restore.committed",
    "heal.begun",
    "heal.commit",
    "heal.committed",
]


def test_a_restore_that_is_cut_short(pair: Pair, cli: Cli) -> None:
    """At every failpoint, by a daemon, by the command and by `once`: each time somebody goes on, and it is done once."""
    assert set(CUTS) == {name for name in failpoints.NAMES if name.startswith(("restore.", "heal."))}
    shop = Shop(cli, pair)
    shop.once()
    process = cli.start("run", env={"PGLOCKSTEP_FAILPOINT": CUTS[0]}, log=cli.directory / "log")
    with load(pair.source):
        time.sleep(1)
        orders = shop.source_rows('"order"')
        shop.wipe('DELETE FROM "User"')
        incident = shop.held()
        # the daemon dies of it, and then the command, which finds that it has to do it itself
        done = cli("incidents", "restore", incident["id"], "--yes", env={"PGLOCKSTEP_FAILPOINT": CUTS[1]})
        assert process.wait(20) == -signal.SIGKILL
        assert done.returncode == -signal.SIGKILL
        for name in CUTS[2:]:
            done = cli("once", env={"PGLOCKSTEP_FAILPOINT": name})
            assert done.returncode == -signal.SIGKILL, f"{name}: {done.stderr}"
    shop.once()
    assert [each["state"] for each in shop.incidents()] == ["restored"]
    assert len(shop.source_rows('"User"')) == 22
    assert {row.split(",")[0] for row in orders} <= {row.split(",")[0] for row in shop.source_rows('"order"')}


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_killed_at_any_moment(pair: Pair, cli: Cli, rounds: int) -> None:
    """Between a wipe of either end and its end; whoever comes next knows what was held and what was decided."""
    shop = Shop(cli, pair)
    shop.once()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    users = shop.source_rows('"User"')
    with load(pair.source):
        for number in range(rounds):
            running = shop.start()
            if number % 3 == 2:
                with contextlib.suppress(Exception), pair.on_target() as conn:
                    conn.execute('TRUNCATE "User" CASCADE')
            else:
                shop.wipe(
                    chance.choice(
                        ['DELETE FROM "User"', 'TRUNCATE "User" CASCADE', 'UPDATE "User" SET note = NULL']
                    )
                )
            time.sleep(chance.random() / 2)
            running.kill()
            if number % 3 != 2:
                # the wipe was seen, or is seen by whoever comes next
                refused(cli("once"), 6)
                incident = shop.held()
                assert shop.target_rows('"User"') == users
                process = cli.start("run", log=cli.directory / "log")
                deciding = cli.start(
                    "incidents", "restore", incident["id"], "--yes", log=cli.directory / "log"
                )
                time.sleep(chance.random())
                process.kill()
                process.wait()
                deciding.kill()
                deciding.wait()
                found = next(each for each in shop.incidents() if each["id"] == incident["id"])
                if found["state"] == "held" and found["decision"] is None:
                    # the command had not come that far
                    shop.command("incidents", "restore", incident["id"], "--yes")
            # under load it may not be able to tell
            done = cli("once")
            assert done.returncode in (0, 7), done.stdout + done.stderr
            assert shop.source_rows('"User"') == users
            assert shop.target_rows('"User"') == users
    shop.once()
    assert {each["state"] for each in shop.incidents()} <= {"restored", "healed"}
