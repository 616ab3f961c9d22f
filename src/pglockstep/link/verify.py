"""Proving both ends identical, or naming what differs, while both are in use.

A table is compared by `compare.table`; what takes time on one is no matter for the others. A table that could not be read, or
whose rows never stood still, is inconclusive and says why. Without anyone who applies, the target stands still by itself, and
the ends are compared as they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Literal

import msgspec

from pglockstep.compare import grants, large_objects, schema, views
from pglockstep.compare.pace import UNHURRIED, Pace
from pglockstep.compare.pairing import Pairing, RowDifference, Server
from pglockstep.compare.sequences import SequenceBehind, behind
from pglockstep.compare.sessions import Sessions
from pglockstep.compare.table import PROVEN, Found, Moments, compare
from pglockstep.compare.verdict import TableResult, Verdict, link_verdict
from pglockstep.copy.ends import Ends
from pglockstep.copy.selection import Selection
from pglockstep.copy.source import owned_sequences
from pglockstep.errors import Inconclusive, UsageProblem, first_of
from pglockstep.findings import listed
from pglockstep.guard import questions
from pglockstep.link.session import source_position
from pglockstep.postgres import catalog, sequences
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import target as progress

#: How often a sequence that is behind is looked at again before that is called inconclusive.
_ROUNDS = 6


class Scope(msgspec.Struct, frozen=True):
    """What is compared: these `tables`, or all that the link carries if there are none; rows of which `where` is true.

    So many rows of a table that differ are `proven` and kept. `jobs` tables or chunks are read at once, at this `pace`. `fast`:
    by values, as `Pairing` says. `polled`: the source is, so that unlogged tables follow as well.
    """

    tables: Collection[QualifiedName] = frozenset()
    where: str = ""
    proven: int = PROVEN
    jobs: int = 2
    pace: Pace = UNHURRIED
    fast: bool = False
    polled: bool = False


class LinkCheck(msgspec.Struct, frozen=True):
    """How one link's ends stood at `checked_at`; lag is None where the link was never copied.

    `tier`: in the fast one what is identical is so by its values: 1.0 and 1.00 are one, and so are 0 and -0.
    """

    name: str
    verdict: Verdict
    lag_bytes: int | None
    lag_seconds: float | None
    tables: list[TableResult]
    schema_differences: list[schema.SchemaDifference]
    sequences_behind: list[SequenceBehind]
    grants_different: list[schema.SchemaDifference]
    large_objects: large_objects.LargeObjects
    not_populated: list[str]
    not_streamed: list[str]
    checked_at: datetime
    seconds: float
    tier: Literal["exact", "fast"] = "exact"


class Compared(msgspec.Struct, frozen=True):
    """One table, and what came of it; `pairing` is None where the table is on one end only."""

    result: TableResult
    pairing: Pairing | None = None
    rows: tuple[RowDifference, ...] = ()


async def verify(
    name: str, ends: Ends, selection: Selection, moments: Moments | None, scope: Scope
) -> LinkCheck:
    """Compare both ends; `moments` brings them to one point, None if nobody applies. Raises the ends' errors."""
    began = time.monotonic()

    def skip(table_schema: str, table_name: str) -> bool:
        return not selection.carries(table_schema, table_name)

    with translate(ends.source):
        source_schema = await schema.read(ends.source_conn, skip)
        source_grants = await grants.read(ends.source_conn, skip)
        source_tables = {t.name: t for t in await catalog.tables(ends.source_conn) if not skip(*t.name)}
    with translate(ends.target):
        target_schema = await schema.read(ends.target_conn, skip)
        target_grants = await grants.read(ends.target_conn, skip)
    majors = ends.source_facts.major, ends.target_facts.major
    differences = schema.differences(source_schema, target_schema, *majors)
    results = [each.result for each in await compared(ends, selection, moments, scope)]
    late, settled = await _sequences_behind(ends, selection, moments)
    advance = None if moments is None else moments.advance
    objects = await large_objects.compare(ends.source_conn, ends.target_conn, ends.both, advance)
    verdict = link_verdict(results, differences, late, objects)
    lag_bytes, lag_seconds = await _lag(ends, moments is not None)
    return LinkCheck(
        name=name,
        verdict=verdict if settled or verdict != "identical" else "inconclusive",
        lag_bytes=lag_bytes,
        lag_seconds=lag_seconds,
        tables=results,
        schema_differences=list(differences),
        sequences_behind=list(late),
        grants_different=grants.differences(source_grants, target_grants, *majors, differences),
        large_objects=objects,
        not_populated=[
            f"materialized view {view}"
            for view in await views.not_populated(ends.source_conn, ends.target_conn, ends.both)
            if not skip(*view)
        ],
        not_streamed=await _not_streamed(
            ends, selection, () if scope.polled else source_tables.values(), objects.source
        ),
        checked_at=datetime.now(UTC),
        seconds=round(time.monotonic() - began, 3),
        tier="fast" if scope.fast else "exact",
    )


