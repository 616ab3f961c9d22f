"""The rules in force for one table, read from the configuration. Pure.

A share is kept as a fraction of whole numbers: 0.29 of 100 rows are 29, and not the 28 of a binary float.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec

from pglockstep.config.sections import GuardConfig, TableGuardConfig
from pglockstep.config.values import Destructive, OnWipe, ProtectTarget
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Duration

#: More rows than any table has.
UNLIMITED = 1 << 63


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What one table may lose, and what is done about it; `window` and `keep_deleted` in seconds.

    `floor`: a transaction that takes rows may not leave fewer; 0 for none. `judge` false: nothing but the floor and
    `drop` is judged.
    """

    judge: bool
    max_delete_fraction: Fraction
    max_delete_rows: int
    max_update_fraction: Fraction
    min_table_rows: int
    window: Duration
    truncate: Destructive
    drop: Destructive
    keep_deleted: Duration
    on_source_wipe: OnWipe
    on_target_wipe: OnWipe
    protect_target: ProtectTarget
    floor: int

    @classmethod
    def of(cls, guard: GuardConfig, name: QualifiedName) -> Rules:
        """The rules that `guard` has for the table `name`."""
        own = _own(guard, name)
        told: dict[str, Any] = {}
        for field in TableGuardConfig.__struct_fields__:
            value = getattr(own, field)
            told[field] = getattr(guard, field) if value is None else value
        for share in ("max_delete_fraction", "max_update_fraction"):
            # as it was written, not as a binary float comes near to it
            told[share] = Fraction(str(told[share]))
        return cls(floor=guard.floors.get((name.schema, name.name), 0), **told)

    def may_lose(self, rows: int) -> int:
        """How many of `rows` rows may go: in one transaction, and net within the window."""
        if not self.judge:
            return UNLIMITED
        if rows < self.min_table_rows:
            return self.max_delete_rows
        share = self.max_delete_fraction
        return min(self.max_delete_rows, rows * share.numerator // share.denominator)

    def may_turn(self, rows: int) -> int:
        """In how many of `rows` rows one transaction may turn a column into NULL or one same value."""
        if not self.judge or rows < self.min_table_rows:
            return UNLIMITED
        share = self.max_update_fraction
        return rows * share.numerator // share.denominator


def _own(guard: GuardConfig, name: QualifiedName) -> TableGuardConfig:
    """What the configuration has for this table: under its name, else under the first pattern that matches."""
    matching = [(pattern, own) for pattern, own in guard.tables.items() if pattern.matches(*name)]
    # sorting keeps the order of the file among patterns
    matching.sort(key=lambda each: not each[0].names_one)
    return matching[0][1] if matching else TableGuardConfig()
