"""What belongs to a wipe beside the transaction that tripped: what came behind it, and would have tripped as well.

A wipe in a thousand small transactions is held at the first that was one too many; the rest of it waits in the journal. Who
restores the table means all of it. So what the journal has is judged as if each transaction that trips were undone: those
are to be put back, too. Nothing is written anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.apply.batch import BatchBuilder
from pglockstep.errors import ApplyRefused
from pglockstep.guard import restore_journal
from pglockstep.link.link import Link
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress.target import LinkRecord
from pglockstep.units import LAST_LSN, Lsn
from pglockstep.wal.messages import Delete, Insert, Message, Relation, Truncate, Update


async def belonging(
    link: Link,
    conn: AsyncConnection[TupleRow],
    target: End,
    record: LinkRecord,
    first: Lsn,
    tables: Collection[QualifiedName],
) -> list[Lsn]:
    """Where the commit records start of all transactions from `first` on that take from `tables` more than may go.

    In order; `first`, which tripped, is the first of them. Raises `NotInJournal`, and the target's errors.
    """
    with translate(target):
        here = {each.name: each for each in await catalog.tables(conn)}
    assert record.progress is not None
    gate = link.gate.twin()
    others = dict.fromkeys(here.keys() - set(tables), LAST_LSN)
    builder = BatchBuilder(record.id, first, here.__getitem__, copied=others, gate=gate)
    batches = restore_journal.onwards(link.state.journal(record.id), first)
    found = [first]
    unknown: set[int] = set()
    while (messages := await asyncio.to_thread(next, batches, None)) is not None:
        for message in messages:
            if isinstance(message, Relation):
                _describe(builder, here, message, unknown)
            elif not _touches(message, unknown):
                builder.take(message, 0)
            while builder.held:
                if await gate.found(conn, record.progress) is not None and gate.held_at != found[-1]:
                    found.append(gate.held_at)
                builder.release()
            while builder.ready:
                builder.seal()
    return found


def _describe(
    builder: BatchBuilder, here: Mapping[QualifiedName, Table], relation: Relation, unknown: set[int]
) -> None:
    try:
        builder.describe(relation, here[QualifiedName(relation.schema, relation.name)])
        unknown.discard(relation.relation_id)
    except (ApplyRefused, KeyError):
        # not on the target, or not as it is on the source: not to be judged here
        unknown.add(relation.relation_id)


def _touches(message: Message, tables: set[int]) -> bool:
    if isinstance(message, Truncate):
        return not tables.isdisjoint(message.relation_ids)
    return isinstance(message, (Insert, Update, Delete)) and message.relation_id in tables
