"""Doors by which a wipe could slip past the guard, or a decision do more or less than it says; each tried, each shut."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from fix_copy import refused
from fix_servers import Cli, Pair, wait_until
from fix_shop import Shop

#: A daemon that takes a link for idle at once, where it would wait for five seconds.
IDLE_AT_ONCE = """
import sys
from pglockstep.link import outlet
outlet._IDLE_PROGRESS = 0.01
from pglockstep.cli.main import main
main(["run"])
"""


def states(shop: Shop) -> list[tuple[str, str]]:
    """Every incident's kind and state."""
    return [(each["kind"], each["state"]) for each in shop.incidents()]


def restored(shop: Shop, incident: dict[str, Any]) -> None:
    """Put back what this one took."""
    done = shop.command("incidents", "restore", incident["id"], "--yes")
    assert done["incidents"][0]["state"] == "restored"


@pytest.mark.parametrize("wipe", ["DELETE FROM visit", "UPDATE visit SET path = 'gone'", "TRUNCATE visit"])
def test_a_link_that_is_idle(pair: Pair, cli: Cli, wipe: str) -> None:
    """Progress follows an idle source, but never past a transaction that is held back."""
    shop = Shop(cli, pair)
    shop.once()
    before = shop.target_rows("visit")
    environment = cli._environment(None)
    with (
        (cli.directory / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", IDLE_AT_ONCE], cwd=cli.directory, env=environment, stderr=log
        ) as daemon,
    ):
        try:
            wait_until(lambda: "streaming" in cli("status").stdout, 20, "the daemon to stream")
            time.sleep(0.5)
            shop.wipe(wipe)
            shop.held()
            time.sleep(0.5)
            assert shop.target_rows("visit") == before
        finally:
            daemon.kill()


def test_an_announcement_that_was_taken_back(pair: Pair, cli: Cli) -> None:
    """A daemon that has read it does not go by it any more."""
    shop = Shop(cli, pair)
    shop.once()
    shop.command("guard", "allow", "--table", "public.visit", "--rows", "10000", "--for", "1h")
    shop.start()
    time.sleep(0.5)
    shop.command("guard", "revoke", "1")
    shop.wipe("DELETE FROM visit")
    assert shop.held()["kind"] == "delete"
    assert len(shop.target_rows("visit")) == 400


def test_what_is_remembered_of_a_mixed_transaction(pair: Pair, cli: Cli) -> None:
    """That values may turn does not say that the rows may go."""
    shop = Shop(cli, pair)
    shop.once()
    shop.wipe("UPDATE visit SET path = 'done'", 'DELETE FROM "order"')
    refused(cli("once"), 6)
    incident = shop.held()
    rows = str(sum(each["rows_lost"] for each in incident["tables"]))
    shop.command("incidents", "approve", incident["id"], "--rows", rows, "--remember", "--yes")
    shop.once()
    shop.wipe("DELETE FROM visit")
    refused(cli("once"), 6)
    assert len(shop.target_rows("visit")) == 400


def test_many_small_losses_of_a_table_without_a_key(pair: Pair, cli: Cli) -> None:
    """They come back as often as they were there, and not once more."""
    shop = Shop(cli, pair)
    shop.once()
    before = shop.source_rows("visit")
    for number in range(8):
        shop.wipe(f"DELETE FROM visit WHERE n > {number * 40} AND n <= {number * 40 + 40}")
    refused(cli("once"), 6)
    restored(shop, shop.held())
    shop.once()
    assert shop.source_rows("visit") == before
    assert shop.target_rows("visit") == before


def test_what_else_a_wipe_took(pair: Pair, cli: Cli) -> None:
    """Fewer rows of another table than any rule would mind: they are told, and come back with the rest."""
    shop = Shop(cli, pair)
    shop.wipe(
        "CREATE TABLE setting (id int PRIMARY KEY, v text)",
        "INSERT INTO setting SELECT n, 'x' FROM generate_series(1, 18) AS n",
    )
    shop.once()
    users = len(shop.source_rows('"User"'))
    orders = shop.source_rows('"order"')
    shop.wipe(
        'DELETE FROM "User" WHERE id <= 8',
        "DELETE FROM setting WHERE id <= 3",
        "DELETE FROM item WHERE false",
    )
    refused(cli("once"), 6)
    incident = shop.held()
    lost = {each["table"]: each["rows_lost"] for each in incident["tables"]}
    assert (lost["User"], lost["setting"]) == (8, 3)
    restored(shop, incident)
    shop.once()
    assert len(shop.source_rows('"User"')) == users
    assert len(shop.source_rows("setting")) == 18
    assert shop.source_rows('"order"') == orders


