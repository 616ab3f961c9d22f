"""The changes that a poll finds: whatever two tables hold, they make one of the other, in an order that no constraint minds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from fix_servers import Connection, Pair, majors
from pglockstep.compare import moves
from pglockstep.compare.moves import Change, Differing, Moves, Unique, carried, described
from pglockstep.compare.pairing import Server
from pglockstep.compare.ranges import WHOLE
from pglockstep.compare.readings import Place
from pglockstep.compare.sessions import both
from pglockstep.compare.texts import Texts
from pglockstep.postgres import catalog
from pglockstep.postgres.connect import End, connect
from pglockstep.wal.encode import encode
from pglockstep.wal.messages import Delete, Insert, Update
from pglockstep.wal.pgoutput import decode

pytestmark = pytest.mark.skipif(not majors, reason="no server is installed")

#: A key that is written in several ways, two unique columns, one of them by an expression, and what says nothing.
KEYED = """CREATE TABLE t (
    k numeric PRIMARY KEY, u int UNIQUE, v text, w text, g text GENERATED ALWAYS AS (coalesce(v, '?') || 'x') STORED
)"""
BY_EXPRESSION = "; CREATE UNIQUE INDEX ON t (lower(w))"
LOOSE = "CREATE TABLE t (k numeric, u int, v text, w text)"

keys = st.sampled_from(["0", "1", "1.0", "1.00", "2", "3", "10", "-1", "NaN"])
small = st.none() | st.integers(0, 5).map(str)
words = st.none() | st.sampled_from(["", "a", "A", "b", "|", "ä", "\\N", "null"])
rows = st.lists(st.tuples(keys, small, words, words), max_size=12)


def fitting(found: Sequence[tuple[Any, ...]], *, keyed: bool, expression: bool) -> list[tuple[Any, ...]]:
    """Those of the rows that a table with these constraints takes."""
    if not keyed:
        return list(found)
    kept: list[tuple[Any, ...]] = []
    seen: set[tuple[str, Any]] = set()
    for row in found:
        marks = [("k", row[0].rstrip("0").rstrip(".") if "." in row[0] else row[0])]
        marks += [("u", row[1])] if row[1] is not None else []
        marks += [("w", row[3].lower())] if expression and row[3] is not None else []
        if not seen & set(marks):
            seen |= set(marks)
            kept.append(row)
    return kept


def filled(conn: Connection, table: Sequence[tuple[Any, ...]]) -> None:
    conn.execute("TRUNCATE t")
    for row in table:
        conn.execute("INSERT INTO t (k, u, v, w) VALUES (%s, %s, %s, %s)", row)


async def changes_of(pair: Pair, unique: Unique) -> list[Change]:
    """What a poll would write of the table, in its order."""
    ends = [
        End("source", "test", pair.source),
        End("target", "test", pair.target),
    ]
    conns = [await connect(end, "test") for end in ends]
    try:
        tables = [(await catalog.tables(conn))[0] for conn in conns]
        pairing = carried(tables[0], tables[1], [Server.of(conn) for conn in conns])
        assert [each.name for each in described(pairing).columns] == list(pairing.columns)
        there, here = (Texts(Place(end, conn), pairing) for end, conn in zip(ends, conns, strict=True))
        where = Differing(WHOLE, *await both(there.sums(), here.sums()))
        found: list[Change] = []
        if where.source != where.target:
            made = Moves(pairing, unique)
            for step in (made.going, made.changing, made.coming):
                async for some in step(where, there, here):
                    found += some
        return found
    finally:
        for conn in conns:
            await conn.close()


def carry_out(conn: Connection, change: Change, names: Sequence[str], *, keyed: bool) -> None:
    """Do to the table what a change says, by itself, as whoever applies row by row would."""
    again = decode(encode(change))
    assert again == change

    def texts(row: Any) -> list[str | None]:
        return [None if each is None else each.decode() for each in row]

    same = sql.SQL(" AND ").join(
        sql.SQL("ROW({0})::text = ROW(%s::{1})::text").format(sql.Identifier(name), sql.SQL(kind))
        for name, kind in zip(names, ("numeric", "int", "text", "text"), strict=True)
    )
    if isinstance(change, Delete):
        if change.old_is_key:
            done = conn.execute("DELETE FROM t WHERE k = %s", texts(change.old)[:1])
        else:
            query = sql.SQL("DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE {})").format(same)
            done = conn.execute(query, texts(change.old))
        assert done.rowcount == 1
    elif isinstance(change, Insert):
        conn.execute("INSERT INTO t (k, u, v, w) VALUES (%s, %s, %s, %s)", texts(change.new))
    else:
        assert isinstance(change, Update)
        assert keyed
        new = texts(change.new)
        assert (
            conn.execute("UPDATE t SET k = %s, u = %s, v = %s, w = %s WHERE k = %s", [*new, new[0]]).rowcount
            == 1
        )


@pytest.mark.parametrize("shape", ["keyed", "by expression", "loose"])
@pytest.mark.parametrize("much", [False, True], ids=["little", "much"])
def test_any_two_tables(pair: Pair, monkeypatch: pytest.MonkeyPatch, shape: str, much: bool) -> None:
    """Carried out one by one, in their order, the changes make the target's table the source's; also when read in pieces."""
    keyed, expression = shape != "loose", shape == "by expression"
    source, target = pair.on_source(), pair.on_target()
    for conn in (source, target):
        conn.execute((KEYED if keyed else LOOSE).encode())
        if expression:
            conn.execute(BY_EXPRESSION.removeprefix("; ").encode())
    unique = Unique((("u",),), whatever=expression) if keyed else Unique()
    if much:
        for name, value in (("_ROWS", 4), ("_PART", 2), ("_KEYS", 2), ("_KEPT", 1)):
            monkeypatch.setattr(moves, name, value)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(rows, rows)
    def hold(theirs: list[tuple[Any, ...]], ours: list[tuple[Any, ...]]) -> None:
        filled(source, fitting(theirs, keyed=keyed, expression=expression))
        filled(target, fitting(ours, keyed=keyed, expression=expression))
        with target.transaction():
            for change in asyncio.run(changes_of(pair, unique)):
                carry_out(target, change, ("k", "u", "v", "w"), keyed=keyed)
        query = "SELECT t::text FROM t ORDER BY 1"
        assert source.execute(query).fetchall() == target.execute(query).fetchall()

    hold()
