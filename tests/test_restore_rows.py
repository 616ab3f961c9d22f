"""Rows put back on the source: deleted, truncated, overwritten; what was written since stays, and no trigger fires."""

from __future__ import annotations

import pytest

from fix_mirror import contents
from fix_restore import Scene, mailed, shop
from fix_servers import on_all_pairs
from pglockstep.guard.restore_outcome import Outcome

__all__ = ["shop"]

#: a role of the source's that is no superuser has a test of its own
pytestmark = pytest.mark.superusers


def counts(outcome: Outcome) -> dict[str, tuple[int, int, int]]:
    """What became of each table: inserted, updated, left."""
    return {each.table: (each.inserted, each.updated, each.left) for each in outcome.tables}


def quietly(scene: Scene, mails: int) -> dict[str, list[str]]:
    """What the source has now, its mails aside, of which there are still as many."""
    assert mailed(scene.source) == mails
    scene.same_schema()
    return {name: rows for name, rows in contents(scene.source).items() if name != "Shop.mailed"}


def without_mails(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: found for name, found in rows.items() if name != "Shop.mailed"}


@on_all_pairs
def test_delete_without_where(shop: Scene) -> None:
    """Every row of a table and those that its foreign key took along are back; a mail is sent for none of them."""
    messages = shop.wipe('DELETE FROM "Shop"."User"')
    assert contents(shop.source)["Shop.orders"] == []
    sent = mailed(shop.source)
    outcome = shop.restore(messages)
    assert quietly(shop, sent) == without_mails(shop.before)
    assert counts(outcome) == {"User": (60, 0, 0), "orders": (200, 0, 0)}
    assert not outcome.left
    assert not outcome.violations


def test_rows_written_since(shop: Scene) -> None:
    """Rows written after the wipe stay; whose key or unique value they took is left, and listed with the reason."""
    messages = shop.wipe('DELETE FROM "Shop"."User"')
    shop.source.execute(
        'INSERT INTO "Shop"."User" (id, email, "Full Name") OVERRIDING SYSTEM VALUE '
        "VALUES (3, 'new@x', 'new'), (1000, 'u5@x', 'has the address of 5')"
    )
    shop.source.execute("INSERT INTO \"Shop\".orders VALUES (1000, 2, 'since', NULL)")
    sent = mailed(shop.source)
    since = contents(shop.source)
    outcome = shop.restore(messages)
    after = quietly(shop, sent)
    lost = [row for row in shop.before["Shop.User"] if ",u3@x," not in row and ",u5@x," not in row]
    assert len(lost) == 58
    assert after["Shop.User"] == sorted([*lost, *since["Shop.User"]])
    assert after["Shop.orders"] == sorted([*shop.before["Shop.orders"], *since["Shop.orders"]])
    assert counts(outcome) == {"User": (58, 0, 2), "orders": (200, 0, 0)}
    assert [(each.what, each.reason) for each in outcome.left] == [
        ("id = '3'", "Key (id)=(3) already exists."),
        ("id = '5'", "Key (email)=(u5@x) already exists."),
    ]
    # 3 is another one's now, 5 is nobody's: told, not guessed at
    orphans = sum(1 for row in shop.before["Shop.orders"] if ",5," in row)
    assert [(each.table, each.rows > 0) for each in outcome.violations] == [("orders", True)]
    assert orphans


def test_truncate_cascade(shop: Scene) -> None:
    """TRUNCATE … CASCADE with RESTART IDENTITY: rows are back, sequences go on behind what they had reached."""
    messages = shop.wipe('TRUNCATE "Shop"."User" RESTART IDENTITY CASCADE')
    shop.source.execute('INSERT INTO "Shop"."User" (email) VALUES (\'first after\')')
    since = contents(shop.source)["Shop.User"]
    sent = mailed(shop.source)
    outcome = shop.restore(messages)
    after = quietly(shop, sent)
    assert after["Shop.User"] == sorted(
        [*(row for row in shop.before["Shop.User"] if ",u1@x," not in row), *since]
    )
    assert after["Shop.orders"] == shop.before["Shop.orders"]
    assert counts(outcome) == {"User": (59, 0, 1), "orders": (200, 0, 0)}
    row = shop.source.execute('INSERT INTO "Shop"."User" (email) VALUES (\'later\') RETURNING id').fetchone()
    assert row is not None
    assert row[0] > 60


def test_keys_in_cycles_children_and_partitions(shop: Scene) -> None:
    """Foreign keys in a cycle, a parent with a child, partitions, a table without a key: each row in its own table again."""
    messages = shop.wipe(
        'DELETE FROM "Shop".hen',
        'DELETE FROM "Shop".egg',
        'DELETE FROM "Shop".animal',
        'DELETE FROM "Shop".part',
        "DELETE FROM \"Shop\".event WHERE what IS NULL OR what = 'e2'",
    )
    sent = mailed(shop.source)
    shop.source.execute("INSERT INTO \"Shop\".event VALUES (now(), 'since', NULL)")
    since = [row for row in contents(shop.source)["Shop.event"] if "since" in row]
    outcome = shop.restore(messages)
    assert quietly(shop, sent) == without_mails(shop.rows_since(event=since))
    assert outcome.rows_left == 0
    assert counts(outcome)["dog"] == (30, 0, 0)
    assert not outcome.violations


