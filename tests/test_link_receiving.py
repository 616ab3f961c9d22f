"""What is waited for until the journal has what the source has committed: large transactions, not silence or a full disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fix_journal import running, transaction
from pglockstep.errors import SourceBusy
from pglockstep.link.receiving import durable_up_to
from pglockstep.postgres.connect import End
from pglockstep.units import Lsn
from pglockstep.wal.encode import encode
from pglockstep.wal.messages import Insert

SOURCE = End("source", "main", "dbname=nowhere", silence_timeout=1.0)


def test_a_large_transaction_is_waited_for(tmp_path: Path) -> None:
    """It takes twice as long as a source may be silent, and until its commit nothing tells how far the stream is."""

    async def receive() -> None:
        async with running(tmp_path / "journal") as journal:
            begin, change, commit = transaction(1)
            waiting = asyncio.create_task(durable_up_to(journal, Lsn(200), SOURCE))
            await journal.append([begin, change])
            for number in range(40):
                await asyncio.sleep(SOURCE.silence_timeout / 20)
                await journal.append([encode(Insert(1, (b"1-%d" % number,)))])
                assert journal.position == 100
            assert not waiting.done()
            await journal.append([commit])
            await waiting

    asyncio.run(receive())


def test_a_silent_source_is_not_waited_for(tmp_path: Path) -> None:
    """It has more, and sends nothing."""

    async def receive() -> None:
        async with running(tmp_path / "journal") as journal:
            await durable_up_to(journal, Lsn(200), SOURCE)

    with pytest.raises(SourceBusy, match="sending nothing for 1 s"):
        asyncio.run(receive())


def test_a_full_disk_is_not_waited_for(tmp_path: Path) -> None:
    """The source is heard for as long as that lasts: what is in the way is said at once."""

    async def receive() -> None:
        async with running(tmp_path / "journal") as journal:
            journal.trouble = "no room for the journal"
            await durable_up_to(journal, Lsn(200), SOURCE)

    with pytest.raises(SourceBusy, match="cannot be looked at: no room for the journal"):
        asyncio.run(receive())
