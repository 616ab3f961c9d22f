"""A target that is harmed again and again, whose source is away, or whose daemon is stopped over it; on other versions."""

from __future__ import annotations

import random
import signal
import time

import psycopg
import pytest

from fix_copy import refused
from fix_mirror import contents
from fix_servers import Cli, Pair, all_pairs, wait_until
from fix_shop import Shop, load
from fix_workload import SCHEMA, workload
from test_guard_target import HARMS, concluded, harm, level
from test_target_watch import SILENTLY, drop_database, states

#: What somebody does next, and whether that is anybody's incident.
AGAIN = [
    'DELETE FROM "order"',
    "TRUNCATE visit",
    "DROP TABLE visit, mail",
    "UPDATE item SET label = 'theirs' WHERE id % 3 = 0",
    'ALTER TABLE "User" DROP COLUMN note',
    "INSERT INTO visit VALUES ('theirs', 1000)",
    "DROP SCHEMA pglockstep CASCADE",
    "DROP SCHEMA public CASCADE",
    "ALTER TABLE visit DISABLE TRIGGER USER; DELETE FROM visit; ALTER TABLE visit ENABLE TRIGGER USER",
    "ALTER TABLE item RENAME TO theirs",
    f"{SILENTLY}; DROP TABLE visit",
    "DROP EVENT TRIGGER pglockstep_ddl; DROP TRIGGER pglockstep_delete ON visit",
]

#: What that says when what it is about is away just now.
GONE = (
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedObject,
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
)


def twins(pair: Pair) -> bool:
    """Whether both ends hold the same rows."""
    with pair.on_source() as source, pair.on_target() as target:
        return contents(source) == contents(target)


