"""Judging the target by what the source has: what it could not hold, or only in another way. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from pglockstep.doctor.readings import Extension, Held, NamedRole, Place, Role, Thing
from pglockstep.findings import Finding, listed
from pglockstep.postgres.names import quote_if_needed
from pglockstep.postgres.privileges import Facts, replica_grant
from pglockstep.units import human_bytes

_error = partial(Finding, side="target", severity="error")
_warning = partial(Finding, side="target", severity="warning")
_info = partial(Finding, side="target", severity="info")

_AS_SUPERUSER = "on the target, as a superuser"


def version_findings(source: Facts, target: Facts) -> Iterator[Finding]:
    """A target that is older than its source."""
    if target.major < source.major:
        yield _warning(
            code="older_target",
            message=f"the target is PostgreSQL {target.major}, older than the source's {source.major}: what the source uses of "
            "newer features cannot be made there, and refuses the copy",
            fix=f"use a target of PostgreSQL {source.major} or newer, if the copy is refused",
        )


def form_findings(*, compiled: bool) -> Iterator[Finding]:
    """Whether changes take their fast way to the target."""
    if not compiled:
        yield Finding(
            side="target",
            severity="info",
            code="interpreted",
            message="pglockstep runs interpreted here: it does the same as compiled, but a backlog takes it longer",
            fix="where there is a C compiler and no PGLOCKSTEP_INTERPRETED in the environment, install pglockstep again",
        )


def text_findings(
    source: Facts, source_place: Place, target: Facts, target_place: Place
) -> Iterator[Finding]:
    """Encodings and collations that differ; SQL_ASCII is another matter (`privileges.encoding_findings`)."""
    encodings = {source.encoding, target.encoding}
    if len(encodings) > 1 and "SQL_ASCII" not in encodings and target.encoding != "UTF8":
        yield _warning(
            code="encoding_differs",
            message=f"the source is encoded in {source.encoding}, the target in {target.encoding}: the first character that "
            f"{target.encoding} does not have stops the link",
            fix=f"create the target database with ENCODING '{source.encoding}' TEMPLATE template0",
        )
    here, there = _collation(source_place), _collation(target_place)
    if here != there:
        yield _info(
            code="collation_differs",
            message=f"text sorts by {there} on the target and by {here} on the source: the same rows, but ORDER BY and ranges "
            "may tell them in another order",
            fix="nothing to do, or create the target database with the source's locale (CREATE DATABASE … LOCALE …)",
        )


def _collation(place: Place) -> str:
    provider = {"c": "libc", "i": "ICU", "b": "builtin"}.get(place.provider, place.provider)
    return f"{provider} {place.locale or place.collate}"


def swapped_findings(
    source_held: Sequence[Held], target_held: Sequence[Held], *, ours_on_source: bool, filled_by_target: bool
) -> Iterator[Finding]:
    """Ends that look as if each stood in the other's place."""
    if filled_by_target:
        yield _error(
            code="swapped",
            message="the ends look swapped: the source is a database that pglockstep filled from this very target",
            fix="exchange `source` and `target` of the link",
        )
    elif ours_on_source:
        yield Finding(
            side="source",
            severity="warning",
            code="source_is_a_target",
            message="the source holds schema pglockstep: it is the target of a link itself, and what that link brings goes on",
            fix="nothing to do, if a chain is meant; else exchange `source` and `target` of the link",
        )
    elif target_held and not any(each.kind == "table" for each in source_held):
        yield _warning(
            code="swapped",
            message="the ends look swapped: the source holds no table at all, and the target holds some",
            fix="exchange `source` and `target` of the link, if so",
        )


def extension_findings(
    role: Facts, wanted: Sequence[Extension], present: Collection[str], available: dict[str, bool]
) -> Iterator[Finding]:
    """Extensions of the source that the target lacks; `available` tells of each whether anyone may make it."""
    for each in wanted:
        name = quote_if_needed(each.name)
        if each.name in present:
            continue
        if each.name not in available:
            yield _error(
                code="extension_missing",
                message=f"the target's server does not have the extension {name} that the source uses",
                fix=f"install the package with {name} for PostgreSQL {role.major} on the target's machine",
                otherwise=f"or, if nothing uses it any more, DROP EXTENSION {name}; on the source",
            )
        elif not (role.superuser or available[each.name]):
            yield _error(
                code="extension_needs_superuser",
                message=f"the source uses the extension {name}, which only a superuser can make on the target",
                fix=make_extension(each, role.role),
                where=_AS_SUPERUSER,
            )


def make_extension(extension: Extension, role: str) -> str:
    """The statements that make an extension, and the schema that it is in."""
    schema = quote_if_needed(extension.schema)
    make = f"CREATE EXTENSION {quote_if_needed(extension.name)} WITH SCHEMA {schema};"
    if extension.schema in ("public", "pg_catalog"):
        return make
    return f"CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {quote_if_needed(role)};\n{make}"


