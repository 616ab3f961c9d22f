"""Journals on the disk: torn, flipped, cut and full, none of them ever gives a transaction that was not sent."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_journal import SMALL, numbers, read_back, running, segments_of, transaction, written
from pglockstep.errors import JournalDamaged, JournalUnusable, LinkHeld
from pglockstep.journal import blocks
from pglockstep.journal.journal import Journal, Limits
from pglockstep.journal.kinds import kinds_of
from pglockstep.journal.retention import Kept, droppable
from pglockstep.journal.segments import Segment
from pglockstep.journal.writer import Writer
from pglockstep.units import Lsn


def test_what_was_written_is_read_from_any_transaction_on(tmp_path: Path) -> None:
    """From every LSN at which a transaction may start: that one and all later ones, over several segments."""
    written(tmp_path, 300)
    assert len(list(segments_of(tmp_path))) > 3
    for start in (1, 2, 7, 8, 150, 299, 300):
        found, end = read_back(tmp_path, start * 100)
        assert found[-1] == 300
        assert start in found
        assert found == list(range(found[0], 301))
        assert end == 301 * 100
    assert read_back(tmp_path, 301 * 100)[0] in ([], list(range(295, 301)), [300])


def test_a_start_behind_a_transaction_that_goes_over_segments(tmp_path: Path) -> None:
    """From each transaction on: a large one is read from its beginning or not at all, wherever its pieces stand."""

    async def write() -> None:
        async with running(tmp_path, Limits(segment_size=300_000)) as journal:
            for number in range(1, 30):
                rows = 1500 if number in (10, 11, 20) else 1
                messages = spread(number, rows)
                if number == 20:
                    # given up once, over several segments, and sent again
                    await journal.append(messages[:1200])
                    async with asyncio.timeout(10):
                        while journal.tail.unwritten:
                            await asyncio.sleep(0.01)
                    await journal.abandon()
                for at in range(0, len(messages), 100):
                    await journal.append(messages[at : at + 100])
                    await asyncio.sleep(0.001)

    asyncio.run(write())
    assert len(list(segments_of(tmp_path))) > 5
    for start in range(1, 31):
        found, end = read_back(tmp_path, start * 100)
        assert found == list(range(found[0], 30)) if found else start == 30
        assert start in found or start == 30
        assert end == 3000


def spread(number: int, rows: int) -> list[bytes]:
    """The messages of a transaction that does not compress."""
    begin, row, commit = transaction(number, size=0)
    filled = []
    for _ in range(rows):
        value = b"%d-0" % number + os.urandom(1000)
        filled.append(row[:9] + len(value).to_bytes(4, "big") + value)
    return [begin, *filled, commit]


def test_a_torn_end_is_cut_wherever_it_is_torn(tmp_path: Path) -> None:
    """The last segment cut off at each of its bytes: a beginning of what was written is left, in whole transactions."""
    written(tmp_path, 40, limits=Limits())
    (segment,) = segments_of(tmp_path)
    content = segment.read_bytes()
    lengths = set()
    for size in range(len(content) - 1, 0, -7):
        segment.write_bytes(content[:size])
        found, end = read_back(tmp_path)
        assert found == list(range(1, len(found) + 1))
        assert end == (len(found) + 1) * 100
        lengths.add(len(found))
        for each in segments_of(tmp_path):
            each.unlink()
    assert len(lengths) > 3


def test_garbage_at_the_end_is_cut(tmp_path: Path) -> None:
    """Zeros and noise, as file systems leave them after a power cut, are cut off; the next transaction follows."""
    for noise in (b"\0" * 500, os.urandom(500), b"PGLb" + b"\xff" * 60):
        folder = tmp_path / noise[:2].hex()
        written(folder, 40)
        last = list(segments_of(folder))[-1]
        with last.open("ab") as file:
            file.write(noise)
        written(folder, 45)  # begins with a 1 again, which a journal does not mind
        assert read_back(folder)[0][:40] == list(range(1, 41))


def test_what_was_just_begun_is_no_damage(tmp_path: Path) -> None:
    """A segment that a power cut left empty, cut short or full of zeros, is taken away: nothing ever stood in it."""
    written(tmp_path, 40, limits=Limits())
    (segment,) = segments_of(tmp_path)
    head = segment.read_bytes()[:100]
    for noise in (b"", b"\0" * 200, b"\0" * 4096, head[:10], head):
        fresh = tmp_path / f"00000002-{4100:016X}.journal"
        fresh.write_bytes(noise)
        assert read_back(tmp_path) == (list(range(1, 41)), Lsn(4100))
        assert list(segments_of(tmp_path)) == [segment]


def test_blocks_that_a_disk_got_out_of_order(tmp_path: Path) -> None:
    """A hole before a whole block is the torn end where nothing proves a flush in between, and damage where something does."""
    for flushed in (False, True):
        folder = tmp_path / str(flushed)
        writer = Writer.open(folder, "0123456789ab", "1/2", segment_size=1 << 20)
        writer.begin_at(Lsn(100))
        places = []
        for number in (1, 2, 3):
            messages = transaction(number)
            places.append(writer.append(blocks.whole(messages, kinds_of(messages), sum(map(len, messages)))))
            if flushed:
                writer.sync()
        (segment,) = segments_of(folder)
        with segment.open("r+b") as file:
            file.seek(places[1].offset)
            file.write(b"\0" * (places[2].offset - places[1].offset))
        if flushed:
            with pytest.raises(JournalDamaged, match=f"damaged at byte {places[1].offset}"):
                read_back(folder)
        else:
            assert read_back(folder) == ([1], Lsn(200))


def test_what_a_killed_process_left_is_flushed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything counts as durable that stands in the files: the system may still hold it in memory alone."""
    written(tmp_path, 3)
    synced: list[str] = []
    sync = Segment.sync

    def noted(segment: Segment) -> None:
        synced.append(segment.file.path.name)
        sync(segment)

    monkeypatch.setattr(Segment, "sync", noted)
    Writer.open(tmp_path, "0123456789ab", "1/2", segment_size=4096)
    assert synced == [each.name for each in segments_of(tmp_path)]


