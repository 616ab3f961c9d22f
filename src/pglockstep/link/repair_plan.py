"""What a repair would do: which rows of which tables, and what the guard has against it. Nothing is changed by it.

The end that is to be written to is the *receiver*, the other the *giver*.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from pglockstep.compare.pairing import Pairing, RowDifference, RowKey
from pglockstep.compare.readings import RowValues
from pglockstep.compare.scripts import HEAD, TAIL, Writer
from pglockstep.compare.sessions import Sessions
from pglockstep.copy.ends import Ends
from pglockstep.errors import Side, TooMuchLost
from pglockstep.guard import questions
from pglockstep.guard.differences import TooMuch, Turned, too_much
from pglockstep.link.balance import may_go
from pglockstep.link.diff import values
from pglockstep.link.level import Level, levelled
from pglockstep.link.link import Link
from pglockstep.link.verify import Compared, Scope, compared
from pglockstep.postgres.connect import translate
from pglockstep.postgres.names import QualifiedName

#: So many rows are read, or written, at once.
PORTION = 2_000

Direction = Literal["source-to-target", "target-to-source"]
ReadValues = Mapping[RowKey, RowValues]


class TablePlan(msgspec.Struct, frozen=True):
    """What a repair would do to one table of the receiver's; `too_much`: what the guard has against it.

    `allowed`: what it uses up of what somebody announced.

    `rows` are those that were proven to differ; `more` differ that were only counted, and are not repaired at once.
    """

    pairing: Pairing
    rows: tuple[RowDifference, ...]
    inserts: int
    deletes: int
    updates: int
    more: int = 0
    too_much: tuple[TooMuch, ...] = ()
    allowed: Mapping[str, int] = {}

    @property
    def name(self) -> QualifiedName:
        """The table's name."""
        return self.pairing.source.name


class Plan(msgspec.Struct, frozen=True):
    """What a repair would do; `left`: tables that it cannot put right, and why."""

    link: str
    receiver: Side
    tables: list[TablePlan]
    left: list[tuple[QualifiedName, str]]

    @property
    def rows(self) -> int:
        """How many rows would be written."""
        return sum(each.inserts + each.deletes + each.updates for each in self.tables)


async def plan(link: Link, scope: Scope, direction: Direction) -> Plan:
    """Find out what differs and what a repair would do. Changes nothing but bringing the target level, where no daemon does."""
    async with levelled(link, "repair", copies=False) as level:
        return await plan_at(level, link, scope, direction)


async def plan_at(level: Level, link: Link, scope: Scope, direction: Direction) -> Plan:
    """As `plan`, with both ends at one point already."""
    scope = msgspec.structs.replace(scope, jobs=link.config.jobs)
    found = await compared(level.ends, link.selection, level.moments, scope)
    receiver: Side = "target" if direction == "source-to-target" else "source"
    with translate(level.ends.target):
        await link.learn(level.ends.target_conn)
    tables, left = [], []
    async with Sessions(level.ends.both, 1) as sessions:
        for each in found:
            if reason := _unrepairable(each):
                left.append((QualifiedName(each.result.schema, each.result.table), reason))
            elif each.rows:
                tables.append(await _planned(link, level.ends, sessions, each, receiver, scope.proven))
    return Plan(link.config.name, receiver, tables, left)


def _unrepairable(found: Compared) -> str:
    """Why a table cannot be put right; empty if it can, or need not. Pure."""
    result = found.result
    if result.verdict == "identical":
        return ""
    if found.pairing is None:
        missing = "target" if result.target_rows is None else "source"
        return f"it is not on the {missing}"
    if not found.rows:
        return result.reason or "its rows could not be named"
    return ""


