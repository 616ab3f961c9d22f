"""Side doors: what the stream would hold and a heal would bring over, and a wipe that goes on while it is being restored."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from fix_copy import refused
from fix_servers import Cli, Pair, wait_until
from fix_shop import Shop
from test_guard_doors import states
from test_guard_target import harm, level

#: What would take most of `visit`, and leaves as many rows as there were.
UNCOUNTED = {
    "update": ("UPDATE visit SET path = 'gone'",),
    "replaced": ("DELETE FROM visit", "INSERT INTO visit SELECT 'junk', n FROM generate_series(1, 400) AS n"),
    "truncated": ("TRUNCATE visit", "INSERT INTO visit SELECT 'junk', n FROM generate_series(1, 400) AS n"),
}


@pytest.mark.parametrize("what", UNCOUNTED)
@pytest.mark.parametrize("by", ["once", "daemon"])
def test_a_heal_of_what_the_source_has_lost(pair: Pair, cli: Cli, by: str, what: str) -> None:
    """Somebody writes a row of the target's while nobody looks, and the source is wiped: no number of rows tells of it."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    before = shop.target_rows("visit")
    if by == "once":
        running.process.terminate()
        assert running.process.wait(20) == 0
    else:
        running.process.send_signal(signal.SIGSTOP)
    shop.wipe(*UNCOUNTED[what])
    harm(pair, "INSERT INTO visit VALUES ('theirs', 1000)")
    if by == "once":
        refused(cli("once"), 6)
    else:
        running.process.send_signal(signal.SIGCONT)
        shop.held()
    assert set(before) <= set(shop.target_rows("visit"))
    refused(cli("once"), 6)
    assert set(before) <= set(shop.target_rows("visit"))


def test_a_heal_of_what_a_large_transaction_took(pair: Pair, cli: Cli) -> None:
    """It does not fit into memory, and is judged by what the source holds now."""
    shop = Shop(cli, pair)
    shop.wipe("INSERT INTO visit SELECT repeat('x', 60), n FROM generate_series(1, 60000) AS n")
    shop.once()
    shop.watched()
    before = shop.target_rows("visit")
    shop.wipe("UPDATE visit SET path = 'gone'")
    harm(pair, "INSERT INTO visit VALUES ('theirs', 1000)")
    refused(cli("once"), 6)
    assert set(before) <= set(shop.target_rows("visit"))


def test_a_heal_of_what_the_source_has_changed_well(pair: Pair, cli: Cli) -> None:
    """As much as the rules let go, much that is new, and values that are no wipe: healed, with all of it."""
    shop = Shop(cli, pair)
    shop.once()
    shop.watched()
    shop.wipe(
        "DELETE FROM visit WHERE n <= 20",
        "UPDATE visit SET path = path || n",
        "INSERT INTO visit SELECT 'new', n FROM generate_series(1, 2000) AS n",
    )
    harm(pair, "DELETE FROM visit WHERE n > 200")
    shop.once()
    assert states(shop) == [("delete", "healed")]


def test_a_heal_of_what_was_announced(pair: Pair, cli: Cli) -> None:
    """What may go on the source is no reason to leave the target as somebody made it."""
    shop = Shop(cli, pair)
    shop.once()
    shop.watched()
    shop.command("guard", "allow", "--table", "public.visit", "--rows", "400", "--for", "1h")
    shop.wipe("DELETE FROM visit")
    harm(pair, "INSERT INTO visit VALUES ('theirs', 1000)")
    shop.once()
    assert shop.target_rows("visit") == []