def role_findings(
    found: Facts, owners: Collection[str], named: Sequence[NamedRole], roles: Sequence[Role]
) -> Iterator[Finding]:
    """Roles of the source that the target lacks, or that ours may not give things to."""
    present = {role.name: role for role in roles}
    by_policy = {each.name for each in named if each.by_policy} - present.keys()
    if by_policy:
        yield _error(
            code="policy_role_missing",
            message=f"the target has no role {_roles(by_policy)}, which policies of the source name: they cannot be made there",
            fix=make_roles(by_policy),
            where=_AS_SUPERUSER,
        )
    missing = ({*owners} | {each.name for each in named}) - present.keys() - by_policy
    if missing:
        yield _warning(
            code="role_missing",
            message=f"the target has no role {_roles(missing)}: what these own on the source will belong to our role there, and "
            "what is granted to them will not be",
            fix=make_roles(missing),
            where=_AS_SUPERUSER,
        )
    ours = quote_if_needed(found.role)
    barred = {name for name in owners if name in present and not present[name].can_give}
    if supers := {name for name in barred if present[name].superuser}:
        yield _info(
            code="superusers_things",
            message=f"what {_roles(supers)} owns on the source will belong to {ours} on the target, who may not give things to a "
            "superuser",
            fix="nothing to do; a superuser can reassign them later",
        )
    if barred := barred - supers:
        yield _warning(
            code="owner_not_given",
            message=f"role {ours} may not give things to {_roles(barred)} on the target: what these own on the source will "
            f"belong to {ours} there",
            fix="\n".join(f"GRANT {quote_if_needed(name)} TO {ours};" for name in sorted(barred)),
            where=_AS_SUPERUSER,
        )


def make_roles(names: Collection[str]) -> str:
    """The statements that make roles which cannot log in."""
    return "\n".join(f"CREATE ROLE {quote_if_needed(name)};" for name in sorted(names))


def _roles(names: Collection[str]) -> str:
    return listed(quote_if_needed(name) for name in sorted(names))


def room_findings(found: Facts, barred: Sequence[str], source: Place) -> Iterator[Finding]:
    """Schemas that our role may not use for what comes, and the room that it takes."""
    role = quote_if_needed(found.role)
    if barred:
        yield _error(
            code="no_create_in_schema",
            message=f"role {role} may not make tables in schema {_roles(barred)} of the target",
            fix="\n".join(
                f"GRANT CREATE, USAGE ON SCHEMA {quote_if_needed(name)} TO {role};" for name in barred
            ),
            where=_AS_SUPERUSER,
        )
    yield _info(
        code="disk",
        message=f"the copy takes about {human_bytes(source.size)} on the target's disk, the size of the source database, and as "
        "much WAL for a while; SQL cannot tell how much is free there",
        fix="df -h",
        where="on the target's machine, at its data directory",
    )


def superuser_findings(found: Facts, things: Sequence[Thing], wrappers: Collection[str]) -> Iterator[Finding]:
    """What an ordinary role cannot make on the target."""
    if found.superuser:
        return
    role = quote_if_needed(found.role)
    if things:
        yield _error(
            code="needs_superuser",
            message=f"only a superuser can make {listed(things)} on the target, and role {role} is none",
            fix=f"ALTER ROLE {role} SUPERUSER;",
            where=_AS_SUPERUSER + ", until the first copy is done (NOSUPERUSER afterwards)",
        )
    if wrappers:
        yield _error(
            code="no_wrapper",
            message=f"role {role} may not use the foreign-data wrapper {_roles(wrappers)} on the target, which the source's "
            "foreign servers stand on",
            fix="\n".join(
                f"GRANT USAGE ON FOREIGN DATA WRAPPER {quote_if_needed(name)} TO {role};" for name in wrappers
            ),
            where=_AS_SUPERUSER,
        )


def guard_findings(found: Facts, mode: str, *, makes_databases: bool) -> Iterator[Finding]:
    """What the guard cannot do on the target without a superuser; `mode` is the link's `protect_target`."""
    role = quote_if_needed(found.role)
    if not found.superuser and mode != "off":
        tell = _warning if mode == "block" else _info
        yield tell(
            code="ddl_unseen",
            message=f"role {role} is no superuser on the target, and event triggers need one: foreign DDL there is "
            + ("not refused; it is " if mode == "block" else "")
            + "found by looking once a second, and where no table's columns change (a dropped view, function or constraint) by "
            "`check` alone",
            fix=f"ALTER ROLE {role} SUPERUSER;",
            where=_AS_SUPERUSER + ", if that is worth it",
        )
    if not makes_databases:
        yield _info(
            code="no_createdb",
            message=f"role {role} may not make databases on the target's server: if the target is dropped, that is held, and "
            "a superuser has to make the database again before it is filled",
            fix=f"ALTER ROLE {role} CREATEDB;",
            where=_AS_SUPERUSER,
        )


def replica_findings(found: Facts) -> Iterator[Finding]:
    """A role that may not act as a replica, while there is nothing that would fire."""
    fix, where = replica_grant(found)
    yield _info(
        code="no_replica_role",
        message=f"role {quote_if_needed(found.role)} on the target may not set session_replication_role: that is fine only as "
        "long as no table has a trigger or a foreign key",
        fix=fix,
        where=where,
    )
