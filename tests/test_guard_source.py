"""A wipe of the source never reaches the target: it is held, told, and decided by one command; under load, by real processes."""

from __future__ import annotations

import json
import time

import pytest

from fix_copy import refused
from fix_servers import Cli, Pair, wait_until
from fix_shop import TABLES, Shop, load

#: What somebody does to the source, and the kind of incident that it is.
WIPES = {
    "delete": (['DELETE FROM "order"'], "delete"),
    "everything": (['DELETE FROM "User"', "DELETE FROM item", "DELETE FROM visit"], "delete"),
    "truncate": (['TRUNCATE "User", item, "order", visit CASCADE'], "truncate"),
    "update": (["UPDATE item SET label = 'gone'"], "update"),
    "drop": (['DROP TABLE "order"'], "drop"),
    "drop with what hangs on it": (['DROP TABLE "User" CASCADE'], "drop"),
    "rename": (["ALTER TABLE item RENAME TO item_old"], "drop"),
    "replace": (["DROP TABLE visit", "CREATE TABLE visit (path text, n int)"], "drop"),
}


@pytest.mark.parametrize("wipe", WIPES)
def test_held_and_restored(pair: Pair, cli: Cli, wipe: str) -> None:
    """The target keeps every row, everybody is told, and one command gives the source back all it lost; nothing since is lost."""
    statements, kind = WIPES[wipe]
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    with load(pair.source):
        time.sleep(0.5)
        shop.wipe(*statements)
        incident = shop.held()
        assert incident["kind"] == kind
        assert incident["side"] == "source"
        # what stood before is still there, and goes on being served
        before = {table: shop.target_rows(table) for table in TABLES}
        assert [len(before[table]) for table in ('"User"', "item", "visit")] == [22, 300, 400]
        assert len(before['"order"']) >= 2000
        for command in ("check", "once"):
            message, hint = refused(cli(command), 6)
            assert f"incident {incident['id']} is open" in message
            assert f"incidents restore {incident['id']}" in hint
        status = running.status()
        assert status["state"] == "held"
        assert status["open_incidents"] == 1
        time.sleep(0.5)
        done = shop.command("incidents", "restore", incident["id"], "--yes")
        assert done["incidents"][0]["state"] == "restored"
        time.sleep(0.5)
    wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream again")
    link = shop.command("check")["links"][0]
    assert link["verdict"] == "identical", json.dumps(link)
    for table in TABLES:
        now = {row.split(",")[0] for row in shop.source_rows(table)}
        assert {row.split(",")[0] for row in before[table]} <= now
    if kind != "update":
        assert shop.source_rows('"User"') == before['"User"']
        assert shop.source_rows("visit") == before["visit"]
    assert running.process.poll() is None
    # nobody was mailed about a row that came back
    assert not [row for row in shop.source_rows("mail") if "INSERT" in row][22:]