async def compared(ends: Ends, selection: Selection, moments: Moments | None, scope: Scope) -> list[Compared]:
    """Compare the rows of every table in `scope`, sorted by name; tables of one end only are among them."""
    tables: list[dict[QualifiedName, Table]] = []
    for end, conn in zip(ends.both, (ends.source_conn, ends.target_conn), strict=True):
        with translate(end):
            tables.append({t.name: t for t in await catalog.tables(conn) if selection.carries(*t.name)})
    _demand_carried(scope.tables, tables[0].keys() | tables[1].keys())
    there, here = ({name: each[name] for name in scope.tables or each if name in each} for each in tables)
    servers = [Server.of(conn) for conn in (ends.source_conn, ends.target_conn)]
    found: dict[QualifiedName, Compared] = {}
    names = iter(sorted(there.keys() | here.keys()))

    async def work(sessions: Sessions) -> None:
        for name in names:
            source, target = there.get(name), here.get(name)
            if source is None or target is None:
                found[name] = await _on_one_end(ends, source, target)
            else:
                pairing = Pairing.of(source, target, servers, scope.where, fast=scope.fast)
                found[name] = await _of_both(pairing, sessions, moments, scope.proven)

    async with Sessions(ends.both, scope.jobs, scope.pace) as sessions:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(scope.jobs):
                    group.create_task(work(sessions))
        except BaseExceptionGroup as failures:
            raise first_of(failures) from failures
    return [found[name] for name in sorted(found)]


def _demand_carried(wanted: Iterable[QualifiedName], carried: Collection[QualifiedName]) -> None:
    """Raise `UsageProblem` for a table that the link does not carry."""
    for name in sorted(wanted):
        if name not in carried:
            close = sorted(each for each in carried if each.name.lower() == name.name.lower())
            raise UsageProblem(
                f"the link carries no table {name} that holds rows",
                hint=f"did you mean {listed(close)}?"
                if close
                else "a partitioned table is named by its partitions",
            )


async def _on_one_end(ends: Ends, source: Table | None, target: Table | None) -> Compared:
    there, end, conn = (
        (source, ends.source, ends.source_conn) if target is None else (target, ends.target, ends.target_conn)
    )
    assert there is not None
    with translate(end):
        rows = await questions.count(conn, there.name)
    sides = (rows, None) if target is None else (None, rows)
    return Compared(TableResult(*there.name, "different", *sides))


async def _of_both(pairing: Pairing, sessions: Sessions, moments: Moments | None, proven: int) -> Compared:
    name = pairing.source.name
    try:
        found = await compare(pairing, sessions, moments, proven=proven)
    except Inconclusive as error:
        return Compared(TableResult(name.schema, name.name, "inconclusive", reason=error.message), pairing)
    return Compared(_result(name, found), pairing, found.rows)


def _result(name: QualifiedName, found: Found) -> TableResult:
    verdict: Verdict = "different" if found.differs else "inconclusive" if found.reason else "identical"
    counts = (found.missing, found.extra, found.changed) if verdict != "inconclusive" else (None, None, None)
    result = TableResult(name.schema, name.name, verdict, found.source_rows, found.target_rows, *counts)
    return msgspec.structs.replace(result, reason=found.reason) if found.reason else result


async def _sequences_behind(
    ends: Ends, selection: Selection, moments: Moments | None
) -> tuple[list[SequenceBehind], bool]:
    """The target's sequences that are behind the source's, and whether that could be settled.

    A barrier carries them. One that a TRUNCATE … RESTART IDENTITY sets back meanwhile is neither here nor there:
    only what is behind twice, while the source's stands still, is behind.
    """
    suspects: set[SequenceBehind] = set()
    for _ in range(_ROUNDS):
        there = await _source_sequences(ends, selection)
        if moments is not None:
            await moments.advance()
        with translate(ends.target):
            late = behind(there, await sequences.read(ends.target_conn))
        if not late or moments is None:
            return late, True
        moved = set(there) ^ set(await _source_sequences(ends, selection))
        moving = {(each.schema, each.name) for each in moved}
        late = [each for each in late if (each.schema, each.name) not in moving]
        if proven := [each for each in late if each in suspects]:
            return proven, True
        suspects = set(late)
    return [], False


async def _source_sequences(ends: Ends, selection: Selection) -> list[sequences.SequenceState]:
    """The source's sequences, but for those that belong to a table that is left out."""
    with translate(ends.source):
        table_of = dict(await owned_sequences(ends.source_conn))
        every = await sequences.read(ends.source_conn)
    return [
        each
        for each in every
        if (owner := table_of.get(QualifiedName(each.schema, each.name))) is None or selection.carries(*owner)
    ]


async def _lag(ends: Ends, advanced: bool) -> tuple[int | None, float | None]:
    with translate(ends.target):
        record = await progress.read(ends.target_conn)
    if record is None or record.progress is None:
        return None, None
    if advanced:
        return 0, 0.0
    with translate(ends.source):
        position = await source_position(ends.source_conn)
    lag_bytes = max(0, position - record.progress)
    age = datetime.now(UTC) - (record.written_at or record.created_at)
    return lag_bytes, round(max(0.0, age.total_seconds()), 3) if lag_bytes else 0.0


async def _not_streamed(ends: Ends, selection: Selection, tables: Iterable[Table], objects: int) -> list[str]:
    """What the stream cannot carry: it does not follow by itself, though it was copied if it had anything of its own."""
    with translate(ends.source):
        relations = await ends.source_conn.execute(catalog.statement("holdings"))
        silent = [
            f"{kind} {QualifiedName(schema, name)}"
            async for schema, name, kind in relations
            if kind in ("materialized view", "foreign table") and selection.carries(schema, name)
        ]
    found = [f"unlogged table {table.name}" for table in tables if table.unlogged] + silent
    if objects:
        found.append(f"{objects} large objects")
    return found
