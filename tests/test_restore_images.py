"""Last images of deleted rows: kept by the deleting statement itself, exact, pruned by age, put back on the source."""

from __future__ import annotations

import asyncio

import pytest
from psycopg import sql

from fix_guard import back_to_format_1
from fix_mirror import contents
from fix_restore import Scene, shop
from fix_servers import Cli, Connection, Pair
from fix_types import SETUP, kinds
from pglockstep.guard import images
from pglockstep.guard.rows import composed
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End
from pglockstep.postgres.connect import connect as connect_end
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import target as progress
from pglockstep.units import Lsn
from pglockstep.wal.messages import Commit
from test_copy_rows import has_xml
from test_traps_values import array, literal

__all__ = ["shop"]

#: a role of the source's that is no superuser has a test of its own
pytestmark = pytest.mark.superusers

BEFORE, AFTER = Lsn(0x100), Lsn(0x200)


def on_target(conninfo: str, *statements: sql.Composed) -> list[int]:
    """Execute as the link does, as a replica; returns how many rows each touched."""

    async def run() -> list[int]:
        conn = await connect_end(End("target", "main", conninfo), "apply")
        try:
            await conn.execute("SET session_replication_role = replica")
            return [(await conn.execute(each)).rowcount for each in statements]
        finally:
            await conn.close()

    return asyncio.run(run())


def tables(conninfo: str) -> dict[QualifiedName, Table]:
    """The tables of a database."""

    async def run() -> dict[QualifiedName, Table]:
        conn = await connect_end(End("target", "main", conninfo), "apply")
        try:
            return {each.name: each for each in await catalog.tables(conn)}
        finally:
            await conn.close()

    return asyncio.run(run())


def kept(conn: Connection) -> int:
    """How many images there are."""
    row = conn.execute("SELECT count(*) FROM pglockstep.deleted").fetchone()
    assert row is not None
    return int(row[0])


def deleting(table: Table, condition: sql.Composable, lsn: Lsn = AFTER) -> sql.Composed:
    """A deletion as the link makes it, that keeps images."""
    delete = composed("DELETE FROM ONLY {} AS t WHERE {}", table.name.sql(), condition)
    return images.keeping(delete, table, sql.Literal(str(lsn)), "t")


def test_many_small_deletes(shop: Scene) -> None:
    """A wipe in many small deletions: rows of the first ones from their images, of the last one from the target itself."""
    shop.source.execute("INSERT INTO \"Shop\".animal VALUES (700, 'deleted before the wipe began')")
    here = tables(shop.pair.target)
    animal, event = here[QualifiedName("Shop", "animal")], here[QualifiedName("Shop", "event")]
    shop.target.execute("INSERT INTO \"Shop\".animal VALUES (700, 'deleted before the wipe began')")
    shop.source.execute('DELETE FROM "Shop".animal WHERE id = 700')
    on_target(shop.pair.target, deleting(animal, sql.SQL("id = 700"), BEFORE))
    for start in range(1, 26, 5):
        condition = sql.SQL("id BETWEEN {} AND {}").format(start, start + 4)
        shop.wipe(composed('DELETE FROM ONLY "Shop".animal AS t WHERE {}', condition))
        assert on_target(shop.pair.target, deleting(animal, condition)) == [5]
    # went and came back before the end: it is there, and stays as it is
    for conn in (shop.source, shop.target):
        conn.execute("SET session_replication_role = replica")
        conn.execute("INSERT INTO \"Shop\".animal VALUES (3, 'came back')")
        conn.execute("SET session_replication_role = origin")
    shop.source.execute("DELETE FROM \"Shop\".event WHERE what = 'e2'")
    assert on_target(shop.pair.target, deleting(event, sql.SQL("what = 'e2'"))) == [20]
    last = shop.wipe('DELETE FROM ONLY "Shop".animal WHERE id > 25')
    names = (animal.name, event.name)
    outcome = shop.restore(last, only=names, images_since=BEFORE)
    after = contents(shop.source)
    lost = [row for row in shop.before["Shop.animal"] if not row.startswith("(3,")]
    assert after["Shop.animal"] == sorted([*lost, '(3,"came back")'])
    assert after["Shop.event"] == shop.before["Shop.event"]
    assert {(each.table, each.inserted, each.left) for each in outcome.tables} == {
        ("animal", 29, 0),
        ("event", 20, 0),
    }


def test_only_what_the_span_lost(shop: Scene) -> None:
    """With all transactions since the losses began, rows that came and went in between are no loss, and stay away."""
    animal = tables(shop.pair.target)[QualifiedName("Shop", "animal")]
    first = shop.wipe(
        "INSERT INTO \"Shop\".animal VALUES (900, 'a job')", 'DELETE FROM ONLY "Shop".animal WHERE id < 11'
    )
    assert isinstance(first[-1], Commit)
    shop.wipe('DELETE FROM ONLY "Shop".animal WHERE id = 900')
    shop.wipe('DELETE FROM ONLY "Shop".animal WHERE id BETWEEN 11 AND 25')
    shop.target.execute("INSERT INTO \"Shop\".animal VALUES (900, 'a job')")
    on_target(
        shop.pair.target,
        deleting(animal, sql.SQL("id < 11")),
        deleting(animal, sql.SQL("id = 900")),
        deleting(animal, sql.SQL("id BETWEEN 11 AND 25")),
    )
    shop.wipe('DELETE FROM ONLY "Shop".animal WHERE id > 25')
    span = [message for transaction in shop.transactions() for message in transaction]
    outcome = shop.restore(span, only=(animal.name,), images_since=BEFORE, spanned=True)
    assert contents(shop.source) == shop.before
    assert outcome.rows == 30