async def _planned(
    link: Link,
    ends: Ends,
    sessions: Sessions,
    found: Compared,
    receiver: Side,
    limit: int,
) -> TablePlan:
    pairing = found.pairing
    assert pairing is not None
    rows = found.rows[:limit]
    counts = _Counts.of(rows, receiver)
    turned = Turned(pairing.columns)
    for portion in portions([row for row in rows if row.kind == "changed"]):
        there, here = await values(sessions, pairing, portion)
        giver, receives = (there, here) if receiver == "target" else (here, there)
        for row in portion:
            if row.key in giver and row.key in receives:
                turned.note(receives[row.key].texts, giver[row.key].texts)
    with translate(ends.source):
        of_source = await questions.count(ends.source_conn, pairing.source.name)
    with translate(ends.target):
        of_target = await questions.count(ends.target_conn, pairing.target.name)
    held, given = (of_target, of_source) if receiver == "target" else (of_source, of_target)
    name = pairing.source.name
    result = found.result
    gone, come = counts.deletes, counts.inserts
    if gone:
        # a part of what is too much is too much: a little each time, by --limit or --where, takes it all
        goes, comes = (
            (result.extra, result.missing) if receiver == "target" else (result.missing, result.extra)
        )
        gone, come = max(gone, goes or 0, held - given), max(come, comes or 0)
    allowed: dict[str, int] = {}
    against = []
    for each in too_much(link.rules.of(name), held, gone, come, turned, changed=result.changed or 0):
        used: dict[str, int] = dict(allowed)
        if may_go(link, name, each.rows, used, each.kind):
            # of what was announced, that is used up which is done now
            now = min(each.rows, counts.updates if each.kind == "update" else counts.deletes)
            allowed |= {key: allowed.get(key, 0) + now for key in used if used[key] != allowed.get(key, 0)}
        else:
            against.append(each)
    every = sum(each or 0 for each in (result.missing, result.extra, result.changed))
    return TablePlan(
        pairing,
        rows,
        counts.inserts,
        counts.deletes,
        counts.updates,
        every - counts.inserts - counts.deletes - counts.updates,
        tuple(against),
        allowed,
    )


class _Counts(msgspec.Struct, frozen=True):
    inserts: int
    deletes: int
    updates: int

    @classmethod
    def of(cls, rows: Sequence[RowDifference], receiver: Side) -> _Counts:
        come = "missing" if receiver == "target" else "extra"
        inserts = sum(row.copies for row in rows if row.kind == come)
        updates = sum(row.kind == "changed" for row in rows)
        return cls(inserts, sum(row.copies for row in rows) - inserts - updates, updates)


async def statements(link: Link, plan: Plan) -> AsyncIterator[str]:
    """The plan as SQL, for psql on the receiver; values are read now, and a row that was changed since is left out.

    First what goes, then what changes, then what comes, as a unique value may change hands.
    """
    yield HEAD
    goes, comes = ("extra", "missing") if plan.receiver == "target" else ("missing", "extra")
    async with levelled(link, "repair", copies=False) as level, Sessions(level.ends.both, 1) as sessions:
        for kind in (goes, "changed", comes):
            for table in plan.tables:
                async for text in _of_table(sessions, table, plan.receiver, kind):
                    yield text + "\n"
    yield TAIL


async def _of_table(sessions: Sessions, table: TablePlan, receiver: Side, kind: str) -> AsyncIterator[str]:
    writer = Writer(table.pairing, receiver)
    for portion in portions([row for row in table.rows if row.kind == kind]):
        there, here = await values(sessions, table.pairing, portion)
        giver, received = (there, here) if receiver == "target" else (here, there)
        for row in portion:
            gives, has = sides(table.pairing, row, receiver, giver, received)
            if gives is not None or has is not None:
                for text in writer.of(row, gives.texts if gives else None, has.texts if has else None):
                    yield text


def demand_allowed(plan: Plan) -> None:
    """Raise `TooMuchLost` if the guard has something against the plan. Pure."""
    against = [(table.name, each) for table in plan.tables for each in table.too_much]
    if not against:
        return
    name, worst = against[0]
    said = "; ".join(f"table {table}: {each.sentence}" for table, each in against[:5])
    kind = " --kind update" if worst.kind == "update" else ""
    raise TooMuchLost(
        f"{said}: more than the rules allow, and nothing was changed on the {plan.receiver}",
        hint=f"was the other end wiped? if it is meant: pglockstep guard allow --table '{name}' --rows {worst.rows}"
        f"{kind} --for 10m, then the same command again",
    )


def sides(
    pairing: Pairing, row: RowDifference, receiver: Side, giver: ReadValues, received: ReadValues
) -> tuple[RowValues | None, RowValues | None]:
    """A row as the giver and as the receiver have it; of rows without a key, only on the one that has more. Pure."""
    come = "missing" if receiver == "target" else "extra"
    gives = giver.get(row.key) if pairing.key or row.kind == come else None
    has = received.get(row.key) if pairing.key or row.kind != come else None
    return gives, has


def portions(rows: Sequence[RowDifference]) -> Iterator[Sequence[RowDifference]]:
    """These rows, some at a time. Pure."""
    for start in range(0, len(rows), PORTION):
        yield rows[start : start + PORTION]
