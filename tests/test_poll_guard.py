"""A source that is polled and wiped: the target keeps everything until somebody decides, whatever the wipe looks like."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from fix_copy import refused
from fix_polled import TABLES, Polled, polled, superuser
from fix_servers import Cli, Pair, on_all_pairs, wait_until

#: How a source may lose what it has, and what kind of incident that is.
WIPES = {
    "delete": ('DELETE FROM "PlaylistTrack"', "delete"),
    "truncate": ('TRUNCATE "PlaylistTrack", "Play"', "delete"),
    "cascade": ('TRUNCATE "Artist" CASCADE', "delete"),
    "update": ("""UPDATE "Track" SET "GenreId" = NULL""", "update"),
    "without a key": ('DELETE FROM "Play"', "delete"),
    "drop": ('DROP TABLE "PlaylistTrack"', "drop"),
}


def everything(link: Polled) -> dict[str, list[str]]:
    """All that the target has."""
    return {each: link.on_target(each) for each in TABLES}


@pytest.mark.parametrize("daemon", [True, False], ids=["run", "once"])
@pytest.mark.parametrize("wipe", WIPES)
def test_held(pair: Pair, cli: Cli, wipe: str, daemon: bool) -> None:
    """Nothing of it comes to the target, and nothing that comes behind it, until it is approved; then both ends are the same."""
    statement, kind = WIPES[wipe]
    with polled(cli, pair) as link:
        link.once()
        before = everything(link)
        running = link.start() if daemon else None
        link.write(statement)
        if running is None:
            refused(cli("once"), 6)
        incident = link.held()
        assert incident["kind"] == kind
        assert incident["xid"] in (None, 0)
        link.write("""INSERT INTO "Genre" VALUES (500, 'behind it')""")
        if running is None:
            refused(cli("once"), 6)
        assert everything(link) == before
        lost = str(sum(each["rows_lost"] for each in incident["tables"]))
        decided = link.command("incidents", "approve", incident["id"], "--rows", lost, "--yes", code=None)
        assert decided["incidents"][0]["state"] in ("approved", "held")
        if running is None:
            link.once()
        left = [each for each in TABLES if wipe != "drop" or each != '"PlaylistTrack"']
        wait_until(lambda: link.same(*left), 40, "the target to follow")
        link.check()
        link.demand_untouched()


def test_a_wipe_in_many_small_ones(pair: Pair, cli: Cli) -> None:
    """A hundred polls that each find a few rows gone add up over the window."""
    with polled(cli, pair) as link:
        link.once()
        for start in range(0, 3600, 300):
            link.write(f'DELETE FROM "PlaylistTrack" WHERE "TrackId" BETWEEN {start} AND {start + 299}')
            if (done := cli("once")).returncode == 6:
                break
        else:
            pytest.fail("the wipe passed")
        assert "PlaylistTrack" in done.stderr
        # what was deleted before the limit of 30 %
        assert len(link.on_target('"PlaylistTrack"')) > 3503 * 0.65


def test_reject_and_resync(pair: Pair, cli: Cli) -> None:
    """A rejected table is left alone by polls from then on, all others follow; and a resync brings it back."""
    with polled(cli, pair) as link:
        link.once()
        running = link.start()
        link.write('DELETE FROM "Play" WHERE "TrackId" > 1')
        incident = link.held()
        link.command("incidents", "reject", incident["id"], "--yes")
        link.write("""INSERT INTO "Genre" VALUES (500, 'behind it')""")
        link.arrives('"Genre"')
        assert len(link.on_target('"Play"')) == 400
        lost = 400 - len(link.rows(link.admin, '"Play"'))
        done = cli("resync", 'public."Play"', "--rows", str(lost), "--yes")
        assert done.returncode == 0, done.stderr
        assert link.same()
        link.write("""INSERT INTO "Play" VALUES (9, '2024-01-01', 'null')""")
        link.arrives()
        assert running.process.poll() is None
        link.demand_untouched()


@pytest.mark.parametrize("daemon", [True, False], ids=["run", "once"])
def test_restore_needs_more(pair: Pair, cli: Cli, daemon: bool) -> None:
    """With SELECT alone nothing is put back on the source: that is said with the GRANT, and nothing is lost; with it, it is."""
    with polled(cli, pair) as link:
        link.once()
        before = everything(link)
        running = link.start() if daemon else None
        link.write(
            'DELETE FROM "PlaylistTrack" WHERE "TrackId" > 5',
            """DELETE FROM "Setting" WHERE "Key" = 'key 1'""",
        )
        if running is None:
            refused(cli("once"), 6)
        incident = link.held()
        grants = (
            f"GRANT SET ON PARAMETER session_replication_role TO {link.role}",
            f'GRANT INSERT, UPDATE ON public."PlaylistTrack", public."Setting" TO {link.role}',
        )
        for grant in grants:
            done = cli("incidents", "restore", incident["id"], "--yes")
            assert done.returncode == 1, done.stdout + done.stderr
            assert f"{grant};" in done.stdout + done.stderr
            assert everything(link) == before
            assert link.held()["id"] == incident["id"]
            link.write(grant)
        found = link.command("incidents", "restore", incident["id"], "--yes")
        assert found["incidents"][0]["state"] == "restored"
        if running is None:
            link.once()
        wait_until(lambda: everything(link) == before, 30, "all of it")
        assert link.same()
        if running is not None:
            link.write("""INSERT INTO "Genre" VALUES (500, 'behind it')""")
            link.arrives()
            assert running.process.poll() is None


@on_all_pairs
def test_an_empty_database_behind_the_address(pair: Pair, cli: Cli) -> None:
    """A source that was made anew is no truth to copy, for once, check and run; the known one is followed again."""
    with polled(cli, pair) as link:
        link.once()
        before = everything(link)
        other = f"empty_{secrets.token_hex(4)}"
        link.admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(other)))
        try:
            link.configure()
            _swap(link, other)
            for command in ("once", "check"):
                refused(cli(command), 6)
            assert everything(link) == before
            _swap(link, other)
            link.once()
        finally:
            link.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(other)))


def test_wiped_between_two_polls_of_a_daemon(pair: Pair, cli: Cli) -> None:
    """The daemon's next poll asks who answers: a fresh database under the known name is held."""
    with polled(cli, pair) as link:
        link.once()
        before = everything(link)
        running = link.start()
        name = link.admin.info.dbname
        other = f"empty_{secrets.token_hex(4)}"
        link.admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(other)))
        try:
            _swap(link, other)
            assert link.held()["kind"] == "identity"
            assert everything(link) == before
            assert running.process.poll() is None
            _swap(link, other)
            wait_until(lambda: running.status()["state"] == "streaming", 40, "the known one to be followed")
            link.write("""INSERT INTO "Genre" VALUES (500, 'behind it')""")
            link.arrives()
        finally:
            assert link.admin.info.dbname == name
            link.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(other)))


