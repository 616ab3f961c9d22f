"""The hard cases of a harmed target: nobody was there, nobody was told, both ends were hit, or the daemon dies over its heal."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fix_copy import MakeRole, make_role, refused
from fix_servers import Cli, Pair, connect, wait_until
from fix_shop import Shop, load
from test_guard_target import concluded, harm, level
from test_run import Daemon

__all__ = ["make_role"]

#: A session for which no trigger fires: the poll has to do.
SILENTLY = "SET session_replication_role = replica"


def stop(running: Daemon) -> None:
    """End the daemon as a service manager does."""
    running.process.terminate()
    assert running.process.wait(20) == 0


def states(shop: Shop) -> list[tuple[str, str]]:
    """Every incident's kind and state."""
    return [(each["kind"], each["state"]) for each in shop.incidents()]


def drop_database(pair: Pair) -> None:
    """Drop the target's database, whoever is in it."""
    name = sql.Identifier(str(conninfo_to_dict(pair.target)["dbname"]))
    with connect(pair.target_server.conninfo()) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def test_many_transactions_are_one_incident_and_none_is_forgotten(pair: Pair, cli: Cli) -> None:
    """Each table is emptied by a transaction of its own, while the first is being put right already."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    with load(pair.source):
        with psycopg.connect(pair.target, autocommit=True, application_name="psql") as conn:
            for table in ('"order"', "visit", "mail", "beat"):
                conn.execute(f"DELETE FROM {table}".encode())
        incident = concluded(shop)
        assert (incident["kind"], incident["application"].split()[0]) == ("delete", "psql")
    level(shop, running)
    assert {state for _, state in states(shop)} == {"healed"}
    assert len(states(shop)) <= 3


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        pytest.param(["DROP TABLE visit"], "drop", marks=pytest.mark.soak),
        (["ALTER TABLE item DROP COLUMN price"], "drop"),
        pytest.param(["ALTER TABLE visit RENAME TO gone"], "drop", marks=pytest.mark.soak),
        (["DROP SCHEMA pglockstep CASCADE", "DELETE FROM visit"], "drop"),
        pytest.param(
            ["DROP TABLE pglockstep.foreign_write CASCADE", "DELETE FROM visit"],
            "drop",
            marks=pytest.mark.soak,
        ),
        (["TRUNCATE visit"], "truncate"),
    ],
)
def test_unseen_while_nobody_was_there(pair: Pair, cli: Cli, what: list[str], kind: str) -> None:
    """No trigger fired and no daemon ran: how the target stood is known from before, and the next that comes heals it."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    rows = shop.source_rows("visit")
    with pair.on_target() as conn:
        # the statistics, by which a TRUNCATE is told from a table that is empty anyway
        conn.execute("ANALYZE")
    time.sleep(1.5)
    stop(running)
    harm(pair, SILENTLY, *what)
    running = shop.start()
    wait_until(lambda: states(shop) == [(kind, "healed")], 20, f"{states(shop)} to be healed")
    level(shop, running)
    assert shop.target_rows("visit") == rows


def test_unseen_by_triggers(pair: Pair, cli: Cli) -> None:
    """A session that acts as a replica empties a table: it is counted, compared, put back, and only then an incident."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    with load(pair.source):
        pair.on_target().execute("ANALYZE")
        time.sleep(1.5)
        harm(pair, SILENTLY, "TRUNCATE visit")
        incident = concluded(shop)
        assert (incident["kind"], incident["state"]) == ("truncate", "healed")
        assert incident["tables"][0] == {
            "schema": "public",
            "table": "visit",
            "rows_before": 400,
            "rows_lost": 400,
            "columns": [],
            "keys": [],
        }
    level(shop, running)


def test_unseen_until_a_change_does_not_find_its_row(pair: Pair, cli: Cli) -> None:
    """No trigger fires for one row, and no estimate falls: the stream finds out, and the table is compared and put right."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    harm(pair, SILENTLY, "DELETE FROM item WHERE id = 7", "UPDATE item SET label = 'theirs' WHERE id = 8")
    time.sleep(1.5)
    assert shop.incidents() == []
    shop.wipe("UPDATE item SET price = 99 WHERE id = 7")
    incident = concluded(shop)
    assert (incident["kind"], incident["state"]) == ("foreign_write", "healed")
    assert [(each["table"], each["rows_lost"]) for each in incident["tables"]] == [("item", 2)]
    assert "found 0 rows on the target instead of one" in incident["message"]
    level(shop, running)


