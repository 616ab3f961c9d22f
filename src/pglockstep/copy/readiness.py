"""Whether a first copy can start: the target must be empty, and every table able to say which row was changed.

Reading is apart from judging; the judgements are pure. Nothing here changes anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from psycopg import AsyncConnection

from pglockstep.copy.ends import Ends
from pglockstep.copy.selection import IN_CONFIG, Selection
from pglockstep.copy.source import identified_by_generated, references, without_identity
from pglockstep.copy.triggers import demand_quiet
from pglockstep.errors import TargetNotEmpty
from pglockstep.findings import Finding, counted, demand, listed
from pglockstep.postgres import catalog, privileges
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import translate
from pglockstep.postgres.installations import clients_for
from pglockstep.postgres.names import QualifiedName


async def holdings(conn: AsyncConnection) -> list[str]:
    """Every relation and large object of users' in a database, tables first, in words. Raises psycopg's errors."""
    cursor = await conn.execute(catalog.statement("holdings"))
    held = [f"{kind} {QualifiedName(schema, name)}" async for schema, name, kind in cursor]
    cursor = await conn.execute("SELECT oid::text FROM pg_catalog.pg_largeobject_metadata ORDER BY oid")
    return held + [f"large object {oid}" async for (oid,) in cursor]


def emptiness(held: Sequence[str]) -> Iterator[Finding]:
    """What a target holds that no link of ours has brought there: nothing is overwritten."""
    if held:
        yield Finding(
            side="target",
            severity="error",
            code="not_empty",
            message=f"the target is not empty and not ours: it holds {listed(held)}",
            fix="point `target` at an empty database (CREATE DATABASE …); pglockstep overwrites nothing",
            raises=TargetNotEmpty,
        )


def identity_findings(
    tables: Sequence[Table], major: int, without_key: str, selection: Selection
) -> Iterator[Finding]:
    """Tables without a replica identity, and what becomes of them; `major` is the source's version."""
    keyless = without_identity(tables)
    if keyless and without_key == "refuse":
        yield Finding(
            side="source",
            severity="error",
            code="no_identity",
            message=f"{len(keyless)} tables of the source have no replica identity: "
            + listed(table.name for table in keyless),
            fix='without_key = "full"',
            where=IN_CONFIG,
            otherwise="or add a primary key to each, or leave them out with `exclude`",
        )
    elif keyless:
        yield Finding(
            side="source",
            severity="info",
            code="no_identity",
            message=f"{counted(len(keyless), 'table')} of the source without a replica identity: set to REPLICA IDENTITY "
            "FULL before anything is copied, with changes found by the whole row: "
            + listed((table.name for table in keyless), 20),
            fix="nothing to do: teardown sets them back; a primary key would make large ones faster",
        )
    if barred := identified_by_generated(tables, major):
        yield Finding(
            side="source",
            severity="error",
            code="generated_identity",
            message=f"table {listed(table.name for table in barred)} has a generated column in its replica identity, "
            "which the stream does not carry; from PostgreSQL 18 on its users' own UPDATEs and DELETEs would be refused too",
            fix=selection.excluding(table.name for table in barred),
            where=IN_CONFIG,
            otherwise="or give it a primary key of ordinary columns (and REPLICA IDENTITY DEFAULT)",
        )


async def demand_ready(
    ends: Ends, selection: Selection, without_key: str, *, polls: bool = False
) -> list[Table]:
    """Raise unless a first copy can start; returns the tables that it will carry. Changes nothing."""
    demand(privileges.source_findings(ends.source_facts, needs_slot=True, polls=polls))
    demand(privileges.target_findings(ends.target_facts, needs_copy=True))
    demand(privileges.encoding_findings(ends.source_facts, ends.target_facts))
    with translate(ends.target):
        demand(emptiness(await holdings(ends.target_conn)))
    with translate(ends.source):
        every = await catalog.tables(ends.source_conn)
    tables = [table for table in every if selection.carries(*table.name)]
    demand(privileges.table_findings(ends.source_facts, tables, polls=polls))
    demand(privileges.hidden_row_findings(ends.target_facts, tables))
    if not selection.is_everything:
        with translate(ends.source):
            selection.demand_whole(await references(ends.source_conn))
    if not polls:
        demand(identity_findings(tables, ends.source_facts.major, without_key, selection))
    replica = await privileges.can_act_as_replica(ends.target_conn)
    await demand_quiet(ends.source_conn, ends.source, ends.target_facts, selection, replica=replica)
    clients_for(ends.source_facts.major, os.environ)
    return tables
