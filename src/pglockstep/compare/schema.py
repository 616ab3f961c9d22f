"""What differs between the schemas of two databases, object by object, in words.

Reads the catalogs alone: one query for each end, no lock on any table, nothing written. Compared is what an
application can tell apart: that objects are there, what they are made of and what they are told to do. Not
compared is what the two ends may have differently and still be the same to it: owners, grants (see `grants`),
storage options, replica identities, versions of extensions, the order of columns, how full a materialised view is.

Views are written back differently by servers before version 16 and since (and by no other pair from 14 to 18,
going by PostgreSQL's own regression tests). Across that line only their columns are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import Any

import msgspec
from psycopg import AsyncConnection

from pglockstep.compare.expressions import canonical
from pglockstep.errors import one_line
from pglockstep.postgres.names import quote_if_needed

#: Whether a relation, given by schema and name, is to be left out with all that belongs to it.
Skip = Callable[[str, str], bool]

_RELATIONS = {"table", "foreign table", "view", "materialized view", "sequence"}

#: Since this major version, queries are written back without table names that they can do without.
_SHORTER_QUERIES = 16

#: Characters of a definition that a sentence can take.
_SHOWN = 80


class SchemaObject(msgspec.Struct, frozen=True):
    """One object and what it consists of; ``sql/schema.sql`` says what belongs where.

    `schema` is empty for what lives in none. `parents` are the relations, by schema and name, that the
    object cannot do without.
    """

    kind: str
    schema: str
    name: str
    definition: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    parents: tuple[tuple[str, str], ...] = ()


class SchemaDifference(msgspec.Struct, frozen=True):
    """One object that differs, and how, as the end of a sentence that begins with its kind and name."""

    kind: str
    schema: str
    name: str
    difference: str


async def read(conn: AsyncConnection[Any], skip: Skip | None = None) -> list[SchemaObject]:
    """Every object of a user's, in no particular order. Raises psycopg's errors."""
    cursor = await conn.execute(_statement(), prepare=False)
    found = [
        SchemaObject(
            kind=kind,
            schema=schema,
            name=name if part is None else f"{quote_if_needed(name)}.{quote_if_needed(part)}",
            definition=_present(definition),
            expressions=_present(expressions),
            queries=_present(queries),
            parents=tuple((parent[0], parent[1]) for parent in parents or ()),
        )
        for kind, schema, name, part, parents, definition, expressions, queries in await cursor.fetchall()
    ]
    if skip is None:
        return found
    return [
        each
        for each in found
        if not any(skip(*parent) for parent in each.parents)
        and not (each.kind in _RELATIONS and skip(each.schema, each.name))
    ]


@cache
def _statement() -> bytes:
    return files("pglockstep.compare").joinpath("sql", "schema.sql").read_bytes()


def _present(parts: Sequence[str | None] | None) -> tuple[str, ...]:
    return tuple(part for part in parts or () if part is not None)


def differences(
    source: Sequence[SchemaObject], target: Sequence[SchemaObject], source_major: int, target_major: int
) -> list[SchemaDifference]:
    """What to change on the target to make it the source's twin, sorted by schema, name and kind.

    What belongs to a table that is not there at all is not told one by one.
    """
    on_source, on_target = _by_name(source), _by_name(target)
    source_relations, target_relations = _relations(source), _relations(target)
    with_queries = (source_major < _SHORTER_QUERIES) == (target_major < _SHORTER_QUERIES)
    found: list[SchemaDifference] = []
    for key in sorted(on_source.keys() | on_target.keys()):
        here, there = on_source.get(key), on_target.get(key)
        difference = ""
        if here and there:
            difference = _difference(here, there, with_queries=with_queries)
        elif here and target_relations.issuperset(here.parents):
            difference = "is missing on the target"
        elif there and source_relations.issuperset(there.parents):
            difference = "is not on the source"
        if difference:
            schema, name, kind = key
            found.append(SchemaDifference(kind, schema, name, difference))
    return found


def _by_name(objects: Sequence[SchemaObject]) -> dict[tuple[str, str, str], SchemaObject]:
    return {(each.schema, each.name, each.kind): each for each in objects}


def _relations(objects: Sequence[SchemaObject]) -> set[tuple[str, str]]:
    return {(each.schema, each.name) for each in objects if each.kind in _RELATIONS}


def _difference(source: SchemaObject, target: SchemaObject, *, with_queries: bool) -> str:
    only_source = [
        *_without(source.definition, target.definition, str),
        *_without(source.expressions, target.expressions, canonical),
    ]
    only_target = [
        *_without(target.definition, source.definition, str),
        *_without(target.expressions, source.expressions, canonical),
    ]
    if with_queries:
        only_source += _without(source.queries, target.queries, canonical)
        only_target += _without(target.queries, source.queries, canonical)
    has, had = one_line(", ".join(only_source)), one_line(", ".join(only_target))
    if not has and not had:
        return ""
    if has == had:
        return "differs in white space"
    if not had:
        return f"differs: source has {_shown(has)}, target does not"
    if not has:
        return f"differs: target has {_shown(had)}, source does not"
    alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(has, had, strict=False))))
    return f"differs: source has {_shown(has, alike)}, target has {_shown(had, alike)}"


def _without(parts: Sequence[str], others: Sequence[str], form: Callable[[str], str]) -> list[str]:
    rest = [part for part in parts if part not in others]
    forms = {form(other) for other in others} if rest else set()
    return [part for part in rest if form(part) not in forms]


def _shown(text: str, alike: int = 0) -> str:
    """`text`, or as much of it as a sentence can take from a little before the place where it differs."""
    if len(text) <= _SHOWN:
        return text
    start = max(0, min(alike - _SHOWN // 4, len(text) - _SHOWN))
    end = start + _SHOWN
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