def test_a_flush_that_failed_is_never_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses a flush, full or broken, may forget what it was given: it is cut off, and the journal ends."""

    def refuse(_: Segment) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def fail() -> None:
        journal = await Journal.open(tmp_path, "0123456789ab", "1/2", SMALL)
        await journal.begin_at(Lsn(100))
        await journal.append(transaction(1, describe=1))
        await journal.close()
        journal = await Journal.open(tmp_path, "0123456789ab", "1/2", SMALL)
        monkeypatch.setattr(Segment, "sync", refuse)
        await journal.append(transaction(2))
        with pytest.raises(JournalUnusable, match="did not get there"):
            await journal.run()
        monkeypatch.undo()
        assert journal.durable == 200
        with pytest.raises(JournalUnusable):
            await journal.append(transaction(3))
        await journal.close()

    asyncio.run(fail())
    assert read_back(tmp_path) == ([1], Lsn(200))


def test_a_slow_disk_leaves_little_to_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not flushed the source keeps, and it keeps WAL, of which a message is a small part: then nothing more is taken."""
    step = 1 << 20
    wanted = [1 + count * step // 100 for count in range(40)]
    flushes = threading.Event()
    sync = Segment.sync

    def slow(segment: Segment) -> None:
        flushes.wait(10)
        sync(segment)

    async def take() -> None:
        async with running(tmp_path, Limits()) as journal:

            async def arrive() -> None:
                for number in wanted:
                    await journal.append(transaction(number, describe=1 if number == 1 else 0))
                    await asyncio.sleep(0)

            monkeypatch.setattr(Segment, "sync", slow)
            arriving = asyncio.create_task(arrive())
            while journal.position - journal.durable <= 8 * step:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            assert not arriving.done()
            assert journal.position - journal.durable < 10 * step
            flushes.set()
            await arriving

    asyncio.run(take())
    assert read_back(tmp_path)[0] == wanted


def test_a_flipped_byte_is_refused_with_its_place(tmp_path: Path) -> None:
    """Before the last block of any segment, at each byte: nothing is handed out from there, and segment and offset are named."""
    written(tmp_path, 120)
    files = list(segments_of(tmp_path))
    for file in (files[0], files[-1]):
        content = file.read_bytes()
        last_block = content.rindex(b"PGLb")
        for at in range(0, last_block, 11):
            flipped = bytearray(content)
            flipped[at] ^= 0x10
            file.write_bytes(bytes(flipped))
            with pytest.raises(JournalDamaged, match=rf"{file.name} is damaged at byte \d+"):
                read_back(tmp_path)
        file.write_bytes(content)
    assert read_back(tmp_path)[0] == list(range(1, 121))


def test_a_missing_segment_is_refused(tmp_path: Path) -> None:
    """A file that somebody removed from the middle is named, and nothing is skipped."""
    # where flushes take long, more is flushed at once and makes fewer segments: half as many are three, and no middle
    written(tmp_path, 600)
    files = list(segments_of(tmp_path))
    assert len(files) > 3
    files[2].unlink()
    with pytest.raises(JournalDamaged, match="segment 3 is missing"):
        read_back(tmp_path)


def test_a_transaction_that_did_not_end_is_cut_over_segments(tmp_path: Path) -> None:
    """A large transaction over several segments, and then a crash: it is gone, and what stood before it is not."""

    async def crash() -> None:
        journal = await Journal.open(tmp_path, "0123456789ab", "1/2", SMALL)
        await journal.begin_at(Lsn(100))
        await journal.append(transaction(1, describe=1))
        large = transaction(2, rows=2000, size=1000)
        task = asyncio.create_task(journal.run())
        for start in range(0, len(large) - 1, 100):
            await journal.append(large[start : min(start + 100, len(large) - 1)])
            await asyncio.sleep(0.001)
        while journal.tail.unwritten:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await journal.close()

    asyncio.run(crash())
    assert len(list(segments_of(tmp_path))) > 2
    assert read_back(tmp_path) == ([1], Lsn(200))
    assert len(list(segments_of(tmp_path))) == 1


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A journal that is open is refused to another."""

    async def twice() -> None:
        async with running(tmp_path):
            with pytest.raises(LinkHeld):
                await Journal.open(tmp_path, "0123456789ab", "1/2", SMALL)

    asyncio.run(twice())


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    """A file where the folder should be: one sentence, one hint."""
    place = tmp_path / "journal"
    place.write_text("")
    with pytest.raises(JournalUnusable, match="cannot be used"):
        asyncio.run(Journal.open(place, "0123456789ab", "1/2", SMALL))


def test_behind_a_gap_a_new_run_begins(tmp_path: Path) -> None:
    """What was received before a gap is still there, but nobody reads across the gap."""
    written(tmp_path, 50)

    async def leap() -> None:
        async with running(tmp_path) as journal:
            await journal.begin_at(Lsn(9000))
            await journal.append(transaction(90, describe=1))
            assert await journal.extent() == (9000, 9000)

    asyncio.run(leap())
    assert read_back(tmp_path, 9000) == ([90], Lsn(9100))
    with pytest.raises(JournalDamaged, match="begins later"):
        read_back(tmp_path, 4000)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_pauses_and_goes_on(tmp_path: Path) -> None:
    """On a file system of 1 MB: receiving waits, nothing is torn; with room made it goes on, and all of it is there."""
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        ballast = tmp_path / "ballast"
        ballast.write_bytes(b"\0" * 600_000)
        folder = tmp_path / "journal"

        async def fill() -> None:
            async with running(folder, Limits(segment_size=100_000)) as journal:
                for number in range(1, 61):
                    await journal.append(transaction(number, rows=1, size=0) + noisy(number))
                    await asyncio.sleep(0.001)
                async with asyncio.timeout(10):
                    while not journal.trouble:
                        await asyncio.sleep(0.01)
                stuck = journal.durable
                assert stuck < journal.position
                ballast.unlink()
                async with asyncio.timeout(10):
                    while journal.trouble or journal.durable < journal.position:
                        await asyncio.sleep(0.01)

        asyncio.run(fill())
        found, end = read_back(folder)
        assert found == [each for number in range(1, 61) for each in (number, 1000 + number)]
        assert end == 106100
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def noisy(number: int) -> list[bytes]:
    """A transaction that does not compress."""
    messages = transaction(1000 + number, rows=1, size=0)
    row = messages[1]
    noise = os.urandom(8000)
    value = b"%d-0" % (1000 + number) + noise
    messages[1] = row[:9] + len(value).to_bytes(4, "big") + value
    return messages


@given(
    sizes=st.lists(st.integers(1, 100), max_size=12),
    needed=st.integers(0, 1300),
    unknown=st.integers(0, 3),
    keep_size=st.integers(0, 600),
    keep_hours=st.integers(0, 12),
)
def test_what_is_needed_is_never_dropped(
    sizes: list[int], needed: int, unknown: int, keep_size: int, keep_hours: int
) -> None:
    """The oldest go first, none that is or may be needed; the rest is within its size and age, unless it is needed."""
    now = datetime(2026, 1, 2, tzinfo=UTC)
    kept = [
        Kept(
            number,
            Lsn(number * 100) if number <= len(sizes) - unknown else None,
            size,
            now - timedelta(hours=len(sizes) - number),
        )
        for number, size in enumerate(sizes, 1)
    ]
    gone = droppable(kept, Lsn(needed), now, keep_size=keep_size, keep_age=timedelta(hours=keep_hours))
    assert gone == [each.number for each in kept[: len(gone)]]
    assert all(each.until is not None and each.until <= needed for each in kept[: len(gone)])
    rest = [each for each in kept[len(gone) :] if each.until is not None and each.until <= needed]
    if rest:
        assert sum(each.size for each in kept[len(gone) :]) <= keep_size
        assert all(now - each.written_at <= timedelta(hours=keep_hours) for each in rest[:1])


def test_old_segments_are_removed_once_nobody_needs_them(tmp_path: Path) -> None:
    """With nothing to keep only the segments stay that are needed, and that which is written."""
    written(tmp_path, 300)
    before = list(segments_of(tmp_path))

    async def prune(needed: int) -> None:
        async with running(tmp_path) as journal:
            journal.needs(Lsn(needed))
            await journal.append(transaction(301 if needed < 30000 else 302))
            async with asyncio.timeout(5):
                while journal.durable < journal.position:
                    await asyncio.sleep(0.01)

    asyncio.run(prune(15000))
    left = list(segments_of(tmp_path))
    assert set(left) < set(before)
    found, _ = read_back(tmp_path, 15000)
    assert found[0] <= 150 <= found[-1]
    asyncio.run(prune(30200))
    assert len(list(segments_of(tmp_path))) == 1
    assert numbers([]) == []
