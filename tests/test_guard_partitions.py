"""The guard and partitioned tables: what is said of a table holds for its partitions, which are what the stream names."""

from __future__ import annotations

import time

import pytest

from fix_copy import refused
from fix_servers import Cli, Pair, wait_until
from fix_shop import Shop

#: Three partitions of 60 rows each; the third is a partition of a partition.
EVENTS = """
CREATE TABLE event (id int, day int, what text, PRIMARY KEY (id, day)) PARTITION BY LIST (day);
CREATE TABLE event_1 PARTITION OF event FOR VALUES IN (1);
CREATE TABLE event_2 PARTITION OF event FOR VALUES IN (2);
CREATE TABLE event_rest PARTITION OF event DEFAULT PARTITION BY LIST (day);
CREATE TABLE event_3 PARTITION OF event_rest FOR VALUES IN (3);
INSERT INTO event SELECT n, 1 + n % 3, 'event ' || n FROM generate_series(1, 180) AS n;
"""


def shop_of(pair: Pair, cli: Cli, guard: str = "") -> Shop:
    """A shop with events, copied."""
    shop = Shop(cli, pair, f"[links.shop.guard]\n{guard}\n")
    shop.wipe(EVENTS)
    shop.once()
    return shop


def left(shop: Shop, table: str = "event") -> int:
    """How many rows the target has."""
    return len(shop.target_rows(table))


@pytest.mark.parametrize("purge", ["DELETE FROM event", "TRUNCATE event", "UPDATE event SET what = NULL"])
def test_a_purge_that_was_announced(pair: Pair, cli: Cli, purge: str) -> None:
    """What is announced for a table passes in its partitions, whatever it is, and is used up by their sum."""
    shop = shop_of(pair, cli)
    shop.command("guard", "allow", "--table", "public.event", "--rows", "180", "--for", "1h")
    shop.wipe(purge)
    shop.once()
    assert shop.incidents() == []
    (allowance,) = shop.command("guard", "list")["allowances"]
    assert allowance["used"] == 180


def test_a_purge_that_takes_more_than_was_announced(pair: Pair, cli: Cli) -> None:
    """Each partition takes less than that; all together they do not."""
    shop = shop_of(pair, cli)
    shop.command("guard", "allow", "--table", "public.event", "--rows", "130", "--for", "1h")
    shop.wipe("DELETE FROM event WHERE day IN (1, 3)")
    shop.once()
    shop.wipe("DELETE FROM event")
    refused(cli("once"), 6)
    (loss,) = shop.held()["tables"]
    assert (loss["table"], loss["rows_lost"]) == ("event_2", 60)
    assert left(shop) == 60


@pytest.mark.parametrize("name", ["public.event", "public.*vent"])
def test_a_rule_for_the_whole_table(pair: Pair, cli: Cli, name: str) -> None:
    """It holds for each partition, also for one of a partition, but for the one that has a rule of its own."""
    shop = shop_of(
        pair, cli, f"tables.'{name}'.truncate = 'allow'\ntables.'public.event_2'.truncate = 'hold'"
    )
    shop.wipe("TRUNCATE event_1, event_3")
    shop.once()
    assert left(shop) == 60
    shop.wipe("TRUNCATE event_2")
    refused(cli("once"), 6)
    assert shop.held()["kind"] == "truncate"
    assert left(shop) == 60


def test_a_stricter_rule_for_the_whole_table(pair: Pair, cli: Cli) -> None:
    """It takes the place of what holds for every table, by its name as well as before patterns that fit the partition."""
    shop = shop_of(
        pair, cli, "tables.'public.event'.max_delete_rows = 3\ntables.'public.*'.max_delete_rows = 1000"
    )
    shop.wipe("DELETE FROM event WHERE id <= 9")
    shop.once()
    shop.wipe("DELETE FROM event WHERE day = 1 AND id <= 24")
    refused(cli("once"), 6)
    assert "more than 3 rows" in shop.held()["message"]
    assert left(shop) == 171


