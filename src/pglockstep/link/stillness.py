"""Which tables need not be compared in a poll: a hint by the servers' own statistics, and never a proof.

A table is taken to stand still while the numbers of rows that were ever inserted, updated and deleted in it, and its file's
number, are what they were before it was last found level, on both ends. Servers count late, by ten seconds at the most: what
was missed by that is seen a poll later, as the numbers are different then. They also forget, at a crash: then all are compared.
Sizes are no help: to ask for one waits behind whoever has the table locked. A standby does not count what it replays.

Small tables are compared in any case, and so is every table once in `EVERY` polls, each at its own turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pglockstep.postgres.names import QualifiedName

#: Once in so many polls a table is compared whatever was counted.
EVERY = 20
#: Up to so many pages a table costs less than to be wrong about it.
_SMALL = 128

_COUNTS = """
SELECT n.nspname, c.relname, c.oid, c.relfilenode, pg_catalog.pg_stat_get_tuples_inserted(c.oid),
    pg_catalog.pg_stat_get_tuples_updated(c.oid), pg_catalog.pg_stat_get_tuples_deleted(c.oid),
    c.relpages > {small}
        OR pg_catalog.pg_stat_get_live_tuples(c.oid) > 64 * {small},
    pg_catalog.current_setting('track_counts')::boolean AND NOT pg_catalog.pg_is_in_recovery()
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema$|pglockstep$)'
""".replace("{small}", str(_SMALL))


class Counted(msgspec.Struct, frozen=True):
    """What a server has counted of a table; `known`: whether it counts at all."""

    oid: int
    file: int
    inserted: int
    updated: int
    deleted: int
    large: bool
    known: bool


Counts = Mapping[QualifiedName, Counted]


async def counts(conn: AsyncConnection[TupleRow]) -> Counts:
    """What the server behind `conn` has counted. Raises psycopg's errors."""
    cursor = await conn.execute(_COUNTS)
    return {QualifiedName(schema, name): Counted(*rest) async for schema, name, *rest in cursor}


def has_turn(name: QualifiedName, number: int) -> bool:
    """Whether a table is compared in poll `number` whatever was counted. Pure."""
    return (crc32(str(name).encode()) + number) % EVERY == 0


class Stillness:
    """What was counted before each table was last found level. Pure."""

    def __init__(self) -> None:
        self._level: dict[QualifiedName, tuple[Counted, Counted]] = {}

    def forget(self) -> None:
        """Nothing is known any more of what was found level."""
        self._level.clear()

    def found_level(self, name: QualifiedName, source: Counts, target: Counts) -> None:
        """A table was compared as a whole, and is level, or will be; the counts are of before."""
        if name in source and name in target:
            self._level[name] = source[name], target[name]

    def stands(self, name: QualifiedName, source: Counts, target: Counts) -> bool:
        """Whether a table is large, and was not written to on either end since it was found level, as far as was counted."""
        now = source.get(name), target.get(name)
        if now[0] is None or now[1] is None or not (now[0].known and now[1].known):
            return False
        return now[0].large and self._level.get(name) == now
