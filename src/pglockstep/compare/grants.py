"""Which grants differ between two databases, object by object, in words.

A copy repeats the grants that the target has the roles for, and from then on a GRANT on the source is nobody's to carry.
So they are told, apart from all other differences: who may read a copy is often meant to be otherwise than at home.
What is compared is what somebody *may do*: an owner's own rights are left out, on whichever end it owns the object, and
so is whatever goes to or comes from a role that one end does not have. Reads the catalogs alone, and takes no locks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from psycopg import AsyncConnection

from pglockstep.compare.schema import SchemaDifference, Skip
from pglockstep.postgres.names import quote_if_needed

_RELATIONS = {"table", "foreign table", "view", "materialized view", "sequence"}

#: The privilege to maintain, and the major version that brought it: where it is not known nobody can grant it.
_MAINTAIN, _KNOWS_MAINTAIN = "MAINTAIN", 17

#: (grantee, privilege), the grantee of PUBLIC being ''; and whether it may be passed on.
_Rights = dict[tuple[str, str], bool]


class Grant(msgspec.Struct, frozen=True):
    """One privilege that `grantor` gave to `grantee`, who is '' for PUBLIC."""

    grantee: str
    privilege: str
    grantable: bool
    grantor: str


class Granted(msgspec.Struct, frozen=True):
    """One object, whose it is, and what others may do with it; of columns there are only those with grants of their own."""

    kind: str
    schema: str
    name: str
    owner: str
    grants: tuple[Grant, ...] = ()
    parents: tuple[tuple[str, str], ...] = ()


class Grants(msgspec.Struct, frozen=True):
    """All grants of one end, and all the roles of its server."""

    objects: tuple[Granted, ...]
    roles: frozenset[str]


async def read(conn: AsyncConnection[Any], skip: Skip | None = None) -> Grants:
    """The grants of a database, without those on relations that are to be skipped. Raises psycopg's errors."""
    roles = await conn.execute("SELECT rolname FROM pg_catalog.pg_roles")
    names = frozenset([row[0] async for row in roles])
    cursor = await conn.execute(_statement(), prepare=False)
    found = [
        Granted(
            kind=kind,
            schema=schema,
            name=name if part is None else f"{quote_if_needed(name)}.{quote_if_needed(part)}",
            owner=owner,
            grants=tuple(Grant(to, what, may == "true", by) for to, what, may, by in grants or ()),
            parents=tuple((parent[0], parent[1]) for parent in parents or ()),
        )
        for kind, schema, name, part, parents, owner, grants in await cursor.fetchall()
    ]
    return Grants(tuple(each for each in found if skip is None or not _skipped(each, skip)), names)


@cache
def _statement() -> bytes:
    return files("pglockstep.compare").joinpath("sql", "grants.sql").read_bytes()


def _skipped(each: Granted, skip: Skip) -> bool:
    is_itself = each.kind in _RELATIONS and skip(each.schema, each.name)
    return is_itself or any(skip(*parent) for parent in each.parents)


def differences(
    source: Grants, target: Grants, source_major: int, target_major: int, missing: Sequence[SchemaDifference]
) -> list[SchemaDifference]:
    """What others may do on one end only, sorted by schema, name and kind. Pure.

    Objects that are on one end only have differences enough: those are `missing`, among others.
    """
    ends = _by_name(source), _by_name(target)
    gone = {(each.schema, each.name, each.kind) for each in missing}
    known = source.roles & target.roles
    found: list[SchemaDifference] = []
    for key in sorted(ends[0].keys() | ends[1].keys()):
        one = ends[0].get(key) or ends[1][key]
        owners = [_owners(one, objects) for objects in ends]
        if key in gone or not all(owners):
            continue
        sides = [objects[key].grants if key in objects else () for objects in ends]
        unknown = {
            (each.grantee, each.privilege)
            for grants, owned_by in zip(sides, owners, strict=True)
            for each in grants
            if not _is_known(each, known, owned_by)
        }
        if min(source_major, target_major) < _KNOWS_MAINTAIN:
            unknown |= {(each.grantee, _MAINTAIN) for grants in sides for each in grants}
        rights = [_rights(grants, owners[0] | owners[1], unknown) for grants in sides]
        if difference := _difference(*rights):
            found.append(SchemaDifference(one.kind, one.schema, one.name, difference))
    return found


def _by_name(grants: Grants) -> dict[tuple[str, str, str], Granted]:
    return {(each.schema, each.name, each.kind): each for each in grants.objects}


def _owners(one: Granted, objects: Mapping[tuple[str, str, str], Granted]) -> set[str]:
    """Who owns `one` among these objects, nobody if it is not there: a column is its table's owner's."""
    places = [(one.schema, one.name, one.kind)]
    if one.kind == "column":
        places = [(*parent, kind) for parent in one.parents for kind in _RELATIONS]
    return {objects[each].owner for each in places if each in objects}


def _is_known(grant: Grant, roles: Collection[str], owners: Collection[str]) -> bool:
    """Whether the other end could have such a grant. There the owner, whoever that is, grants in the owner's place."""
    return grant.grantee in ("", *roles) and (grant.grantor in roles or grant.grantor in owners)


def _rights(
    grants: Sequence[Grant], owners: Collection[str], unknown: Collection[tuple[str, str]]
) -> _Rights:
    """What is granted to others than `owners`, by whomever: it may be passed on if one of the grantors said so."""
    found: _Rights = {}
    for each in grants:
        key = (each.grantee, each.privilege)
        if each.grantee not in owners and key not in unknown:
            found[key] = found.get(key, False) or each.grantable
    return found


def _difference(source: _Rights, target: _Rights) -> str:
    here, there = _without(source, target), _without(target, source)
    if not here and not there:
        return ""
    if not there:
        return f"differs: source grants {_words(here)}, target does not"
    if not here:
        return f"differs: target grants {_words(there)}, source does not"
    return f"differs: source grants {_words(here)}, target grants {_words(there)}"


def _without(rights: _Rights, others: _Rights) -> _Rights:
    return {key: grantable for key, grantable in rights.items() if others.get(key) is not grantable}


def _words(rights: _Rights) -> str:
    by_grantee: dict[tuple[str, bool], list[str]] = {}
    for (grantee, privilege), grantable in sorted(rights.items()):
        by_grantee.setdefault((grantee, grantable), []).append(privilege)
    return " and ".join(
        f"{', '.join(privileges)} to {quote_if_needed(grantee) if grantee else 'PUBLIC'}"
        + (" with grant option" if grantable else "")
        for (grantee, grantable), privileges in by_grantee.items()
    )