@contextmanager
def wiping(pair: Pair, *statements: str) -> Iterator[threading.Event]:
    """Do this on the source again and again, one after the other, until the event is set."""
    stop = threading.Event()

    def wipe() -> None:
        with psycopg.connect(pair.source, autocommit=True) as conn:
            while True:
                for each in statements:
                    if stop.wait(0.02):
                        return
                    conn.execute(each.encode())

    thread = threading.Thread(target=wipe)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.parametrize(
    "wipe",
    [("DELETE FROM visit",), ("TRUNCATE visit",), ("DELETE FROM visit WHERE n % 3 = 0", "TRUNCATE visit")],
)
def test_a_wipe_without_a_key_that_goes_on(
    pair: Pair, cli: Cli, wipe: tuple[str, ...], *, daemon: bool
) -> None:
    """While it is put back it is taken again, some of it or all: in the end each row is there as often as it was."""
    shop = Shop(cli, pair)
    shop.once()
    before = shop.source_rows("visit")
    running = shop.start() if daemon else None
    with wiping(pair, *wipe) as stop:
        if running is None:
            refused(cli("once"), 6)
        incident = shop.held()
        restoring = cli.start("incidents", "restore", incident["id"], "--yes")
        time.sleep(2.5)
        stop.set()
        restoring.wait(60)

    def calm() -> bool:
        # it was wiped until the last attempt, or once more behind it
        for each in shop.incidents():
            if each["state"] == "held":
                shop.command("incidents", "restore", each["id"], "--yes")
        if running is None:
            cli("once")
        return {state for _, state in states(shop)} == {"restored"} and shop.source_rows("visit") == before

    wait_until(calm, 60, "what was taken to be back")
    if running is not None:
        level(shop, running)
    assert shop.source_rows("visit") == shop.target_rows("visit") == before


def slowly(shop: Shop) -> None:
    """Take most of `visit` away, too little at a time for any rule."""
    for first in range(1, 321, 40):
        shop.wipe(f"DELETE FROM visit WHERE n BETWEEN {first} AND {first + 39}")


@pytest.mark.parametrize("verb", ["restore", "approve", "reject"])
def test_held_whoever_comes_next(pair: Pair, cli: Cli, verb: str) -> None:
    """What led to a hold is known to one state directory: with another one, and with none, it is held all the same."""
    shop = Shop(cli, pair)
    shop.once()
    slowly(shop)
    refused(cli("once"), 6)
    held = shop.target_rows("visit")
    assert len(held) > 200
    for other in "bcd":
        refused(cli("once", "--state-dir", str(cli.directory / other)), 6)
        assert shop.target_rows("visit") == held
    # whoever of them decides, it is decided
    elsewhere = ("--state-dir", str(cli.directory / "b"))
    (incident,) = shop.command("incidents", "list", *elsewhere)["incidents"]
    assert incident["message"] == shop.held()["message"]
    lost = sum(each["rows_lost"] for each in incident["tables"])
    numbers = ("--rows", str(lost)) if verb == "approve" else ()
    shop.command("incidents", verb, incident["id"], "--yes", *numbers, *elsewhere)
    with pair.on_target() as conn:
        after = conn.execute("SELECT FROM pglockstep.held").rowcount
    if verb == "approve":
        assert after == 1
        assert cli("once", *elsewhere).returncode in (0, 6)
        assert len(shop.target_rows("visit")) < len(held)
        return
    assert after == 0
    assert set(held) <= set(shop.target_rows("visit"))
    # what went before it, and belongs to it, is back as well
    assert (shop.source_rows("visit") == shop.target_rows("visit")) == (verb == "restore")
    assert cli("once", *elsewhere).returncode == (0 if verb == "restore" else 1)


def test_held_without_the_state_directory(pair: Pair, cli: Cli) -> None:
    """It is lost while a transaction is held back: the next one holds it, and can give back what it took."""
    shop = Shop(cli, pair)
    shop.once()
    before = len(shop.target_rows("visit"))
    slowly(shop)
    refused(cli("once"), 6)
    held = shop.target_rows("visit")
    elsewhere = ("--state-dir", str(cli.directory / "another"))
    refused(cli("once", *elsewhere), 6)
    assert shop.target_rows("visit") == held
    (incident,) = shop.command("incidents", "list", *elsewhere)["incidents"]
    shop.command("incidents", "restore", incident["id"], "--yes", *elsewhere)
    assert len(shop.source_rows("visit")) == len(shop.target_rows("visit"))
    assert len(held) <= len(shop.source_rows("visit")) <= before


def test_a_heal_beside_what_is_held_elsewhere(pair: Pair, cli: Cli) -> None:
    """Its losses are no more than may go, but for those that another state directory knows of: it does not come by a heal."""
    shop = Shop(cli, pair)
    shop.once()
    shop.watched()
    slowly(shop)
    refused(cli("once"), 6)
    held = shop.target_rows("visit")
    harm(pair, "INSERT INTO visit VALUES ('theirs', 1000)")
    refused(cli("once", "--state-dir", str(cli.directory / "b")), 6)
    assert set(held) <= set(shop.target_rows("visit"))
