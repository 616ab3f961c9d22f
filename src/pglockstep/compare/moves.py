"""What makes a target's table what the source's is: rows that go, rows that change, rows that come, in bounded memory.

Both ends stand still meanwhile: the source by a snapshot, the target because nobody applies. A row that goes names the
target's row as it is, one that comes has a key that the target lacks by then. All that goes does so first: a unique value
that changes hands is free when its new row comes. A row that takes such a value over goes and comes again; a key is never
updated. A table that differs in little is looked at once; in much, once for what goes, what changes, and what comes each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import pairwise

import msgspec

from pglockstep.compare.content import base_name
from pglockstep.compare.pairing import Pairing, RowDifference, RowKey, Server, comparable_columns
from pglockstep.compare.ranges import Range, is_ordered
from pglockstep.compare.readings import Sums
from pglockstep.compare.sessions import both
from pglockstep.compare.suspects import Reading, difference
from pglockstep.compare.texts import Texts
from pglockstep.postgres.catalog import Table
from pglockstep.wal.messages import Delete, Insert, Relation, RelationColumn, Row, Update

Change = Insert | Update | Delete

#: Up to so many rows are read at once, row by row; about so many are a part of a range; so many are fetched by their keys.
_ROWS = 20_000
_PART = 64
_KEYS = 2_000
#: If more than this share of a range lies in parts that differ, all of it is read, once.
_MUCH = 0.2
#: So many differences of a table are kept from what goes to what comes.
_KEPT = 20_000

#: Types of which two values that are equal are written alike.
_WRITTEN_ALIKE = {
    "smallint", "integer", "bigint", "oid", "boolean", "uuid", "date", "bytea", "timestamp without time zone",
    "timestamp with time zone",
}  # fmt: skip


class Unique(msgspec.Struct, frozen=True):
    """What else than its key must be unique in a table: columns, or `whatever` the row says."""

    columns: tuple[tuple[str, ...], ...] = ()
    whatever: bool = False


class Differing(msgspec.Struct, frozen=True):
    """A range, and what it sums up to on the source and on the target."""

    range: Range
    source: Sums
    target: Sums


def carried(source: Table, target: Table, servers: Sequence[Server]) -> Pairing:
    """The pairing of two tables by what of them travels: no generated column does, it follows from the others."""
    both_have = comparable_columns(source, target)
    columns = tuple(each.name for each in source.data_columns if each.name in both_have)
    found = Pairing.of(source, target, servers, columns=columns)
    return found if set(found.key) <= set(columns) else msgspec.structs.replace(found, key=())


def described(pairing: Pairing) -> Relation:
    """The table as the messages speak of it: known by its key, or else by the whole row. Pure."""
    source = pairing.source
    columns = tuple(
        RelationColumn(
            each.name, each.type_oid, each.type_modifier, not pairing.key or each.name in pairing.key
        )
        for each in source.data_columns
    )
    return Relation(source.oid, *source.name, "d" if pairing.key else "f", columns)


class Moves:
    """The changes of one table; `there` and `here` read it on the source and on the target."""

    def __init__(self, pairing: Pairing, unique: Unique) -> None:
        self._pairing = pairing
        self._oid = pairing.source.oid
        self._place = {name: index for index, name in enumerate(pairing.columns)}
        self._unique = [
            [self._place[name] for name in group if name in self._place] for group in unique.columns
        ]
        self._whatever = unique.whatever
        self._kept: list[tuple[Differing, list[RowDifference]]] | None = []
        self._count = 0
        self._ordered = is_ordered((pairing.source, pairing.target), pairing.key)
        key_types = [base_name(each) for side in ("source", "target") for each in pairing.key_columns(side)]
        #: whether nothing of what comes can be in the way of what goes, or the other way round
        self.at_once = bool(
            pairing.key and not unique.columns and not unique.whatever and set(key_types) <= _WRITTEN_ALIKE
        )

    async def going(self, where: Differing, there: Texts, here: Texts) -> AsyncGenerator[list[Change]]:
        """What goes in a range; and what comes there, too, if that may be `at_once`."""
        if not where.source.rows:
            async with aclosing(self._emptied(where, here)) as changes:
                async for some in changes:
                    yield some
            return
        if not where.target.rows:
            if self.at_once:
                async with aclosing(self._filled(where, there)) as changes:
                    async for some in changes:
                        yield some
            return
        found: list[RowDifference] = []
        async with aclosing(_differences(where, there, here, ordered=self._ordered)) as groups:
            async for rows in groups:
                self._count += len(rows)
                for start in range(0, len(rows), _KEYS):
                    portion = rows[start : start + _KEYS]
                    yield await self._gone(portion, there, here)
                    if self.at_once:
                        yield await self._changed(portion, there, here)
                        yield await self._come(portion, there, here)
                if self._count > _KEPT or self.at_once:
                    self._kept = None
                elif self._kept is not None:
                    found += rows
        if self._kept is not None:
            self._kept.append((where, found))

    async def changing(self, where: Differing, there: Texts, here: Texts) -> AsyncGenerator[list[Change]]:
        """What changes in a range, once all has gone that was to go."""
        if not self.at_once and where.source.rows and where.target.rows:
            async with aclosing(self._portions(where, there, here)) as portions:
                async for some in portions:
                    yield await self._changed(some, there, here)

    async def coming(self, where: Differing, there: Texts, here: Texts) -> AsyncGenerator[list[Change]]:
        """What comes in a range, once all has changed that was to change."""
        if self.at_once or not where.source.rows:
            return
        if not where.target.rows:
            async with aclosing(self._filled(where, there)) as changes:
                async for rows in changes:
                    yield rows
            return
        async with aclosing(self._portions(where, there, here)) as portions:
            async for some in portions:
                yield await self._come(some, there, here)

    async def _portions(
        self, where: Differing, there: Texts, here: Texts
    ) -> AsyncGenerator[list[RowDifference]]:
        """The rows in which a range differs once more, as kept or as read anew."""
        if self._kept is not None:
            for rows in [rows for each, rows in self._kept if each is where]:
                for start in range(0, len(rows), _KEYS):
                    yield rows[start : start + _KEYS]
            return
        async with aclosing(_differences(where, there, here, ordered=self._ordered)) as groups:
            async for rows in groups:
                for start in range(0, len(rows), _KEYS):
                    yield rows[start : start + _KEYS]

    async def _emptied(self, where: Differing, here: Texts) -> AsyncGenerator[list[Change]]:
        if self._pairing.key:
            async with aclosing(here.keys(where.range)) as some_keys:
                async for keys in some_keys:
                    yield [self._without(key) for key in keys]
            return
        async with aclosing(here.all(where.range)) as some_rows:
            async for rows in some_rows:
                yield [Delete(self._oid, row, False) for row in rows]

    async def _filled(self, where: Differing, there: Texts) -> AsyncGenerator[list[Change]]:
        async with aclosing(there.all(where.range)) as some_rows:
            async for rows in some_rows:
                yield [Insert(self._oid, row) for row in rows]

    async def _gone(self, rows: Sequence[RowDifference], there: Texts, here: Texts) -> list[Change]:
        extra = [each for each in rows if each.kind == "extra"]
        if self._pairing.key:
            moved = await self._moved(rows, there, here)
            return [self._without(each.key) for each in (*extra, *moved)]
        old = await here.of([each.key for each in extra])
        return [
            Delete(self._oid, old[each.key], False)
            for each in extra
            if each.key in old
            for _ in range(each.copies)
        ]

    async def _changed(self, rows: Sequence[RowDifference], there: Texts, here: Texts) -> list[Change]:
        changed = [each.key for each in rows if each.kind == "changed"]
        moved = {each.key for each in await self._moved(rows, there, here)}
        new = await there.of(changed)
        return [Update(self._oid, new[key]) for key in changed if key in new and key not in moved]

    async def _come(self, rows: Sequence[RowDifference], there: Texts, here: Texts) -> list[Change]:
        coming = [each for each in rows if each.kind == "missing"]
        coming += await self._moved(rows, there, here)
        new = await there.of([each.key for each in coming])
        return [
            Insert(self._oid, new[each.key]) for each in coming if each.key in new for _ in range(each.copies)
        ]

    async def _moved(self, rows: Sequence[RowDifference], there: Texts, here: Texts) -> list[RowDifference]:
        """The changed rows that take a unique value which may be another row's still."""
        changed = [each for each in rows if each.kind == "changed"]
        if self._whatever or not self._unique or not changed:
            return changed if self._whatever else []
        keys = [each.key for each in changed]
        new, old = await both(there.of(keys), here.of(keys))
        return [
            each
            for each in changed
            if each.key in new and each.key in old and self._takes(new[each.key], old[each.key])
        ]

    def _takes(self, new: Row, old: Row) -> bool:
        for group in self._unique:
            values = [new[index] for index in group]
            if None not in values and values != [old[index] for index in group]:
                return True
        return False

    def _without(self, key: RowKey) -> Delete:
        old: list[bytes | None] = [None] * len(self._pairing.columns)
        for name, value in zip(self._pairing.key, key, strict=True):
            old[self._place[name]] = str(value).encode()
        return Delete(self._oid, tuple(old), True)


