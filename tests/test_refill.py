"""A source that lost everything, or is an older copy of itself, filled from its target by the engine alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from fix_mirror import contents
from fix_restore import Scene, mailed, shop
from fix_servers import Connection, all_pairs, drop_database
from pglockstep.errors import SourceLacks, TargetLacks
from pglockstep.guard import database
from pglockstep.guard.refill import Order, losses, refill
from pglockstep.guard.restore_outcome import Outcome
from pglockstep.postgres.connect import connect as connect_end
from pglockstep.postgres.names import QualifiedName

__all__ = ["shop"]

#: what is dropped and made again here takes a superuser
pytestmark = pytest.mark.superusers


#: An older target does not have what only a newer source can hold, such as the names of NOT NULL constraints.
NOT_OLDER = [(source, target) for source, target in all_pairs if target >= source]


def filled(scene: Scene, **more: Any) -> Outcome:
    """Fill the source."""
    source, target = scene.ends
    return asyncio.run(refill(source, target, Order(link=scene.record, incident="7", **more)))


def lacking(scene: Scene) -> dict[str, int]:
    """How many rows the source lacks, by table."""
    source, target = scene.ends
    found = asyncio.run(losses(source, target, ()))
    return {f"{name.schema}.{name.name}": lost for name, (_, lost) in found.items() if lost}


def dropped_and_made_again(scene: Scene) -> Connection:
    """Drop the source's database, as a person would who drops its slot first, and have it made again, empty."""
    source, _ = scene.ends

    async def read() -> database.Database:
        async with await connect_end(source, "test") as conn:
            return await database.read(conn)

    known = asyncio.run(read())
    scene.source.close()
    drop_database(scene.pair.source_server, str(conninfo_to_dict(scene.pair.source)["dbname"]))
    assert asyncio.run(database.make_again(source, known))
    assert not asyncio.run(database.make_again(source, known))
    conn = scene.pair.on_source()
    conn.execute("SET client_encoding = 'UTF8'")
    return conn


@pytest.mark.parametrize("pair", NOT_OLDER, indirect=True, ids=str)
def test_a_database_that_was_dropped(shop: Scene) -> None:
    """Every object and every row is back in a database that was made anew: with owners, grants, triggers that did not fire."""
    rows = sum(map(len, shop.before.values()))
    shop.source = dropped_and_made_again(shop)
    outcome = filled(shop)
    assert contents(shop.source) == shop.before
    assert (outcome.rows, outcome.left) == (rows, ())
    # which identity its rows have is settled when the source is followed again
    shop.source.execute('ALTER TABLE ONLY "Shop".event REPLICA IDENTITY FULL')
    shop.same_schema()
    row = shop.source.execute('INSERT INTO "Shop"."User" (email) VALUES (\'next\') RETURNING id').fetchone()
    assert row is not None
    assert row[0] > 60
    # once more: it was done, and that is all there is to tell
    assert filled(shop).tables == outcome.tables
    assert not lacking(shop)


def test_rows_written_since_stay(shop: Scene) -> None:
    """What the application has made and written in the empty database stays; a key or a unique value that it took is told."""
    shop.source = dropped_and_made_again(shop)
    shop.source.execute("""
        CREATE SCHEMA "Shop";
        CREATE TABLE "Shop".hen (id int PRIMARY KEY, egg int);
        INSERT INTO "Shop".hen VALUES (1, 77), (1000, NULL);
        CREATE TABLE "Shop".event (at timestamptz, what text, data json);
        INSERT INTO "Shop".event VALUES ('epoch', 'since', NULL);
        CREATE TABLE since (id int);
        INSERT INTO since VALUES (1);
    """)
    assert lacking(shop)["Shop.hen"] == 29
    outcome = filled(shop)
    after = contents(shop.source)
    assert after["public.since"] == ["(1)"]
    assert after["Shop.hen"] == sorted([
        *(row for row in shop.before["Shop.hen"] if not row.endswith(",1)")), "(77,1)", "(,1000)"
    ])  # fmt: skip
    assert len(after["Shop.event"]) == len(shop.before["Shop.event"]) + 1
    # its egg is nobody's, so the foreign key cannot be there either
    left, key = outcome.left
    assert (left.schema, left.table, left.what) == ("Shop", "hen", "id = '1'")
    assert "already exists" in left.reason
    assert "hen_egg_fkey" in key.what
    assert after["Shop.orders"] == shop.before["Shop.orders"]


