"""Proving both ends identical, or naming what differs, while the source may be in use.

A table whose checksums agree is identical. One whose checksums differ is looked at again behind a barrier,
between two readings of the source: only a difference that stands still twice while the source does not move
is a difference; what keeps moving is inconclusive. Without anyone who applies, the target stands still by
itself, and the ends are compared as they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from pglockstep.compare import grants, large_objects, schema, views
from pglockstep.compare.checksum import Fingerprint, comparable_columns, fingerprint, stamp
from pglockstep.compare.rows import count_differences
from pglockstep.compare.sequences import SequenceBehind, behind
from pglockstep.compare.verdict import TableResult, Verdict, link_verdict
from pglockstep.copy.ends import Ends
from pglockstep.copy.selection import Selection
from pglockstep.copy.source import owned_sequences
from pglockstep.link.session import source_position
from pglockstep.postgres import catalog, sequences
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import translate, translated
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord

#: How often a table that differs is looked at again before it is called inconclusive.
_ROUNDS = 6


class LinkCheck(msgspec.Struct, frozen=True):
    """How one link's ends stood at `checked_at`; lag is None where the link was never copied."""

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


class _Pair(msgspec.Struct, frozen=True):
    """One table as both ends have it, with the columns to compare."""

    source: Table
    target: Table
    columns: tuple[str, ...]


async def verify(
    name: str,
    ends: Ends,
    selection: Selection,
    record: LinkRecord | None,
    advance: Callable[[], Awaitable[None]] | None,
) -> LinkCheck:
    """Compare both ends. `advance` brings the target to where the source is now; None if nobody applies."""
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
        target_tables = {t.name: t for t in await catalog.tables(ends.target_conn) if not skip(*t.name)}
    majors = ends.source_facts.major, ends.target_facts.major
    differences = schema.differences(source_schema, target_schema, *majors)
    results = [
        await _compare(ends, source_tables.get(each), target_tables.get(each), advance)
        for each in sorted(source_tables.keys() | target_tables.keys())
    ]
    late, settled = await _sequences_behind(ends, selection, advance)
    objects = await large_objects.compare(ends.source_conn, ends.target_conn, ends.both, advance)
    verdict = link_verdict(results, differences, late, objects)
    lag_bytes, lag_seconds = await _lag(ends, advance is not None)
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
        not_streamed=await _not_streamed(ends, selection, source_tables.values(), objects.source),
        checked_at=datetime.now(UTC),
        seconds=round(time.monotonic() - began, 3),
    )


async def _compare(
    ends: Ends, source: Table | None, target: Table | None, advance: Callable[[], Awaitable[None]] | None
) -> TableResult:
    if source is None or target is None:
        there, conn = (source, ends.source_conn) if target is None else (target, ends.target_conn)
        assert there is not None
        rows = (await _read(ends, conn, there, ())).rows
        sides = (rows, None) if target is None else (None, rows)
        return TableResult(*there.name, "different", *sides)
    pair = _Pair(source, target, comparable_columns(source, target))
    before, now = await _both(ends, pair)
    verdict: Verdict = "identical" if before == now else "different"
    if verdict == "different" and advance is not None:
        verdict, before, now = await _settle(ends, pair, advance)
    if verdict != "different":
        none = 0 if verdict == "identical" else None
        return TableResult(*source.name, verdict, before.rows, now.rows, none, none, none)
    try:
        found = await count_differences(ends.source_conn, ends.target_conn, source, target, pair.columns)
    except psycopg.Error as error:
        failed = (
            ends.target_conn.broken,
            ends.target_conn.info.transaction_status == TransactionStatus.INERROR,
        )
        raise translated(ends.target if any(failed) else ends.source, error) from error
    return TableResult(
        *source.name, "different", before.rows, now.rows, found.missing, found.extra, found.changed
    )


async def _settle(
    ends: Ends, pair: _Pair, advance: Callable[[], Awaitable[None]]
) -> tuple[Verdict, Fingerprint, Fingerprint]:
    """Look again behind barriers at a table that differed while changes may be under way."""
    seen: tuple[Fingerprint, Fingerprint] | None = None
    before = now = Fingerprint(0, 0, 0)
    for _ in range(_ROUNDS):
        stood = await _stamp(ends, ends.source_conn, pair.source)
        before = await _read(ends, ends.source_conn, pair.source, pair.columns)
        await advance()
        now = await _read(ends, ends.target_conn, pair.target, pair.columns)
        stamps = (stood, await _stamp(ends, ends.target_conn, pair.target))
        afterwards = await _read(ends, ends.source_conn, pair.source, pair.columns)
        if now in (before, afterwards):
            return "identical", now, now
        if await _stamp(ends, ends.source_conn, pair.source) != stood:
            seen = None
        elif seen == stamps:
            return "different", before, now
        else:
            seen = stamps
    return "inconclusive", before, now


async def _both(ends: Ends, pair: _Pair) -> tuple[Fingerprint, Fingerprint]:
    there, here = await asyncio.gather(
        _read(ends, ends.source_conn, pair.source, pair.columns),
        _read(ends, ends.target_conn, pair.target, pair.columns),
        return_exceptions=True,
    )
    for each in (there, here):
        if isinstance(each, BaseException):
            raise each
    assert isinstance(there, Fingerprint)
    assert isinstance(here, Fingerprint)
    return there, here


async def _read(
    ends: Ends, conn: AsyncConnection[TupleRow], table: Table, columns: Sequence[str]
) -> Fingerprint:
    with translate(ends.source if conn is ends.source_conn else ends.target):
        return await fingerprint(conn, table, columns)


async def _stamp(ends: Ends, conn: AsyncConnection[TupleRow], table: Table) -> Fingerprint:
    """Equal for two readings only if no row was written between them: content alone can change and change back."""
    with translate(ends.source if conn is ends.source_conn else ends.target):
        return await stamp(conn, table)


async def _sequences_behind(
    ends: Ends, selection: Selection, advance: Callable[[], Awaitable[None]] | None
) -> tuple[list[SequenceBehind], bool]:
    """The target's sequences that are behind the source's, and whether that could be settled.

    A barrier carries them. One that a TRUNCATE … RESTART IDENTITY sets back meanwhile is neither here nor there:
    only what is behind twice, while the source's stands still, is behind.
    """
    suspects: set[SequenceBehind] = set()
    for _ in range(_ROUNDS):
        there = await _source_sequences(ends, selection)
        if advance is not None:
            await advance()
        with translate(ends.target):
            late = behind(there, await sequences.read(ends.target_conn))
        if not late or advance is None:
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
