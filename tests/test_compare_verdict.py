"""The verdict on a link never guesses."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pglockstep.compare.large_objects import LargeObjects
from pglockstep.compare.schema import SchemaDifference
from pglockstep.compare.sequences import SequenceBehind
from pglockstep.compare.verdict import TableResult, Verdict, link_verdict

VERDICTS: list[Verdict] = ["identical", "different", "inconclusive"]
SCHEMA = SchemaDifference("table", "public", "orders", "is missing on the target")
SEQUENCE = SequenceBehind("public", "orders_id_seq", 5, None)


def results(*verdicts: Verdict) -> list[TableResult]:
    return [TableResult("public", f"t{number}", verdict) for number, verdict in enumerate(verdicts)]


@given(st.lists(st.sampled_from(VERDICTS)), st.booleans(), st.booleans())
def test_a_link_is_as_bad_as_its_worst_part(verdicts: list[Verdict], schema: bool, sequence: bool) -> None:
    """Anything proven different wins over anything unknown, which wins over what is identical."""
    found = link_verdict(results(*verdicts), [SCHEMA] * schema, [SEQUENCE] * sequence)
    if schema or sequence or "different" in verdicts:
        assert found == "different"
    else:
        assert found == ("inconclusive" if "inconclusive" in verdicts else "identical")


@pytest.mark.parametrize(
    ("objects", "alone", "beside"),
    [
        (LargeObjects(2, 2), "identical", "inconclusive"),
        (LargeObjects(2, 1, missing=1), "different", "different"),
        (LargeObjects(1, 2, extra=1), "different", "different"),
        (LargeObjects(2, 2, changed=1, unread=1), "different", "different"),
        (LargeObjects(2, 2, unread=1), "inconclusive", "inconclusive"),
        (LargeObjects(2, 2, settled=False), "inconclusive", "inconclusive"),
    ],
)
def test_large_objects_are_as_good_as_a_table(objects: LargeObjects, alone: Verdict, beside: Verdict) -> None:
    """Those that differ make a link different, those that nobody could look at leave it open."""
    assert link_verdict(results("identical"), [], [], objects) == alone
    assert link_verdict(results("inconclusive"), [], [], objects) == beside


def test_two_empty_databases_are_identical() -> None:
    """With nothing to compare there is nothing that differs."""
    assert link_verdict([], [], []) == "identical"


@pytest.mark.parametrize(("first", "second"), list(product(VERDICTS, VERDICTS)))
def test_the_order_of_tables_does_not_matter(first: Verdict, second: Verdict) -> None:
    """The same tables give the same verdict in any order."""
    assert link_verdict(results(first, second), [], []) == link_verdict(results(second, first), [], [])


def test_a_result_is_told_in_the_promised_words() -> None:
    """The JSON of a table has the keys that scripts rely on, and null for what was not counted."""
    assert msgspec.to_builtins(TableResult("public", "orders", "different", 3, 2, 1, 0)) == {
        "schema": "public",
        "table": "orders",
        "verdict": "different",
        "source_rows": 3,
        "target_rows": 2,
        "missing": 1,
        "extra": 0,
        "changed": None,
        "reason": None,
    }
