"""Transactions as a source would send them, and journals to put them into."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from pglockstep.journal.follower import Follower
from pglockstep.journal.journal import Journal, Limits
from pglockstep.units import Lsn
from pglockstep.wal.encode import encode
from pglockstep.wal.messages import Begin, Commit, Insert, Relation, RelationColumn
from pglockstep.wal.pgoutput import decode

#: Small segments, so that a journal has several of them.
SMALL = Limits(segment_size=4096, keep_size=0, keep_age=0)


def relation(oid: int) -> bytes:
    """The description of a table with one column."""
    return encode(Relation(oid, "public", f"t{oid}", "d", (RelationColumn("v", 25, -1, True),)))


def transaction(number: int, *, rows: int = 1, size: int = 20, describe: int = 0) -> list[bytes]:
    """The messages of the `number`-th transaction; its commit starts at `number` * 100 and ends where the next one's starts."""
    begin = encode(Begin(number * 100, number, number))
    changes = [encode(Insert(1, (b"%d-%d" % (number, row) + b"x" * size,))) for row in range(rows)]
    described = [relation(describe)] if describe else []
    return [begin, *described, *changes, encode(Commit(number * 100, (number + 1) * 100, number))]


def numbers(messages: Sequence[bytes]) -> list[int]:
    """The numbers of the transactions that end in `messages`, and none of which may be cut short or mixed up."""
    found = []
    begun: int | None = None
    for message in map(decode, messages):
        if isinstance(message, Begin):
            assert begun is None, "a transaction begins inside another"
            begun = message.xid
        elif isinstance(message, Commit):
            assert begun == message.commit_lsn // 100, "a transaction ends that did not begin"
            found.append(begun)
            begun = None
        elif isinstance(message, Insert):
            assert isinstance(message.new[0], bytes)
            assert begun == int(message.new[0].split(b"-")[0]), "a row of another transaction"
    assert begun is None, "a transaction does not end"
    return found


@asynccontextmanager
async def running(folder: Path, limits: Limits = SMALL, *, begin: int = 100) -> AsyncIterator[Journal]:
    """An open journal whose writer runs; an empty one begins at `begin`."""
    journal = await Journal.open(folder, "0123456789ab", "1/2", limits)
    task = asyncio.create_task(journal.run())
    try:
        if await journal.extent() is None:
            await journal.begin_at(Lsn(begin))
        yield journal
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await journal.close()


def written(folder: Path, count: int, *, limits: Limits = SMALL, rows: int = 1) -> None:
    """Put the first `count` transactions into a journal, one by one, and close it."""

    async def write() -> None:
        async with running(folder, limits) as journal:
            for number in range(1, count + 1):
                await journal.append(transaction(number, rows=rows, describe=1 if number == 1 else 0))
                if number % 7 == 0:
                    await asyncio.sleep(0.012)

    asyncio.run(write())


def behind_a_gap(folder: Path, number: int) -> None:
    """Another run, behind a gap, of one transaction."""

    async def leap() -> None:
        async with running(folder) as journal:
            await journal.begin_at(Lsn(number * 100))
            await journal.append(transaction(number, describe=1))

    asyncio.run(leap())


def written_at_once(folder: Path, *, rows: int, size: int) -> None:
    """A journal of one large transaction over many segments."""

    async def write() -> None:
        async with running(folder, Limits(segment_size=1 << 20)) as journal:
            begin, described, change, commit = transaction(1, describe=1, size=size)
            await journal.append([begin, described])
            for start in range(0, rows, 1000):
                await journal.append([change] * min(1000, rows - start))
            await journal.append([commit])

    asyncio.run(write())


def read_back(folder: Path, start: int = 100) -> tuple[list[int], Lsn]:
    """The transactions that a journal gives from an LSN on, and where it ends."""

    async def read() -> tuple[list[int], Lsn]:
        async with running(folder, begin=start) as journal:
            reader = await journal.reader(Lsn(start))
            messages: list[bytes] = []
            while (got := await all_there_is(reader)) is not None:
                messages += got
            reader.close()
            return numbers(messages), journal.position

    return asyncio.run(read())


async def all_there_is(reader: Follower) -> list[bytes] | None:
    """What `read` returns; None if it has to wait for something to arrive."""
    reading = asyncio.create_task(reader.read())
    while not reading.done():
        if reader.level:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return None
        await asyncio.sleep(0.0005)
    return list(reading.result())


def segments_of(folder: Path) -> Iterator[Path]:
    """The files of a journal, oldest first."""
    yield from sorted(folder.glob("*.journal"))
