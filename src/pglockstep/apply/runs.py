"""What is applied together: the changes of each table as a run, and rounds of runs. Pure; compiled where it can be."""

from __future__ import annotations

from collections.abc import Sequence

from pglockstep.apply.encoding import reads_wire, wire_values
from pglockstep.apply.net import Change
from pglockstep.apply.statements import Statement, TableWriter
from pglockstep.wal.messages import Commit, Insert, Row, Update
from pglockstep.wal.pgoutput import decode

_INSERT, _DELETE = b"ID"
#: Where the OID of a change's table ends; behind it stands which of its rows comes first.
_OID = 4
_NEW = ord("N")


class Run:
    """The changes of one table, in order, what writes them, and how many of them there are of each kind.

    As long as all are of one kind they stay in `rows` as they were sent: Inserts, Deletes, or Updates that say nothing of
    the old row.
    """

    __slots__ = ("_changes", "deleted", "inserted", "rows", "updated", "writer")

    def __init__(self, writer: TableWriter) -> None:
        self.writer = writer
        self.rows: list[bytes] = []
        self._changes: list[Change] = []
        self.inserted = 0
        self.updated = 0
        self.deleted = 0

    def __len__(self) -> int:
        return self.inserted + self.updated + self.deleted

    @property
    def changes(self) -> list[Change]:
        """All of them, as messages. Raises what `decode` raises."""
        if self.rows:
            self._changes = [decode(row) for row in self.rows]  # type: ignore[misc]
            self.rows = []
        return self._changes

    def listed(self) -> list[Change]:
        """All of them, as messages, for somebody who only looks. Raises what `decode` raises."""
        if self.rows and reads_wire():
            # nobody else may ever want them
            return [decode(row) for row in self.rows]  # type: ignore[misc]
        return self.changes

    def values(self, columns: Sequence[int]) -> list[Row] | None:
        """The values in these columns, in the table's order, that were sent of every row; None where that has to be decoded."""
        if not self.rows:
            return None
        return wire_values(self.rows, len(self.writer.relation.columns), columns)

    def take(self, data: bytes, kind: int) -> None:
        """Put a change behind what is here, as it was sent. Raises what `decode` raises."""
        before = self.inserted + self.updated + self.deleted
        if kind == _INSERT:
            alike = before == self.inserted
            self.inserted += 1
        elif kind == _DELETE:
            alike = before == self.deleted
            self.deleted += 1
        else:
            alike = before == self.updated and data[_OID + 1] == _NEW
            self.updated += 1
        if alike and before == len(self.rows):
            self.rows.append(data)
        else:
            self.changes.append(decode(data))  # type: ignore[arg-type]

    def put(self, change: Change) -> None:
        """Put a change behind what is here."""
        self.changes.append(change)
        if isinstance(change, Insert):
            self.inserted += 1
        elif isinstance(change, Update):
            self.updated += 1
        else:
            self.deleted += 1

    def add(self, later: Run) -> None:
        """Put a later run of the same table behind this one."""
        if self.rows and later.rows and self.rows[0][0] == later.rows[0][0]:
            self.rows.extend(later.rows)
        else:
            self.changes.extend(later.changes)
        self.inserted += later.inserted
        self.updated += later.updated
        self.deleted += later.deleted


#: Runs by the OID of the source's table.
Round = dict[int, Run]


class Batch:
    """What is applied together: rounds of runs, and TRUNCATEs between them.

    `commit` is the last transaction's; None in the middle of a large one. `upto`: behind where its last commit record starts.
    `carry`: sequences are wanted.
    """

    __slots__ = ("carry", "commit", "size", "steps", "transactions", "upto")

    def __init__(self) -> None:
        self.steps: list[Round | Statement] = []
        self.size = 0
        self.transactions = 0
        self.commit: Commit | None = None
        self.upto = 0
        self.carry = False

    @property
    def deletes(self) -> bool:
        """Whether it deletes rows one by one."""
        return any(run.deleted for step in self.steps if isinstance(step, dict) for run in step.values())

    def add(self, later: Batch) -> None:
        """Put a later transaction behind what is here."""
        for step in later.steps:
            if not self.steps or not _joined(self.steps[-1], step):
                self.steps.append(step)
        self.size += later.size
        self.transactions += later.transactions
        self.commit = later.commit
        self.upto = later.upto
        self.carry = self.carry or later.carry


def _joined(ours: Round | Statement, theirs: Round | Statement) -> bool:
    """Put the runs of a later round behind ours; false, with nothing done, where they are to stay apart."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return False
    for oid, run in theirs.items():
        before = ours.get(oid)
        if before is not None and before.writer is not run.writer:
            return False
    for oid, run in theirs.items():
        before = ours.get(oid)
        if before is None:
            ours[oid] = run
        else:
            before.add(run)
    return True
