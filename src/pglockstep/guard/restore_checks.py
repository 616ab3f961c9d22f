"""What is looked at before and after something is put back on the source: what must be there, what must not fire, what fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.errors import IdentityChanged, SourceLacks, TargetLacks
from pglockstep.findings import counted, listed
from pglockstep.guard.restore_objects import statement
from pglockstep.guard.restore_outcome import Violation
from pglockstep.guard.restore_rows import Sides
from pglockstep.guard.restore_taken import TakenTable, net_gone
from pglockstep.guard.rows import composed, joined, names, numbered, only, same_key
from pglockstep.postgres import privileges
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, describe, translate
from pglockstep.postgres.firing import would_fire
from pglockstep.postgres.names import QualifiedName, quote_if_needed
from pglockstep.postgres.privileges import Facts
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord

_UNTOUCHED = "nothing was changed"


async def demand_target(conn: AsyncConnection[TupleRow], end: End, link: LinkRecord) -> None:
    """Raise `TargetLacks` unless the target still is the link's: else there is nothing to restore from."""
    with translate(end):
        found = await progress.read(conn)
        if found is not None and found.id == link.id and found.phase == "streaming":
            await progress.upgrade(conn)
            return
    whose = "belongs to another link now" if found is not None else "remembers no link any more"
    raise TargetLacks(
        f"the target ({describe(end.conninfo)}) {whose}: it has nothing that could be put back on the source",
        hint=f"{_UNTOUCHED}; put the target right first, or restore the source from a backup",
    )


def demand_source(end: End, facts: Facts, link: LinkRecord) -> None:
    """Raise `IdentityChanged` unless the source is the very database that lost something."""
    if facts.identity != link.source_identity:
        raise IdentityChanged(
            f"another database answers as the source ({describe(end.conninfo)}): it is {facts.identity}, what is to be put "
            f"back was taken from {link.source_identity}",
            hint=f"{_UNTOUCHED}; point `source` at the database it was",
        )


def demand_known(here: Mapping[QualifiedName, Table], name: QualifiedName) -> None:
    """Raise `TargetLacks` if a table that was dropped on the source is not on the target either."""
    if name not in here:
        raise TargetLacks(
            f"table {name} is gone from the target, too: there is nothing to put back on the source",
            hint=f"{_UNTOUCHED}; restore it from a backup, or decide with `reject` or `approve`",
        )


async def demand_there(sides: Sides, taken: TakenTable) -> int:
    """How many of the rows that are gone from the source the target has not; raises `TargetLacks` if it has none of them."""
    if taken.whole or not taken.key or not taken.deleted:
        return 0
    with translate(sides.target_end):
        cursor = await sides.target.execute(
            composed(
                "SELECT count(*), count(*) FILTER (WHERE EXISTS (SELECT FROM {} WHERE {})) FROM {} AS g",
                only(taken.table, "t"),
                same_key(taken.key_columns, "t", numbered("k", len(taken.key), "g")),
                net_gone(taken),
            )
        )
        row = await cursor.fetchone()
    assert row is not None
    wanted, there = row
    if wanted and not there:
        raise TargetLacks(
            f"the target has none of the {counted(wanted, 'row')} that {taken.table.name} lost on the source",
            hint=f"{_UNTOUCHED}; what happened on the target? see `pglockstep incidents`, then decide again",
        )
    return int(wanted - there)


async def demand_writable(sides: Sides, names: Sequence[QualifiedName]) -> None:
    """Raise `SourceLacks` if our role may not put rows into these tables of the source: one that polls need not be able to."""
    with translate(sides.source_end):
        cursor = await sides.source.execute(
            "SELECT n.nspname, c.relname, current_user FROM pg_catalog.pg_class AS c "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            "JOIN unnest($1::text[], $2::text[]) AS w (schema, name) ON (n.nspname, c.relname) = (w.schema, w.name) "
            "WHERE NOT (pg_catalog.has_table_privilege(c.oid, 'INSERT') AND pg_catalog.has_table_privilege(c.oid, 'UPDATE')) "
            "ORDER BY 1, 2",
            [[each.schema for each in names], [each.name for each in names]],
        )
        barred = await cursor.fetchall()
    if not barred:
        return
    tables, role = [QualifiedName(*row[:2]) for row in barred], quote_if_needed(barred[0][2])
    raise SourceLacks(
        f"role {role} may not write to {listed(tables)} on the source",
        hint=f"{_UNTOUCHED}; on the source: GRANT INSERT, UPDATE ON {', '.join(map(str, tables))} TO {role};",
    )


