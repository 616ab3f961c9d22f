"""A source that is not the one it was: nothing moves until that is decided, and then either end has all that there was."""

from __future__ import annotations

import signal
import time
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from fix_copy import dumped, refused
from fix_servers import Cli, Connection, Pair, connect, drop_database, wait_until
from fix_shop import TABLES, Shop, load
from fix_volume import Volume, decided, identical, stranded, volume
from pglockstep import failpoints

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
    shop.watched()
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
    with load(shop.pair.source), shop.pair.on_source() as conn:
        conn.execute("""
            UPDATE item SET label = 'newer' WHERE id <= 100;
            INSERT INTO visit SELECT '/day', n FROM generate_series(1, 50) AS n;
            UPDATE "User" SET note = 'newer ' || id;
        """)
        time.sleep(1)
    running.process.terminate()
    assert running.process.wait(20) == 0
    shop.once()
    before = everything(shop)
    volume.put_back()
    with shop.pair.on_source() as conn:
        conn.execute("INSERT INTO visit VALUES ('/since', 1)")
        # its WAL comes past everything that was ever reached
        conn.execute(
            "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 40)"
        )
    incident = untouched(shop, cli, before, "identity")
    assert "older copy of itself: it was marked" in incident["message"]
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


def cloned(shop: Shop) -> None:
    """Let the database of this name be another one from now on, with all that the former one held."""
    name = str(conninfo_to_dict(shop.pair.source)["dbname"])
    with connect(shop.pair.source_server.conninfo()) as conn:
        conn.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", [name]
        )
        conn.execute(f'ALTER DATABASE "{name}" RENAME TO "{name} old"'.encode())
        conn.execute(f'CREATE DATABASE "{name}" TEMPLATE "{name} old"'.encode())


def test_a_planned_move_is_accepted(stranded: Shop, cli: Cli) -> None:
    """A server that has every row is accepted without a number; one that lacks some only with the right one."""
    shop = stranded
    cloned(shop)
    with shop.pair.on_source() as conn:
        conn.execute("INSERT INTO visit VALUES ('/since', 1)")
    before = {table: shop.target_rows(table) for table in TABLES}
    incident = untouched(shop, cli, before, "identity")
    assert "dropped and made anew" in incident["message"]
    assert not incident["tables"]
    assert decided(shop, "approve")["state"] == "approved"
    identical(shop)
    assert "(/since,1)" in shop.target_rows("visit")
    # the next one has lost most of a table by the time that it is decided
    with connect(shop.pair.source_server.conninfo()) as conn:
        conn.execute('DROP DATABASE "shop old"')
    cloned(shop)
    with shop.pair.on_source() as conn:
        conn.execute("DELETE FROM visit WHERE n <= 100")
    refused(cli("check"), 6)
    incident = shop.held()
    (lost,) = incident["tables"]
    assert (lost["table"], lost["rows_before"], lost["rows_lost"]) == ("visit", 401, 101)
    message, _ = refused(cli("incidents", "approve", incident["id"], "--yes"), 2)
    assert "number of rows" in message
    with shop.pair.on_source() as conn:
        conn.execute("DELETE FROM visit WHERE n <= 300")
    message, _ = refused(cli("incidents", "approve", incident["id"], "--rows", "101", "--yes"), 1)
    assert "101 rows that the target has were told to be missing" in message
    assert "it is 301 now, with more of public.visit" in message
    assert len(shop.target_rows("visit")) == 401
    assert decided(shop, "approve", "--rows", "301")["state"] == "approved"
    assert len(shop.target_rows("visit")) == 100
    identical(shop)
    with connect(shop.pair.source_server.conninfo()) as conn:
        conn.execute('DROP DATABASE "shop old"')


def test_the_known_source_comes_back(stranded: Shop) -> None:
    """An address that led astray is put right: the incident is over by itself, and the daemon goes on."""
    shop = stranded
    running = shop.start()
    name = str(conninfo_to_dict(shop.pair.source)["dbname"])
    with connect(shop.pair.source_server.conninfo()) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        for _ in range(100):
            try:
                conn.execute(f'ALTER DATABASE "{name}" RENAME TO "{name} old"'.encode())
                break
            except psycopg.errors.ObjectInUse:
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
                )
        conn.execute(f'CREATE DATABASE "{name}"'.encode())
        shop.held()
        assert running.status()["state"] == "held"
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
        conn.execute(f'ALTER DATABASE "{name} old" RENAME TO "{name}"'.encode())
    wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to stream again")
    assert {each["state"] for each in shop.incidents()} == {"healed"}
    identical(shop)
    assert running.process.poll() is None


@pytest.mark.parametrize("with_slot", [True, False])
def test_a_promoted_standby(stranded: Shop, volume: Volume, cli: Cli, with_slot: bool) -> None:
    """One that has the slot and every row is gone on with, and said so; without a slot it is accepted by a person."""
    shop = stranded
    volume.promote()
    with shop.pair.on_source() as conn:
        conn.execute("INSERT INTO visit VALUES ('/since', 1)")
        if not with_slot:
            conn.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    if with_slot:
        done = cli("once")
        assert done.returncode == 0, done.stderr
        assert "a standby was promoted; the link goes on with it" in done.stderr
        assert "promoted" not in cli("once").stderr
        assert not shop.incidents()
    else:
        message, _ = refused(cli("once"), 6)
        assert "does not have the link's replication slot" in message
        assert decided(shop, "approve")["state"] == "approved"
    identical(shop)
    assert "(/since,1)" in shop.target_rows("visit")