def test_what_the_stream_takes_is_no_harm(pair: Pair, cli: Cli) -> None:
    """TRUNCATE and DELETE of nearly everything on the source, as allowed: nobody is told, and nothing is compared."""
    shop = Shop(cli, pair, "[links.shop.guard]\ntruncate = 'allow'\nmax_delete_fraction = 1.0\n")
    shop.once()
    log = cli.directory / "daemon.log"
    process = cli.start("run", "-v", log=log)
    wait_until(lambda: "streaming from" in log.read_text(), 30, "the daemon to stream")
    for number in range(3):
        shop.wipe(
            "TRUNCATE visit",
            f"INSERT INTO visit SELECT 'again', n FROM generate_series(1, {300 + number}) AS n",
        )
        pair.on_target().execute("ANALYZE")
        time.sleep(1.1)
        shop.wipe("DELETE FROM visit WHERE n > 10")
        time.sleep(1.1)
    wait_until(lambda: len(shop.target_rows("visit")) == 10, 20, "the target to have it")
    time.sleep(1.5)
    assert shop.incidents() == []
    assert log.read_text().count("streaming from") == 1
    process.terminate()
    assert process.wait(20) == 0


def test_also_while_the_source_is_held(pair: Pair, cli: Cli) -> None:
    """The target's harm is noticed, and held as well: the source may be the end that was wiped. Both decided, all is back."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    users, visits = shop.source_rows('"User"'), shop.source_rows("visit")
    shop.wipe('DELETE FROM "User"')
    first = shop.held()
    assert first["side"] == "source"
    harm(pair, "DELETE FROM visit")
    wait_until(lambda: len(shop.incidents()) == 2, 10, "the target's incident")
    second = shop.incidents()[1]
    assert (second["side"], second["kind"], second["state"]) == ("target", "delete", "held")
    assert len(shop.target_rows('"User"')) == 22
    assert running.status()["state"] == "held"
    # nothing is put back on the target before the source is what it was
    restoring = cli.start("incidents", "restore", second["id"], "--yes", "--json")
    wait_until(lambda: shop.incidents()[1]["state"] == "healed", 20, "the target to be healed")
    assert restoring.wait(20) == 0
    assert len(shop.target_rows('"User"')) == 22
    done = shop.command("incidents", "restore", first["id"], "--yes")
    assert done["incidents"][0]["state"] == "restored"
    level(shop, running)
    assert shop.source_rows('"User"') == users
    assert shop.target_rows("visit") == visits


def test_what_only_the_source_has_lost_is_left_to_the_stream(pair: Pair, cli: Cli) -> None:
    """The target loses one table and the source another, with nobody there: each gets its own back, from the other."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    visits, orders = shop.source_rows("visit"), shop.source_rows('"order"')
    stop(running)
    shop.wipe("DELETE FROM visit")
    # whatever may have been touched: every table is looked at
    harm(pair, 'DELETE FROM "order"', "CREATE DOMAIN short AS text", "ALTER DOMAIN short SET DEFAULT 'x'")
    running = shop.start(held=True)
    incident = shop.held()
    assert (incident["side"], incident["kind"]) == ("source", "delete")
    assert states(shop)[0] == ("delete", "healed")
    assert shop.target_rows("visit") == visits
    assert shop.target_rows('"order"') == orders
    done = shop.command("incidents", "restore", incident["id"], "--yes")
    assert done["incidents"][0]["state"] == "restored"
    # what somebody added stays, and check tells of it
    pair.on_target().execute("DROP DOMAIN short")
    level(shop, running)
    assert shop.source_rows("visit") == visits


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("DELETE FROM visit", "DELETE FROM visit"),
        ("DROP TABLE visit", "DROP TABLE visit"),
        ("DELETE FROM visit", "DROP TABLE visit"),
        ("TRUNCATE visit", "TRUNCATE visit"),
        ("DELETE FROM visit", "DROP SCHEMA pglockstep CASCADE; DELETE FROM visit"),
    ],
)
def test_what_neither_end_has_is_never_called_healed(pair: Pair, cli: Cli, there: str, here: str) -> None:
    """Both ends are wiped while nobody looks; it is held, says so, and stays so when it is decided, until it is allowed."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    stop(running)
    shop.wipe(there)
    harm(pair, here)
    for _ in range(2):
        refused(cli("once"), 6)
        assert {state for _, state in states(shop)} == {"held"}
    incident = next(each for each in shop.incidents() if each["side"] == "target")
    shown = cli("incidents", "show", incident["id"]).stdout
    assert "400" in shown
    assert "the source does not have them either" in shown
    again = cli("incidents", "restore", incident["id"], "--yes")
    assert again.returncode in (1, 6), again.stdout + again.stderr
    assert {state for _, state in states(shop)} == {"held"}


def test_a_loss_on_both_ends_that_was_meant(pair: Pair, cli: Cli) -> None:
    """What was announced may go: then the heal goes through, and the allowance is used up."""
    shop = Shop(cli, pair)
    shop.once()
    stop(shop.start())
    shop.wipe("DELETE FROM visit")
    harm(pair, "DELETE FROM visit")
    refused(cli("once"), 6)
    shop.command("guard", "allow", "--table", "public.visit", "--rows", "400", "--for", "10m")
    done = shop.command("incidents", "restore", "1", "--yes")
    assert done["incidents"][0]["state"] == "healed"
    assert shop.once()["copied_rows"] == 0
    assert shop.command("guard", "list")["allowances"][0]["used"] == 400


@pytest.mark.parametrize(
    ("what", "failpoint"),
    [
        ("DELETE FROM visit", "heal.committed"),
        ("DROP SCHEMA pglockstep CASCADE", "heal.commit"),
        *(
            pytest.param(what, failpoint, marks=pytest.mark.soak)
            for what in ("DELETE FROM visit", "DROP SCHEMA pglockstep CASCADE")
            for failpoint in ("heal.begun", "heal.commit", "heal.committed")
        ),
    ],
)
def test_killed_over_its_heal(pair: Pair, cli: Cli, failpoint: str, what: str) -> None:
    """kill -9 of the daemon at any point of a heal: the next one finds the same harm, and ends the same."""
    shop = Shop(cli, pair)
    shop.once()
    process = cli.start("run", env={"PGLOCKSTEP_FAILPOINT": failpoint}, log=cli.directory / "log")
    watched = "SELECT FROM pg_trigger WHERE tgname = 'pglockstep_delete' AND tgrelid = 'visit'::regclass"
    wait_until(lambda: pair.on_target().execute(watched).rowcount, 20, "the watch to be on")
    with load(pair.source):
        harm(pair, what)
        assert process.wait(20) == -signal.SIGKILL
        (incident,) = shop.incidents()
        assert incident["state"] == "healing"
        running = shop.start()
        wait_until(lambda: states(shop)[0][1] == "healed", 20, "the heal to be done")
    level(shop, running)
    assert [state for _, state in states(shop)] == ["healed"]
    assert len(shop.target_rows("visit")) == 400


# only who may make databases makes it again; what happens else is told in test_without_createdb
@pytest.mark.superusers
def test_a_missing_database_that_waits_for_a_decision(pair: Pair, cli: Cli) -> None:
    """`on_target_wipe = "hold"`: nothing is made before somebody says so, and then by the command itself."""
    shop = Shop(cli, pair, '[links.shop.guard]\non_target_wipe = "hold"\n')
    shop.once()
    drop_database(pair)
    for command in ("once", "check", "once"):
        message, hint = refused(cli(command), 5 if command == "check" and not shop.incidents() else 6)
        assert "database" in message
    assert "incidents restore 1" in hint
    assert states(shop) == [("missing_database", "held")]
    message, _ = refused(cli("incidents", "reject", "1", "--yes"), 2)
    assert "cannot be rejected" in message
    done = shop.command("incidents", "restore", "1", "--yes")
    assert done["incidents"][0]["state"] == "healed"
    assert shop.once()["copied_rows"] == 0


# only who may make databases makes it again; what happens else is told in test_without_createdb
@pytest.mark.superusers
def test_a_daemon_that_starts_without_its_database(pair: Pair, cli: Cli) -> None:
    """Held, it goes on receiving; decided, it makes the database again, and what was written meanwhile is there."""
    shop = Shop(cli, pair, '[links.shop.guard]\non_target_wipe = "hold"\n')
    shop.once()
    stop(shop.start())
    drop_database(pair)
    running = shop.start(held=True)
    before = running.status()["received_lsn"]
    shop.wipe("INSERT INTO item VALUES (901, 'later')")
    wait_until(lambda: running.status()["received_lsn"] != before, 20, "the source to be received")
    done = shop.command("incidents", "restore", "1", "--yes")
    assert done["incidents"][0]["state"] == "healed"
    level(shop, running)
    assert len(shop.target_rows("item")) == 301


def test_a_table_may_be_stricter_than_its_link(pair: Pair, cli: Cli) -> None:
    """One table is held and not watched, another blocked; the rest heals by itself."""
    settings = """[links.shop.guard.tables.'public.visit']
