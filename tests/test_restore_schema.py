"""Tables and schemas put back on the source as they were: with rows, indexes, constraints, triggers, views, grants, owners."""

from __future__ import annotations

import pytest

from fix_copy import MakeRole, make_role
from fix_mirror import contents
from fix_restore import Scene, mailed, shop
from fix_servers import Cli, Pair, all_pairs
from pglockstep.postgres.names import QualifiedName

__all__ = ["make_role", "shop"]

#: a role of the source's that is no superuser has a test of its own
pytestmark = pytest.mark.superusers


#: An older target does not have what only a newer source can hold, such as the names of NOT NULL constraints.
NOT_OLDER = [(source, target) for source, target in all_pairs if target >= source]


def every_table(scene: Scene, schema: str = "Shop") -> tuple[QualifiedName, ...]:
    """The link's tables of a schema."""
    return tuple(name for name in sorted(scene.oids) if name.schema == schema)


def test_drop_table_cascade(shop: Scene) -> None:
    """A table is back with everything that CASCADE took: foreign keys to it, views on it and on those, its triggers."""
    user = QualifiedName("Shop", "User")
    published, identities = shop.published(), shop.identities()
    shop.source.execute('DROP TABLE "Shop"."User" CASCADE')
    shop.source.execute("UPDATE \"Shop\".orders SET note = 'since' WHERE no = 1")
    since = contents(shop.source)["Shop.orders"]
    sent = mailed(shop.source)
    outcome = shop.restore(dropped=[user], known=shop.oids)
    shop.same_schema()
    assert shop.published() == published
    assert shop.identities() == identities
    assert mailed(shop.source) == sent
    after = contents(shop.source)
    assert after["Shop.User"] == shop.before["Shop.User"]
    assert after["Shop.orders"] == since
    assert any(each.startswith("FK CONSTRAINT Shop orders") for each in outcome.made), outcome.made
    assert not outcome.left
    row = shop.source.execute('INSERT INTO "Shop"."User" (email) VALUES (\'next\') RETURNING id').fetchone()
    assert row is not None
    assert row[0] > 60


@pytest.mark.parametrize("pair", NOT_OLDER, indirect=True, ids=str)
@pytest.mark.parametrize("again", [False, True], ids=["gone", "made again"])
def test_drop_schema_cascade(shop: Scene, again: bool) -> None:
    """A whole schema is back, also where somebody has made an empty one of its name since; and rows in others stay."""
    published, identities, names = shop.published(), shop.identities(), every_table(shop)
    shop.source.execute('DROP SCHEMA "Shop" CASCADE')
    if again:
        shop.source.execute('CREATE SCHEMA "Shop"; GRANT USAGE ON SCHEMA "Shop" TO PUBLIC')
    outcome = shop.restore(dropped=names, known=shop.oids)
    shop.same_schema()
    assert contents(shop.source) == shop.before
    assert shop.published() == published
    assert shop.identities() == identities
    assert not outcome.left
    assert not outcome.violations
    (ticket,) = shop.source.execute("SELECT nextval('\"Shop\".ticket')").fetchall()
    assert ticket[0] > 100


PUBLIC = """
CREATE TYPE kind AS ENUM ('a', 'b');
CREATE TABLE "User" (id serial PRIMARY KEY, k kind, name text);
CREATE TABLE note (id int PRIMARY KEY, of int REFERENCES "User", body text);
CREATE VIEW named AS SELECT id, name FROM "User";
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2';
COMMENT ON FUNCTION twice IS 'it doubles';
CREATE SCHEMA kept;
CREATE TABLE kept.about (id int PRIMARY KEY, note int REFERENCES note, what text);
INSERT INTO "User" (k, name) SELECT 'a', 'n' || i FROM generate_series(1, 22) i;
INSERT INTO note SELECT i, i, 'b' FROM generate_series(1, 22) i;
INSERT INTO kept.about SELECT i, i, 'b' FROM generate_series(1, 22) i;
"""


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made again"])
def test_drop_schema_public(cli: Cli, pair: Pair, again: bool) -> None:
    """The schema that every database begins with, in the way that everybody empties a database with."""
    scene = Scene(cli, pair, PUBLIC)
    names = every_table(scene, "public")
    scene.source.execute("DROP SCHEMA public CASCADE")
    if again:
        scene.source.execute("CREATE SCHEMA public AUTHORIZATION pg_database_owner")
        scene.source.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
        scene.source.execute("COMMENT ON SCHEMA public IS 'standard public schema'")
    outcome = scene.restore(dropped=names, known=scene.oids)
    scene.same_schema()
    assert contents(scene.source) == scene.before
    assert not outcome.left
    assert not outcome.violations