def test_swapped_ends(cli: Cli, pair: Pair) -> None:
    """Each name leads to the other database: nothing is copied the wrong way, and put right all is well again."""
    shop = Shop(cli, pair)
    shop.once()
    # by a name of libpq's, as an alias in DNS would be
    names = cli.directory / "services.conf"
    environment = {"PGSERVICEFILE": str(names)}

    def point(first: str, second: str) -> None:
        names.write_text("".join(
            f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in conninfo_to_dict(end).items())
            for name, end in (("first", first), ("second", second))
        ))  # fmt: skip

    (cli.directory / "pglockstep.toml").write_text(
        '[links.shop]\nsource = "service=first"\ntarget = "service=second"\n'
    )
    point(pair.source, pair.target)
    assert cli("once", env=environment).returncode == 0
    point(pair.target, pair.source)
    for _ in range(2):
        message, _ = refused(cli("once", env=environment), 6)
        assert "the ends were swapped" in message
    refused(cli("incidents", "restore", "1", "--yes", env=environment), 1)
    point(pair.source, pair.target)
    assert cli("once", env=environment).returncode == 0
    assert [each["state"] for each in shop.incidents()] == ["healed"]


def test_the_configuration_decides(cli: Cli, pair: Pair) -> None:
    """With on_source_wipe = "restore" a running daemon fills the source by itself."""
    shop = Shop(cli, pair, '[links.shop.guard]\non_source_wipe = "restore"\n')
    shop.once()
    running = shop.start()
    before = everything(shop)
    pair.close()
    drop_source(shop)
    wait_until(lambda: [each["state"] for each in shop.incidents()] == ["restored"], 40, "it to be restored")
    assert everything(shop) == before
    wait_until(lambda: running.status()["state"] == "streaming", 20, "the link to stream again")
    identical(shop)
    assert running.process.poll() is None


def test_nothing_to_fill_it_from(cli: Cli, pair: Pair) -> None:
    """The target is gone as well: a clear error, nothing is made or changed, and it can be decided again."""
    shop = Shop(cli, pair)
    shop.once()
    pair.close()
    drop_source(shop)
    refused(cli("check"), 6)
    with pair.on_target() as conn:
        conn.execute("DROP SCHEMA pglockstep CASCADE")
    incident = shop.held()
    message, _ = refused(cli("incidents", "restore", incident["id"], "--yes"), 1)
    assert "remembers no link any more" in message
    drop_database(pair.target_server, str(conninfo_to_dict(pair.target)["dbname"]))
    message, _ = refused(cli("incidents", "restore", incident["id"], "--yes"), 1)
    assert "could not be carried out: cannot connect to the target" in message
    assert shop.held()["id"] == incident["id"]
    with connect(pair.source_server.conninfo()) as conn:
        name = conninfo_to_dict(pair.source)["dbname"]
        assert not conn.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount


@pytest.mark.soak
def test_no_heal_from_an_older_copy(stranded: Shop, volume: Volume) -> None:
    """The target was harmed while the source was away, and what comes back is yesterday's copy: it heals nothing."""
    shop = stranded
    running = shop.start()
    time.sleep(4)
    running.process.terminate()
    assert running.process.wait(20) == 0
    volume.keep()
    shop.start()
    with connect(shop.pair.source) as conn:
        conn.execute("UPDATE item SET label = 'today ' || id")
    wait_until(lambda: "today" in shop.target_rows("item")[0], 20, "the target to have it")
    before = shop.target_rows("item")
    shop.pair.close()
    volume.server.stop("immediate")
    # who receives tries again ever more seldom; who heals, all the time
    time.sleep(12)
    with shop.pair.on_target() as target:
        target.execute("UPDATE item SET price = 0 WHERE id = 1")
    wait_until(lambda: len(shop.incidents()) == 1, 20, "the harm to be seen")
    volume.put_back()
    wait_until(lambda: ("identity", "held") in states(shop), 60, "the copy to be known as one")
    assert [row for row in shop.target_rows("item") if "today" not in row] == []
    assert len(shop.target_rows("item")) == len(before)


def states(shop: Shop) -> list[tuple[str, str]]:
    """Every incident's kind and state."""
    return [(each["kind"], each["state"]) for each in shop.incidents()]


FAILPOINTS = [name for name in failpoints.NAMES if name.startswith(("refill.", "adopt."))]


def test_killed_at_every_failpoint(cli: Cli, pair: Pair) -> None:
    """kill -9 at each step of a restore: the same command again goes on from there, and both ends have all there was."""
    shop = Shop(cli, pair)
    shop.once()
    before = everything(shop)
    pair.close()
    drop_source(shop)
    with create_source(shop) as conn:
        conn.execute("CREATE TABLE visit (path text, n int); INSERT INTO visit VALUES ('/since', 1)")
    refused(cli("check"), 6)
    incident = shop.held()
    done = cli("incidents", "restore", incident["id"], "--yes", env={"PGLOCKSTEP_FAILPOINT": FAILPOINTS[0]})
    assert done.returncode == -signal.SIGKILL
    for name in FAILPOINTS[1:]:
        # whoever works on the link next carries it out
        done = cli("once", env={"PGLOCKSTEP_FAILPOINT": name})
        assert done.returncode == -signal.SIGKILL, f"{name}: {done.stderr}"
    shop.once()
    assert [each["state"] for each in shop.incidents()] == ["restored"]
    after = everything(shop)
    assert after.pop("visit") == sorted([*before.pop("visit"), "(/since,1)"])
    assert after == before
    identical(shop)