def test_a_table_that_does_not_follow_is_dropped(pair: Pair, cli: Cli) -> None:
    """What the target alone still has of it stays, whatever DROP is allowed; one that is left out is none of our business."""
    shop = Shop(cli, pair)
    shop.once()
    shop.wipe("DELETE FROM visit")
    refused(cli("once"), 6)
    shop.command("incidents", "reject", "1", "--yes")
    shop.configure("exclude = ['public.beat']\n[links.shop.guard]\ndrop = 'allow'\n")
    shop.wipe("DROP TABLE visit", "DROP TABLE beat")
    cli("once")
    assert len(shop.target_rows("visit")) == 400
    assert len(shop.target_rows("beat")) == 40
    assert states(shop) == [("delete", "rejected")]


def test_a_drop_that_the_target_cannot_follow_yet(pair: Pair, cli: Cli) -> None:
    """An approval is used up when the table is gone there, and not before."""
    shop = Shop(cli, pair)
    shop.once()
    with pair.on_target() as conn:
        conn.execute("CREATE VIEW theirs AS SELECT * FROM visit")
    shop.wipe("DROP TABLE visit")
    refused(cli("once"), 6)
    shop.command("incidents", "approve", "1", "--rows", "400", "--yes")
    for _ in range(2):
        message, _ = refused(cli("once"), 5)
        assert "is needed by something else on the target" in message
        assert states(shop) == [("drop", "held")]
    with pair.on_target() as conn:
        conn.execute("DROP VIEW theirs")
    shop.once()
    assert states(shop) == [("drop", "approved")]
    assert shop.target_rows("visit") == []


def test_an_approval_that_would_let_more_pass(pair: Pair, cli: Cli) -> None:
    """What the same transaction takes beside is added, and the incident is to be decided again, with all of it."""
    shop = Shop(cli, pair)
    shop.once()
    labels = shop.target_rows("item")
    shop.wipe("DELETE FROM visit WHERE n <= 390", "UPDATE item SET label = 'gone'")
    refused(cli("once"), 6)
    incident = shop.held()
    rows = sum(each["rows_lost"] for each in incident["tables"])
    if rows == 390:
        shop.command("incidents", "approve", incident["id"], "--rows", "390", "--yes")
        refused(cli("once"), 6)
        incident = shop.held()
        assert shop.target_rows("item") == labels
    assert {each["table"] for each in incident["tables"]} == {"visit", "item"}
    rows = sum(each["rows_lost"] for each in incident["tables"])
    shop.command("incidents", "approve", incident["id"], "--rows", str(rows), "--yes")
    shop.once()
    assert states(shop) == [("delete", "approved")]


def test_a_rename_that_was_undone(pair: Pair, cli: Cli) -> None:
    """An approval of what is not so any more is over, and lets nothing pass later."""
    shop = Shop(cli, pair)
    shop.once()
    shop.wipe("ALTER TABLE visit RENAME TO seen")
    refused(cli("once"), 6)
    shop.wipe("ALTER TABLE seen RENAME TO visit")
    cli("incidents", "approve", "1", "--rows", "400", "--yes")
    shop.once()
    assert states(shop) == [("drop", "approved")]
    shop.wipe("DROP TABLE visit")
    refused(cli("once"), 6)
    assert states(shop) == [("drop", "approved"), ("drop", "held")]


def test_losses_of_another_window(pair: Pair, cli: Cli) -> None:
    """What went long ago is not added to what goes now, by whoever comes next."""
    shop = Shop(cli, pair, "[links.shop.guard]\nwindow = '2s'\n")
    shop.once()
    shop.wipe("DELETE FROM visit WHERE n <= 80")
    shop.once()
    time.sleep(5)
    shop.wipe("DELETE FROM visit WHERE n > 330")
    shop.once()
    assert states(shop) == []


def test_a_column_that_the_source_has_lost(pair: Pair, cli: Cli) -> None:
    """A heal for another table's sake does not take it from the target, too."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    time.sleep(1.5)
    running.kill()
    shop.wipe('ALTER TABLE "User" DROP COLUMN note')
    with pair.on_target() as conn:
        conn.execute("UPDATE beat SET n = 7 WHERE id = 7")
        before = conn.execute('SELECT id, note FROM "User" ORDER BY id').fetchall()
    message, _ = refused(cli("once"), 6)
    assert "not ours, on the target" in message
    (incident,) = shop.incidents()
    assert "column note" in json.dumps(incident["audit"])
    with pair.on_target() as conn:
        assert conn.execute('SELECT id, note FROM "User" ORDER BY id').fetchall() == before


def test_losses_that_come_by_heals(pair: Pair, cli: Cli) -> None:
    """They add up like those that come by the stream: a little more each time, beside a foreign write, is a wipe as well."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    watched = "SELECT FROM pg_trigger WHERE tgname = 'pglockstep_update' AND tgrelid = 'visit'::regclass"
    wait_until(lambda: pair.on_target().execute(watched).rowcount, 20, "the watch to be on")
    running.kill()
    for number in range(2):
        shop.once()
        shop.wipe(f"DELETE FROM visit WHERE n > {400 - 110 * (number + 1)}")
        with pair.on_target() as conn:
            conn.execute("UPDATE visit SET path = 'theirs' WHERE n = 1")
    refused(cli("once"), 6)
    assert len(shop.target_rows("visit")) >= 280