def test_an_older_source(shop: Scene) -> None:
    """Rows that differ become what the target has, missing ones come back, and those that only the source has stay."""
    sent = mailed(shop.source)
    with shop.source.transaction():
        shop.source.execute("SET LOCAL session_replication_role = replica")
        shop.source.execute("""
            UPDATE "Shop".orders SET note = 'older' WHERE no <= 20;
            DELETE FROM "Shop"."User" WHERE id > 50;
            UPDATE "Shop"."User" SET total = 0 WHERE id <= 10;
            INSERT INTO "Shop".orders VALUES (1, 9999, 'since', NULL);
            DELETE FROM "Shop".event WHERE what = 'e2';
            ALTER TABLE "Shop"."User" DROP COLUMN home;
            ALTER TABLE "Shop".hen ALTER COLUMN egg TYPE smallint;
            ALTER TABLE "Shop".egg DROP COLUMN hen;
            ALTER TABLE "Shop"."User" ALTER COLUMN "Full Name" DROP NOT NULL, ALTER COLUMN "Full Name" DROP DEFAULT;
            DROP TABLE "Shop".dog;
            DROP VIEW "Shop".spent;
        """)
    outcome = filled(shop, older=True)
    after = contents(shop.source)
    wanted = shop.rows_since(orders=["(,9999,since,1)"])
    assert {name: len(rows) for name, rows in after.items()} == {
        name: len(rows) for name, rows in wanted.items()
    }
    assert after["Shop.orders"] == wanted["Shop.orders"]
    assert after["Shop.dog"] == wanted["Shop.dog"]
    assert mailed(shop.source) == sent
    assert not outcome.left
    updated = {each.table: each.updated for each in outcome.tables if each.updated}
    assert updated == {"orders": 20, "User": 40, "egg": 30}
    row = shop.source.execute(
        'SELECT count(*) FROM "Shop"."User" WHERE NOT home IS NULL AND total > 0 AND id <= 10'
    ).fetchone()
    assert row == (8,)
    defaults = shop.source.execute(
        "SELECT is_nullable, column_default FROM information_schema.columns WHERE column_name = 'Full Name' "
        "AND table_name = 'User'"
    ).fetchone()
    assert defaults == ("NO", "'nobody'::text")


def test_large_tables_travel_only_where_they_differ(shop: Scene) -> None:
    """Of a table of many rows a few hundred come back, and with them the rows of a table without a key, as often as they were."""
    for conn in (shop.source, shop.target):
        conn.execute("""
            CREATE TABLE big (id int PRIMARY KEY, v text);
            CREATE TABLE twice (v text);
            INSERT INTO big SELECT n, repeat(md5(n::text), 4) FROM generate_series(1, 40000) AS n;
            INSERT INTO twice SELECT md5((n / 2)::text) FROM generate_series(1, 60000) AS n;
        """)
    before = contents(shop.target)
    shop.source.execute("""
        DELETE FROM big WHERE id % 200 = 0;
        DELETE FROM twice WHERE ctid IN (SELECT min(ctid) FROM twice GROUP BY v ORDER BY v LIMIT 300);
        INSERT INTO twice VALUES ('since');
    """)
    assert lacking(shop) == {"public.big": 200, "public.twice": 300}
    outcome = filled(shop)
    assert outcome.rows == 500
    after = contents(shop.source)
    assert after["public.big"] == before["public.big"]
    assert after["public.twice"] == sorted([*before["public.twice"], "(since)"])


def test_nothing_changed_where_it_cannot_be_done(shop: Scene) -> None:
    """A column that became another one, and a target that has nothing any more: a clear error, and not a row is touched."""
    shop.source.execute("""
        DELETE FROM "Shop".event;
        ALTER TABLE "Shop".orders ALTER COLUMN body TYPE int USING 1;
    """)
    with pytest.raises(
        SourceLacks, match=r'"Shop".orders.body is of type integer on the source and of type json'
    ):
        filled(shop)
    assert not contents(shop.source)["Shop.event"]
    shop.target.execute("DROP SCHEMA pglockstep CASCADE")
    with pytest.raises(TargetLacks, match="remembers no link any more"):
        filled(shop)


def test_a_constraint_that_new_rows_break_is_told(shop: Scene) -> None:
    """A unique value that somebody has taken twice since keeps its constraint away, and everything else comes back."""
    name = QualifiedName("Shop", "User")
    shop.source.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
        name.sql(), sql.Identifier("User_email_key")
    ))  # fmt: skip
    shop.source.execute('INSERT INTO "Shop"."User" (email) VALUES (\'u1@x\')')
    shop.source.execute('DELETE FROM "Shop".event')
    outcome = filled(shop)
    assert len(contents(shop.source)["Shop.event"]) == len(shop.before["Shop.event"])
    (left,) = outcome.left
    assert "User_email_key" in left.what
