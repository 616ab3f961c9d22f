"""From a transaction as it is to be applied to what the guard is told of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pglockstep.apply.runs import Batch, Run
from pglockstep.apply.statements import Statement, TableWriter
from pglockstep.guard.transaction import Change, Shape, Tally
from pglockstep.postgres.names import QualifiedName


class Tallies:
    """Makes tallies; a table's shape is made once for each description."""

    def __init__(self) -> None:
        self._shapes: dict[TableWriter, Shape] = {}

    def clear(self) -> None:
        """Forget the descriptions: others follow."""
        self._shapes.clear()

    def of(self, batch: Batch) -> list[Tally]:
        """A tally for each table that a transaction, or a part of one, touches."""
        steps = batch.steps
        if len(steps) == 1 and isinstance(steps[0], dict):
            return [
                Tally(
                    self._shapes.get(run.writer) or self._shape(run.writer),
                    run.inserted,
                    run.updated,
                    run.deleted,
                    False,
                    partial(_changes, (run,)),
                    run.values,
                )
                for run in steps[0].values()
            ]
        return self._of_several(steps)

    def _of_several(self, steps: Sequence[dict[int, Run] | Statement]) -> list[Tally]:
        """The same, where tables were emptied or described anew in between."""
        found: dict[QualifiedName, Tally] = {}
        runs: dict[QualifiedName, list[Run]] = {}
        for step in steps:
            if isinstance(step, Statement):
                for name in step.emptied:
                    shape = found[name].shape if name in found else self._shape_of(name)
                    runs[name] = []
                    found[name] = Tally(shape, truncated=True)
                continue
            for run in step.values():
                name = run.writer.table.name
                tally = found.get(name)
                if tally is None:
                    tally = found[name] = Tally(self._shape(run.writer))
                runs.setdefault(name, []).append(run)
                # the description that counts is the last one
                tally.shape = self._shape(run.writer)
                tally.inserted += run.inserted
                tally.updated += run.updated
                tally.deleted += run.deleted
                tally.changes = partial(_changes, runs[name])
        return list(found.values())

    def _shape(self, writer: TableWriter) -> Shape:
        shape = self._shapes.get(writer)
        if shape is None:
            columns = tuple(each.name for each in writer.relation.columns)
            shape = self._shapes[writer] = Shape(writer.table.name, columns, writer.key)
        return shape

    def _shape_of(self, name: QualifiedName) -> Shape:
        """The latest description of a table; nothing but its name matters where it was only emptied."""
        known = [shape for shape in self._shapes.values() if shape.name == name]
        return known[-1] if known else Shape(name, (), ())


def _changes(runs: Sequence[Run]) -> list[Change]:
    return [change for run in runs for change in run.listed()]
