"""A table that is renamed on the source is held; approved, it is renamed on the target as well, and followed by that name."""

from __future__ import annotations

import pytest

from fix_servers import Cli, Pair, wait_until
from fix_shop import Shop, load

RENAMES = {
    "renamed": (["ALTER TABLE item RENAME TO article"], {"item": "article"}),
    "moved": (["CREATE SCHEMA s", "ALTER TABLE item SET SCHEMA s"], {"item": "s.item"}),
    "both": (
        [
            'CREATE SCHEMA "S s"',
            'ALTER TABLE item SET SCHEMA "S s"',
            'ALTER TABLE "S s".item RENAME TO "I i"',
        ],
        {"item": '"S s"."I i"'},
    ),
    "taken its place": (
        [
            "CREATE TABLE fresh (LIKE item INCLUDING ALL)",
            "ALTER TABLE item RENAME TO item_old",
            "ALTER TABLE fresh RENAME TO item",
        ],
        {"item": "item_old"},
    ),
    "changed places": (
        [
            "ALTER TABLE item RENAME TO between",
            "ALTER TABLE beat RENAME TO item",
            "ALTER TABLE between RENAME TO beat",
        ],
        {"item": "beat", "beat": "item"},
    ),
}


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.parametrize("rename", RENAMES)
def test_approved(pair: Pair, cli: Cli, rename: str, daemon: bool) -> None:
    """What was written meanwhile is there, and what is written then arrives; nobody takes our renaming for somebody else's."""
    ddl, names = RENAMES[rename]
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start() if daemon else None
    shop.wipe(*ddl)
    item = names["item"]
    shop.wipe(f"INSERT INTO {item} VALUES (950, 'under the new name')")
    if running is None:
        assert cli("once").returncode == 6
    incident = shop.held()
    assert (incident["kind"], incident["side"]) == ("drop", "source")
    rows = str(sum(each["rows_lost"] for each in incident["tables"]))
    shop.command("incidents", "approve", incident["id"], "--rows", rows, "--yes")
    shop.wipe(f"UPDATE {item} SET price = 7 WHERE id = 950")
    if running is not None:
        wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream again")
    if rename == "taken its place":
        # it was made since, and comes in when it is asked for
        assert cli("once").returncode == 1
        assert cli("resync", "public.item", "--yes").returncode == 0
    if running is None:
        shop.once()
    else:
        with load(pair.source):
            pass
        assert shop.command("check")["links"][0]["verdict"] == "identical"
    assert len(shop.target_rows(item)) == 301
    assert shop.target_rows(item) == shop.source_rows(item)
    # found by its old name no more, and by its new one for good
    shop.wipe(f"DELETE FROM {item} WHERE id = 950")
    if running is None:
        shop.once()
    else:
        wait_until(lambda: len(shop.target_rows(item)) == 300, 20, "the table to follow")
        running.process.terminate()
        assert running.process.wait(20) == 0
        shop.once()
    assert [each["state"] for each in shop.incidents()] == ["approved"]
