"""Tables that a copy brought further than the link's progress: the applier skips what each of them holds already."""

from __future__ import annotations

import asyncio

from pglockstep.apply.applier import Applier
from pglockstep.postgres.connect import connect as connect_end
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.messages import Insert, Message, Relation, RelationColumn, Truncate
from test_apply_applier import START, TABLE, T, Target, database, insert, target, transaction, update

__all__ = ["database", "target"]

U = Relation(8, "public", "u", "d", (RelationColumn("id", 23, -1, True),))


def caught_up(ready: Target, messages: list[Message], **copied: int) -> None:
    """Apply `messages` to tables copied as of the LSNs given."""

    async def apply() -> None:
        conn = await connect_end(ready.end, "apply", session_replication_role="replica")
        async with conn:
            lsns = {QualifiedName("public", name): Lsn(lsn) for name, lsn in copied.items()}
            applier = Applier(ready.end, conn, ready.link, START, copied=lsns)
            await applier.load_tables()
            await applier.apply(messages)

    asyncio.run(apply())


def test_only_what_a_table_lacks_is_applied(target: Target) -> None:
    """A commit record before a table's LSN is in it, one at it or after is not; other tables take both."""
    target.ready(START, TABLE, "create table u (id int primary key)", "insert into t values (1, 'copied')")
    messages = [
        *transaction(1100, 1200, T, U, update(1, "old"), insert(9), Insert(8, (b"1",))),
        *transaction(1999, 2000, insert(1), Insert(8, (b"2",))),
        *transaction(2000, 2100, update(1, "new"), Insert(8, (b"3",))),
    ]
    caught_up(target, messages, t=2000)
    assert target.conn.execute("select * from t").fetchall() == [(1, "new")]
    assert target.conn.execute("select id from u order by 1").fetchall() == [(1,), (2,), (3,)]
    assert target.progress == 2100


def test_a_truncate_spares_the_tables_that_came_after_it(target: Target) -> None:
    """Of a group that is truncated at once only the tables that were copied before it are emptied; none may be left."""
    target.ready(START, TABLE, "create table u (id int primary key)")
    target.conn.execute("insert into t values (1, 'after'); insert into u values (1)")
    both = transaction(1100, 1200, T, U, Truncate((7, 8), False, False))
    alone = transaction(1200, 1300, Truncate((7,), False, False))
    caught_up(target, [*both, *alone], t=2000, u=1000)
    assert target.conn.execute("select count(*) from t").fetchone() == (1,)
    assert target.conn.execute("select count(*) from u").fetchone() == (0,)
    assert target.progress == 1300
