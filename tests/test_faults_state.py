"""Faults of our own machine: the state directory lost or taken away, the journal torn or damaged."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from fix_faults import Link, Survived, confirmed_up_to, large_transaction, rows_of, writing
from fix_servers import connect, wait_until

pytestmark = pytest.mark.unguarded


def told(link: Link) -> tuple[str, str]:
    """The one line and the one hint with which the last daemon ended."""
    lines = [line for line in link.said.splitlines() if line.startswith(("pglockstep: ", "HINT: "))]
    assert [line.partition(":")[0] for line in lines[-2:]] == ["pglockstep", "HINT"]
    return lines[-2], lines[-1]


def received_alone(link: Link, megabytes: int = 2) -> None:
    """Leave a journal behind that alone has what the source was told to forget: the target is away, no daemon runs."""
    link.start()
    link.level()
    link.pair.target_server.stop()
    link.becomes("waiting")
    with writing(link.pair.source):
        large_transaction(link.pair.source, megabytes)
        time.sleep(0.5)
    with connect(link.pair.source) as source:
        end = source.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert end is not None
    wait_until(lambda: confirmed_up_to(link, end[0]), 30, "the source to be told to forget")
    link.kill()


# --- the state directory ---------------------------------------------------------------------------


def test_lost_while_the_target_is_level(link: Link, survived: Survived) -> None:
    """What the target has needs no journal: the link goes on by itself, and nothing is copied."""
    link.start()
    with writing(link.pair.source):
        time.sleep(1.5)
        link.kill()
    shutil.rmtree(link.state)
    link.start()
    link.level()
    link.proven()
    survived("state directory lost, target level")


def test_lost_while_only_the_journal_had_it(link: Link, survived: Survived) -> None:
    """What the source was told to forget, and the target never got, is gone: refused, and nothing is copied."""
    received_alone(link)
    shutil.rmtree(link.state)
    try:
        link.start(ready=False)
        assert link.ended() == 5
    finally:
        link.pair.target_server.start()
    before = rows_of(link.pair.target)
    link.start(ready=False)
    assert link.ended() == 4
    message, hint = told(link)
    assert "no journal here has what lies between" in message
    assert "pglockstep once" in hint
    assert rows_of(link.pair.target) == before
    survived("state directory lost, journal needed")


@pytest.mark.parametrize("how", ["removed", pytest.param("moved", marks=pytest.mark.soak)])
def test_taken_away_under_a_daemon(link: Link, survived: Survived, how: str) -> None:
    """Files that no name leads to are no journal: the daemon confirms nothing more, ends and says so; the next one goes on."""
    link.start()
    with writing(link.pair.source):
        link.level()
        if how == "removed":
            # what the daemon makes in it meanwhile goes with it
            gone = link.state.with_name("going")
            link.state.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        else:
            link.state.rename(link.state.with_name("moved"))
        assert link.ended(20) == 3, link.said[-3000:]
        message, hint = told(link)
        assert str(link.state / "journal") in message
        assert "state_dir" in hint
        link.start()
    link.level()
    link.proven()
    survived(f"state directory {how} under a daemon")


@pytest.mark.soak
def test_taken_away_under_an_idle_daemon(link: Link, survived: Survived) -> None:
    """Also where nothing is written a missing journal is noticed."""
    link.start()
    link.level()
    time.sleep(1)
    shutil.rmtree(link.state)
    assert link.ended(30) == 3, link.said[-3000:]
    link.start()
    link.level()
    link.proven()
    survived("state directory removed under an idle daemon")


# --- the journal -----------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    """Turn one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.soak
def test_garbage_behind_what_was_flushed(link: Link, survived: Survived) -> None:
    """What a crash left half written at the end is cut off; the source sends it again."""
    link.start()
    with writing(link.pair.source):
        time.sleep(0.5)
        link.kill()
    last = link.segments[-1]
    with last.open("ab") as file:
        file.write(last.read_bytes()[-300:-100])
    link.start()
    assert "end was cut off" in link.said
    link.level()
    link.proven()
    survived("journal torn behind what was flushed")


@pytest.mark.soak
def test_torn_within_what_was_confirmed(link: Link, survived: Survived) -> None:
    """An end is missing that the source was told to forget: that is a gap, never passed over."""
    received_alone(link)
    last = link.segments[-1]
    whole = last.read_bytes()
    link.pair.target_server.start()
    before = rows_of(link.pair.target)
    last.write_bytes(whole[:-500])
    link.start(ready=False)
    assert link.ended() == 4, link.said[-3000:]
    assert "no journal here has what lies between" in told(link)[0]
    assert rows_of(link.pair.target) == before
    last.write_bytes(whole)
    link.start()
    link.level()
    link.proven()
    survived("journal torn within what was confirmed")


def test_a_byte_flipped_in_what_is_needed(link: Link, survived: Survived) -> None:
    """Refused with file and byte, with the target away and with the target there; nothing of the journal is applied."""
    received_alone(link)
    last = link.segments[-1]
    # in the midst of the large transaction
    offset = last.stat().st_size // 2
    flip(last, offset)
    try:
        link.start(ready=False)
        assert link.ended() == 3, link.said[-3000:]
    finally:
        link.pair.target_server.start()
    before = rows_of(link.pair.target)
    for _ in range(2):
        link.start(ready=False)
        assert link.ended() == 3, link.said[-3000:]
        message, _ = told(link)
        assert str(last) in message
        byte = int(message.partition("at byte ")[2].split(":")[0])
        assert offset - (1 << 20) < byte <= offset
        assert rows_of(link.pair.target) == before
    flip(last, offset)
    link.start()
    link.level()
    link.proven()
    survived("byte flipped in the journal's last segment")


@pytest.mark.soak
def test_a_byte_flipped_in_an_older_segment(link: Link, survived: Survived) -> None:
    """Refused where it is come to: what stands before it is applied, nothing of its transaction or behind it."""
    received_alone(link, 90)
    link.pair.target_server.start()
    first, *later = link.segments
    assert later
    offset = first.stat().st_size - 100_000
    flip(first, offset)
    link.start(ready=False)
    assert link.ended(60) == 3, link.said[-3000:]
    message, _ = told(link)
    assert str(first) in message
    assert "at byte " in message
    with connect(link.pair.target) as target:
        assert target.execute("SELECT count(*) FROM bulk").fetchone() == (0,)
    flip(first, offset)
    link.start()
    link.level()
    link.proven()
    survived("byte flipped in an older segment")


@pytest.mark.soak
def test_a_byte_flipped_in_what_nobody_needs(link: Link, survived: Survived) -> None:
    """In an old segment that the target has all of: nobody reads it, and nobody minds."""
    received_alone(link, 90)
    link.pair.target_server.start()
    link.start()
    link.level()
    link.stop()
    first, *later = link.segments
    assert later
    flip(first, first.stat().st_size // 2)
    link.start()
    link.level()
    link.proven()
    survived("byte flipped in a segment that nobody needs")
