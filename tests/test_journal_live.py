"""Following a journal while it is written: from memory, from files, across the change between them, and after a cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from fix_journal import all_there_is, numbers, running, segments_of, transaction
from pglockstep.errors import JournalDamaged
from pglockstep.journal import journal as journal_module
from pglockstep.journal.follower import Abandoned, Follower
from pglockstep.journal.journal import Journal, Limits
from pglockstep.units import Lsn

pytestmark = pytest.mark.unguarded

LARGE = Limits(segment_size=200_000)


def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run it, but not for ever."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(bounded())


async def read_until(reader: Follower, last: int) -> list[bytes]:
    """Everything up to the transaction of that number."""
    messages: list[bytes] = []
    while not messages or messages[-1] != transaction(last)[-1]:
        messages += await reader.read()
    return messages


@pytest.mark.parametrize("tail", [0, 30_000, 8 << 20], ids=["files", "both", "memory"])
def test_a_reader_gets_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: int) -> None:
    """A reader that dawdles beside a writer that hurries gets every transaction once, wherever it has to read it from."""
    monkeypatch.setattr(journal_module, "_TAIL", tail)
    chance = random.Random(tail)

    async def follow() -> None:
        async with running(tmp_path, LARGE) as journal:
            reader = await journal.reader(Lsn(100))
            count = 400

            async def write() -> None:
                for number in range(1, count + 1):
                    await journal.append(transaction(number, rows=chance.choice([0, 1, 30, 900]), size=300))
                    if chance.random() < 0.3:
                        await asyncio.sleep(chance.choice([0, 0.001, 0.02]))

            writing = asyncio.create_task(write())
            found: list[int] = []
            while not found or found[-1] < count:
                got = list(await reader.read())
                while got[-1][:1] != b"C":
                    got += await reader.read()
                found += numbers(got)
                if chance.random() < 0.2:
                    await asyncio.sleep(0.01)
            await writing
            assert found == list(range(1, count + 1))
            assert not reader.level
            assert await all_there_is(reader) is None
            reader.close()

    finish(follow())


def test_memory_stays_bounded_without_a_reader_that_keeps_up(tmp_path: Path) -> None:
    """50 MB behind a reader that does not read: little of it stays in memory, and all of it is read later."""

    async def pile_up() -> None:
        async with running(tmp_path) as journal:
            reader = await journal.reader(Lsn(100))
            most = 0
            for number in range(1, 501):
                await journal.append(transaction(number, rows=100, size=1000))
                most = max(most, journal.tail.size)
            assert most < 20 << 20
            assert numbers(await read_until(reader, 500)) == list(range(1, 501))
            reader.close()

    finish(pile_up())


def test_a_reader_is_told_of_a_transaction_that_was_given_up(tmp_path: Path) -> None:
    """Halfway through a large transaction the source is lost: who has read of it starts again, who has not never sees it."""

    async def cut() -> None:
        async with running(tmp_path, LARGE) as journal:
            early, late = await journal.reader(Lsn(100)), await journal.reader(Lsn(100))
            await journal.append(transaction(1))
            large = transaction(2, rows=3000, size=1000)
            await journal.append(large[:2000])
            read: list[bytes] = []
            while len(read) < 1000:
                read += await early.read()
            await journal.abandon()
            assert not journal.in_transaction
            with pytest.raises(Abandoned):
                while True:
                    async with asyncio.timeout(5):
                        await early.read()
            await journal.append(large)
            await journal.append(transaction(3))
            assert numbers(await read_until(late, 3)) == [1, 2, 3]
            again = await journal.reader(Lsn(200))
            assert numbers(await read_until(again, 3))[-2:] == [2, 3]

    finish(cut())


def test_descriptions_are_known_wherever_a_reader_starts(tmp_path: Path) -> None:
    """A table described in an earlier segment is described to whoever starts later, also after the journal was opened anew."""

    async def write() -> None:
        async with running(tmp_path) as journal:
            await journal.append(transaction(1, describe=1))
            for number in range(2, 400):
                await journal.append(transaction(number, rows=3))
                await asyncio.sleep(0)
                if number % 100 == 0:
                    await flushed(journal)
            await flushed(journal)
            reader = await journal.reader(Lsn(39000))
            assert [each[5:].split(b"\0")[1] for each in reader.descriptions] == [b"t1"]
            reader.close()

    async def reopen() -> None:
        async with running(tmp_path) as journal:
            for number in range(400, 800):
                await journal.append(transaction(number, rows=3))
            await flushed(journal)
            reader = await journal.reader(Lsn(79000))
            assert len(reader.descriptions) == 1
            reader.close()

    finish(write())
    finish(reopen())


def test_a_silent_source_moves_what_is_durable(tmp_path: Path) -> None:
    """What the source has nothing to send before is durable once it is written down, but never while anything is on its way."""

    async def idle() -> None:
        async with running(tmp_path) as journal:
            journal.heard(Lsn(5000))
            assert (journal.position, journal.durable) == (5000, 100)
            await flushed(journal)
            assert journal.durable == 5000
            await journal.append(transaction(50)[:2])
            journal.heard(Lsn(6000))
            assert journal.position == 5000
            await journal.append(transaction(50)[2:])
            assert (journal.position, journal.durable) == (5100, 5000)
            journal.heard(Lsn(7000))
            assert (journal.position, journal.durable) == (7000, 5000)
            await flushed(journal)
            journal.heard(Lsn(9000))
            await flushed(journal)
            reader = await journal.reader(Lsn(100))
            assert numbers(await read_until(reader, 50)) == [50]
            reader.close()

    async def open_again() -> None:
        async with running(tmp_path) as journal:
            assert await journal.extent() == (100, 9000)
            assert (journal.position, journal.durable) == (9000, 9000)

    finish(idle())
    finish(open_again())


def test_a_large_transaction_is_kept_from_its_beginning(tmp_path: Path) -> None:
    """With nothing to keep: while it arrives, once it is complete, and until it is applied; then all of it may go."""
    large = transaction(2, rows=2000, size=1000)

    async def receive() -> None:
        async with running(tmp_path) as journal:
            await journal.append(transaction(1, describe=1))
            journal.needs(Lsn(200))
            for start in range(0, len(large), 100):
                await journal.append(large[start : start + 100])
                await asyncio.sleep(0.001)
                if start == 1000:
                    await prune(journal)
            await flushed(journal)
            await prune(journal)
            reader = await journal.reader(Lsn(200))
            assert numbers(await read_until(reader, 2))[-1] == 2
            reader.close()
            before = len(list(segments_of(tmp_path)))
            for number in range(3, 20):
                await journal.append(transaction(number, rows=20, size=number * 10))
                await flushed(journal)
            journal.needs(Lsn(2000))
            # a target that has not flushed anything yet asks for no more than was there
            journal.needs(Lsn(0))
            await prune(journal)
            assert len(list(segments_of(tmp_path))) == 1 < before
            extent = await journal.extent()
            assert extent is not None
            assert extent[0] >= 300

    finish(receive())


async def prune(journal: Journal) -> None:
    """Remove what nobody needs, as `run` does now and then."""
    async with journal.at_files():
        await journal.do(journal._prune)


def test_a_reader_whose_segment_is_gone_says_so(tmp_path: Path) -> None:
    """Files that somebody removed under a running journal: an error with the segment's number, never waiting for ever."""

    async def lose() -> None:
        async with running(tmp_path) as journal:
            reader = await journal.reader(Lsn(100))
            await journal.append(transaction(1))
            await flushed(journal)
            for each in list(segments_of(tmp_path)):
                each.unlink()
            with pytest.raises(JournalDamaged, match="segment 1 is missing"):
                await reader.read()
            reader.close()

    finish(lose())


async def flushed(journal: Journal) -> None:
    """Wait until all of it is on the disk."""
    async with asyncio.timeout(10):
        while journal.durable < journal.position:
            await asyncio.sleep(0.005)
