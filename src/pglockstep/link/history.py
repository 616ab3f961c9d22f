"""What a link's journal tells: how much there is, whether it is sound, and what happened in a transaction.

Reads the files alone: neither end is asked, and a daemon that writes them is not disturbed. However large a transaction
is, no more of it is held than its counts and the few changes that were asked for.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from pglockstep.errors import JournalDamaged, NotInJournal
from pglockstep.journal import blocks, inspection, reader
from pglockstep.journal import folder as place
from pglockstep.journal.folder import Room, usable
from pglockstep.journal.inspection import SegmentCheck, SegmentFacts, Spot
from pglockstep.link.link import Link
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.messages import UNCHANGED, Delete, Insert, Relation, Row, Truncate, Unchanged, Update
from pglockstep.wal.pgoutput import decode

#: What is shown of a value, in characters.
_SHOWN = 1000

Operation = Literal["insert", "update", "delete", "truncate"]
_OPERATIONS: dict[int, Operation] = {ord("I"): "insert", ord("U"): "update", ord("D"): "delete"}
_BEGIN, _COMMIT, _RELATION, _TRUNCATE = b"BCRT"


class JournalInfo(msgspec.Struct):
    """What there is. `extent`: from where up to where there is no gap; `room`: the file system, if it can be asked.

    `damage` is what was seen of it in passing, in a sentence; `verify` looks for all of it.
    """

    name: str
    link_id: str
    folder: Path
    extent: tuple[Lsn, Lsn] | None
    segments: list[SegmentFacts]
    room: Room | None
    damage: str = ""


class JournalCheck(msgspec.Struct):
    """Every segment with its damage."""

    name: str
    folder: Path
    segments: list[SegmentCheck]

    @property
    def sound(self) -> bool:
        """Whether there is no damage."""
        return not any(each.damage for each in self.segments)

    @property
    def gaps(self) -> list[tuple[SegmentCheck, SegmentCheck]]:
        """The segments before and behind each gap."""
        return [(before, each) for before, each in pairwise(self.segments) if each.after_gap]


class Value(msgspec.Struct, frozen=True):
    """A column and its value as text; None is NULL."""

    column: str
    value: str | None


class Change(msgspec.Struct, frozen=True):
    """One change. `key` tells which row, by its whole old row where there is no key; `new_key` if that was changed."""

    op: Operation
    table: QualifiedName
    key: tuple[Value, ...] = ()
    new_key: tuple[Value, ...] | None = None


class Transaction(msgspec.Struct):
    """A transaction: its commit record stands from `lsn` to `end_lsn`; `counts` by table and operation."""

    xid: int
    lsn: Lsn
    committed_at: datetime
    end_lsn: Lsn = Lsn(0)
    size: int = 0
    counts: dict[QualifiedName, Counter[Operation]] = msgspec.field(default_factory=dict)
    changes: list[Change] = msgspec.field(default_factory=list)

    @property
    def total(self) -> int:
        """How many changes there are."""
        return sum(count.total() for count in self.counts.values())


class Shown(msgspec.Struct):
    """The transactions that were asked for, in commit order; each with up to `limit` changes, None if with none."""

    name: str
    transactions: list[Transaction]
    limit: int | None


class Choice(msgspec.Struct, frozen=True):
    """Which transactions: that of `xid`, or that of `lsn`, or the `last` so many; `limit` changes of each, None: none."""

    xid: int | None = None
    lsn: Lsn | None = None
    last: int = 20
    limit: int | None = None


async def info(link: Link) -> JournalInfo:
    """What there is of a link's journal. Raises `NotInJournal` if there is none."""
    folder = folder_of(link)
    found = JournalInfo(link.config.name, link.standing.link_id, folder, None, [], place.room(folder))
    with usable(folder):
        for each in inspection.facts(folder):
            found.segments.append(each)
            await asyncio.sleep(0)
        try:
            found.extent = reader.extent(folder)
        except JournalDamaged as error:
            found.damage = error.message
    for each in found.segments[:-1]:
        if each.unfinished and not found.damage:
            found.damage = f"segment {each.file.path} is damaged"
    return found