async def demand_rows(sides: Sides, table: Table) -> None:
    """Raise `TargetLacks` if a table that lost rows on the source is empty on the target, too."""
    with translate(sides.target_end):
        cursor = await sides.target.execute(composed("SELECT FROM ONLY {} LIMIT 1", table.name.sql()))
    if not cursor.rowcount:
        raise TargetLacks(
            f"table {table.name} is empty on the target, too: there is nothing to put back on the source",
            hint=f"{_UNTOUCHED}; what happened on the target? see `pglockstep incidents`, then decide again",
        )


def missing_on_source(name: QualifiedName) -> NoReturn:
    """What to say of a table that rows are to be put back into, and that is gone."""
    raise SourceLacks(
        f"table {name} is gone from the source by now: its rows cannot be put back",
        hint=f"{_UNTOUCHED}; let the link see that the table is gone, and restore that incident",
    )


async def demand_quiet(
    conn: AsyncConnection[TupleRow],
    end: End,
    facts: Facts,
    tables: Collection[QualifiedName],
    *,
    replica: bool,
) -> None:
    """Raise `SourceLacks` if anything of an application's would fire on the source for the rows of these tables."""
    with translate(end):
        firing = [each for each in await would_fire(conn, replica=replica) if each.table in tables]
    if not firing:
        return
    if not replica:
        fix, where = privileges.replica_grant(facts, "source")
        raise SourceLacks(
            f"role {quote_if_needed(facts.role)} on the source may not set session_replication_role, and triggers, foreign "
            f"keys or rules of {listed(dict.fromkeys(each.table for each in firing))} would fire for the rows that are put back",
            hint=f"{_UNTOUCHED}; {where}: {fix}" if where else f"{_UNTOUCHED}; {fix}",
        )
    first = firing[0]
    raise SourceLacks(
        f"{first.kind} {quote_if_needed(first.trigger)} of {first.table} is ENABLE ALWAYS or ENABLE REPLICA: it would fire for "
        "the rows that are put back",
        hint=f"{_UNTOUCHED}; ALTER TABLE {first.table} DISABLE {first.kind.upper()} {quote_if_needed(first.trigger)}; then "
        "restore, and enable it again",
    )


class _ForeignKey(msgspec.Struct, frozen=True):
    table: QualifiedName
    name: str
    other: QualifiedName
    other_is_partitioned: bool
    columns: list[str]
    other_columns: list[str]
    operators: list[str]


async def violations(conn: AsyncConnection[TupleRow], end: End, tables: Sequence[int]) -> list[Violation]:
    """The foreign keys from or to these tables, by OID, that some rows violate now."""
    found = []
    with translate(end):
        cursor = await conn.execute(statement("foreign_keys"), [list(tables)])
        keys = [
            _ForeignKey(QualifiedName(schema, name), key, QualifiedName(other_schema, other), *rest)
            async for schema, name, key, other_schema, other, *rest in cursor
        ]
        for key in keys:
            cursor = await conn.execute(_orphans(key))
            row = await cursor.fetchone()
            if row is not None and row[0]:
                found.append(Violation(*key.table, key.name, row[0]))
    return found


def _orphans(key: _ForeignKey) -> sql.Composed:
    """The statement that counts the rows which refer to none."""
    ours, theirs = names("c", key.columns), names("p", key.other_columns)
    # the operators' spelling comes from the server, quoted and qualified by it
    same = [
        composed("{} {} {}", their, sql.SQL(operator), our)
        for our, their, operator in zip(ours, theirs, key.operators, strict=True)
    ]
    return composed(
        "SELECT count(*) FROM ONLY {} AS c WHERE {} AND NOT EXISTS (SELECT FROM {}{} AS p WHERE {})",
        key.table.sql(),
        joined(" AND ", [composed("{} IS NOT NULL", our) for our in ours]),
        sql.SQL("" if key.other_is_partitioned else "ONLY "),
        key.other.sql(),
        joined(" AND ", same),
    )
