"""A wipe of the source never reaches the target: it is held, told, and decided by one command; under load, by real processes."""

from __future__ import annotations

import json
import time

import pytest

from fix_copy import refused
from fix_servers import Cli, Pair, wait_until
from fix_shop import TABLES, Shop, load
from test_target_watch import drop_database

#: What somebody does to the source, and the kind of incident that it is.
WIPES = {
    "delete": (['DELETE FROM "order"'], "delete"),
    "everything": (['DELETE FROM "User"', "DELETE FROM item", "DELETE FROM visit"], "delete"),
    "truncate": (['TRUNCATE "User", item, "order", visit CASCADE'], "truncate"),
    "update": (["UPDATE item SET label = 'gone'"], "update"),
    "drop": (['DROP TABLE "order"'], "drop"),
    "drop with what hangs on it": (['DROP TABLE "User" CASCADE'], "drop"),
    "schema": (["DROP SCHEMA public CASCADE"], "drop"),
    "rename": (["ALTER TABLE item RENAME TO item_old"], "drop"),
    "replace": (["DROP TABLE visit", "CREATE TABLE visit (path text, n int)"], "drop"),
}


#: the others in the long tests
QUICK = ("delete", "truncate", "update", "schema", "replace")


@pytest.mark.parametrize(
    "wipe", [pytest.param(each, marks=[] if each in QUICK else pytest.mark.soak) for each in WIPES]
)
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


def test_a_wipe_in_many_small_transactions(pair: Pair, cli: Cli) -> None:
    """Each stays below every limit, together they do not: what the first ones took comes back from their last images."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    users = shop.source_rows('"User"')
    with load(pair.source):
        with pair.on_source() as conn:
            for number in range(1, 23):
                conn.execute('DELETE FROM "User" WHERE id = %s', [number])
            for number in range(1, 301):
                conn.execute("DELETE FROM item WHERE id = %s", [number])
        incident = shop.held()
        assert incident["kind"] == "delete"
        # the rule let some pass before it tripped, and not one more
        assert 22 * 0.7 - 1 <= len(shop.target_rows('"User"')) < 22
        while incident:
            done = shop.command("incidents", "restore", incident["id"], "--yes")
            assert done["incidents"][0]["state"] == "restored"
            time.sleep(1)
            waiting = [each for each in shop.incidents() if each["state"] == "held"]
            incident = waiting[0] if waiting else {}
    wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream again")
    assert shop.source_rows('"User"') == users
    assert len(shop.source_rows("item")) == 300
    assert shop.command("check")["links"][0]["verdict"] == "identical"


def test_approved(pair: Pair, cli: Cli) -> None:
    """The wrong number lets nothing through; the right one just this, once; the next of its kind is held again."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    shop.wipe("DELETE FROM visit WHERE n <= 390")
    incident = shop.held()
    (lost,) = incident["tables"]
    assert (lost["table"], lost["rows_before"], lost["rows_lost"]) == ("visit", 400, 390)
    assert lost["keys"][0] == "path = /1, n = 1"
    for rows in ("389", "400"):
        message, hint = refused(cli("incidents", "approve", incident["id"], "--rows", rows, "--yes"), 2)
        assert "390 rows" in message
        assert "--rows 390" in hint
    assert "number of rows" in refused(cli("incidents", "approve", incident["id"], "--yes"), 2)[0]
    assert len(shop.target_rows("visit")) == 400
    done = shop.command("incidents", "approve", incident["id"], "--rows", "390", "--yes")
    assert done["incidents"][0]["state"] == "approved"
    wait_until(lambda: len(shop.target_rows("visit")) == 10, 20, "the target to have it")
    assert shop.command("check")["links"][0]["verdict"] == "identical"
    message, _ = refused(cli("incidents", "restore", incident["id"], "--yes"), 1)
    assert "was decided before: approve" in message
    shop.wipe(
        'DELETE FROM item WHERE id > 100 AND id NOT IN (SELECT item FROM "order")', 'DELETE FROM "order"'
    )
    assert shop.held()["id"] != incident["id"]
    assert running.process.poll() is None


def test_a_drop_that_was_meant(pair: Pair, cli: Cli) -> None:
    """Approved, the table is dropped on the target as well; so it is at once where that is allowed for its name."""
    shop = Shop(cli, pair, "[links.shop.guard.tables.'public.vis*']\ndrop = \"allow\"\n")
    shop.once()
    running = shop.start()
    shop.wipe('DROP TABLE "order"')
    incident = shop.held()
    rows = str(incident["tables"][0]["rows_lost"])
    done = shop.command("incidents", "approve", incident["id"], "--rows", rows, "--yes")
    assert done["incidents"][0]["state"] == "approved"
    wait_until(lambda: not shop.target_rows('"order"'), 20, "the target to drop it")
    shop.wipe("DROP TABLE visit")
    wait_until(lambda: not shop.target_rows("visit"), 20, "the target to drop it")
    assert [each["state"] for each in shop.incidents()] == ["approved"]
    wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream again")
    assert shop.command("check")["links"][0]["verdict"] == "identical"


