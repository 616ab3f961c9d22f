"""Putting just the rows right that differ, each only if it is as was seen; with a file that takes it back.

Rows of the target are written beside whoever applies: what the stream brings for a row that was repaired finds it as it would
have been, and what it brought before is seen as a change. Rows of the source are written as an application would write them, so
the stream brings them to the target as well: which therefore first gets what the source has. Both are committed when both are
done. Nothing of the application's fires on either.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psycopg

from pglockstep import failpoints
from pglockstep.compare.pairing import RowDifference, RowKey
from pglockstep.compare.readings import Place, RowValues
from pglockstep.compare.repair import Repairer
from pglockstep.compare.scripts import HEAD, TAIL, Writer
from pglockstep.compare.sessions import Sessions
from pglockstep.compare.verdict import TableResult, Verdict, link_verdict
from pglockstep.copy.ends import Ends
from pglockstep.errors import LockstepError, Side, SourceLacks, TargetLacks
from pglockstep.findings import listed
from pglockstep.guard import watch
from pglockstep.link.diff import values
from pglockstep.link.level import Level, levelled
from pglockstep.link.link import Link
from pglockstep.link.repair_plan import Plan, TablePlan, demand_allowed, portions
from pglockstep.link.verify import Scope, compared
from pglockstep.postgres import privileges
from pglockstep.postgres.connect import End, connect, translate
from pglockstep.postgres.firing import would_fire
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.privileges import Facts

#: How often the source's and the target's rows are tried to be written together, while others change them.
_TRIES = 3

#: What says that another row has a value that only one may have.
_TAKEN = (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation)

Rows = Mapping[QualifiedName, Sequence[RowDifference]]


class Repaired(msgspec.Struct, frozen=True):
    """What a repair did: rows written by table, rows left because they were changed meanwhile, and how the tables stand now."""

    done: dict[QualifiedName, int]
    left: dict[QualifiedName, int]
    undo: Path | None
    tables: list[TableResult]

    @property
    def verdict(self) -> Verdict:
        """Of the tables that were to be repaired."""
        return link_verdict(self.tables, [], [])


async def apply(link: Link, plan: Plan, undo: Path) -> Repaired:
    """Do what the plan says, each row only if both ends still say what was seen; then compare these tables again.

    `undo` is a directory for the file that takes it back. Raises `TooMuchLost`, and the ends' errors, with nothing changed.
    """
    async with levelled(link, "repair", copies=False) as level:
        return await apply_at(level, link, plan, undo)


async def apply_at(level: Level, link: Link, plan: Plan, undo: Path) -> Repaired:
    """As `apply`, with both ends at one point already."""
    demand_allowed(plan)
    written = await _write(level.ends, plan, undo)
    # what goes on the source is what the stream then brings, which is judged as all that it brings, and uses it up
    for table in plan.tables if plan.receiver == "target" else ():
        for allowance, rows in table.allowed.items():
            link.incidents.use(allowance, rows)
    # what was repaired beside the stream is counted anew when it matters
    link.gate.forget([table.name for table in plan.tables])
    await level.moments.advance()
    scope = Scope(tables=frozenset(table.name for table in plan.tables), jobs=link.config.jobs)
    now = await compared(level.ends, link.selection, level.moments, scope)
    done, left = {}, {}
    for table in plan.tables:
        keys = written.done[table.name]
        done[table.name] = sum(row.copies for row in table.rows if row.key in keys)
        left[table.name] = sum(row.copies for row in table.rows if row.key not in keys)
    return Repaired(
        done, {name: rows for name, rows in left.items() if rows}, written.undo, [each.result for each in now]
    )


class _Written(msgspec.Struct, frozen=True):
    """The rows of each table that were written, and where it says how to take that back."""

    done: Mapping[QualifiedName, set[RowKey]]
    undo: Path | None


async def _write(ends: Ends, plan: Plan, directory: Path) -> _Written:
    wanted: Rows = {table.name: table.rows for table in plan.tables}
    async with AsyncExitStack() as stack:
        sessions = await stack.enter_async_context(Sessions(ends.both, 1))
        target = await stack.enter_async_context(_writing(ends.target, ends.target_facts, plan))
        if plan.receiver == "target":
            job = _Job(plan, target, sessions)
            async with target.conn.transaction():
                await job.write(wanted)
                path = _keep(directory, plan, "target", job.undo)
                failpoints.reach("repair.commit")
            return _Written(job.done, path)
        source = await stack.enter_async_context(_writing(ends.source, ends.source_facts, plan))
        for _ in range(_TRIES):
            there, here = _Job(plan, source, sessions), _Job(plan, target, sessions)
            async with source.conn.transaction() as outer, target.conn.transaction():
                await there.write(wanted)
                wanted = _only(wanted, there.done)
                await here.write(wanted)
                if here.done != there.done:
                    # rows were changed meanwhile: those that are left are not written on either end
                    wanted = _only(wanted, here.done)
                    raise psycopg.Rollback(outer)
                path = _keep(directory, plan, "source", there.undo)
                failpoints.reach("repair.commit")
                written = _Written(there.done, path)
            if here.done == there.done:
                return written
        return _Written({table.name: set() for table in plan.tables}, None)


def _only(rows: Rows, done: Mapping[QualifiedName, set[RowKey]]) -> Rows:
    return {name: [row for row in each if row.key in done[name]] for name, each in rows.items()}


@asynccontextmanager
async def _writing(end: End, facts: Facts, plan: Plan) -> AsyncIterator[Place]:
    """A session that writes as a replica, whose writes the watch knows for ours. Raises what says that something would fire."""
    conn = await connect(end, "repair")
    try:
        with translate(end):
            if end.side == "target":
                replica = await watch.be_ours(conn)
            else:
                replica = await watch.act_as_replica(conn)
            names = {table.pairing.at(end.side).name for table in plan.tables}
            firing = [each for each in await would_fire(conn, replica=replica) if each.table in names]
        if firing:
            raise _would_fire(
                end, facts, listed(dict.fromkeys(each.table for each in firing)), replica=replica
            )
        yield Place(end, conn)
    finally:
        await conn.close()


def _would_fire(end: End, facts: Facts, tables: str, *, replica: bool) -> LockstepError:
    lacks = SourceLacks if end.side == "source" else TargetLacks
    if replica:
        return lacks(
            f"triggers of {tables} on the {end.side} are ENABLE ALWAYS or ENABLE REPLICA and would fire for repaired rows",
            hint="make them fire for ordinary writes only: ALTER TABLE … ENABLE TRIGGER …; then the same command again",
        )
    fix, where = privileges.replica_grant(facts, end.side)
    return lacks(
        f"triggers, foreign keys or rules of {tables} on the {end.side} would fire for repaired rows",
        hint=f"{fix} {where}".strip(),
    )


class _Job:
    """Writes the rows of a plan at one end, in the transaction that is open there."""

    def __init__(self, plan: Plan, place: Place, sessions: Sessions) -> None:
        self._plan = plan
        self._place = place
        self._sessions = sessions
        self.done: dict[QualifiedName, set[RowKey]] = {table.name: set() for table in plan.tables}
        #: statements that take it back, in the order in which they were done
        self.undo: list[str] = []

    async def write(self, rows: Rows) -> None:
        """Write these rows: first what goes, then what changes, then what comes, as a unique value may change hands."""
        for step in (self._delete, self._update, self._insert):
            for table in self._plan.tables:
                await step(table, rows[table.name])
        for table in self._plan.tables:
            if (constraint := await Repairer(self._place, table.pairing).taken_twice()) is not None:
                raise self._refused(
                    f"constraint {constraint} of {table.name} on the {self._side} may be deferred, and would not hold",
                    "nothing was changed; repair the rows that hold its values as well, or by hand",
                )

    @property
    def _side(self) -> Side:
        return self._place.end.side

    def _kinds(self) -> tuple[str, str]:
        """What goes at this end, and what comes."""
        return ("extra", "missing") if self._side == "target" else ("missing", "extra")

    async def _delete(self, table: TablePlan, rows: Sequence[RowDifference]) -> None:
        for portion in portions([row for row in rows if row.kind == self._kinds()[0]]):
            _, receives = await self._values(table, portion)
            known = [row for row in portion if row.key in receives]
            found = await Repairer(self._place, table.pairing).delete(known, _seen(known, self._side))
            self._note(table, known, found, {}, receives)

    async def _update(self, table: TablePlan, rows: Sequence[RowDifference]) -> None:
        clashing: list[RowDifference] = []
        for portion in portions([row for row in rows if row.kind == "changed"]):
            clashing += await self._updated(table, portion)
        await self._replace(table, clashing)

    async def _updated(self, table: TablePlan, rows: Sequence[RowDifference]) -> Sequence[RowDifference]:
        """Update these rows; those remain of which a unique value is another's that has not changed yet."""
        undo = len(self.undo)
        gives, receives = await self._values(table, rows)
        repairer = Repairer(self._place, table.pairing)
        both_have = [row for row in rows if row.key in gives and row.key in receives]
        to_replace = [
            row for row in both_have if repairer.sets_what_no_update_may(receives[row.key], gives[row.key])
        ]
        known = [
            row
            for row in both_have
            if not repairer.sets_what_no_update_may(receives[row.key], gives[row.key])
        ]
        try:
            async with self._place.conn.transaction():
                found = await repairer.update(known, gives)
        except LockstepError as error:
            if not isinstance(error.__cause__, _TAKEN):
                raise
            del self.undo[undo:]
            if len(rows) == 1:
                return rows
            half = len(rows) // 2
            return [*await self._updated(table, rows[:half]), *await self._updated(table, rows[half:])]
        self._note(table, known, found, gives, receives)
        return to_replace

    async def _replace(self, table: TablePlan, rows: Sequence[RowDifference]) -> None:
        """Take rows away whose unique values change hands, and put them back with new ones; raises if another row has one."""
        gone: list[tuple[RowDifference, RowValues]] = []
        for portion in portions(rows):
            gives, receives = await self._values(table, portion)
            known = [row for row in portion if row.key in gives and row.key in receives]
            found = await Repairer(self._place, table.pairing).delete(known, {})
            self._note(table, known, found, {}, receives)
            gone += [(row, gives[row.key]) for row in known if row.key in found]
        gives = {row.key: said for row, said in gone}
        for portion in portions([row for row, _ in gone]):
            found = await Repairer(self._place, table.pairing).insert(portion, gives, {})
            self._note(table, portion, found, gives, {})
            if len(found) < len(portion):
                raise self._refused(
                    f"rows of {table.name} on the {self._side} hold unique values that its repaired rows need",
                    "nothing was changed; repair the rows that hold them as well, or by hand",
                )

    def _refused(self, message: str, hint: str) -> LockstepError:
        return (SourceLacks if self._side == "source" else TargetLacks)(message, hint=hint)

    async def _insert(self, table: TablePlan, rows: Sequence[RowDifference]) -> None:
        for portion in portions([row for row in rows if row.kind == self._kinds()[1]]):
            gives, _ = await self._values(table, portion)
            known = [row for row in portion if row.key in gives]
            found = await Repairer(self._place, table.pairing).insert(known, gives, _seen(known, self._side))
            self._note(table, known, found, gives, {})

    async def _values(
        self, table: TablePlan, rows: Sequence[RowDifference]
    ) -> tuple[dict[RowKey, RowValues], dict[RowKey, RowValues]]:
        """What the other end and this one say of those rows of which they still say what was seen."""
        there, here = await values(self._sessions, table.pairing, rows)
        if table.pairing.key:
            there = {
                row.key: there[row.key]
                for row in rows
                if row.key in there and there[row.key].says == row.source
            }
            here = {
                row.key: here[row.key] for row in rows if row.key in here and here[row.key].says == row.target
            }
        return (there, here) if self._side == "target" else (here, there)

    def _note(
        self,
        table: TablePlan,
        rows: Sequence[RowDifference],
        found: set[RowKey],
        gives: Mapping[RowKey, RowValues],
        receives: Mapping[RowKey, RowValues],
    ) -> None:
        """These rows were written: `gives` is what they say now, `receives` what they said."""
        writer = Writer(table.pairing, self._side)
        for row in rows:
            if row.key not in found:
                continue
            self.done[table.name].add(row.key)
            now = gives[row.key].texts if row.key in gives else None
            before = receives[row.key].texts if row.key in receives else None
            # what makes the row of now what it was before
            self.undo += writer.of(row, before, now)


def _seen(rows: Sequence[RowDifference], side: Side) -> dict[RowKey, int]:
    """How many rows of each kind there were at that end, for rows without a key. Pure."""
    said = {row.key: row.source if side == "source" else row.target for row in rows}
    return {key: says[0] if says else 0 for key, says in said.items()}


def _keep(directory: Path, plan: Plan, side: Side, statements: Sequence[str]) -> Path | None:
    """Write down, on the disk before the commit, how to take back what was done; the last of it first."""
    if not statements:
        return None
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{plan.link}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{side}.sql"
    head = f"-- Takes back what pglockstep repair did on the {side} of link {plan.link}: run it there with psql.\n"
    if side == "target":
        head += "-- While a daemon keeps this link, it takes these rows for somebody else's writes and puts them back.\n"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(head + HEAD)
        file.writelines(f"{statement}\n" for statement in reversed(statements))
        file.write(TAIL)
        file.flush()
        os.fsync(file.fileno())
    return path