on_target_wipe = "hold"
[links.shop.guard.tables.'public.item']
protect_target = "block"
[links.shop.guard.tables.'public.mail']
protect_target = "off"
"""
    shop = Shop(cli, pair, settings)
    shop.once()
    running = shop.start()
    watched = "SELECT FROM pg_trigger WHERE tgname = 'pglockstep_block' AND tgrelid = 'item'::regclass"
    wait_until(lambda: pair.on_target().execute(watched).rowcount, 20, "the watch to be on")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        pair.on_target().execute("DELETE FROM item WHERE id = 1")
    harm(pair, "DELETE FROM mail WHERE id = 1")
    harm(pair, "DELETE FROM beat")
    assert concluded(shop)["tables"][0]["table"] == "beat"
    level_but_for_mail = shop.command("check", code=1)["links"][0]["tables"]
    assert [each["table"] for each in level_but_for_mail if each["verdict"] != "identical"] == ["mail"]
    harm(pair, "DELETE FROM visit WHERE n = 1", "DELETE FROM beat WHERE id = 1")
    assert {each["table"] for each in shop.held()["tables"]} == {"visit", "beat"}
    assert running.process.poll() is None


def test_rejected(pair: Pair, cli: Cli) -> None:
    """The table stays as others made it, and does not follow; everything else does, and nobody is told again."""
    shop = Shop(cli, pair, '[links.shop.guard]\non_target_wipe = "hold"\n')
    shop.once()
    running = shop.start()
    harm(pair, "UPDATE visit SET path = 'theirs'")
    incident = shop.held()
    done = shop.command("incidents", "reject", incident["id"], "--yes")
    assert done["incidents"][0]["state"] == "rejected"
    harm(pair, "DELETE FROM visit WHERE n < 10")
    shop.wipe("INSERT INTO item VALUES (901, 'later')", "DELETE FROM visit WHERE n = 400")
    wait_until(lambda: len(shop.target_rows("item")) == 301, 20, "the others to follow")
    time.sleep(1.5)
    assert states(shop) == [("foreign_write", "rejected")]
    assert len(shop.target_rows("visit")) == 391
    assert running.process.poll() is None


@pytest.mark.parametrize("plain_roles", [True], indirect=True, ids=["plain"])
def test_without_createdb(pair: Pair, cli: Cli) -> None:
    """A target that was dropped is held with the statement that makes it again; made by a superuser, it is filled."""
    shop = Shop(cli, pair)
    shop.once()
    drop_database(pair)
    message, hint = refused(cli("once"), 6)
    assert "permission denied to create database" in message + hint + cli("incidents", "show", "1").stdout
    shown = cli("incidents", "show", "1").stdout
    made = re.search(r"CREATE DATABASE .+?;", shown)
    assert made, shown
    with connect(pair.target_server.conninfo()) as conn:
        conn.execute(made.group().encode())
    done = shop.command("incidents", "restore", "1", "--yes")
    assert done["incidents"][0]["state"] == "healed"
    assert shop.once()["copied_rows"] == 0
    assert len(shop.target_rows("visit")) == 400


@pytest.mark.parametrize("plain_roles", [True], indirect=True, ids=["plain"])
def test_ddl_without_event_triggers(pair: Pair, cli: Cli) -> None:
    """The mode "block" refuses rows alone, and says so; a column is found by looking, a view or a constraint by `check` alone."""
    shop = Shop(cli, pair, '[links.shop.guard]\nprotect_target = "block"\n')
    shop.wipe(
        "CREATE VIEW report AS SELECT count(*) FROM item",
        "ALTER TABLE visit ADD CONSTRAINT few CHECK (n < 999)",
    )
    shop.once()
    log = cli.directory / "daemon.log"
    process = cli.start("run", log=log)
    wait_until(lambda: "not refused: foreign DDL" in log.read_text(), 20, "what is not refused to be told")
    harm(pair, "DROP VIEW report")
    harm(pair, "ALTER TABLE visit DROP CONSTRAINT few")
    time.sleep(2.5)
    assert shop.incidents() == []
    found = shop.command("check", code=1)["links"][0]
    assert len(found["schema_differences"]) == 2
    harm(pair, "ALTER TABLE item DROP COLUMN price")
    incident = concluded(shop)
    assert (incident["kind"], incident["state"]) == ("drop", "healed")
    process.terminate()
    assert process.wait(20) == 0


# event triggers, which see this, need a superuser; what is seen else is told in test_ddl_without_event_triggers
@pytest.mark.superusers
def test_ddl_that_names_no_table(pair: Pair, cli: Cli) -> None:
    """A view of the source's that is dropped comes back and is told; an index of somebody's own may go unnoticed."""
    shop = Shop(cli, pair)
    shop.wipe("CREATE VIEW report AS SELECT count(*) FROM item")
    shop.once()
    running = shop.start()
    harm(pair, "CREATE INDEX mine ON visit (n)")
    harm(pair, "DROP INDEX mine")
    time.sleep(1.5)
    assert shop.incidents() == []
    harm(pair, "DROP VIEW report")
    incident = concluded(shop)
    assert (incident["kind"], incident["state"], incident["statements"]) == (
        "drop",
        "healed",
        ["DROP VIEW report"],
    )
    level(shop, running)


# event triggers, which see this, need a superuser; what is seen else is told in test_ddl_without_event_triggers
@pytest.mark.superusers
def test_what_is_held_is_not_put_back_by_comparing(pair: Pair, cli: Cli) -> None:
    """With `on_target_wipe = "hold"` nothing is changed before a decision, whatever it takes to be sure of it."""
    shop = Shop(cli, pair, '[links.shop.guard]\non_target_wipe = "hold"\n')
    shop.wipe("CREATE VIEW report AS SELECT count(*) FROM item")
    shop.once()
    shop.start()
    harm(pair, "DROP VIEW report")
    first = shop.held()
    assert (first["kind"], first["statements"]) == ("drop", ["DROP VIEW report"])
    there = "SELECT to_regclass('report') IS NOT NULL"
    assert pair.on_target().execute(there).fetchone() == (False,)
    done = shop.command("incidents", "restore", first["id"], "--yes")
    assert done["incidents"][0]["state"] == "healed"
    assert pair.on_target().execute(there).fetchone() == (True,)
    pair.on_target().execute("ANALYZE")
    time.sleep(1.5)
    harm(pair, SILENTLY, "TRUNCATE visit")
    second = shop.held()
    assert second["kind"] == "truncate"
    assert shop.target_rows("visit") == []
    done = shop.command("incidents", "restore", second["id"], "--yes")
    assert done["incidents"][0]["state"] == "healed"
    assert len(shop.target_rows("visit")) == 400


def test_another_source_is_no_source_to_heal_from(pair: Pair, cli: Cli) -> None:
    """The source's database was made anew, and the target is harmed: nothing is taken from it that the source has not."""
    shop = Shop(cli, pair)
    shop.once()
    stop(shop.start())
    name = sql.Identifier(str(conninfo_to_dict(pair.source)["dbname"]))
    with connect(pair.source_server.conninfo()) as conn:
        conn.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        conn.execute(sql.SQL("CREATE DATABASE {}").format(name))
    harm(pair, "DELETE FROM visit")
    before = shop.target_rows("item")
    done = cli("once")
    assert done.returncode == 6, done.stderr
    assert shop.target_rows("item") == before