@pytest.mark.parametrize("rounds", [7, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_again_and_again(pair: Pair, cli: Cli, rounds: int) -> None:
    """One harm upon the other, without waiting for the heal; in the end both ends are twins, and every incident is over."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    chance = random.Random(rounds)
    with load(pair.source):
        for _ in range(rounds):
            what = chance.choice(AGAIN)
            wait_until(lambda: tried(pair, what), 30, f"{what} to find what it is about")  # noqa: B023
            time.sleep(chance.choice((0, 0.05, 0.4, 1.2)))
        wait_until(lambda: over(shop), 60, "every incident to be over")
        time.sleep(1.5)
    wait_until(lambda: over(shop), 60, "every incident to be over")
    wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream")
    link = shop.command("check")["links"][0]
    assert link["verdict"] == "identical", link
    assert len(shop.target_rows('"User"')) == 22


def over(shop: Shop) -> bool:
    """Whether every incident is healed; none of these may be held."""
    found = states(shop)
    assert all(state in ("healing", "healed") for _, state in found), shop.incidents()
    return all(state == "healed" for _, state in found)


def tried(pair: Pair, what: str) -> bool:
    """Do this on the target; false if what it is about is away just now."""
    try:
        harm(pair, what)
    except GONE:
        return False
    return True


@pytest.mark.superusers
def test_gone_again_just_after_its_heal(pair: Pair, cli: Cli) -> None:
    """Our schema is dropped behind the heal's COMMIT, before anything is read again: the daemon lives, and heals that, too."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    with pair.on_target() as target:
        target.execute("SET synchronous_commit = local")

        def wait_for_standby(name: str) -> None:
            target.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'".encode())
            target.execute("SELECT pg_catalog.pg_reload_conf()")

        def committing() -> bool:
            return bool(
                target.execute(
                    "SELECT FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep'"
                ).rowcount
            )

        running.process.send_signal(signal.SIGSTOP)
        target.execute("DROP SCHEMA pglockstep CASCADE")
        # a COMMIT then waits for a standby that never comes
        wait_for_standby("nobody")
        try:
            running.process.send_signal(signal.SIGCONT)
            wait_until(committing, 30, "the heal to commit")
            running.process.send_signal(signal.SIGSTOP)
        finally:
            wait_for_standby("")
        wait_until(lambda: not committing(), 30, "the heal to be committed")
        target.execute("DROP SCHEMA pglockstep CASCADE")
        running.process.send_signal(signal.SIGCONT)
    wait_until(lambda: {state for _, state in states(shop)} == {"healed"}, 60, "the target to be healed")
    level(shop, running)
    assert running.process.poll() is None


def test_the_source_is_away(pair: Pair, cli: Cli) -> None:
    """Nothing to heal from: it goes on being tried, and is done as soon as the source is back."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    pair.source_server.stop("immediate")
    try:
        harm(pair, "TRUNCATE visit")
        wait_until(lambda: states(shop) == [("truncate", "healing")], 20, "the incident")
        time.sleep(1)
        assert running.process.poll() is None
    finally:
        pair.source_server.start()
    wait_until(lambda: states(shop) == [("truncate", "healed")], 60, "the target to be healed")
    level(shop, running)
    assert len(shop.target_rows("visit")) == 400


def test_stopped_over_its_heal(pair: Pair, cli: Cli) -> None:
    """SIGTERM in the middle of a heal: the daemon ends well, and the next one heals."""
    shop = Shop(cli, pair)
    shop.wipe("INSERT INTO visit SELECT repeat('x', 300), n FROM generate_series(1, 300000) AS n")
    shop.once()
    running = shop.start()
    harm(pair, "TRUNCATE visit")
    wait_until(lambda: states(shop) == [("truncate", "healing")], 20, "the incident")
    running.process.terminate()
    assert running.process.wait(20) == 0
    assert states(shop) == [("truncate", "healing")]
    running = shop.start()
    level(shop, running)
    assert states(shop) == [("truncate", "healed")]


def test_both_ends_at_once(pair: Pair, cli: Cli) -> None:
    """The daemon sees both wipes at the same moment: whichever it is told of first, nothing is called healed or put back."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    running.process.send_signal(signal.SIGSTOP)
    shop.wipe('DELETE FROM "order"')
    harm(pair, 'DELETE FROM "order"')
    running.process.send_signal(signal.SIGCONT)
    shop.held()
    time.sleep(3)
    assert {state for _, state in states(shop)} == {"held"}
    refused(cli("check"), 6)
    for each in shop.incidents():
        done = cli("incidents", "restore", each["id"], "--yes")
        assert done.returncode in (1, 6), done.stdout + done.stderr
    assert {state for _, state in states(shop)} == {"held"}
    assert running.process.poll() is None


def test_through_a_partitioned_root(pair: Pair, cli: Cli) -> None:
    """What was deleted through the root is put back into its leaves, and told as theirs."""
    pair.on_source().execute(SCHEMA.encode())
    shop = Shop(cli, pair, "[links.shop.guard.tables.'*.*']\njudge = false\n")
    shop.once()
    running = shop.start()
    with workload(pair.source, writers=1, pause=0.03):
        harm(pair, "DELETE FROM part")
        incident = concluded(shop)
        assert {each["table"] for each in incident["tables"]} == {"part_old", "part_new"}
        assert sum(each["rows_lost"] for each in incident["tables"]) == 60
    level(shop, running)


@pytest.mark.soak
@pytest.mark.parametrize("pair", all_pairs, indirect=True, ids=[f"{a}-to-{b}" for a, b in all_pairs])
@pytest.mark.parametrize("what", [*HARMS, "database"])
def test_on_every_pair_of_versions(pair: Pair, cli: Cli, what: str) -> None:
    """Each harm under load, from the same version, up and down."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    with load(pair.source):
        time.sleep(1)
        if what == "database":
            drop_database(pair)
        else:
            harm(pair, *HARMS[what][0])
        assert concluded(shop)["state"] == "healed"
        time.sleep(0.5)
    level(shop, running)
    wait_until(lambda: what == "column" or twins(pair), 20, "both ends to be twins")


def test_a_column_that_is_added_on_both_ends(pair: Pair, cli: Cli) -> None:
    """First on the source, then by hand on the target, as the link says: that is not ours either, and ends level."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    shop.wipe(
        "ALTER TABLE item ADD COLUMN color text DEFAULT 'red'",
        "INSERT INTO item VALUES (901, 'new', 1, 'blue')",
    )
    assert running.process.wait(30) == 5
    harm(pair, "ALTER TABLE item ADD COLUMN color text DEFAULT 'red'")
    running = shop.start()
    level(shop, running)
    assert shop.target_rows("item") == shop.source_rows("item")
    assert states(shop) == [("foreign_write", "healed")]


def test_an_object_without_its_schema(pair: Pair, cli: Cli) -> None:
    """A function that is made in a schema while that is dropped stays behind: the server falls over its name, if it is asked."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    dropping, making = pair.on_target(), pair.on_target()
    dropping.execute("CREATE SCHEMA theirs")
    dropping.execute("BEGIN; DROP SCHEMA theirs")
    making.execute("CREATE FUNCTION theirs.stray() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    dropping.execute("COMMIT")
    stray = "SELECT FROM pg_proc WHERE pronamespace NOT IN (SELECT oid FROM pg_namespace)"
    assert making.execute(stray).rowcount == 1
    harm(pair, "DROP SCHEMA public CASCADE")
    incident = concluded(shop)
    assert (incident["kind"], incident["state"]) == ("drop", "healed")
    # nobody's session was ended with the server's
    assert making.execute("SELECT 1").fetchone() == (1,)
    pair.superuser_on_target().execute("DELETE FROM pg_proc WHERE proname = 'stray'")
    level(shop, running)
