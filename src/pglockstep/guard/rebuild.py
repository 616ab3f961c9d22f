"""What a target lacks of its source's schema, made again: before the rows what they need, after them what needs them.

From a dump of the source as it is now; what the rows are read of is looked at again when they are. The transaction is
the caller's. Not put back is what is there and was changed: the body of a function or a view, a comment, who may do what.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from pathlib import Path

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.guard.missing import Missing, put_back_by_hand
from pglockstep.postgres import ownership, restore
from pglockstep.postgres.connect import End, translate
from pglockstep.postgres.dump import Entry, SchemaArchive
from pglockstep.postgres.installations import clients_for
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import target as progress

#: What others stand on, by its catalog: schemas, extensions, types, collations, languages. Columns come after these.
_FOUNDATIONS = frozenset({2615, 3079, 1247, 3456, 2612})
#: The catalog of schemas, and in it the schema that every database begins with: a dump does not always have it.
_SCHEMAS, _PUBLIC = 2615, 2200
#: Its comment from the beginning, which says nothing of it once it was made anew.
_STANDARD = "standard public schema"

#: Measures what is done inside, under a name.
Timed = Callable[[str], AbstractContextManager[None]]


class Ends(msgspec.Struct, frozen=True):
    """Both ends with a session each."""

    source: End
    target: End
    there: AsyncConnection[TupleRow]
    here: AsyncConnection[TupleRow]

    @property
    def both(self) -> tuple[End, End]:
        """Source and target."""
        return self.source, self.target

    @property
    def source_major(self) -> int:
        """The source's major version."""
        return self.there.info.server_version // 10000

    @property
    def target_major(self) -> int:
        """The target's major version."""
        return self.here.info.server_version // 10000


@asynccontextmanager
async def schema(
    ends: Ends, lacks: Missing, left_out: Collection[QualifiedName], timed: Timed
) -> AsyncIterator[None]:
    """Make what is missing: what rows need before the block, and after it what needs the rows."""
    if not lacks:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="pglockstep-") as scratch:
        archive = SchemaArchive(clients_for(ends.source_major, os.environ), Path(scratch))
        with timed("schema"):
            await archive.dump(ends.source, None, sorted(left_out))
            plan = await _plan(archive, lacks)
            foundations = plan.foundations
            if any(each.oid == _PUBLIC and each.kind == "schema" for each in lacks.objects):
                await _make_public(ends)
                foundations = [
                    each for each in foundations if (each.class_oid, each.oid) != (_SCHEMAS, _PUBLIC)
                ]
            await _run(ends, archive, foundations, "schema")
            with translate(ends.target):
                await _put_columns_right(ends.here, lacks)
            await _run(ends, archive, plan.others, "schema")
        yield
        with timed("schema"):
            known = {(each.class_oid, each.oid) for each in plan.all}
            by_hand = [each for each in lacks.by_hand if (each.class_oid, each.oid) not in known]
            with translate(ends.target):
                for statement in put_back_by_hand(by_hand):
                    await ends.here.execute(statement)
                for column in lacks.loose:
                    await ends.here.execute(column.never_null())
            for entries in (plan.indexes, plan.attached, plan.rest):
                await _run(ends, archive, entries, "indexes and constraints")
            await _give(ends, archive, lacks, plan.all)


class _Plan(msgspec.Struct, frozen=True):
    """The entries of an archive that are to be made, in their order.

    Partitions are attached once they have their indexes: to a root that is there with its own, one would be made for each.
    """

    foundations: Sequence[Entry]
    others: Sequence[Entry]
    indexes: Sequence[Entry]
    attached: Sequence[Entry]
    rest: Sequence[Entry]

    @property
    def all(self) -> list[Entry]:
        return [*self.foundations, *self.others, *self.indexes, *self.attached, *self.rest]


async def _plan(archive: SchemaArchive, lacks: Missing) -> _Plan:
    wanted = {(each.class_oid, each.oid) for each in lacks.objects}
    sections = [await archive.entries(section) for section in ("pre-data", "post-data")]
    numbers = {
        each.number for entries in sections for each in entries if (each.class_oid, each.oid) in wanted
    }
    described = {each.entry.number: each for each in await archive.described()}
    # a comment, an owned sequence, an attached partition or index has no row of its own in the catalog
    numbers |= {
        each.number
        for entries in sections
        for each in entries
        if not each.class_oid and not numbers.isdisjoint(described[each.number].depends)
    }
    before, after = ([each for each in entries if each.number in numbers] for entries in sections)

    def those(entries: Sequence[Entry], *kinds: str) -> list[Entry]:
        return [each for each in entries if described[each.number].words.startswith(kinds)]

    foundations = [each for each in before if each.class_oid in _FOUNDATIONS]
    attached = those(before, "TABLE ATTACH ")
    indexes = those(after, "CONSTRAINT ", "INDEX ")
    indexes = [each for each in indexes if each not in those(after, "INDEX ATTACH ")]
    return _Plan(
        foundations,
        [each for each in before if each not in foundations and each not in attached],
        indexes,
        attached,
        [each for each in after if each not in indexes],
    )


