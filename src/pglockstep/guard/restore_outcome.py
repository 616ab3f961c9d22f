"""What came of putting something back on the source: plain values, that travel as JSON."""

from __future__ import annotations

import msgspec

from pglockstep.findings import counted
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn


class Left(msgspec.Struct, frozen=True):
    """Something that was not put back, and why. `what` names a row by its key, or an object."""

    schema: str
    table: str
    what: str
    reason: str


class PutBack(msgspec.Struct, frozen=True):
    """What became of one table: rows inserted and updated back, and how many rows were left as they are."""

    schema: str
    table: str
    inserted: int = 0
    updated: int = 0
    left: int = 0

    @property
    def name(self) -> QualifiedName:
        """The table."""
        return QualifiedName(self.schema, self.table)


class Violation(msgspec.Struct, frozen=True):
    """A foreign key that so many rows of a table violate now: reported, never put right by a guess."""

    schema: str
    table: str
    constraint: str
    rows: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one restore did on the source.

    `marker` and `lsn`: where in the source's WAL its transaction began, and a place at or behind its commit. `made`:
    objects that were re-created, `renamed`: tables that have their old name back, as "now, from".
    """

    incident: str
    tables: tuple[PutBack, ...] = ()
    left: tuple[Left, ...] = ()
    made: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    violations: tuple[Violation, ...] = ()
    marker: str = "0/0"
    lsn: str = "0/0"

    @property
    def end(self) -> Lsn:
        """The transaction's commit lies before this place."""
        return Lsn.parse(self.lsn)

    @property
    def rows(self) -> int:
        """All rows put back."""
        return sum(each.inserted + each.updated for each in self.tables)

    @property
    def rows_left(self) -> int:
        """All rows left as they are."""
        return sum(each.left for each in self.tables)


def told(outcome: Outcome) -> str:
    """What came of a restore, in a sentence. Pure."""
    parts = [f"{counted(outcome.rows, 'row')} put back on the source"]
    if outcome.made:
        parts.append(f"{counted(len(outcome.made), 'object')} made again")
    if outcome.renamed:
        parts.append(", ".join(f"{now} has its name back (it was {was})" for now, was in outcome.renamed))
    if outcome.rows_left:
        some = "; ".join(
            f"{each.schema}.{each.table} {each.what}: {each.reason}" for each in outcome.left[:5]
        )
        parts.append(f"{counted(outcome.rows_left, 'row')} left as they are ({some})")
    parts += [
        f"{counted(each.rows, 'row')} of {each.schema}.{each.table} now refer to nothing by {each.constraint}"
        for each in outcome.violations
    ]
    return "; ".join(parts)