@pytest.mark.parametrize("judge", ["true", "false"])
def test_a_floor_of_the_whole_table(pair: Pair, cli: Cli, judge: str) -> None:
    """It is the sum of the partitions that may not fall below it, whichever of them loses rows."""
    shop = shop_of(pair, cli, f"floors.'public.event' = 150\ntables.'public.event'.judge = {judge}")
    shop.wipe("DELETE FROM event WHERE day = 1 AND id <= 30")
    shop.once()
    shop.wipe("DELETE FROM event WHERE day = 2 AND id <= 30", "INSERT INTO event VALUES (1000, 3, 'x')")
    shop.once()
    assert left(shop) == 161
    running = shop.start()
    shop.wipe("DELETE FROM event WHERE day = 3 AND id <= 36")
    incident = shop.held()
    assert incident["kind"] == "floor"
    assert "public.event would hold 149 rows, below its floor of 150" in incident["message"]
    assert left(shop) == 161
    done = shop.command("incidents", "restore", incident["id"], "--yes")
    assert done["incidents"][0]["state"] == "restored"
    wait_until(lambda: running.status()["state"] == "streaming", 20, "the link to stream")
    shop.wipe("INSERT INTO event SELECT n, 1, 'x' FROM generate_series(2000, 2020) AS n")
    shop.wipe("DELETE FROM event WHERE day = 3 AND id <= 36")
    wait_until(lambda: left(shop) == 170, 20, "what leaves enough to pass")
    assert len(shop.incidents()) == 1


def test_a_floor_and_what_is_allowed_of_a_partition(pair: Pair, cli: Cli) -> None:
    """A TRUNCATE and a DROP of a partition pass by their rules as long as the others hold enough."""
    shop = shop_of(
        pair,
        cli,
        "floors.'public.event' = 100\ntables.'public.event'.truncate = 'allow'\ntables.'public.event'.drop = 'allow'",
    )
    shop.wipe("TRUNCATE event_1")
    shop.once()
    shop.wipe("TRUNCATE event_3")
    refused(cli("once"), 6)
    incident = shop.held()
    assert incident["kind"] == "floor"
    shop.command("incidents", "restore", incident["id"], "--yes")
    shop.once()
    shop.wipe("DROP TABLE event_2")
    refused(cli("once"), 6)
    incident = shop.held()
    assert incident["kind"] == "drop"
    assert "public.event would hold 60 rows, below its floor of 100" in incident["message"]
    assert left(shop) == 120


def test_a_floor_of_the_whole_table_and_a_heal(pair: Pair, cli: Cli) -> None:
    """What the source lost beside a foreign write does not come by the heal either."""
    shop = shop_of(pair, cli, "floors.'public.event' = 150")
    running = shop.start()
    watched = "SELECT FROM pg_trigger WHERE tgname = 'pglockstep_update' AND tgrelid = 'event_1'::regclass"
    wait_until(lambda: pair.on_target().execute(watched).rowcount, 20, "the watch to be on")
    running.kill()
    shop.wipe("DELETE FROM event WHERE id <= 36")
    with pair.on_target() as conn:
        conn.execute("UPDATE event SET what = 'theirs' WHERE id > 100")
    refused(cli("once"), 6)
    assert left(shop) == 180


def test_a_partition_that_comes_later(pair: Pair, cli: Cli) -> None:
    """It goes by the rule of the whole table as soon as it follows."""
    shop = shop_of(pair, cli, "tables.'public.event'.truncate = 'allow'")
    shop.start()
    shop.wipe(
        "CREATE TABLE event_4 PARTITION OF event FOR VALUES IN (4)",
        "INSERT INTO event SELECT n, 4, 'x' FROM generate_series(1, 50) AS n",
    )
    shop.command("resync", "public.event_4", "--yes")
    wait_until(lambda: left(shop, "event_4") == 50, 20, "it to follow")
    shop.wipe("TRUNCATE event_4")
    wait_until(lambda: left(shop, "event_4") == 0, 20, "the TRUNCATE to pass")
    time.sleep(0.5)
    assert shop.incidents() == []
