"""A wipe in a transaction so large that it goes to the target in parts: it is held like any other."""

from __future__ import annotations

import json
import time

import pytest

from fix_servers import Cli, Pair, wait_until
from fix_shop import Shop, load
from test_run import Daemon

#: So many parents, each with two children: deleted together, more than one batch takes.
ROWS = 20_000

WIPES = {
    "delete": (["DELETE FROM parent"], "delete"),
    "update": (["UPDATE child SET v = NULL"], "update"),
    "truncate": (
        ["TRUNCATE parent CASCADE", "INSERT INTO parent (v) SELECT repeat('new', 99) FROM generate_series(1, 20000)"],
        "truncate",
    ),
}  # fmt: skip


def running_shop(cli: Cli, pair: Pair) -> tuple[Shop, Daemon]:
    """A shop with parents and children, and a daemon that streams."""
    shop = Shop(cli, pair)
    shop.wipe(
        "CREATE TABLE parent (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)",
        "CREATE TABLE child (parent bigint REFERENCES parent ON DELETE CASCADE, n int, v text, wide text NOT NULL DEFAULT "
        "repeat('-', 99), PRIMARY KEY (parent, n))",
        f"INSERT INTO parent (v) SELECT 'parent ' || n FROM generate_series(1, {ROWS}) AS n",
        "INSERT INTO child (parent, n, v) SELECT id, n, repeat('child ' || id, 5) FROM parent, generate_series(1, 2) AS n",
    )
    shop.once()
    return shop, shop.start()


def both(shop: Shop) -> list[list[str]]:
    """What the target has of the two."""
    return [shop.target_rows("parent"), shop.target_rows("child")]


def demand_level(shop: Shop, running: Daemon) -> None:
    """It streams again, the ends are identical, and nobody has noticed anything on the target."""
    wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream again")
    link = shop.command("check")["links"][0]
    assert link["verdict"] == "identical", json.dumps(link)
    assert [each["side"] for each in shop.incidents()] == ["source"]
    assert running.process.poll() is None


@pytest.mark.parametrize("verb", ["restore", "approve"])
@pytest.mark.parametrize("what", WIPES)
def test_held_and_decided(pair: Pair, cli: Cli, what: str, verb: str) -> None:
    """The target keeps every row until somebody decides; restored, the source has all of them again; approved, neither has."""
    statements, kind = WIPES[what]
    shop, running = running_shop(cli, pair)
    stood = both(shop)
    with load(pair.source):
        shop.wipe(*statements)
        incident = shop.held()
        assert (incident["side"], incident["kind"]) == ("source", kind)
        lost = {each["table"]: (each["rows_before"], each["rows_lost"]) for each in incident["tables"]}
        assert lost == {
            name: (rows, rows)
            for name, rows in (("parent", ROWS), ("child", 2 * ROWS))
            if what != "update" or name == "child"
        }
        time.sleep(0.5)
        assert both(shop) == stood
        rows = ["--rows", str(sum(each["rows_lost"] for each in incident["tables"]))]
        done = shop.command("incidents", verb, incident["id"], *(rows if verb == "approve" else ()), "--yes")
        assert done["incidents"][0]["state"] == {"restore": "restored", "approve": "approved"}[verb]
    demand_level(shop, running)
    if verb == "restore":
        kept = [shop.source_rows("parent"), shop.source_rows("child")]
        assert [set(rows) <= set(now) for rows, now in zip(stood, kept, strict=True)] == [True, True]
    else:
        assert both(shop) != stood


def test_announced_a_moment_before(pair: Pair, cli: Cli) -> None:
    """What is announced while the daemon runs lets a large purge pass, and is used up by as many rows as went."""
    shop, _ = running_shop(cli, pair)
    for table, rows in (("parent", ROWS), ("child", 2 * ROWS)):
        shop.command("guard", "allow", "--table", f"public.{table}", "--rows", str(rows + 7), "--for", "10m")
    shop.wipe("DELETE FROM parent")
    wait_until(lambda: both(shop) == [[], []], 30, "the target to have it")
    used = {each["table"]: each["used"] for each in shop.command("guard", "list")["allowances"]}
    assert used == {"parent": ROWS, "child": 2 * ROWS}
    assert shop.incidents() == []
