"""What a comparison has proven: `identical`, `different`, or `inconclusive`. Pure, and never a guess.

A difference that was seen is a difference whatever else could not be looked at; and while something could not
be looked at, nothing is identical.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from pglockstep.compare.large_objects import LargeObjects
from pglockstep.compare.schema import SchemaDifference
from pglockstep.compare.sequences import SequenceBehind

_NONE = LargeObjects()

Verdict = Literal["identical", "different", "inconclusive"]


class TableResult(msgspec.Struct, frozen=True):
    """What is known of one table; None where that was not counted, or the table is not there.

    `missing` rows are on the source only, `extra` ones on the target only, `changed` ones under the same
    primary key on both. `reason`: why the comparison did not come to an end.
    """

    schema: str
    table: str
    verdict: Verdict
    source_rows: int | None = None
    target_rows: int | None = None
    missing: int | None = None
    extra: int | None = None
    changed: int | None = None
    reason: str | None = None


def link_verdict(
    tables: Iterable[TableResult],
    schema_differences: Sequence[SchemaDifference],
    sequences_behind: Sequence[SequenceBehind],
    large_objects: LargeObjects = _NONE,
) -> Verdict:
    """The verdict on a link: the first that anything calls for of different, inconclusive and identical."""
    verdicts = {table.verdict for table in tables}
    if "different" in verdicts or schema_differences or sequences_behind or large_objects.differ:
        return "different"
    return "inconclusive" if "inconclusive" in verdicts or not large_objects.known else "identical"
