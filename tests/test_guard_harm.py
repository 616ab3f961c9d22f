"""What the evidence of a target's harm amounts to: pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from pglockstep.config.sections import GuardConfig
from pglockstep.guard.harm import Harm, is_harmless
from pglockstep.guard.policy import Rules
from pglockstep.guard.reading import Reading, TableReading, Trouble
from pglockstep.guard.watch import ForeignWrite
from pglockstep.link.balance import is_too_much
from pglockstep.link.memory import after_heal, named_after_heal
from pglockstep.observe.incident import Loss
from pglockstep.postgres.names import QualifiedName

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
USER, ITEM = QualifiedName("public", "User"), QualifiedName("public", "item")


def write(
    operation: str, table: QualifiedName | None = USER, rows: int | None = None, **more: Any
) -> ForeignWrite:
    """Somebody else's."""
    schema, name = table or (None, None)
    known = ForeignWrite(1, NOON, 7, operation, schema, name, rows, None, "app", "psql", None, None)
    return msgspec.structs.replace(known, **more)


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (Harm((write("INSERT", rows=1),)), "foreign_write"),
        (Harm((write("UPDATE", rows=1),)), "foreign_write"),
        (Harm((write("UPDATE", rows=1), write("DELETE", rows=1))), "delete"),
        (Harm((write("DELETE", rows=1), write("TRUNCATE"))), "truncate"),
        (Harm((write("TRUNCATE"), write("DROP TABLE"))), "drop"),
        (Harm((write("ALTER TABLE"),)), "foreign_write"),
        (Harm((write("ALTER TABLE"), write("ALTER TABLE", None, object="public.item.price"))), "drop"),
        (Harm(more=True), "foreign_write"),
        (Harm((write("DROP TABLE"),), (Trouble("missing_database", "it is gone"),)), "missing_database"),
    ],
)
def test_the_most_serious_counts(harm: Harm, kind: str) -> None:
    """Of several things that were done to a target."""
    assert harm.kind == kind


def test_what_a_heal_has_to_look_at() -> None:
    """The tables that are named; all that follow where not everything was kept; whatever there is where nothing is certain."""
    every = {USER, ITEM}
    assert Harm((write("DELETE", rows=1),)).suspects(every) == frozenset({USER})
    assert Harm((write("DELETE", rows=1),), more=True).suspects(every) == frozenset(every)
    assert Harm((write("DROP VIEW", None, object="public.report"),)).suspects(every) == frozenset()
    assert Harm((write("ALTER TYPE", None, object="public.mood"),)).suspects(every) is None
    assert Harm(troubles=(Trouble("drop", "ours is gone"),)).suspects(every) is None
    assert (
        Harm(troubles=(Trouble("foreign_write", "the event trigger is gone"),)).suspects(every) == frozenset()
    )
    assert Harm(troubles=(Trouble("drop", "item is gone", ITEM),)).suspects(every) == frozenset({ITEM})


def test_losses_add_up_and_never_count_twice() -> None:
    """Deleted and changed rows of a table together; of one that was emptied, all that stood."""
    stood = {USER: 22, ITEM: 300}.get
    deleted = Harm((write("DELETE", rows=3), write("UPDATE", rows=4), write("INSERT", rows=9)))
    assert deleted.losses(stood) == (Loss("public", "User", 22, 7),)
    emptied = Harm(
        (write("DELETE", rows=3), write("TRUNCATE")), (Trouble("drop", "gone", ITEM, True, 290, 290),)
    )
    assert emptied.losses(stood) == (Loss("public", "User", 22, 22), Loss("public", "item", 300, 300))
    assert Harm((write("TRUNCATE"),)).losses(lambda _: None) == (Loss("public", "User", None, 0),)


def test_the_evidence_is_told_in_one_sentence() -> None:
    """What, how much, by whom; the first of it, and how much more there is."""
    later = msgspec.structs.replace(
        write("DELETE", ITEM, 5), at=NOON + timedelta(seconds=1), who="other", client="10.0.0.7"
    )
    harm = Harm((write("DELETE", rows=2), write("DELETE", rows=3), later))
    assert harm.sentence == (
        'not ours, on the target: DELETE of 5 rows of public."User"; DELETE of 5 rows of public.item'
    )
    assert (harm.happened_at, harm.xid, harm.who, harm.application) == (
        NOON,
        7,
        "app, other",
        "psql, psql from 10.0.0.7",
    )
    many = Harm(tuple(write("TRUNCATE", QualifiedName("public", f"t{n}")) for n in range(5)), more=True)
    assert many.sentence.endswith("TRUNCATE of public.t2; and 3 more")


def test_what_only_builds_is_harmless() -> None:
    """Rows never are."""
    assert is_harmless(write("CREATE INDEX"))
    assert is_harmless(write("CLUSTER"))
    assert not is_harmless(write("ALTER TABLE"))
    assert not is_harmless(write("INSERT", rows=1))


@pytest.mark.parametrize(
    ("stood", "now", "swing", "whole", "too_much"),
    [
        (100, 100, 0, True, False),
        (100, 200, 0, False, False),
        (100, 70, 0, True, False),
        (100, 69, 0, True, True),
        (100, 69, 50, True, False),
        (100, 49, 50, True, True),
        (100, 0, 0, False, True),
        (100, 0, 500, False, True),
        # no share of a small table is judged, but what neither end has any more comes from nowhere
        (5, 0, 0, True, False),
        (5, 0, 0, False, True),
        (5, 1, 0, False, False),
        (0, 0, 0, False, False),
    ],
)
def test_how_little_a_heal_may_leave(stood: int, now: int, swing: int, whole: bool, too_much: bool) -> None:
    """By the table's rules and what passes through it, and less where the target had lost it itself."""
    assert is_too_much(Rules.of(GuardConfig(), USER), stood, now, swing=swing, whole=whole) is too_much


def test_after_a_heal_only_what_it_touched_is_known_anew() -> None:
    """Of other tables it is known how they stood before: what was done to them meanwhile is still to be seen."""

    def table(name: str, file: int, oid: int | None = 1) -> TableReading:
        return TableReading("public", name, oid, file, False, 10, (), 4)

    before = Reading(True, 1, True, 2, (table("User", 10), table("item", 20), table("visit", 30)))
    now = Reading(True, 1, True, 2, (table("User", 11), table("item", 21), table("visit", 0, None)))
    after = after_heal(before, now, {USER})
    assert [each.file for each in after.tables] == [11, 20, 30]


def test_after_a_heal_a_table_keeps_the_name_that_it_had() -> None:
    """Renamed meanwhile it is still known by its own; made anew, or touched, it is what it is now; others are added."""
    before = [("public", "User", 1), ("public", "item", 2), ("public", "visit", 3)]
    now = [("public", "User", 11), ("public", "theirs", 2), ("public", "visit", 13), ("public", "new", 4)]
    assert named_after_heal(before, now, {USER}) == (
        ("public", "User", 11),
        ("public", "item", 2),
        ("public", "new", 4),
        ("public", "visit", 13),
    )