def test_a_role_that_may_not_act_as_a_replica(make_role: MakeRole, pair: Pair, cli: Cli) -> None:
    """Its own rows are not foreign ones, by the daemon as by `once`; the watch and the heal work without a superuser."""
    make_role(pair.target_server, "humble", "LOGIN PASSWORD 's3cr3t' CREATEDB")
    with connect(pair.target_server.conninfo()) as conn:
        name = sql.Identifier(str(conninfo_to_dict(pair.target)["dbname"]))
        conn.execute(sql.SQL("ALTER DATABASE {} OWNER TO humble").format(name))
    humble = replace(pair, target=make_conninfo(pair.target, user="humble"))
    # neither triggers nor foreign keys, which would want the replica role
    shop = Plain(cli, humble)
    shop.once()
    running = shop.start()
    watched = "SELECT FROM pg_trigger WHERE tgname = 'pglockstep_delete'"
    wait_until(lambda: humble.on_target().execute(watched).rowcount == 2, 20, "the watch to be on")
    for _ in range(5):
        shop.wipe("UPDATE visit SET n = n + 1", "INSERT INTO note VALUES (DEFAULT, 'ours')")
        time.sleep(0.3)
    stop(running)
    shop.wipe("UPDATE visit SET n = n + 1")
    shop.once()
    assert shop.incidents() == []
    running = shop.start()
    harm(humble, "DELETE FROM note")
    assert concluded(shop)["kind"] == "delete"
    harm(humble, "DROP TABLE visit")
    wait_until(lambda: states(shop) == [("delete", "healed"), ("drop", "healed")], 20, "the table to be back")
    level(shop, running)


