"""What the guard is told of a transaction: facts of its commit, and what it did to each table. Plain values.

Counts settle nearly everything, so the changes themselves are asked for only where they do not. LSNs are plain integers,
times microseconds since 2000-01-01 UTC by the source's clock, as on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from pglockstep.postgres.names import QualifiedName
from pglockstep.wal.messages import Delete, Insert, Row, Update

Change = Insert | Update | Delete


class Shape(msgspec.Struct, frozen=True):
    """A table as the stream describes it; made once for each description, and shared by its tallies.

    `key` has the positions of the columns that name a row, none where only the whole row does.
    """

    name: QualifiedName
    columns: tuple[str, ...]
    key: tuple[int, ...]


class Tally(msgspec.Struct):
    """What a transaction, or a part of one, did to one table.

    After a TRUNCATE (`truncated`) the counts and `changes` are those behind the last one. `changes` gives them in the
    source's order, and is called at most a few times; None where nothing was changed. `values` gives those in some columns, in
    the table's order, of rows that all came, all went, or all were updated with nothing said of the old ones, where that is
    cheaper; else None.
    """

    shape: Shape
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    truncated: bool = False
    changes: Callable[[], Iterable[Change]] | None = None
    values: Callable[[Sequence[int]], list[Row] | None] | None = None

    def list_changes(self) -> Sequence[Change]:
        """The changes, in order."""
        return () if self.changes is None else list(self.changes())


class Transaction(msgspec.Struct):
    """A committed transaction; `final_lsn` is where its commit record starts, `end_lsn` where it ends.

    A table that was copied with the transaction in it has no tally, and no table has two.
    """

    xid: int
    final_lsn: int
    end_lsn: int
    commit_time: int
    tallies: Sequence[Tally] = ()