async def _differences(
    where: Differing, there: Texts, here: Texts, *, ordered: bool
) -> AsyncGenerator[list[RowDifference]]:
    """The rows in which a range differs, so many at a time as are read at once; `ordered`: it can be cut by the key."""
    within, rows = where.range, max(where.source.rows, where.target.rows)
    parts = 1 if rows <= _ROWS // 4 else 1 << (rows // _PART).bit_length()
    groups = [[0]] if parts == 1 else await _grouped(there, here, within, parts)
    if ordered and len(groups) > max(1.0, _MUCH * rows / _ROWS):
        marks = await both(there.marks(within, _ROWS), here.marks(within, _ROWS))
        cuts = await there.sorted({key for keys in marks for key in keys})
        ends = [within.low, *dict.fromkeys(cuts), within.high]
        for piece in (Range(low, high) for low, high in pairwise(ends) if low is None or low != high):
            if found := _differing(*await both(there.rows(piece, 1, [0]), here.rows(piece, 1, [0]))):
                yield found
        return
    for chosen in groups:
        if found := _differing(
            *await both(there.rows(within, parts, chosen), here.rows(within, parts, chosen))
        ):
            yield found


async def _grouped(there: Texts, here: Texts, within: Range, parts: int) -> list[list[int]]:
    """The parts of a range that differ, grouped so that the rows of a group can be read at once."""
    ones, others = await both(there.parts(within, parts), here.parts(within, parts))
    groups: list[list[int]] = []
    size = _ROWS
    for part in sorted(ones.keys() | others.keys()):
        one, other = ones.get(part), others.get(part)
        if one == other:
            continue
        held = max(each.rows for each in (one, other) if each is not None)
        if size + held > _ROWS:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += held
    return groups


def _differing(source: Reading, target: Reading) -> list[RowDifference]:
    found = (difference(key, source.get(key), target.get(key)) for key in source.keys() | target.keys())
    return [each for each in found if each is not None]
