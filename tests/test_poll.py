"""Poll mode: a source on which the link may only SELECT is kept level by comparing, through the journal and the guard."""

from __future__ import annotations

from fix_polled import SCHEMA, polled
from fix_servers import Cli, Pair, on_all_pairs


@on_all_pairs
def test_once(pair: Pair, cli: Cli) -> None:
    """The first copy, what changes afterwards, and nothing on the source."""
    with polled(cli, pair) as link:
        assert link.once()["copied_rows"] > 8000
        link.demand_untouched()
        link.write(
            """INSERT INTO "Artist" VALUES (1000, 'New'), (1001, NULL)""",
            """UPDATE "Track" SET "UnitPrice" = 1.29, "Name" = 'x' || "Name" WHERE "TrackId" % 7 = 0""",
            """DELETE FROM "PlaylistTrack" WHERE "TrackId" % 11 = 0""",
            """INSERT INTO "Play" SELECT 5, '2024-01-01', '{"a": 2, "b": 1}' FROM generate_series(1, 3)""",
            """DELETE FROM "Play" WHERE ctid IN (SELECT min(ctid) FROM "Play" WHERE "TrackId" = 3)""",
            """SELECT nextval('"Track_TrackId_seq"') FROM generate_series(1, 20)""",
        )
        link.check("different")
        found = link.once()
        assert found["copied_rows"] == 0
        assert link.same()
        link.check()
        link.demand_untouched()


def test_daemon(pair: Pair, cli: Cli) -> None:
    """A daemon polls: whatever was written arrives, in any order of keys and unique values; and a check beside it."""
    with polled(cli, pair) as link:
        link.once()
        running = link.start()
        link.write(
            """INSERT INTO "Album" ("Title", "ArtistId") SELECT 'a', 1 FROM generate_series(1, 100)""",
            """UPDATE "Genre" SET "Name" = "Name" || 'x' WHERE "GenreId" < 4""",
            """DELETE FROM "Play" WHERE "TrackId" = 2""",
        )
        link.arrives()
        # unique values that change hands, also round
        link.write(
            """UPDATE "Genre" SET "Name" = 'between' WHERE "GenreId" = 1""",
            """UPDATE "Genre" SET "Name" = 'Genre 1x' WHERE "GenreId" = 2""",
            """UPDATE "Genre" SET "Name" = 'Genre 2x' WHERE "GenreId" = 1""",
            """UPDATE "Customer" SET "Email" = 'c' || "CustomerId" || '@example.org' """,
            """UPDATE "Customer" SET "Email" = 'customer' || ("CustomerId" + 1) || '@example.org' """,
        )
        link.arrives()
        # keys that change, and take others' places
        link.write(
            """UPDATE "Setting" SET "Key" = 'between' WHERE "Key" = 'key 1'""",
            """UPDATE "Setting" SET "Key" = 'key 1' WHERE "Key" = 'key 2'""",
            """UPDATE "Setting" SET "Key" = 'key 2' WHERE "Key" = 'between'""",
            """INSERT INTO "Artist" VALUES (2000, 'moved')""",
            """UPDATE "Album" SET "ArtistId" = 2000 WHERE "ArtistId" = 7""",
        )
        link.arrives()
        link.write("""TRUNCATE "Setting" """, """INSERT INTO "Setting" VALUES ('anew', 'null')""")
        link.arrives()
        found = link.check()
        assert {each["verdict"] for each in found["tables"]} == {"identical"}
        assert link.once()["copied_rows"] == 0
        status = link.command("status")["links"][0]
        assert status["state"] == "streaming"
        assert status["source"]["error"] is None
        link.demand_untouched()
        running.process.terminate()
        assert running.process.wait(20) == 0
        assert cli("teardown", "--yes").returncode == 0
        with pair.on_target() as target:
            assert target.execute("SELECT FROM pg_namespace WHERE nspname = 'pglockstep'").rowcount == 0
            assert target.execute("SELECT FROM pg_trigger WHERE tgname ~ 'pglockstep'").rowcount == 0
        assert link.same()


def test_repair_and_diff(pair: Pair, cli: Cli) -> None:
    """What differs without a daemon is shown and put right like that of a streamed link, and nothing is written on the source."""
    with polled(
        cli, pair, schema=SCHEMA + "CREATE UNLOGGED TABLE fleeting (n int); INSERT INTO fleeting VALUES (1);"
    ) as link:
        link.once()
        link.write("INSERT INTO fleeting VALUES (2), (2)")
        assert link.once()["not_streamed"] == []
        assert link.same("fleeting")
        with pair.on_target() as target:
            target.execute(
                """SET session_replication_role = replica; UPDATE "Genre" SET "Name" = 'odd' WHERE "GenreId" = 5"""
            )
            target.execute("""DELETE FROM "Play" WHERE "TrackId" = 4""")
        assert cli("diff").returncode == 1
        done = cli("repair", "--apply", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        link.check()
        link.demand_untouched()