async def verify(link: Link) -> JournalCheck:
    """Try every checksum of a link's journal. Raises `NotInJournal` if there is none."""
    folder = folder_of(link)
    found = []
    with usable(folder):
        for each in inspection.checked(folder):
            found.append(each)
            await asyncio.sleep(0)
    return JournalCheck(link.config.name, folder, found)


async def show(link: Link, choice: Choice) -> Shown:
    """Transactions of a link's journal. Raises `NotInJournal` where it does not have them."""
    folder = folder_of(link)
    with usable(folder):
        if choice.xid is not None:
            found = await _of_xid(folder, choice.xid, choice.limit)
        elif choice.lsn is not None:
            found = await _at(folder, choice.lsn, choice.limit)
        else:
            found = await _last(folder, choice.last, choice.limit)
    return Shown(link.config.name, found, choice.limit)


def folder_of(link: Link) -> Path:
    """Where a link's journal is; raises `NotInJournal` if this machine knows of none."""
    link_id = link.standing.link_id
    folder = link.state.journal(link_id) if link_id else None
    if folder is None or not folder.is_dir():
        raise NotInJournal(
            f"link {link.config.name!r} has no journal in this state directory",
            hint="pglockstep once or run makes it; is state_dir the one that they use?",
        )
    return folder


# --- which transactions ----------------------------------------------------------------------------


async def _last(folder: Path, count: int, limit: int | None) -> list[Transaction]:
    """The newest transactions, in commit order."""
    found: list[Transaction] = []
    for stretch in inspection.stretches(folder):
        missing = count - len(found)
        # each has one transaction at least
        spots = deque(inspection.spots(stretch), maxlen=missing)
        if spots:
            newest: deque[Transaction] = deque(maxlen=missing)
            async for each in _told(folder, spots[0], spots[-1], lambda _: True, limit):
                newest.append(each)
            found = [*newest, *found]
        if len(found) >= count:
            break
    return found


async def _of_xid(folder: Path, xid: int, limit: int | None) -> list[Transaction]:
    """The newest transaction of that number."""
    for stretch in inspection.stretches(folder):
        first, last = None, None
        for spot in inspection.spots(stretch):
            first, last = first or spot, spot
        if first is not None and last is not None:
            told = _told(folder, first, last, lambda its: its == xid, limit)
            if found := [each async for each in told]:
                return found[-1:]
    raise NotInJournal(
        f"no transaction {xid} is in the journal",
        hint="pglockstep journal info tells from when on it has them; a subtransaction goes by its transaction's number",
    )


async def _at(folder: Path, lsn: Lsn, limit: int | None) -> list[Transaction]:
    """The transaction whose commit record has `lsn` in it, or else the first one after it."""
    following: Spot | None = None
    for stretch in inspection.stretches(folder):
        spot = next((each for each in inspection.spots(stretch) if each.end > lsn), None)
        following = spot or following
        if stretch[0].start > lsn:
            continue
        if following is None:
            break
        async for each in _told(folder, following, following, lambda _: True, limit):
            if each.end_lsn > lsn:
                return [each]
    extent = reader.extent(folder)
    if extent is None:
        said = "the journal holds nothing yet"
    elif lsn < extent[0]:
        said = f"the journal begins at {extent[0]} only"
    else:
        said = f"no transaction was committed at {lsn} or later: the journal ends at {extent[1]}"
    raise NotInJournal(
        said, hint="pglockstep journal info tells what there is, pglockstep journal show has the last ones"
    )


async def _told(
    folder: Path, first: Spot, last: Spot, wanted: Callable[[int], bool], limit: int | None
) -> AsyncIterator[Transaction]:
    """The transactions from one spot to another, those of a wanted xid."""
    teller = Teller(wanted, limit)
    for messages in inspection.read(folder, first.start, last.until):
        for each in teller.feed(messages):
            yield each
        await asyncio.sleep(0)


