"""What others did to a target, as evidence: what the watch wrote down, and what was seen to be wrong. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime

import msgspec

from pglockstep.findings import counted, listed
from pglockstep.guard.reading import Trouble
from pglockstep.guard.watch import ForeignWrite
from pglockstep.observe.incident import Kind, Loss
from pglockstep.postgres.names import QualifiedName

#: From mild to serious.
KINDS: tuple[Kind, ...] = (
    "foreign_write",
    "update",
    "delete",
    "floor",
    "truncate",
    "drop",
    "identity",
    "missing_database",
)
#: DDL that takes nothing from what follows the source: what somebody builds beside our tables, and on them.
_HARMLESS = ("CREATE ", "ANALYZE", "CLUSTER", "IMPORT FOREIGN SCHEMA")
#: How many statements are kept as evidence, and how many of what was done is put into a sentence.
_STATEMENTS = 20
_SAID = 3


class Harm(msgspec.Struct, frozen=True):
    """Foreign writes to tables that follow the source, and certain troubles. `more`: others were written and not kept."""

    writes: tuple[ForeignWrite, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.writes or self.troubles or self.more)

    @property
    def kind(self) -> Kind:
        """The most serious of all that was done."""
        kinds = [*map(_kind_of, self.writes), *(each.kind for each in self.troubles)]
        return max(kinds, key=KINDS.index, default="foreign_write")

    @property
    def happened_at(self) -> datetime | None:
        """When the first of it was done, by the target's clock; None if it was only seen afterwards."""
        return min((each.at for each in self.writes), default=None)

    @property
    def xid(self) -> int | None:
        """The first transaction of it, as the target counts."""
        return self.writes[0].xid if self.writes else None

    @property
    def who(self) -> str | None:
        """The roles that it was done by."""
        return _different(each.who for each in self.writes)

    @property
    def application(self) -> str | None:
        """The applications that it was done by, and from where."""
        return _different(
            each.application
            and (f"{each.application} from {each.client}" if each.client else each.application)
            for each in self.writes
        )

    @property
    def statements(self) -> tuple[str, ...]:
        """The statements, as far as they are known: a trigger sees only those that change what tables are.

        One that may have a password in it, of a subscription or a user mapping, is not repeated.
        """
        said = dict.fromkeys(each.statement for each in self.writes if each.statement)
        return tuple(each for each in said if "password" not in each.lower())[:_STATEMENTS]

    @property
    def tables(self) -> set[QualifiedName]:
        """Every table that is named by it."""
        named = {each.table for each in self.writes} | {each.table for each in self.troubles}
        return {each for each in named if each is not None}

    def suspects(self, every: Collection[QualifiedName]) -> frozenset[QualifiedName] | None:
        """The tables whose rows may differ from the source's; None for whatever there is, `every` is what follows.

        What is missing altogether need not be named: a heal finds it by itself.
        """
        if any(_takes_all(each) for each in self.troubles) or any(map(_may_take_any, self.writes)):
            return None
        return frozenset(self.tables | (set(every) if self.more else set()))

    def losses(self, stood: Callable[[QualifiedName], int | None]) -> tuple[Loss, ...]:
        """What each table lost, as far as that is known before it is healed; `stood`: how many rows it held."""
        lost: dict[QualifiedName, int] = dict.fromkeys(sorted(self.tables), 0)
        for write in self.writes:
            if write.table is not None and write.operation in ("DELETE", "UPDATE"):
                lost[write.table] += write.row_count or 0
        before = {name: stood(name) for name in lost}
        for write in self.writes:
            if write.table is not None and _empties(write):
                lost[write.table] = before[write.table] or 0
        for trouble in self.troubles:
            if trouble.table is not None:
                if before[trouble.table] is None:
                    before[trouble.table] = trouble.rows_before
                lost[trouble.table] = max(lost[trouble.table], trouble.rows_lost)
                if trouble.kind == "drop" and trouble.rows_before is not None:
                    lost[trouble.table] = before[trouble.table] or 0
        return tuple(Loss(*name, before[name], rows) for name, rows in lost.items())

    @property
    def sentence(self) -> str:
        """What was done, for whoever reads it first."""
        parts = list(dict.fromkeys([*_told(self.writes), *(each.message for each in self.troubles)]))
        if self.more:
            parts.append("and so much else that not all of it was kept")
        said = "; ".join(parts[:_SAID]) + (f"; and {len(parts) - _SAID} more" if len(parts) > _SAID else "")
        return f"not ours, on the target: {said}"


def is_harmless(write: ForeignWrite) -> bool:
    """Whether it only made something, or moved rows about. Pure."""
    return write.is_ddl and write.operation.startswith(_HARMLESS)


def _kind_of(write: ForeignWrite) -> Kind:
    if write.operation in ("DELETE", "TRUNCATE"):
        return "delete" if write.operation == "DELETE" else "truncate"
    # of an ALTER TABLE a column or a constraint that it dropped is told by itself, without the table
    dropped = write.operation.startswith("DROP") or (write.operation == "ALTER TABLE" and write.table is None)
    return "drop" if write.is_ddl and dropped else "foreign_write"


def _takes_all(trouble: Trouble) -> bool:
    """Whether there is nothing left to go on from."""
    return trouble.table is None and trouble.kind in ("missing_database", "drop", "identity")


def _may_take_any(write: ForeignWrite) -> bool:
    """Whether it may have changed rows of tables that it does not name: by altering a type of theirs."""
    return write.is_ddl and write.table is None and write.operation.startswith(("ALTER TYPE", "ALTER DOMAIN"))


def _empties(write: ForeignWrite) -> bool:
    return write.operation == "TRUNCATE" or (write.is_ddl and write.operation.startswith("DROP"))


def _different(values: Iterator[str | None] | Sequence[str | None]) -> str | None:
    found = [each for each in dict.fromkeys(values) if each]
    return listed(found, 3) if found else None


def _told(writes: Sequence[ForeignWrite]) -> Iterator[str]:
    """Each kind of write to each table in a few words, its rows together."""
    rows: dict[tuple[str, str], int | None] = {}
    for write in writes:
        key = (write.operation, str(write.table or write.object or "something"))
        rows[key] = None if write.row_count is None else (rows.get(key) or 0) + write.row_count
    for (operation, table), count in rows.items():
        yield (
            f"{operation} of {table}"
            if count is None
            else f"{operation} of {counted(count, 'row')} of {table}"
        )
