"""What the guard says that it keeps or has looked at, it does: last images of what a TRUNCATE took, updates beside a loss."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fix_copy import refused
from fix_servers import Cli, Pair
from fix_shop import Shop

#: `once`, for which every table that is emptied is too large to be kept.
NOTHING_FITS = """
from pglockstep.link import last_images
last_images._LARGEST = 1
from pglockstep.cli.main import main
main(["once"])
"""

ALLOWED = "[links.shop.guard]\ntruncate = 'allow'\n"


def images(pair: Pair, table: str) -> list[str]:
    """The last images of a table's rows, each as the row's text."""
    with pair.on_target() as conn:
        found = conn.execute(
            "SELECT image::text FROM pglockstep.deleted WHERE schema_name = 'public' AND table_name = %s",
            [table],
        )
        return sorted("(" + row[0][1:-1] + ")" for row in found)


@pytest.mark.parametrize("way", ["rule", "announced", "approved"])
def test_last_images_of_a_truncate(pair: Pair, cli: Cli, way: str) -> None:
    """However it came to pass, it leaves what it took; of a table for which that is not wanted, nothing."""
    settings = ALLOWED if way == "rule" else "[links.shop.guard]\n"
    shop = Shop(cli, pair, f"{settings}tables.'public.beat'.keep_deleted = '0'\n")
    shop.once()
    before = shop.target_rows("visit")
    if way == "announced":
        for table, rows in (("visit", 400), ("beat", 40)):
            shop.command("guard", "allow", "--table", f"public.{table}", "--rows", str(rows), "--for", "1h")
    shop.wipe("TRUNCATE visit, beat", "INSERT INTO visit VALUES ('/new', 1)")
    if way == "approved":
        refused(cli("once"), 6)
        shop.command("incidents", "approve", "1", "--rows", "440", "--yes")
    shop.once()
    assert shop.target_rows("visit") == ["(/new,1)"]
    assert images(pair, "visit") == before
    assert images(pair, "beat") == []


def test_last_images_come_with_the_truncate(pair: Pair, cli: Cli) -> None:
    """They are in its very transaction: killed before its commit, they are there once; of a group, of every table."""
    shop = Shop(cli, pair, ALLOWED)
    shop.once()
    orders, items = len(shop.target_rows('"order"')), len(shop.target_rows("item"))
    shop.wipe('TRUNCATE item, "order"')
    done = cli("once", env={"PGLOCKSTEP_FAILPOINT": "apply.commit"})
    assert done.returncode == -signal.SIGKILL
    assert images(pair, "order") == []
    shop.once()
    assert (len(images(pair, "order")), len(images(pair, "item"))) == (orders, items)


def test_a_table_that_is_too_large_to_be_kept(pair: Pair, cli: Cli) -> None:
    """Then the log says so, and the TRUNCATE passes all the same."""
    shop = Shop(cli, pair, ALLOWED)
    shop.once()
    shop.wipe("TRUNCATE visit")
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_FITS],
        cwd=cli.directory,
        env=cli._environment(None),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no last images were kept of public.visit" in done.stderr
    assert shop.target_rows("visit") == []
    assert images(pair, "visit") == []


@pytest.mark.parametrize("wipe", ["DELETE FROM visit WHERE n <= 390", "TRUNCATE visit"])
def test_updates_beside_a_loss(pair: Pair, cli: Cli, wipe: str) -> None:
    """What a transaction takes and what it turns is one incident, decided once."""
    shop = Shop(cli, pair)
    shop.once()
    labels = shop.target_rows("item")
    shop.wipe(wipe, "UPDATE item SET label = 'gone'")
    refused(cli("once"), 6)
    incident = shop.held()
    told = {each["table"]: (each["rows_lost"], each["columns"]) for each in incident["tables"]}
    lost = 390 if wipe.startswith("DELETE") else 400
    assert told == {"visit": (lost, []), "item": (300, ["label"])}
    assert "public.item (300 rows)" in incident["message"]
    assert shop.target_rows("item") == labels
    shop.command("incidents", "approve", incident["id"], "--rows", str(lost + 300), "--yes")
    shop.once()
    assert [each["state"] for each in shop.incidents()] == ["approved"]


def test_a_truncate_in_a_transaction_that_is_still_on_its_way(pair: Pair, cli: Cli) -> None:
    """One that passes in parts is held at once, and the incident says that the rest of it has not been judged."""
    shop = Shop(cli, pair)
    shop.once()
    shop.wipe(
        "TRUNCATE visit",
        "INSERT INTO visit SELECT repeat('x', 500), n FROM generate_series(1, 20000) AS n",
        "UPDATE item SET label = 'gone'",
    )
    refused(cli("once"), 6)
    incident = shop.held()
    assert (
        "what else it does has not been judged yet, and is asked about if it is let through"
        in incident["message"]
    )
    shop.command("incidents", "approve", incident["id"], "--rows", "400", "--yes")
    refused(cli("once"), 6)
    incident = shop.held()
    assert {each["table"] for each in incident["tables"]} == {"visit", "item"}
    shop.command("incidents", "approve", incident["id"], "--rows", "700", "--yes")
    shop.once()
    assert len(shop.target_rows("visit")) == 20000
    assert [each["state"] for each in shop.incidents()] == ["approved"]