async def _run(ends: Ends, archive: SchemaArchive, entries: Sequence[Entry], what: str) -> None:
    if entries:
        script = await archive.script(entries, target_major=ends.target_major)
        await restore.run_script(ends.here, ends.target, script, what=what)


async def _put_columns_right(conn: AsyncConnection[TupleRow], lacks: Missing) -> None:
    """No row of a table that lacks a column is whole: they come anew, and the columns are made while there is none."""
    for table in sorted(lacks.altered):
        await conn.execute(sql.SQL("DELETE FROM ONLY {}").format(table.sql()))
    for column in lacks.added:
        # a partition or an heir has it from above
        if not column.inherited:
            await conn.execute(column.added())
    for column in lacks.tight:
        await conn.execute(column.maybe_null())


async def _make_public(ends: Ends) -> None:
    """Make the schema ``public`` as the source's is."""
    with translate(ends.source):
        cursor = await ends.there.execute(
            "SELECT pg_catalog.pg_get_userbyid(n.nspowner), pg_catalog.obj_description(n.oid, 'pg_namespace'), ARRAY("
            "SELECT ARRAY[CASE a.grantee WHEN 0 THEN '' ELSE pg_catalog.pg_get_userbyid(a.grantee) END, a.privilege_type] "
            "FROM pg_catalog.aclexplode(n.nspacl) AS a) FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'public'"
        )
        row = await cursor.fetchone()
    assert row is not None
    owner, comment, grants = row
    with translate(ends.target):
        await ends.here.execute("CREATE SCHEMA public")
        if comment != _STANDARD:
            await ends.here.execute(sql.SQL("COMMENT ON SCHEMA public IS {}").format(sql.Literal(comment)))
    statements = [sql.SQL("ALTER SCHEMA public OWNER TO {}").format(sql.Identifier(owner))]
    statements += [
        sql.SQL("GRANT {} ON SCHEMA public TO {}").format(
            sql.SQL(privilege), sql.Identifier(role) if role else sql.SQL("PUBLIC")
        )
        for role, privilege in grants
    ]
    await ownership.grant(ends.here, ends.target, [each.as_bytes() for each in statements])


async def drop_columns(conn: AsyncConnection[TupleRow], lacks: Missing) -> None:
    """Take away the columns of ours that hold what they should not, or that somebody added: a row of ours must fit."""
    for column in lacks.dropped:
        if not column.inherited:
            await conn.execute(column.dropped())


async def rename_back(conn: AsyncConnection[TupleRow], known: Collection[tuple[str, str, int]]) -> None:
    """Give tables that somebody renamed or moved their names back, known by their OIDs; what is in the way stays there."""
    cursor = await conn.execute(
        "SELECT w.schema_name, w.table_name, n.nspname, c.relname "
        "FROM unnest($1::text[], $2::text[], $3::bigint[]) AS w (schema_name, table_name, oid) "
        "JOIN pg_catalog.pg_class AS c ON c.oid = w.oid::oid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE (w.schema_name, w.table_name) <> (n.nspname, c.relname)",
        [list(each) for each in zip(*known, strict=True)] if known else [[], [], []],
    )
    for schema_name, table_name, other_schema, other_name in await cursor.fetchall():
        with suppress(psycopg.errors.DuplicateTable, psycopg.errors.InvalidSchemaName):
            async with conn.transaction():
                if table_name != other_name:
                    await conn.execute(
                        sql.SQL("ALTER TABLE {} RENAME TO {}").format(
                            sql.Identifier(other_schema, other_name), sql.Identifier(table_name)
                        )
                    )
                if schema_name != other_schema:
                    await conn.execute(
                        sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(
                            sql.Identifier(other_schema, table_name), sql.Identifier(schema_name)
                        )
                    )


async def _give(ends: Ends, archive: SchemaArchive, lacks: Missing, entries: Sequence[Entry]) -> None:
    """Owners, grants, replica identities and the content of materialised views, of what was made."""
    made = {each.identity for each in lacks.objects}
    with translate(ends.source):
        owners = {
            what: owner for what, owner in (await ownership.owners(ends.there)).items() if what[1] in made
        }
    await restore.drop_public(ends.there, ends.here, ends.both)
    await ownership.give_to_owners(ends.here, ends.target, owners)
    grants = await archive.grants(target_major=ends.target_major, of=[each.number for each in entries])
    await ownership.grant(ends.here, ends.target, grants)
    if any(each.kind == "materialized view" for each in lacks.objects):
        await restore.refresh_materialized_views(ends.there, ends.here, ends.both)
    with translate(ends.target):
        changed = await progress.identities(ends.here)
        await progress.repeat_identities(ends.here, [each for each in changed if each.table in lacks.tables])
