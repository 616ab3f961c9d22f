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
    start = reader.find(folder, first)
    if start is None:
        raise _absent(first)
    # what describes a table holds until something else does, in whichever transaction it came
    described: dict[int, Message] = {}
    for payload in start.descriptions:
        _remember(described, decode(payload))
    files = FileReader(folder, start.place)
    inside = seen = False
    try:
        while (payloads := files.read()) is not None:
            found: list[Message] = []
            for message in map(decode, payloads):
                if isinstance(message, Begin):
                    if message.final_lsn > last:
                        break
                    inside = message.final_lsn >= first
                    if inside and not seen:
                        seen = message.final_lsn == first
                        found += described.values()
                elif not inside:
                    _remember(described, message)
                if inside:
                    found.append(message)
                    if isinstance(message, Commit) and message.commit_lsn >= last:
                        yield found
                        return
            if found:
                yield found
            if isinstance(message, Begin) and message.final_lsn > last:
                break
    finally:
        files.close()
    raise _absent(first if not seen else last)


def _remember(described: dict[int, Message], message: Message) -> None:
    if isinstance(message, Relation):
        described[message.relation_id] = message


def _absent(lsn: Lsn) -> NotInJournal:
    return NotInJournal(
        f"the journal does not have the transaction whose commit starts at {lsn} any more, or not all of it",
        hint="what it took cannot be told; compare the ends (`pglockstep diff`), then decide with `reject` or `approve`",
    )
