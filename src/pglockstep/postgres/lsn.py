"""LSNs of ours as PostgreSQL's own type: what a query returns as pg_lsn is an `Lsn`, and an `Lsn` goes out as one.

In text on the wire. Nothing is registered for all of psycopg: only a session that was told to does it.
"""

from __future__ import annotations

from psycopg import AsyncConnection
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.postgres import types
from psycopg.rows import TupleRow

from pglockstep.units import Lsn


def register(conn: AsyncConnection[TupleRow]) -> None:
    """Have a session read and write them: in results, as parameters, and as literals composed for it."""
    conn.adapters.register_loader(_LsnLoader.oid, _LsnLoader)
    # an Lsn is an int, but psycopg asks for a class itself before those that it comes from
    conn.adapters.register_dumper(Lsn, _LsnDumper)


class _LsnLoader(Loader):
    oid = types["pg_lsn"].oid

    def load(self, data: Buffer) -> Lsn:
        return Lsn.parse(bytes(data).decode())


class _LsnDumper(Dumper):
    oid = types["pg_lsn"].oid

    def dump(self, obj: Lsn) -> bytes:
        return str(obj).encode()
