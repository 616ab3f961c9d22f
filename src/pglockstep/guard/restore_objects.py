"""Which objects a DROP took from the source: what is missing there and hangs together with the tables that are gone.

The target still has them all. So what the source lacks of the target's objects is walked along their dependencies, in both
directions, starting with the tables that were dropped: their indexes, constraints, triggers, policies, views on them and
foreign keys of others to them; and their schema, types, functions and sequences where those are gone as well. What is missing
on the source for another reason hangs on none of these, and stays away. The walk is pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib.resources import files

import msgspec
from psycopg import AsyncConnection

from pglockstep.postgres.dump import Described
from pglockstep.postgres.names import QualifiedName

#: An object of a database: the catalog that it stands in, and its OID there.
Address = tuple[int, int]

_CLASS, _NAMESPACE = 1259, 2615


class Named(msgspec.Struct, frozen=True):
    """What both servers know an object by."""

    kind: str
    identity: str


def statement(name: str) -> bytes:
    """The text of ``guard/sql/NAME.sql``."""
    return files("pglockstep.guard").joinpath("sql", f"{name}.sql").read_bytes()


async def objects(conn: AsyncConnection) -> dict[Address, Named]:
    """Every object of users'. Raises psycopg's errors."""
    cursor = await conn.execute(statement("restorable"))
    return {(classid, objid): Named(*what) async for classid, objid, *what in cursor}


async def edges(conn: AsyncConnection) -> list[tuple[Address, Address]]:
    """Which object depends on which. Raises psycopg's errors."""
    cursor = await conn.execute(statement("edges"))
    return [((a, b), (c, d)) async for a, b, c, d in cursor]


async def relations(conn: AsyncConnection) -> dict[Address, QualifiedName]:
    """Every relation by its address. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT c.oid::bigint, n.nspname::text, c.relname::text FROM pg_catalog.pg_class AS c "
        "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"
    )
    return {(_CLASS, oid): QualifiedName(schema, name) async for oid, schema, name in cursor}


def lost(
    here: Mapping[Address, Named],
    there: Collection[Named],
    links: Iterable[tuple[Address, Address]],
    dropped: Iterable[Address],
) -> set[Address]:
    """Of the target's objects `here` those that are not among the source's, `there`, and hang on what was `dropped`."""
    missing = {address for address, name in here.items() if name not in there}
    neighbours: dict[Address, list[Address]] = {}
    members: dict[Address, list[Address]] = {}
    for one, other in links:
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
        if other[0] == _NAMESPACE and one[0] == _CLASS and one in here:
            members.setdefault(other, []).append(one)
    # a schema that was dropped and made again lacks everything that it held
    emptied = {schema for schema, found in members.items() if missing.issuperset(found)}
    reached = set(dropped)
    waiting = list(reached)
    while waiting:
        for other in neighbours.get(waiting.pop(), ()):
            if other not in reached and (other in missing or other in emptied):
                reached.add(other)
                waiting.append(other)
    return reached & missing


def entries_of(archive: Iterable[Described], objects: Collection[Address]) -> list[Described]:
    """The archive's entries for these objects, with comments, grants and the like that belong to them. Pure."""
    chosen: list[Described] = []
    numbers: set[int] = set()
    for each in archive:
        address = (each.entry.class_oid, each.entry.oid)
        belongs = each.entry.class_oid == 0 and not numbers.isdisjoint(each.depends)
        if address in objects or belongs:
            chosen.append(each)
            numbers.add(each.entry.number)
    return chosen
