"""A source that is not the one it was: nothing moves until that is decided, and then either end has all that there was."""

from __future__ import annotations

import time
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from fix_copy import dumped, refused
from fix_servers import Cli, Connection, Pair, connect, drop_database, wait_until
from fix_shop import TABLES, Shop, load
from fix_volume import Volume, decided, identical, stranded, volume

__all__ = ["stranded", "volume"]

#: a database is dropped and made anew, a server comes back with nothing but its superuser
pytestmark = pytest.mark.superusers


def everything(shop: Shop) -> dict[str, list[str]]:
    """Every row of the source's."""
    return {table: shop.source_rows(table) for table in TABLES}


def drop_source(shop: Shop) -> None:
    """DROP DATABASE, as a person has to do it: the slot first."""
    name = str(conninfo_to_dict(shop.pair.source)["dbname"])
    drop_database(shop.pair.source_server, name)


def create_source(shop: Shop) -> Connection:
    """Somebody makes the database again, empty."""
    name = conninfo_to_dict(shop.pair.source)["dbname"]
    with connect(shop.pair.source_server.conninfo()) as conn:
        conn.execute(f'CREATE DATABASE "{name}"'.encode())
    return shop.pair.on_source()


def untouched(shop: Shop, cli: Cli, before: dict[str, list[str]], kind: str) -> dict[str, Any]:
    """`check` and `once` say which incident it is and change nothing; returns it."""
    for command in ("check", "once", "check"):
        message, hint = refused(cli(command), 6)
        assert "is open" in message
        assert "incidents restore" in hint
    (incident,) = shop.incidents()
    assert (incident["kind"], incident["side"], incident["state"]) == (kind, "source", "held")
    assert {table: shop.target_rows(table) for table in TABLES} == before
    return incident


def test_a_source_whose_database_was_dropped(cli: Cli, pair: Pair) -> None:
    """DROP DATABASE while no daemon runs: one command makes it again, as it was, with every object and row; the link goes on."""
    shop = Shop(cli, pair)
    shop.once()
    pair.on_source().execute(
        f"ALTER DATABASE \"{conninfo_to_dict(pair.source)['dbname']}\" SET work_mem TO '5MB'".encode()
    )
    running = shop.start()
    running.process.terminate()
    assert running.process.wait(20) == 0
    before, schema = everything(shop), dumped(pair.source_server, pair.source)
    pair.close()
    drop_source(shop)
    incident = untouched(shop, cli, before, "missing_database")
    done = decided(shop, "restore")
    assert (done["id"], done["state"]) == (incident["id"], "restored")
    assert everything(shop) == before
    assert dumped(pair.source_server, pair.source) == schema
    assert pair.on_source().execute("SHOW work_mem").fetchone() == ("5MB",)
    identical(shop)
    shop.once()
    with pair.on_source() as conn:
        conn.execute("INSERT INTO visit VALUES ('/new', 1)")
    shop.once()
    assert "(/new,1)" in shop.target_rows("visit")
    assert [each["state"] for each in shop.incidents()] == ["restored"]


def test_a_database_that_was_dropped_and_made_anew_under_a_daemon(cli: Cli, pair: Pair) -> None:
    """The daemon notices when it reconnects, holds, and fills it when told to; what the application wrote since stays."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    before = everything(shop)
    pair.close()
    drop_source(shop)
    with create_source(shop) as conn:
        conn.execute("""
            CREATE TABLE visit (path text, n int);
            INSERT INTO visit VALUES ('/since', 1);
            CREATE TABLE since (id int PRIMARY KEY);
            INSERT INTO since VALUES (1);
        """)
    incident = shop.held()
    if incident["kind"] == "missing_database":
        # seen before it was made anew
        wait_until(lambda: running.status()["state"] == "held", 20, "the link to be held")
    assert {table: shop.target_rows(table) for table in TABLES} == before
    assert running.status()["state"] == "held"
    done = decided(shop, "restore")
    assert done["state"] == "restored"
    assert running.process.poll() is None
    wait_until(lambda: running.status()["state"] == "streaming", 20, "the link to stream again")
    after = everything(shop)
    assert after.pop("visit") == sorted([*before.pop("visit"), "(/since,1)"])
    assert after == before
    with load(pair.source):
        time.sleep(0.5)
    identical(shop)
    assert pair.on_target().execute("SELECT id FROM since").fetchall() == [(1,)]


def test_an_empty_volume(stranded: Shop, volume: Volume, cli: Cli) -> None:
    """An empty cluster at the same address: its database is made and filled, and the link follows the new server."""
    shop = stranded
    before, schema = everything(shop), dumped(shop.pair.source_server, shop.pair.source)
    volume.lose()
    untouched(shop, cli, before, "missing_database")
    assert decided(shop, "restore")["state"] == "restored"
    assert everything(shop) == before
    assert dumped(shop.pair.source_server, shop.pair.source) == schema
    identical(shop)
    running = shop.start()
    with load(shop.pair.source):
        time.sleep(0.5)
    identical(shop)
    assert running.process.poll() is None


def test_an_older_copy(stranded: Shop, volume: Volume, cli: Cli) -> None:
    """The data directory of yesterday put back: what came since is put back on it, what was written on it since stays."""
    shop = stranded
    volume.keep()
    running = shop.start()
    # DDL does not travel: whoever adds a column does it on both ends
    for conn in (shop.pair.on_target(), shop.pair.on_source()):
        conn.execute('ALTER TABLE "User" ADD COLUMN age int')
        conn.close()
    with load(shop.pair.source), shop.pair.on_source() as conn:
        conn.execute("""
            UPDATE item SET label = 'newer' WHERE id <= 100;
            INSERT INTO visit SELECT '/day', n FROM generate_series(1, 50) AS n;
            UPDATE "User" SET age = 40 + id;
        """)
        time.sleep(1)
    running.process.terminate()
    assert running.process.wait(20) == 0
    shop.once()
    before = everything(shop)
    volume.put_back()
    with shop.pair.on_source() as conn:
        conn.execute("INSERT INTO visit VALUES ('/since', 1)")
    untouched(shop, cli, before, "identity")
    assert decided(shop, "restore")["state"] == "restored"
    after = everything(shop)
    assert after.pop("visit") == sorted([*before.pop("visit"), "(/since,1)"])
    assert after == before
    identical(shop)
    running = shop.start()
    with load(shop.pair.source):
        time.sleep(0.5)
    identical(shop)
    assert running.process.poll() is None
