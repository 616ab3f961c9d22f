"""Accepting another source costs the target what was told and confirmed, and no more than a little that went meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict

from fix_copy import refused
from fix_servers import Cli, connect
from fix_shop import Shop, load
from fix_volume import Volume, decided, identical, stranded, volume
from test_identity_live import cloned

__all__ = ["stranded", "volume"]

#: a database is made anew
pytestmark = pytest.mark.superusers


@pytest.fixture
def moved(stranded: Shop, volume: Volume) -> Iterator[Shop]:
    """A shop whose source's database is another one, with all that the former one held but for 101 visits that are told."""
    name = str(conninfo_to_dict(stranded.pair.source)["dbname"])
    with stranded.pair.on_source() as conn:
        conn.execute(
            "CREATE TABLE setting (id int PRIMARY KEY); INSERT INTO setting SELECT generate_series(1, 5)"
        )
    stranded.command("resync", "public.setting", "--yes")
    stranded.once()
    cloned(stranded)
    with stranded.pair.on_source() as conn:
        conn.execute("DELETE FROM visit WHERE n <= 101")
    refused(stranded.cli("check"), 6)
    incident = stranded.held()
    assert [(each["table"], each["rows_lost"]) for each in incident["tables"]] == [("visit", 101)]
    yield stranded
    with connect(volume.server.conninfo()) as conn:
        conn.execute(f'DROP DATABASE "{name} old"'.encode())


@pytest.mark.parametrize(
    ("since", "rows"),
    [
        ("DELETE FROM visit WHERE n <= 201", 201),
        (
            "DELETE FROM visit WHERE n <= 201; INSERT INTO visit SELECT '/new', n FROM generate_series(1, 500) AS n",
            201,
        ),
        ('DELETE FROM "order" WHERE id <= 300', 401),
        ("DELETE FROM setting", 106),
    ],
)
def test_more_than_was_confirmed(moved: Shop, cli: Cli, since: str, rows: int) -> None:
    """Less than any rule would mind, and more than was told: it is told anew, and done with that number."""
    shop = moved
    before = {table: len(shop.target_rows(table)) for table in ("visit", '"order"', "setting")}
    with shop.pair.on_source() as conn:
        conn.execute(since.encode())
    message, hint = refused(cli("incidents", "approve", shop.held()["id"], "--rows", "101", "--yes"), 1)
    assert f"it is {rows} now" in message
    assert f"--rows {rows}" in hint + message
    assert {table: len(shop.target_rows(table)) for table in before} == before
    assert sum(each["rows_lost"] for each in shop.held()["tables"]) == rows
    assert decided(shop, "approve", "--rows", str(rows))["state"] == "approved"
    identical(shop)


def test_a_little_that_went_meanwhile(moved: Shop) -> None:
    """A server that is in use loses a row here and there, and nobody has to run after the number."""
    shop = moved
    with load(shop.pair.source), shop.pair.on_source() as conn:
        conn.execute('DELETE FROM visit WHERE n <= 111; DELETE FROM "order" WHERE id <= 12')
        assert decided(shop, "approve", "--rows", "101")["state"] == "approved"
    shop.once()
    assert len(shop.target_rows("visit")) == 289


def test_nothing_was_told(stranded: Shop, cli: Cli) -> None:
    """Who accepts a server that had every row has not said that a quarter of a table may go."""
    shop = stranded
    cloned(shop)
    refused(cli("check"), 6)
    incident = shop.held()
    assert incident["tables"] == []
    with shop.pair.on_source() as conn:
        conn.execute("DELETE FROM visit WHERE n <= 100")
    message, _ = refused(cli("incidents", "approve", incident["id"], "--yes"), 1)
    assert "it is 100 now" in message
    assert len(shop.target_rows("visit")) == 400
    assert decided(shop, "approve", "--rows", "100")["state"] == "approved"
    identical(shop)
    with connect(shop.pair.source_server.conninfo()) as conn:
        conn.execute('DROP DATABASE "shop old"')


def test_a_floor_that_partitions_share(stranded: Shop, cli: Cli) -> None:
    """A little may have gone of each of them meanwhile, but not so much of all that they hold too little together."""
    shop = stranded
    shop.configure("guard.floors.'public.event' = 90\n")
    names = [f"event{n}" for n in range(5)]
    for end in (shop.pair.on_source, shop.pair.on_target):
        with end() as conn:
            conn.execute(
                "CREATE TABLE event (id int, day int, PRIMARY KEY (id, day)) PARTITION BY LIST (day)"
            )
            for day, name in enumerate(names):
                conn.execute(f"CREATE TABLE {name} PARTITION OF event FOR VALUES IN ({day})".encode())
    with shop.pair.on_source() as conn:
        conn.execute(
            "INSERT INTO event SELECT n, day FROM generate_series(1, 20) AS n, generate_series(0, 4) AS day"
        )
    shop.command("resync", *(f"public.{name}" for name in names), "--yes")
    shop.once()
    cloned(shop)
    refused(cli("check"), 6)
    with shop.pair.on_source() as conn:
        conn.execute("DELETE FROM event WHERE id > 15")
    message, _ = refused(cli("incidents", "approve", shop.held()["id"], "--yes"), 1)
    assert "it is 25 now" in message
    assert len(shop.target_rows("event")) == 100
    with shop.pair.on_source() as conn:
        conn.execute("DELETE FROM event WHERE id = 15")
    # what was told by now is confirmed, and what went since is too little left to spare
    refused(cli("incidents", "approve", shop.held()["id"], "--rows", "25", "--yes"), 1)
    assert decided(shop, "approve", "--rows", "30")["state"] == "approved"
    identical(shop)
    assert len(shop.target_rows("event")) == 70
    with connect(shop.pair.source_server.conninfo()) as conn:
        conn.execute('DROP DATABASE "shop old"')
