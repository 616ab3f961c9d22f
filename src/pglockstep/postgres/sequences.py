"""Where sequences stand, and setting them: they are not in the replication stream."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import msgspec
from psycopg import AsyncConnection, sql

from pglockstep.postgres.catalog import statement
from pglockstep.postgres.names import QualifiedName

#: Sequences asked for in one statement.
_AT_ONCE = 200


class SequenceState(msgspec.Struct, frozen=True):
    """Where one sequence stands: `last_value` is the next value to come unless `is_called`.

    `final_value` is the bound that it counts towards; `cache` is how many numbers a session takes at once.
    """

    schema: str
    name: str
    last_value: int
    is_called: bool
    increment: int
    final_value: int
    cache: int = 1
    cycles: bool = False

    @property
    def next_value(self) -> int:
        """What ``nextval`` would give, bounds aside."""
        return self.last_value + self.increment if self.is_called else self.last_value

    def steps_to(self, other: SequenceState) -> int:
        """How many numbers `other` is ahead of this one; negative if it is behind."""
        return (other.next_value - self.next_value) // self.increment

    def ahead_by(self, numbers: int) -> SequenceState:
        """This sequence so many numbers on, but by no more than half of what it has left.

        One that cycles stays: ahead of its end there is nothing.
        """
        left = (self.final_value - self.next_value) // self.increment + 1
        numbers = min(numbers, left // 2)
        if self.cycles or numbers <= 0:
            return self
        last_value = self.next_value + (numbers - 1) * self.increment
        return msgspec.structs.replace(self, last_value=last_value, is_called=True)


async def read(
    conn: AsyncConnection[Any], names: Collection[QualifiedName] | None = None
) -> list[SequenceState]:
    """Where every sequence of a user's stands, or those in `names`; sorted by schema, then name.

    Not from ``pg_sequences``: it hides the value of a sequence that was set but not called. Raises psycopg's
    errors.
    """
    cursor = await conn.execute(statement("sequences"))
    known = [
        (QualifiedName(schema, name), rest)
        async for schema, name, *rest in cursor
        if names is None or (schema, name) in names
    ]
    found: list[SequenceState] = []
    for start in range(0, len(known), _AT_ONCE):
        part = known[start : start + _AT_ONCE]
        query = sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT {}, last_value, is_called FROM {}").format(sql.Literal(index), name.sql())
            for index, (name, _) in enumerate(part)
        )
        cursor = await conn.execute(query, prepare=False)
        states = {index: (last_value, is_called) async for index, last_value, is_called in cursor}
        found += [SequenceState(*name, *states[index], *rest) for index, (name, rest) in enumerate(part)]
    return found


async def move(conn: AsyncConnection[Any], states: Iterable[SequenceState]) -> None:
    """Set each sequence that exists here to the state given. Raises psycopg's errors."""
    for each in states:
        await conn.execute(
            "SELECT pg_catalog.setval(c.oid, $1, $2) FROM pg_catalog.pg_class AS c "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE c.relkind = 'S' AND n.nspname = $3 AND c.relname = $4",
            [each.last_value, each.is_called, each.schema, each.name],
        )
