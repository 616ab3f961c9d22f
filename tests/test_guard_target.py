"""What others do to the target is noticed and put back, under load, by a real daemon; or held, or refused."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psycopg
import pytest

from fix_copy import refused
from fix_servers import Cli, Pair, connect, wait_until
from fix_shop import TABLES, Shop, load

#: What somebody does to the target, and the kind of incident that it is.
HARMS = {
    "delete": (['DELETE FROM "order"', "DELETE FROM visit"], "delete"),
    "truncate": (['TRUNCATE "User", item, "order", visit CASCADE'], "truncate"),
    "schema": (["DROP SCHEMA public CASCADE", "CREATE SCHEMA public"], "drop"),
    "column": (["ALTER TABLE item DROP COLUMN label"], "drop"),
    "one update": (["UPDATE \"User\" SET note = 'tampered' WHERE id = 7"], "foreign_write"),
    "ours": (["DROP SCHEMA pglockstep CASCADE"], "drop"),
}


def level(shop: Shop, running: Any) -> None:
    """The link streams again, and both ends are identical."""
    wait_until(
        lambda: running.process.poll() is not None or running.status()["state"] == "streaming",
        30,
        "the link to stream",
    )
    assert running.process.poll() is None, running.process.stdout.read() if running.process.stdout else ""
    assert shop.command("check")["links"][0]["verdict"] == "identical"
    assert running.process.poll() is None


def harm(pair: Pair, *statements: str) -> None:
    """Do this on the target, in one transaction of somebody else's."""
    with psycopg.connect(pair.target, autocommit=True, application_name="psql") as conn:
        for _ in range(20):
            # who takes many locks at once may lose a deadlock against the stream, and what refers to a row may come by it just
            # then; whoever means harm tries again
            with (
                contextlib.suppress(psycopg.errors.DeadlockDetected, psycopg.errors.ForeignKeyViolation),
                conn.transaction(),
            ):
                for each in statements:
                    conn.execute(each.encode())
                return
    pytest.fail("in vain every time")


def concluded(shop: Shop) -> dict[str, Any]:
    """The first incident once it is over."""

    def found() -> dict[str, Any]:
        done = [each for each in shop.incidents() if each["state"] not in ("held", "healing")]
        return done[0] if done else {}

    return wait_until(found, 30, "an incident to be over")


@pytest.mark.parametrize("what", HARMS)
def test_noticed_and_healed(pair: Pair, cli: Cli, what: str) -> None:
    """The target is what its source is again, with all that was written meanwhile, and the incident says what happened."""
    statements, kind = HARMS[what]
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    with load(pair.source):
        time.sleep(1)
        harm(pair, *statements)
        incident = concluded(shop)
        assert (incident["side"], incident["kind"], incident["state"]) == ("target", kind, "healed")
        assert incident["healed_after_seconds"] > 0
        time.sleep(0.5)
    level(shop, running)
    # our own heal is no foreign write, and neither is what the stream brings
    assert [each["state"] for each in shop.incidents()] == ["healed"] * len(shop.incidents())
    for table in TABLES if what != "column" else ():
        # a column that comes back stands in another place
        assert shop.target_rows(table) == shop.source_rows(table)