class Plain(Shop):
    """Two tables, and nothing that could fire."""

    def __post_init__(self) -> None:
        with self.pair.on_source() as conn:
            conn.execute(
                "CREATE TABLE visit (path text, n int); CREATE TABLE note (id serial PRIMARY KEY, v text); "
                "INSERT INTO visit SELECT '/' || n % 9, n FROM generate_series(1, 400) AS n; "
                "INSERT INTO note (v) SELECT 'note' FROM generate_series(1, 30)"
            )
        self.configure(self.settings)


def queue(conninfo: str, seconds: float) -> int:
    """A job queue: filled in bursts, drained to the last row again and again; returns how many jobs were done."""
    done = 0
    with psycopg.connect(conninfo, autocommit=True) as conn:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with conn.transaction():
                conn.execute("INSERT INTO job (v) SELECT 'x' FROM generate_series(1, 100)")
            done += conn.execute("DELETE FROM job").rowcount
    return done


@pytest.mark.parametrize(
    "seconds", [3, pytest.param(300, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_no_false_alarm(pair: Pair, cli: Cli, seconds: int) -> None:
    """A queue that is never the same, maintenance, statistics that are reset, a target that crashes: no incident, no compare."""
    shop = Shop(cli, pair, "[links.shop.guard.tables.'public.job']\njudge = false\n")
    shop.wipe("CREATE TABLE job (id bigserial PRIMARY KEY, v text)")
    shop.once()
    log = cli.directory / "daemon.log"
    process = cli.start("run", log=log)
    wait_until(lambda: "streaming from" in log.read_text(), 30, "the daemon to stream")
    with load(pair.source):
        for _ in range(2):
            assert queue(pair.source, seconds / 2) > 100
            with pair.superuser_on_target() as conn:
                for statement in (
                    "ANALYZE",
                    'VACUUM FULL "order"',
                    "SELECT pg_stat_reset()",
                    "CLUSTER item USING item_pkey",
                ):
                    conn.execute(statement.encode())
        time.sleep(2.5)
    assert shop.incidents() == []
    assert log.read_text().count("streaming from") == 1, log.read_text()
    # its statistics do not survive that
    pair.target_server.restart("immediate")
    wait_until(lambda: log.read_text().count("streaming from") == 2, 40, "the daemon to stream again")
    time.sleep(3)
    assert shop.incidents() == []
    assert log.read_text().count("streaming from") == 2, log.read_text()
    process.terminate()
    assert process.wait(20) == 0
    shop.once()
