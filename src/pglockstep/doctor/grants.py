"""The smallest roles and grants that are enough for a link, as SQL that a superuser pastes into psql. Pure.

No password is ever in it. Each statement stands below a comment that says in plain words what it is for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import msgspec

from pglockstep.doctor.readings import Extension, Owned, Thing
from pglockstep.doctor.target import make_extension
from pglockstep.errors import Side, one_line
from pglockstep.findings import listed
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.names import QualifiedName, quote_if_needed

#: What a role is called if the connection string names a superuser, who needs no grants, or nobody.
OUR_ROLE = "pglockstep"


class Script(msgspec.Struct, frozen=True):
    """What to paste on one end; not `complete` if an end could not be read."""

    side: Side
    text: str
    complete: bool = True


class SourceNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What the source's part depends on. `closed`: schemas that PUBLIC may not use, '' for the database.

    `polls`: the source is only read. `sequences`: those of tables' columns.
    """

    role: str
    exists: bool
    major: int
    database: str
    owned: Sequence[Owned]
    tables: Sequence[Table]
    closed: Collection[str]
    polls: bool = False
    sequences: Sequence[QualifiedName] = ()


class TargetNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What the target's part depends on: what of the source's it lacks, and only a superuser can put there.

    `uninstalled` are those of the `extensions` that its server does not even have on its disk.
    """

    role: str
    exists: bool
    major: int
    database: str
    extensions: Sequence[Extension]
    uninstalled: Sequence[str] = ()
    roles: Collection[str]
    wrappers: Collection[str]
    things: Sequence[Thing]
    tables: Sequence[Table]


def source_script(needs: SourceNeeds, title: str) -> str:
    """The statements for the source."""
    role = quote_if_needed(needs.role)
    attributes = "" if needs.polls else "REPLICATION"
    lines = [*_head("source", title), *_role(needs.role, attributes, exists=needs.exists)]
    database = quote_if_needed(needs.database)
    if not needs.polls:
        lines += _step(
            "It makes one publication in this database.", f"GRANT CREATE ON DATABASE {database} TO {role};"
        )
    if "" in needs.closed:
        lines += _step("Not everyone may connect to it.", f"GRANT CONNECT ON DATABASE {database} TO {role};")
    lines += _reading(needs, role) if needs.polls else _ownership(needs, role)
    if schemas := sorted(set(needs.closed) - {""}):
        lines += _step(
            "To see what is in these schemas.",
            *(f"GRANT USAGE ON SCHEMA {quote_if_needed(schema)} TO {role};" for schema in schemas),
        )
    if needs.polls:
        return "\n".join([*lines, *_unhidden(needs.tables, role, own=False), ""])
    if needs.major >= 15:
        lines += _step(
            "To put rows back after a wipe (pglockstep incidents restore) without firing the application's triggers.",
            f"GRANT SET ON PARAMETER session_replication_role TO {role};",
            more="Everything else works without it.",
        )
    return "\n".join([*lines, *_unhidden(needs.tables, role), ""])


def _reading(needs: SourceNeeds, role: str) -> Iterator[str]:
    """SELECT on what is there, and on what comes to be there; nothing is written by a role that polls."""
    reads = [f"GRANT SELECT ON {each.qualified} TO {role};" for each in needs.owned if each.kind in "rpS"]
    reads += [f"GRANT SELECT ON {each} TO {role};" for each in needs.sequences]
    for each in needs.owned:
        if each.kind == "L":
            reads.append(f"GRANT SELECT ON LARGE OBJECT {', '.join(map(str, each.oids))} TO {role};")
    if reads:
        yield from _step(
            "It reads, and does nothing else: no slot, no publication, no trigger.",
            *reads,
            more="For tables made later: ALTER DEFAULT PRIVILEGES … GRANT SELECT ON TABLES and ON SEQUENCES.",
        )


def _ownership(needs: SourceNeeds, role: str) -> Iterator[str]:
    """Membership in the owners, who are no superusers; what superusers own is handed over or read by a grant."""
    others = [each for each in needs.owned if each.owner != needs.role]
    ordinary = [each for each in others if not each.owner_is_superuser]
    supers = [each for each in others if each.owner_is_superuser]
    # from 16 on, the rights of an owner without the right to become it
    how = " WITH INHERIT TRUE, SET FALSE" if needs.major >= 16 else ""
    owners = sorted({quote_if_needed(each.owner) for each in ordinary})
    if owners:
        yield from _step(
            "Only a table's owner, or a member of it, can publish the table and say how its rows are identified.",
            *(f"GRANT {owner} TO {role}{how};" for owner in owners),
        )
    if tables := [each.qualified for each in supers if each.kind == "r"]:
        yield from _step(
            "These tables belong to a superuser, and a member of that one would be a superuser too. Superusers go on",
            *(f"ALTER TABLE {name} OWNER TO {role};" for name in tables),
            more="using them as before; if others than superusers own them by right, give them to those instead.",
        )
    reads = [f"GRANT SELECT ON {each.qualified} TO {role};" for each in supers if each.kind in "pS"]
    for each in supers:
        if each.kind == "L":
            reads.append(f"GRANT SELECT ON LARGE OBJECT {', '.join(map(str, each.oids))} TO {role};")
    if reads:
        yield from _step("To read what else belongs to a superuser.", *reads)


def target_script(needs: TargetNeeds, title: str) -> str:
    """The statements for the target."""
    role, database = quote_if_needed(needs.role), quote_if_needed(needs.database)
    lines = [*_head("target", title), *_role(needs.role, "", exists=needs.exists)]
    lines += _step(
        "The target is its own: it makes every schema and table of the source's there, and a schema pglockstep.",
        f"ALTER DATABASE {database} OWNER TO {role};",
    )
    if needs.major >= 15:
        lines += _step(
            "To write rows as a replica: triggers and foreign keys have done their work on the source already.",
            f"GRANT SET ON PARAMETER session_replication_role TO {role};",
        )
    else:
        lines += [
            "",
            f"-- PostgreSQL {needs.major} cannot grant session_replication_role: if any table has a trigger or a foreign key,",
            "-- the target's role must be a superuser, or the target PostgreSQL 15 or newer.",
        ]
        lines += _step(
            "Before 15 the schema public is not the database owner's.",
            f"ALTER SCHEMA public OWNER TO {role};",
        )
    if needs.extensions:
        lines += _step(
            "Extensions of the source's that only a superuser can make.",
            *(make_extension(each, needs.role) for each in needs.extensions),
            more=f"Not on that server yet, install first: {listed(needs.uninstalled)}."
            if needs.uninstalled
            else "",
        )
    if needs.wrappers:
        lines += _step(
            "The source has foreign servers; they stand on these.",
            *(
                f"GRANT USAGE ON FOREIGN DATA WRAPPER {quote_if_needed(each)} TO {role};"
                for each in needs.wrappers
            ),
        )
    if needs.roles:
        lines += _step(
            "Policies of the source's name these roles; they need not log in.",
            *(f"CREATE ROLE {quote_if_needed(each)};" for each in sorted(needs.roles)),
        )
    lines += _unhidden(needs.tables, role)
    if needs.things:
        lines += [
            "",
            one_line(f"-- Not enough for: {listed(needs.things)}."),
            "-- Only a superuser can make these: let the first copy connect as one, or drop them on the source.",
        ]
    return "\n".join([*lines, ""])


def unknown_script(side: Side, role: str, reason: str, *, decodes: bool) -> str:
    """What can be said of an end that could not be read: its role, and why the rest is missing."""
    lines = [
        *_head(side, "could not be read"),
        f"-- {reason}",
        "-- Run this command again with a connection string that works, a superuser's, to have the rest.",
        *_role(role, "REPLICATION" if decodes else "", exists=False),
    ]
    return "\n".join([*lines, ""])


def _head(side: str, title: str) -> list[str]:
    return [one_line(f"-- ON THE {side.upper()} ({title}), as a superuser.")]


def _role(role: str, attributes: str, *, exists: bool) -> Iterator[str]:
    name = quote_if_needed(role)
    verb = "ALTER" if exists else "CREATE"
    yield from _step(
        f"The role that pglockstep connects as there. Give it a password with:  \\password {name}",
        f"{verb} ROLE {name} LOGIN{' ' if attributes else ''}{attributes};",
    )


def _unhidden(tables: Iterable[Table], role: str, *, own: bool = True) -> Iterator[str]:
    """`own`: the tables are our role's own, or of a role that it is a member of."""
    if hidden := [
        table.name for table in tables if table.forced_row_security or (table.row_security and not own)
    ]:
        yield from _step(
            f"Row security is forced on {listed(hidden)}: it would hide rows from the owner too."
            if own
            else f"Row security of {listed(hidden)} would hide rows.",
            f"ALTER ROLE {role} BYPASSRLS;",
        )


def _step(why: str, *statements: str, more: str = "") -> Iterator[str]:
    yield ""
    # a name that holds a line break must not end the comment
    yield f"-- {one_line(why)}"
    if more:
        yield f"-- {one_line(more)}"
    yield from statements