def _swap(link: Polled, other: str) -> None:
    """Have the two databases change names; whoever is in them is thrown out."""
    name = str(link.admin.info.dbname)
    here = link.admin
    elsewhere = superuser(link.pair, "template1")
    try:
        for old, new in ((name, "between"), (other, name), ("between", other)):
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
            rename = sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                sql.Identifier(old), sql.Identifier(new)
            )

            def renamed(old: str = old, ended: str = ended, rename: Any = rename) -> bool:
                elsewhere.execute(ended, [old])
                try:
                    elsewhere.execute(rename)
                except Exception:
                    return False
                return True

            wait_until(renamed, 20, "the database to be free")
    finally:
        elsewhere.close()
    here.close()
    link.admin = link.pair.superuser_on_source()


__all__ = ["make_conninfo"]


@pytest.mark.parametrize("daemon", [True, False], ids=["run", "once"])
def test_both_ends_harmed(pair: Pair, cli: Cli, daemon: bool) -> None:
    """A heal of the target brings over no wipe of the source by the side door: it is judged by a poll first."""
    with polled(cli, pair) as link:
        link.once()
        link.once()
        running = link.start() if daemon else None
        pair.source_server.stop("fast")
        if running is not None:
            wait_until(lambda: running.status()["state"] == "waiting", 40, "the daemon to miss its source")
        with pair.on_target() as target:
            if running is None:
                target.execute("SET session_replication_role = origin")
            target.execute(
                """DELETE FROM "Track" WHERE "TrackId" IN (SELECT "TrackId" FROM "Track" LIMIT 100)"""
            )
        pair.source_server.start()
        link.admin.close()
        link.admin = pair.superuser_on_source()
        # before any poll can have seen it
        link.write("""UPDATE "Track" SET "GenreId" = NULL""")
        if running is None:
            done = cli("once")
            assert done.returncode == 6, done.stdout + done.stderr
        assert link.held()
        with pair.on_target() as target:
            wiped = target.execute("""SELECT FROM "Track" WHERE "GenreId" IS NULL""").rowcount
            assert wiped == 0