def test_truncated_without_a_key(shop: Scene) -> None:
    """All rows of a table without a key, of a child and of one partition alone, beside rows written since."""
    messages = shop.wipe('TRUNCATE "Shop".event, ONLY "Shop".animal, "Shop".part1')
    shop.source.execute("INSERT INTO \"Shop\".event VALUES (NULL, 'since', NULL)")
    sent = mailed(shop.source)
    outcome = shop.restore(messages)
    assert quietly(shop, sent) == without_mails(shop.rows_since(event=["(,,since)"]))
    assert counts(outcome) == {"event": (40, 0, 0), "animal": (30, 0, 0), "part1": (50, 0, 0)}


def test_update_to_null(shop: Scene) -> None:
    """Only what the transaction set is set back, and only where it still stands: what was entered since stays."""
    messages = shop.wipe('UPDATE "Shop"."User" SET email = NULL, home = NULL, total = 0')
    shop.source.execute(
        'UPDATE "Shop"."User" SET email = \'again@x\', "Full Name" = \'changed\' WHERE id = 3'
    )
    shop.source.execute('UPDATE "Shop"."User" SET email = \'u9@x\' WHERE id = 4')
    shop.source.execute('DELETE FROM "Shop"."User" WHERE id = 5')
    shop.source.execute('INSERT INTO "Shop"."User" (email) VALUES (\'u8@x\')')
    sent = mailed(shop.source)
    outcome = shop.restore(messages)
    after = quietly(shop, sent)
    rows = shop.source.execute(
        'SELECT id, email, "Full Name", home, total, doubled FROM "Shop"."User" WHERE id < 12 ORDER BY id'
    ).fetchall()
    assert [row[:3] for row in rows] == [
        (1, "u1@x", "Name 1"),
        (2, "u2@x", "Name 2"),
        (3, "again@x", "changed"),
        (4, "u9@x", "Name 4"),
        (6, "u6@x", "Name 6"),
        (7, "u7@x", "Name 7"),
        (8, None, "Name 8"),
        (9, None, "Name 9"),
        (10, "u10@x", "Name 10"),
        (11, "u11@x", "Name 11"),
    ]
    # a row that could not have its unique value back is left as it is
    assert [(row[0], int(row[4]), int(row[5])) for row in rows][:4] == [
        (1, 1, 2),
        (2, 2, 4),
        (3, 3, 6),
        (4, 4, 8),
    ]
    told = {each.what: each.reason for each in outcome.left}
    assert told == {
        "id = '3'": "email, home, total changed again since",
        "id = '4'": "email, home, total changed again since",
        "id = '5'": "the row is gone, or has another key since",
        "id = '8'": "Key (email)=(u8@x) already exists.",
        "id = '9'": "Key (email)=(u9@x) already exists.",
    }
    assert counts(outcome)["User"] == (0, 57, 5)
    kept = {f"({i}," for i in (3, 4, 5, 8, 9)}
    untouched = [row for row in shop.before["Shop.User"] if f"u{1}@x" not in row]
    assert len([row for row in untouched if row in after["Shop.User"]]) >= 60 - len(kept) - 1


@on_all_pairs
def test_update_of_every_kind(shop: Scene) -> None:
    """Updates of keys, twice of one row, without a key, of enums, composites and json, then deletes of what was updated."""
    messages = shop.wipe(
        'UPDATE "Shop".orders SET no = no + 1000 WHERE no <= 50',
        "UPDATE \"Shop\".orders SET note = 'first', body = NULL WHERE no > 1000",
        "UPDATE \"Shop\".orders SET note = 'second' WHERE no > 1000",
        'DELETE FROM "Shop".orders WHERE no BETWEEN 1001 AND 1010',
        "UPDATE \"Shop\".event SET what = 'same', data = NULL",
        "UPDATE \"Shop\".\"User\" SET mood = 'sad', home = ROW('x', 1), tags = NULL, code = ''",
        'UPDATE "Shop".part SET v = NULL',
    )
    sent = mailed(shop.source)
    shop.restore(messages)
    assert quietly(shop, sent) == without_mails(shop.before)


def test_net_of_a_transaction(shop: Scene) -> None:
    """A key that was deleted and inserted again is not gone; one that only came and went never was there."""
    messages = shop.wipe(
        "INSERT INTO \"Shop\".animal VALUES (1000, 'came')",
        'DELETE FROM "Shop".animal WHERE id IN (1, 2, 1000)',
        "INSERT INTO \"Shop\".animal VALUES (1, 'again'), (1001, 'came'), (2, 'came')",
        'DELETE FROM "Shop".animal WHERE id IN (2, 1001)',
        'DELETE FROM ONLY "Shop".animal WHERE id > 25',
    )
    outcome = shop.restore(messages)
    now = shop.source.execute('SELECT id, name FROM ONLY "Shop".animal ORDER BY id').fetchall()
    assert now == [(1, "again"), *((i, f"cat {i}") for i in range(2, 31))]
    assert counts(outcome)["animal"] == (6, 0, 0)
