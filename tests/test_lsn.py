"""LSNs travel as PostgreSQL's own type between our sessions and a server."""

from __future__ import annotations

import asyncio

import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from fix_servers import Pair
from pglockstep.postgres.connect import End, connect
from pglockstep.units import Lsn

ENDS = [Lsn(0), Lsn(0x16B374D848), Lsn(2**64 - 1)]


def answers(pair: Pair, query: sql.Composable, *parameters: object) -> TupleRow:
    """The one row of a query, asked in a session as every room opens it."""

    async def ask() -> TupleRow:
        conn: AsyncConnection[TupleRow] = await connect(End("source", "test", pair.source), "test")
        async with conn:
            cursor = await conn.execute(query.as_bytes(conn), parameters)
            row = await cursor.fetchone()
            assert row is not None
            return row

    return asyncio.run(ask())


def test_an_lsn_comes_and_goes_as_one(pair: Pair) -> None:
    """As a parameter and as a literal it is a pg_lsn without a cast, and not an integer; back it is an `Lsn` again."""
    for lsn in ENDS:
        written = sql.SQL("SELECT {0}, pg_typeof({0})::text, {0}::text, $1, pg_typeof($1)::text, $1::text")
        row = answers(pair, written.format(sql.Literal(lsn)), lsn)
        assert row == (lsn, "pg_lsn", str(lsn)) * 2
        assert [type(row[0]), type(row[3])] == [Lsn, Lsn]


@pytest.mark.parametrize("value", [0, 7, 2**63])
def test_other_numbers_stay_numbers(pair: Pair, value: int) -> None:
    """Integers beside LSNs go out as they always do, and NULL is no LSN."""
    row = answers(pair, sql.SQL("SELECT $1::numeric, {}, $2::pg_lsn").format(sql.Literal(value)), value, None)
    assert row == (value, value, None)
    assert type(row[1]) is not Lsn
