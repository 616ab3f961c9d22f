"""The source's tables by their OIDs: which of those that were followed are gone, renamed or replaced.

Nothing of that is in the stream: it is found by looking, once a second and whenever the link begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.guard.judge import Gone
from pglockstep.postgres.names import QualifiedName


async def read(conn: AsyncConnection[TupleRow]) -> dict[QualifiedName, int]:
    """The OID of every table that holds rows of its own. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT n.nspname, c.relname, c.oid FROM pg_catalog.pg_class AS c "
        "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^(pg_|information_schema$|pglockstep$)'"
    )
    return {QualifiedName(schema, name): oid async for schema, name, oid in cursor}


def gone(known: Mapping[QualifiedName, int], now: Mapping[QualifiedName, int]) -> list[Gone]:
    """The tables of `known` that are not there `now` as they were. Pure."""
    by_oid = {oid: name for name, oid in now.items()}
    found = []
    for name, oid in sorted(known.items()):
        if now.get(name) == oid:
            continue
        if oid in by_oid:
            found.append(Gone(name, f"renamed to {by_oid[oid]}", by_oid[oid]))
        else:
            found.append(Gone(name, "replaced by another of its name" if name in now else "dropped"))
    return found