# --- what happened in them -------------------------------------------------------------------------


class Teller:
    """Makes transactions of the messages of a journal; those of an xid that is not `wanted` are passed over. Pure."""

    def __init__(self, wanted: Callable[[int], bool], limit: int | None) -> None:
        self._wanted = wanted
        self._limit = limit
        self._relations: dict[bytes, Relation] = {}
        self._current: Transaction | None = None
        self._counts: Counter[tuple[Operation, bytes]] = Counter()

    def feed(self, messages: Iterable[bytes]) -> Iterator[Transaction]:
        """Take messages in order; hand out the transactions that are complete."""
        for message in messages:
            kind = message[0]
            if kind == _RELATION:
                self._relations[message[1:5]] = _relation(message)
            elif kind == _BEGIN:
                lsn, time, xid = blocks.begins(message)
                if self._wanted(xid):
                    self._current = Transaction(xid, Lsn(lsn), inspection.time_of(time))
            if self._current is None:
                continue
            self._current.size += len(message)
            if kind in _OPERATIONS:
                oid = message[1:5]
                self._counts[_OPERATIONS[kind], oid] += 1
                if self._has_room():
                    change = _change(message, self._name(oid), self._relations.get(oid))
                    self._current.changes.append(change)
            elif kind == _TRUNCATE:
                self._truncated(message)
            elif kind == _COMMIT:
                yield self._ended(self._current, message)

    def _has_room(self) -> bool:
        return self._current is not None and len(self._current.changes) < (self._limit or 0)

    def _name(self, oid: bytes) -> QualifiedName:
        found = self._relations.get(oid)
        if found is None:
            return QualifiedName("", f"the table with OID {int.from_bytes(oid, 'big')}")
        return QualifiedName(found.schema, found.name)

    def _truncated(self, message: bytes) -> None:
        truncate = decode(message)
        assert isinstance(truncate, Truncate)
        assert self._current is not None
        for each in truncate.relation_ids:
            oid = each.to_bytes(4, "big")
            self._counts["truncate", oid] += 1
            if self._has_room():
                self._current.changes.append(Change("truncate", self._name(oid)))

    def _ended(self, done: Transaction, message: bytes) -> Transaction:
        end, _ = blocks.ends(message)
        done.end_lsn = Lsn(end)
        found = sorted(
            (self._name(oid), operation, count) for (operation, oid), count in self._counts.items()
        )
        for name, operation, count in found:
            done.counts.setdefault(name, Counter())[operation] += count
        self._counts.clear()
        self._current = None
        return done


def _relation(message: bytes) -> Relation:
    found = decode(message)
    assert isinstance(found, Relation)
    return found


def _change(message: bytes, name: QualifiedName, relation: Relation | None) -> Change:
    change = decode(message)
    operation = _OPERATIONS[message[0]]
    if relation is None:
        return Change(operation, name)
    if isinstance(change, Insert):
        return Change(operation, name, _key(relation, change.new))
    if isinstance(change, Delete):
        return Change(operation, name, _key(relation, change.old))
    assert isinstance(change, Update)
    new = _key(relation, change.new)
    if change.old is None:
        return Change(operation, name, new)
    return Change(operation, name, _key(relation, change.old), new if change.old_is_key else None)


def _key(relation: Relation, row: Row) -> tuple[Value, ...]:
    """The values of the columns that tell the row from others; of all columns if none do."""
    columns = [each for each in zip(relation.columns, row, strict=False) if each[0].in_key]
    return tuple(
        Value(column.name, None if value is None else _text(value))
        for column, value in columns or zip(relation.columns, row, strict=False)
    )


def _text(value: bytes | Unchanged) -> str:
    if value is UNCHANGED:
        return "(unchanged)"
    assert isinstance(value, bytes)
    text = value[: 4 * _SHOWN].decode(errors="replace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