def test_images_outlive_their_table(shop: Scene) -> None:
    """An image is put back into a table that has lost a column, got another with a default, and has them in another order."""
    animal = tables(shop.pair.target)[QualifiedName("Shop", "animal")]
    shop.source.execute('DELETE FROM ONLY "Shop".animal WHERE id < 4')
    on_target(shop.pair.target, deleting(animal, sql.SQL("id < 4")))
    for conn in (shop.source, shop.target):
        conn.execute('ALTER TABLE "Shop".animal ADD COLUMN legs int NOT NULL DEFAULT 4, DROP COLUMN name')
    outcome = shop.restore(only=(animal.name,), images_since=BEFORE)
    assert outcome.rows == 3
    rows = shop.source.execute('SELECT id, legs FROM ONLY "Shop".animal WHERE id < 5 ORDER BY id').fetchall()
    assert rows == [(1, 4), (2, 4), (3, 4), (4, 4)]


def array_of(type_name: str) -> str:
    """Arrays of a type; there are none of arrays."""
    return type_name if type_name.endswith("[]") else f"{type_name}[]"


def test_every_type_comes_back(cli: Cli, pair: Pair) -> None:
    """Every value of every type, built in or of users', deleted with its image and put back, is the very same text again."""
    source = pair.superuser_on_source()
    source.execute(SETUP.encode())
    for number, (type_name, kind) in enumerate(kinds(pair.source_server.major).items()):
        if type_name == "xml" and not has_xml(pair.source):
            continue
        source.execute(
            f"CREATE TABLE t{number} (id int PRIMARY KEY, v {type_name}, a {array_of(type_name)})".encode()
        )
        for index, value in enumerate([*kind.values, *kind.alike]):
            elements = array(type_name, value, None if kind.nullable else value)
            row = f"{index}, {literal(value, type_name)}, {elements}"
            source.execute(f"INSERT INTO t{number} VALUES ({row})".encode())
        if kind.nullable:
            source.execute(f"INSERT INTO t{number} VALUES (-1, NULL, NULL)".encode())
    scene = Scene(cli, pair, "SELECT 1")
    here = tables(pair.target)
    statements = [deleting(table, sql.SQL("true")) for table in here.values()]
    on_target(pair.target, *statements)
    for each in here:
        scene.source.execute(sql.SQL("DELETE FROM {}").format(each.sql()))
    outcome = scene.restore(only=tuple(here), images_since=BEFORE)
    assert contents(scene.source) == scene.before
    assert outcome.rows_left == 0


def test_an_allowed_truncate_keeps_images(shop: Scene) -> None:
    """What a TRUNCATE takes that may pass is kept as well; and only what is old enough is pruned."""
    event = tables(shop.pair.target)[QualifiedName("Shop", "event")]
    assert on_target(shop.pair.target, images.keeping_all(event, sql.Literal(str(AFTER)))) == [40]
    shop.target.execute('TRUNCATE "Shop".event')
    shop.source.execute('TRUNCATE "Shop".event')
    shop.target.execute(
        "UPDATE pglockstep.deleted SET deleted_at = now() - interval '2 hours' WHERE ctid IN "
        "(SELECT ctid FROM pglockstep.deleted LIMIT 15)"
    )
    on_target(shop.pair.target, images.pruning(3600, most=10))
    assert kept(shop.target) == 30
    on_target(shop.pair.target, images.pruning(3600))
    assert kept(shop.target) == 25
    assert shop.restore(only=(event.name,), images_since=BEFORE).rows == 25


def test_an_older_target_is_upgraded(shop: Scene) -> None:
    """What an older pglockstep left on the target is brought to this format in place, and by a second attempt not again."""
    back_to_format_1(shop.target)

    async def upgrade() -> None:
        conn = await connect_end(shop.ends[1], "test")
        try:
            assert await progress.read(conn) == shop.record
            for _ in range(2):
                await progress.upgrade(conn)
        finally:
            await conn.close()

    asyncio.run(upgrade())
    assert kept(shop.target) == 0
    row = shop.target.execute("SELECT version FROM pglockstep.format").fetchone()
    assert row == (progress.FORMAT,)


def test_one_statement_by_row_and_by_join(shop: Scene) -> None:
    """A deletion with parameters and one that joins a staging table both keep what they delete, and count as before."""
    user = tables(shop.pair.target)[QualifiedName("Shop", "User")]

    async def run() -> list[int]:
        conn = await connect_end(shop.ends[1], "apply")
        try:
            await conn.execute("SET session_replication_role = replica")
            await conn.execute(
                'CREATE TEMP TABLE k AS SELECT id AS k0, email FROM "Shop"."User" WHERE id > 50'
            )
            by_row = images.keeping(
                sql.SQL('DELETE FROM ONLY "Shop"."User" WHERE id = $1'), user, sql.SQL("$2::pg_lsn")
            )
            by_join = images.keeping(
                sql.SQL('DELETE FROM ONLY "Shop"."User" AS t USING pg_temp.k AS s WHERE t.id = s.k0'),
                user,
                sql.Literal(str(AFTER)),
                "t",
            )
            return [
                (await conn.execute(by_row, [5, AFTER])).rowcount,
                (await conn.execute(by_row, [5, AFTER])).rowcount,
                (await conn.execute(by_join)).rowcount,
            ]
        finally:
            await conn.close()

    assert asyncio.run(run()) == [1, 0, 10]
    shop.source.execute("SET session_replication_role = replica")
    shop.source.execute('DELETE FROM "Shop"."User" WHERE id = 5 OR id > 50')
    assert shop.restore(only=(user.name,), images_since=BEFORE).rows == 11
    assert contents(shop.source) == shop.before
