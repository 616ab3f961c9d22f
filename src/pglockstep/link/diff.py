"""The rows in which two ends differ, with what each says of them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import msgspec

from pglockstep.compare.pairing import Kind, Pairing, RowDifference, RowKey
from pglockstep.compare.readings import Reader, RowValues
from pglockstep.compare.sessions import Sessions, both
from pglockstep.compare.table import PROVEN
from pglockstep.compare.verdict import TableResult, Verdict, link_verdict
from pglockstep.link.level import as_it_is
from pglockstep.link.link import Link
from pglockstep.link.verify import Compared, Scope, compared

#: Rows whose values are read at once.
PORTION = 200
_NUMBER = re.compile("-?[0-9]{1,18}")


class Cell(msgspec.Struct, frozen=True):
    """A column of a row, as text; None is NULL, or nothing where there is no such row."""

    source: str | None = None
    target: str | None = None


class DiffRow(msgspec.Struct, frozen=True):
    """One row that differs: its key, and the columns that differ, all of them for a row of one end only."""

    schema: str
    table: str
    kind: Kind
    key: dict[str, str]
    columns: dict[str, Cell]
    copies: int = 1


class LinkDiff(msgspec.Struct, frozen=True):
    """What differs in a link. `truncated`: there are more rows than these."""

    name: str
    verdict: Verdict
    rows: list[DiffRow]
    truncated: bool
    tables: list[TableResult]
    checked_at: datetime


async def diff(link: Link, scope: Scope, limit: int) -> LinkDiff:
    """The rows that differ, up to `limit` of each table; beside a daemon at a barrier, else as they are. Changes nothing."""
    scope = msgspec.structs.replace(scope, jobs=link.config.jobs, proven=max(limit, PROVEN))
    async with as_it_is(link, "diff") as (ends, moments):
        found = await compared(ends, link.selection, moments, scope)
        rows: list[DiffRow] = []
        async with Sessions(ends.both, 1) as sessions:
            for each in found:
                rows += [row async for row in _rows(sessions, each, limit)]
    results = [each.result for each in found]
    shown: dict[tuple[str, str], int] = {}
    for row in rows:
        shown[row.schema, row.table] = shown.get((row.schema, row.table), 0) + row.copies
    return LinkDiff(
        link.config.name,
        link_verdict(results, [], []),
        rows,
        any(_counted(each) > shown.get((each.schema, each.table), 0) for each in results),
        results,
        datetime.now(UTC),
    )


def _counted(result: TableResult) -> int:
    return sum(each or 0 for each in (result.missing, result.extra, result.changed))


async def _rows(sessions: Sessions, found: Compared, limit: int) -> AsyncIterator[DiffRow]:
    if found.pairing is None:
        return
    name = found.pairing.source.name
    rows = sorted(found.rows, key=_order)[:limit]
    for start in range(0, len(rows), PORTION):
        portion = rows[start : start + PORTION]
        here, there = await values(sessions, found.pairing, portion)
        for row in portion:
            cells = _cells(found.pairing, row, here, there)
            if cells is not None:
                key = (
                    dict(zip(found.pairing.key, map(str, row.key), strict=False)) if found.pairing.key else {}
                )
                yield DiffRow(name.schema, name.name, row.kind, key, cells, row.copies)


def _order(row: RowDifference) -> tuple[tuple[int, int, str], ...]:
    """Numbers by their value, and before texts."""
    return tuple(
        (0, int(part), "") if isinstance(part, int) or _NUMBER.fullmatch(part) else (1, 0, part)
        for part in row.key
    )


def _cells(
    pairing: Pairing, row: RowDifference, here: dict[RowKey, RowValues], there: dict[RowKey, RowValues]
) -> dict[str, Cell] | None:
    """The columns that differ; None if the row is not any more what it was found to be."""
    source, target = here.get(row.key), there.get(row.key)
    if pairing.key and (_says(source) != row.source or _says(target) != row.target):
        return None
    if not pairing.key:
        # what says this is there too often on one end; it is shown as that end's
        source, target = (source, None) if row.kind == "missing" else (None, target)
        if source is None and target is None:
            return None
    count = len(pairing.columns)
    one = source.texts if source is not None else (None,) * count
    other = target.texts if target is not None else (None,) * count
    return {
        column: Cell(before, after)
        for column, before, after in zip(pairing.columns, one, other, strict=True)
        if row.kind != "changed" or before != after
    }


def _says(values: RowValues | None) -> tuple[int, ...] | None:
    return None if values is None else values.says


async def values(
    sessions: Sessions, pairing: Pairing, rows: Sequence[RowDifference]
) -> tuple[dict[RowKey, RowValues], dict[RowKey, RowValues]]:
    """What both ends say of these rows, as far as they are there."""
    keys = [row.key for row in rows]
    async with sessions.pair() as (source, target):
        here, there = await both(
            Reader(source, pairing).values_of(keys), Reader(target, pairing).values_of(keys)
        )
    return dict(here), dict(there)