def test_rejected(pair: Pair, cli: Cli) -> None:
    """The source stays wiped, the target keeps its rows, and the table does not follow; all others do."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    with load(pair.source):
        shop.wipe("TRUNCATE visit", "DELETE FROM item WHERE false")
        incident = shop.held()
        done = shop.command("incidents", "reject", incident["id"], "--yes")
        assert done["incidents"][0]["state"] == "rejected"
        shop.wipe("INSERT INTO visit VALUES ('later', 1)")
        wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream again")
        shop.wipe("INSERT INTO item VALUES (900, 'later')")
        wait_until(lambda: len(shop.target_rows("item")) == 301, 30, "the others to follow")
    assert len(shop.target_rows("visit")) == 400
    link = shop.command("check", code=1)["links"][0]
    assert [each["table"] for each in link["tables"] if each["verdict"] != "identical"] == ["visit"]


def test_without_a_daemon(pair: Pair, cli: Cli) -> None:
    """`once` opens the incident and ends with 6, again and again; the command that decides does the work itself."""
    shop = Shop(cli, pair)
    shop.once()
    shop.wipe('DELETE FROM "User"', "INSERT INTO item VALUES (901, 'beside it')")
    shop.wipe("INSERT INTO \"User\" (email, name) VALUES ('new@example.org', 'after the wipe')")
    for _ in range(2):
        message, _ = refused(cli("once"), 6)
        assert "deletes" in message
    refused(cli("check"), 6)
    assert len(shop.incidents()) == 1
    assert len(shop.target_rows('"User"')) == 22
    assert len(shop.target_rows("item")) == 300
    incident = shop.held()
    assert {each["table"] for each in incident["tables"]} == {"User", "order"}
    done = shop.command("incidents", "restore", incident["id"], "--yes")
    assert done["incidents"][0]["state"] == "restored"
    assert len(shop.source_rows('"User"')) == 23
    assert len(shop.source_rows('"order"')) == 2000
    link = shop.once()
    assert link["copied_rows"] == 0
    assert len(shop.target_rows("item")) == 301


def test_decided_by_the_configuration(pair: Pair, cli: Cli) -> None:
    """`on_source_wipe = "restore"`: a wipe is undone by itself, by a daemon as by `once`."""
    shop = Shop(cli, pair, '[links.shop.guard]\non_source_wipe = "restore"\n')
    shop.once()
    shop.wipe('TRUNCATE "order"')
    shop.once()
    assert len(shop.source_rows('"order"')) == 2000
    running = shop.start()
    with load(pair.source):
        shop.wipe("DELETE FROM visit", 'DELETE FROM "order" WHERE id <= 1500')
        wait_until(lambda: len(shop.source_rows("visit")) == 400, 30, "the source to have it back")
    wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream again")
    assert shop.command("check")["links"][0]["verdict"] == "identical"
    assert [(each["state"], each["decided_by"]) for each in shop.incidents()] == [
        ("restored", "on_source_wipe")
    ] * 2


@pytest.mark.parametrize(
    ("rename", "written"),
    [
        ("ALTER TABLE item RENAME TO item_old", "INSERT INTO item_old VALUES (950, 'under the new name')"),
        ("CREATE SCHEMA s; ALTER TABLE item SET SCHEMA s", "INSERT INTO s.item VALUES (950, 'elsewhere')"),
    ],
    ids=["renamed", "moved"],
)
def test_written_to_under_another_name(pair: Pair, cli: Cli, rename: str, written: str) -> None:
    """What is written to a table that was renamed, before it has its name back, is there afterwards on both ends."""
    shop = Shop(cli, pair)
    shop.once()
    shop.wipe(*rename.split("; "))
    shop.wipe(written)
    message, _ = refused(cli("once"), 6)
    assert "was renamed to" in message
    done = shop.command("incidents", "restore", shop.held()["id"], "--yes")
    assert done["incidents"][0]["state"] == "restored"
    shop.once()
    assert len(shop.target_rows("item")) == 301


@pytest.mark.superusers
@pytest.mark.parametrize("daemon", [False, True])
def test_the_target_is_gone_as_well(pair: Pair, cli: Cli, daemon: bool) -> None:
    """Nothing can be put back from a target that has been dropped: it says so, changes nothing, and stays held."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start() if daemon else None
    shop.wipe('DELETE FROM "User"')
    if running is None:
        refused(cli("once"), 6)
    incident = shop.held()
    pair.close()
    drop_database(pair)
    done = cli("incidents", "restore", incident["id"], "--yes", timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert shop.source_rows('"User"') == []
    assert shop.held()["id"] == incident["id"]
    refused(cli("check"), 6)
