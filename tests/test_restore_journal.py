"""The transactions that are to be put back, as they are read out of a real journal's files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fix_journal import running
from fix_recorder import Recorder
from fix_servers import Pair
from pglockstep.errors import NotInJournal
from pglockstep.guard.restore_journal import transactions
from pglockstep.journal.journal import Limits
from pglockstep.units import Lsn
from pglockstep.wal.messages import Begin, Commit, Delete, Insert, Relation
from pglockstep.wal.pgoutput import decode


# the recorder publishes all tables
@pytest.mark.superusers
def test_one_transaction_and_a_span(pair: Pair, tmp_path: Path) -> None:
    """Small ones that share a block, and a large one in many: just what was asked for, tables described before their rows."""
    source = pair.superuser_on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)")
    with Recorder(pair.source) as recorder:
        source.execute("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 5000) i")
        for number in range(1, 6):
            source.execute("DELETE FROM t WHERE id = %s", [number])
        source.execute("INSERT INTO u VALUES (1)")
        source.execute("DELETE FROM t")
        source.execute("INSERT INTO t VALUES (1, 'since')")
        payloads = recorder.payloads()
    begins = [each for each in map(decode, payloads) if isinstance(each, Begin)]
    assert len(begins) == 9

    async def write() -> None:
        async with running(tmp_path, Limits(segment_size=200_000)) as journal:
            for start in range(0, len(payloads), 100):
                await journal.append(payloads[start : start + 100])

    asyncio.run(write())

    def read(first: int, last: int | None = None) -> list[object]:
        end = None if last is None else Lsn(begins[last].final_lsn)
        found = transactions(tmp_path, Lsn(begins[first].final_lsn), end)
        return [message for messages in found for message in messages]

    def counted(messages: list[object], kind: type) -> int:
        return len([each for each in messages if isinstance(each, kind)])

    one = read(3)
    assert isinstance(one[0], Relation)
    assert [type(each) for each in one if not isinstance(each, Relation)] == [Begin, Delete, Commit]
    large = read(7)
    assert counted(large, Delete) == 4995
    assert counted(large, Begin) == counted(large, Commit) == 1
    span = read(1, 7)
    assert counted(span, Delete) == 5000
    assert counted(span, Insert) == 1
    assert counted(span, Begin) == 7
    assert counted(read(0), Insert) == 5000
    for lsn in (Lsn(1), Lsn(begins[3].final_lsn + 1), Lsn(begins[8].final_lsn + 100_000)):
        with pytest.raises(NotInJournal):
            list(transactions(tmp_path, lsn))