def test_a_key_that_rows_written_since_do_not_fulfil(shop: Scene) -> None:
    """What cannot be made again because of rows written since is left and told; everything else stands."""
    shop.source.execute('DROP TABLE "Shop"."User" CASCADE')
    shop.source.execute('INSERT INTO "Shop".orders VALUES (5000, 1, NULL, NULL)')
    outcome = shop.restore(dropped=[QualifiedName("Shop", "User")], known=shop.oids)
    assert [each.what for each in outcome.left] == [
        "FK CONSTRAINT Shop orders orders_user_fkey " + shop.owner
    ]
    assert "(user)=(5000)" in outcome.left[0].reason
    assert contents(shop.source)["Shop.User"] == shop.before["Shop.User"]


def test_partitions_and_children(shop: Scene) -> None:
    """A partition of a tree that stands is attached again, a whole tree is back with its root, a child with its parent."""
    shop.source.execute('DROP TABLE "Shop".part1; DROP TABLE "Shop".animal CASCADE')
    names = [QualifiedName("Shop", name) for name in ("part1", "animal", "dog")]
    shop.restore(dropped=names, known=shop.oids)
    shop.same_schema()
    assert contents(shop.source) == shop.before
    shop.source.execute('DROP TABLE "Shop".part')
    shop.restore(
        dropped=[QualifiedName("Shop", "part1"), QualifiedName("Shop", "part2")],
        known=shop.oids,
        incident="8",
    )
    shop.same_schema()
    assert contents(shop.source) == shop.before


def test_renamed_tables(shop: Scene) -> None:
    """A table that stands under another name, or in another schema, has all its rows: it is given its own name back."""
    shop.source.execute('ALTER TABLE "Shop"."User" RENAME TO users; ALTER TABLE "Shop".egg SET SCHEMA public')
    shop.source.execute("INSERT INTO \"Shop\".users (email) VALUES ('since')")
    since = len(shop.before["Shop.User"]) + 1
    names = [QualifiedName("Shop", "User"), QualifiedName("Shop", "egg")]
    outcome = shop.restore(dropped=names, known=shop.oids)
    assert outcome.renamed == (('"Shop"."User"', '"Shop".users'), ('"Shop".egg', "public.egg"))
    assert not outcome.made
    shop.same_schema()
    assert len(contents(shop.source)["Shop.User"]) == since


def test_replaced_table(shop: Scene) -> None:
    """Dropped and made again, with rows since: what it had is back in the new one, with the indexes that it lacks."""
    shop.source.execute(
        'DROP TABLE "Shop".hen CASCADE; CREATE TABLE "Shop".hen (id int PRIMARY KEY, egg int)'
    )
    shop.source.execute('INSERT INTO "Shop".hen VALUES (5, NULL), (1000, NULL)')
    # of what others have made nothing is taken away: not what their schema's default privileges gave it, either
    shop.source.execute('REVOKE SELECT ON "Shop".hen FROM PUBLIC')
    outcome = shop.restore(dropped=[QualifiedName("Shop", "hen")], known=shop.oids)
    shop.same_schema()
    rows = shop.source.execute('SELECT id, egg FROM "Shop".hen ORDER BY id').fetchall()
    assert rows == [*((i, None if i == 5 else i) for i in range(1, 31)), (1000, None)]
    assert [(each.what, each.reason) for each in outcome.left] == [
        ("id = '5'", "Key (id)=(5) already exists.")
    ]
    assert ("Shop", "hen") in shop.published()


def test_owners_and_grants(make_role: MakeRole, cli: Cli, pair: Pair) -> None:
    """Tables belong to whom they belonged, and who might read them may again; a role that is missing is told."""
    for server in (pair.source_server, pair.target_server):
        make_role(server, "Clerk")
        make_role(server, "reader")
    scene = Scene(
        cli,
        pair,
        """
        CREATE TABLE t (id int PRIMARY KEY, secret text);
        CREATE SEQUENCE s;
        ALTER TABLE t OWNER TO "Clerk";
        GRANT SELECT (id), UPDATE (secret) ON t TO reader WITH GRANT OPTION;
        GRANT USAGE ON SEQUENCE s TO reader;
        INSERT INTO t SELECT i, 's' FROM generate_series(1, 5) i;
        """,
    )
    scene.source.execute("DROP TABLE t")
    outcome = scene.restore(dropped=[QualifiedName("public", "t")], known=scene.oids)
    scene.same_schema()
    assert contents(scene.source) == scene.before
    assert not outcome.left