# only who may make databases makes it again; what happens else is told by test_without_createdb
@pytest.mark.superusers
def test_a_dropped_database(pair: Pair, cli: Cli) -> None:
    """It is made again and filled, while the daemon runs as when it was down; and so `once` does it."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    users = shop.source_rows('"User"')

    def drop() -> None:
        with connect(pair.target_server.conninfo()) as conn:
            name = psycopg.conninfo.conninfo_to_dict(pair.target)["dbname"]
            conn.execute(
                psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(str(name)))
            )

    with load(pair.source):
        time.sleep(1)
        drop()
        incident = concluded(shop)
        assert (incident["kind"], incident["state"]) == ("missing_database", "healed")
    level(shop, running)
    assert shop.target_rows('"User"') == users
    running.kill()
    drop()
    running = shop.start()
    level(shop, running)
    running.kill()
    drop()
    link = shop.once()
    assert link["copied_rows"] == 0
    assert [(each["kind"], each["state"]) for each in shop.incidents()] == [
        ("missing_database", "healed")
    ] * 3


def test_written_while_nobody_was_there(pair: Pair, cli: Cli) -> None:
    """The watch notes what nobody sees: `once` heals it, and tells of it."""
    shop = Shop(cli, pair)
    shop.once()
    shop.watched()
    harm(pair, "DELETE FROM visit", "INSERT INTO item VALUES (555, 'not ours')")
    shop.once()
    (incident,) = shop.incidents()
    assert (incident["kind"], incident["state"]) == ("delete", "healed")
    assert "psql" in cli("incidents", "show", incident["id"]).stdout


def test_held_then_restored(pair: Pair, cli: Cli) -> None:
    """`on_target_wipe = "hold"`: a person decides; until then nothing is applied."""
    shop = Shop(cli, pair, '[links.shop.guard]\non_target_wipe = "hold"\n')
    shop.once()
    running = shop.start()
    harm(pair, "TRUNCATE visit")
    incident = shop.held()
    assert (incident["side"], incident["kind"]) == ("target", "truncate")
    shop.wipe("INSERT INTO item VALUES (901, 'later')")
    refused(cli("check"), 6)
    assert running.status()["state"] == "held"
    assert len(shop.target_rows("item")) == 300
    message, _ = refused(cli("incidents", "approve", incident["id"], "--rows", "400", "--yes"), 2)
    assert "cannot be approved" in message
    done = shop.command("incidents", "restore", incident["id"], "--yes")
    assert done["incidents"][0]["state"] == "healed"
    level(shop, running)
    assert len(shop.target_rows("visit")) == 400


def test_both_ends_wiped(pair: Pair, cli: Cli) -> None:
    """What neither end has any more is never called healed: it is held, with a sentence that says so."""
    shop = Shop(cli, pair)
    shop.once()
    shop.watched()
    shop.wipe("DELETE FROM visit")
    harm(pair, "DELETE FROM visit")
    message, _ = refused(cli("once"), 6)
    assert "incident" in message
    assert {each["state"] for each in shop.incidents()} == {"held"}
    shown = cli("incidents", "show", shop.incidents()[0]["id"]).stdout
    assert "would hold 0 rows on the target where 400 stood" in shown


def test_blocked(pair: Pair, cli: Cli, plain_roles: bool) -> None:
    """`protect_target = "block"` refuses what is not ours with a sentence; the stream goes on."""
    shop = Shop(cli, pair, '[links.shop.guard]\nprotect_target = "block"\n')
    shop.once()
    running = shop.start()
    with load(pair.source):
        # DDL is refused by an event trigger, which needs a superuser; that it is not is told by test_ddl_without_event_triggers
        ddl = [] if plain_roles else ['DROP TABLE "order"']
        for statement in ("DELETE FROM visit", "TRUNCATE item CASCADE", *ddl):
            with pytest.raises(psycopg.Error, match="pglockstep"):
                harm(pair, statement)
    level(shop, running)
    assert shop.incidents() == []


def test_what_is_no_harm(pair: Pair, cli: Cli) -> None:
    """Maintenance, and what people build beside our tables, is nobody's incident."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    with load(pair.source):
        with connect(pair.target) as conn:
            for statement in (
                "VACUUM FULL visit",
                'CLUSTER "order" USING order_pkey',
                "REINDEX TABLE item",
                "CREATE INDEX mine ON visit (n)",
                "CREATE VIEW report AS SELECT count(*) FROM item",
                "CREATE TABLE notes (t text)",
                "INSERT INTO notes VALUES ('a dashboard writes here')",
                "ANALYZE",
            ):
                conn.execute(statement.encode())
        time.sleep(2.5)
    wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream")
    assert shop.incidents() == []
