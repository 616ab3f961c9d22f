"""The transactions that are to be put back, read out of the journal's files. Blocks; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pglockstep.errors import NotInJournal
from pglockstep.journal import reader
from pglockstep.journal.reader import FileReader
from pglockstep.units import Lsn
from pglockstep.wal.messages import Begin, Commit, Message, Relation
from pglockstep.wal.pgoutput import decode


def transactions(folder: Path, first: Lsn, last: Lsn | None = None) -> Iterator[list[Message]]:
    """What the transaction sent whose commit record starts at `first`; with `last`, all up to the one that starts there.

    A block at a time, descriptions of tables before what they describe. Raises `NotInJournal` where it is not, or not whole,
    in the files.
    """
    last = first if last is None else last
    seen = False
    for found in onwards(folder, first):
        kept: list[Message] = []
        for message, _ in found:
            if isinstance(message, Begin):
                if message.final_lsn > last:
                    raise _absent(first if not seen else last)
                seen = seen or message.final_lsn == first
            kept.append(message)
            if isinstance(message, Commit) and message.commit_lsn >= last:
                if not seen:
                    raise _absent(first)
                yield kept
                return
        yield kept
    raise _absent(first if not seen else last)


def onwards(folder: Path, first: Lsn) -> Iterator[list[tuple[Message, int]]]:
    """What every transaction sent from the one on whose commit record starts at `first`, up to where the journal ends now.

    As `transactions` has it, with each message's length on the wire in bytes; the last transaction may not be whole. Raises
    `NotInJournal` where the journal begins later.
    """
    start = reader.find(folder, first)
    if start is None:
        raise _absent(first)
    # what describes a table holds until something else does, in whichever transaction it came
    described: dict[int, tuple[Message, int]] = {}
    for payload in start.descriptions:
        _remember(described, decode(payload), len(payload))
    files = FileReader(folder, start.place)
    inside = False
    try:
        while (payloads := files.read()) is not None:
            found: list[tuple[Message, int]] = []
            for payload in payloads:
                message = decode(payload)
                if not inside:
                    if not isinstance(message, Begin) or message.final_lsn < first:
                        _remember(described, message, len(payload))
                        continue
                    inside = True
                    found += described.values()
                found.append((message, len(payload)))
            if found:
                yield found
    finally:
        files.close()


def _remember(described: dict[int, tuple[Message, int]], message: Message, size: int) -> None:
    if isinstance(message, Relation):
        described[message.relation_id] = message, size


def _absent(lsn: Lsn) -> NotInJournal:
    return NotInJournal(
        f"the journal does not have the transaction whose commit starts at {lsn} any more, or not all of it",
        hint="what it took cannot be told; compare the ends (`pglockstep diff`), then decide with `reject` or `approve`",
    )
