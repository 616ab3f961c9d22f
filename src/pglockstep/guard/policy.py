"""The rules in force for one table, read from the configuration. Pure.

A share is kept as a fraction of whole numbers: 0.29 of 100 rows are 29, and not the 28 of a binary float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    def of(cls, guard: GuardConfig, name: QualifiedName, above: Sequence[QualifiedName] = ()) -> Rules:
        """The rules that `guard` has for the table `name`; `above`: what it is a partition of, the nearest first."""
        own = _own(guard, (name, *above))
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


class Rulebook:
    """The rules of one link's guard, for tables and for partitions: these go by what is said of the whole table, too."""

    def __init__(self, guard: GuardConfig) -> None:
        self._guard = guard
        self._above: dict[QualifiedName, tuple[QualifiedName, ...]] = {}
        #: floors of tables that others are partitions of, and these partitions, as far as is known
        self._shared: dict[QualifiedName, tuple[QualifiedName, ...]] = {}

    def learn(self, above: Mapping[QualifiedName, tuple[QualifiedName, ...]]) -> bool:
        """For each table that is there what it is a partition of, the nearest first; whether any of that is new.

        What is known of tables that are gone stays known: rules are asked for when tables go.
        """
        changed = any(self._above.get(name, ()) != each for name, each in above.items())
        if changed:
            self._above.update(above)
            self._shared = {}
            for name in sorted(self._above):
                for root in self._above[name]:
                    if self._guard.floors.get((root.schema, root.name)):
                        self._shared[root] = (*self._shared.get(root, ()), name)
        return changed

    def of(self, name: QualifiedName) -> Rules:
        """The rules for a table."""
        return Rules.of(self._guard, name, self.above(name))

    def above(self, name: QualifiedName) -> tuple[QualifiedName, ...]:
        """What a table is a partition of, the nearest first."""
        return self._above.get(name, ())

    def sharing(self, name: QualifiedName) -> tuple[QualifiedName, ...]:
        """What has a floor of those that a table is a partition of."""
        return tuple(each for each in self.above(name) if each in self._shared)

    @property
    def shared(self) -> Mapping[QualifiedName, tuple[QualifiedName, ...]]:
        """Tables with a floor that their partitions share, and the partitions, sorted."""
        return self._shared

    def floor(self, name: QualifiedName) -> int:
        """The floor that is set under this name; 0 if none is."""
        return self._guard.floors.get((name.schema, name.name), 0)


def _own(guard: GuardConfig, names: Sequence[QualifiedName]) -> TableGuardConfig:
    """What the configuration has for the first of these: under its name, else under that of the next; else by patterns."""
    for names_one in (True, False):
        for name in names:
            for pattern, own in guard.tables.items():
                if pattern.names_one == names_one and pattern.matches(*name):
                    return own
    return TableGuardConfig()
