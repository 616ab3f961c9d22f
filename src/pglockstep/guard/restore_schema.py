"""Re-creating on the source what a DROP took, from the target's own schema by pg_dump and pg_restore.

In two steps around the rows: what they need before them, and indexes, constraints, triggers, views' rules and the rest after
them, one by one: a key that rows written since do not fulfil is left out and told, and everything else stands. Then owners,
grants, sequences (never backwards), replica identities as they were on the source, and the place in the publication.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import psycopg
from psycopg import AsyncConnection, sql

from pglockstep.errors import one_line
from pglockstep.guard import restore_objects
from pglockstep.guard.restore_objects import Address, Named
from pglockstep.guard.restore_outcome import Left
from pglockstep.guard.restore_rows import ROW_REFUSED, Sides
from pglockstep.guard.rows import composed
from pglockstep.postgres import ownership, sequences
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import translate
from pglockstep.postgres.dump import Described, Entry, SchemaArchive
from pglockstep.postgres.names import QualifiedName
from pglockstep.postgres.sequences import SequenceState

_PUBLIC = Named("schema", "public")
#: By their catalogs: schemas, extensions, types, collations, languages.
_FOUNDATIONS = frozenset({2615, 3079, 1247, 3456, 2612})


class Remaking:
    """Makes again what was dropped. `archive` holds the target's schema, `major` is the source's version."""

    def __init__(self, sides: Sides, archive: SchemaArchive, major: int) -> None:
        self._sides = sides
        self._archive = archive
        self._major = major
        self._entries: list[Described] = []
        self._lost: dict[Address, Named] = {}
        self._relations: dict[Address, QualifiedName] = {}
        self._late: set[int] | None = None
        self.left: list[Left] = []

    @property
    def made(self) -> tuple[str, ...]:
        """What is made again, in words."""
        shown = ("ACL ", "DEFAULT ACL ", "COMMENT ")
        found = [each.words for each in self._entries if not each.words.startswith(shown)]
        return (*(["SCHEMA - public"] if _PUBLIC in self._lost.values() else []), *found)

    def knows(self, class_oid: int, oid: int) -> bool:
        """Whether this object of the target's is made again."""
        return any((each.entry.class_oid, each.entry.oid) == (class_oid, oid) for each in self._entries)

    @property
    def relations(self) -> set[QualifiedName]:
        """The tables, views and sequences that are made again."""
        return {self._relations[address] for address in self._lost if address in self._relations}

    async def survey(self, dropped: Collection[QualifiedName] | None) -> None:
        """Find out what is missing on the source because these tables were dropped; None: all that is. Needs the archive."""
        with translate(self._sides.target_end):
            here = await restore_objects.objects(self._sides.target)
            links = await restore_objects.edges(self._sides.target)
            self._relations = await restore_objects.relations(self._sides.target)
        with translate(self._sides.source_end):
            there = set((await restore_objects.objects(self._sides.source)).values())
        if dropped is None:
            found = {address for address, name in here.items() if name not in there}
        else:
            start = [address for address, name in self._relations.items() if name in dropped]
            found = restore_objects.lost(here, there, links, start)
        self._lost = {address: here[address] for address in found}
        self._entries = restore_objects.entries_of(await self._archive.described(), found)

    async def before_rows(self) -> None:
        """Make schemas, types, functions, tables, sequences and views."""
        await self.foundations()
        await self.objects()

    async def foundations(self) -> None:
        """Make what columns can be of: schemas, extensions, types."""
        if _PUBLIC in self._lost.values():
            await self._make_public()
        await self._run([each.entry for each in await self._early() if each.entry.class_oid in _FOUNDATIONS])

    async def objects(self) -> None:
        """Make functions, tables, sequences and views, on those."""
        early = await self._early()
        await self._run([each.entry for each in early if each.entry.class_oid not in _FOUNDATIONS])

    async def _early(self) -> list[Described]:
        return [each for each in self._entries if not await self._is_late(each) and not each.is_grant]

    async def _run(self, entries: Sequence[Entry]) -> None:
        if script := await self._archive.script(entries, target_major=self._major):
            with translate(self._sides.source_end):
                await self._sides.source.execute(script, prepare=False)

    async def after_rows(self) -> None:
        """Make what rows would have been in the way of, or it in theirs; then give everything to its owner."""
        conn, end = self._sides.source, self._sides.source_end
        chosen = [each for each in self._entries if await self._is_late(each) and not each.is_grant]
        chosen.sort(key=_turn)
        scripts = await self._archive.scripts([each.entry for each in chosen], target_major=self._major)
        for each, script in zip(chosen, scripts, strict=True):
            try:
                async with conn.transaction():
                    await conn.execute(script, prepare=False)
            except ROW_REFUSED as error:
                said = one_line(error.diag.message_detail or error.diag.message_primary or str(error))
                self.left.append(Left("", "", each.words, f"rows written since do not fulfil it: {said}"))
            except psycopg.Error:
                with translate(end):
                    raise
        await self._fill_views()
        await self._without_default_privileges()
        identities = {name.identity for name in self._lost.values()}
        with translate(self._sides.target_end):
            owners = await ownership.owners(self._sides.target)
        wanted = {what: owner for what, owner in owners.items() if what[1] in identities}
        for role in await ownership.give_to_owners(conn, end, wanted):
            self.left.append(
                Left("", "", f"role {role}", "owns it on the target, and is no role of the source's")
            )
        numbers = {each.entry.number for each in self._entries if each.is_grant}
        grants = await self._archive.grants(target_major=self._major, of=numbers)
        if missed := await ownership.grant(conn, end, grants):
            self.left.append(
                Left("", "", f"{missed} grants", "the source has no such role, or ours may not grant")
            )

    async def _is_late(self, entry: Described) -> bool:
        """Whether an entry has to wait for the rows; or for its own indexes: a partition of a table that still stands."""
        if self._late is None:
            self._late = {each.number for each in await self._archive.entries("post-data")}
            numbers = {each.entry.number for each in self._entries}
            self._late |= {
                each.entry.number
                for each in self._entries
                if each.words.startswith("TABLE ATTACH ") and not numbers.issuperset(each.depends)
            }
        return entry.entry.number in self._late

    async def finish(
        self, tables: Sequence[Table], publication: str, identities: Mapping[QualifiedName, str]
    ) -> None:
        """Give `tables` the replica identities that they had on the source, and publish those that are not published."""
        conn = self._sides.source
        with translate(self._sides.source_end):
            for table in tables:
                if identity := identities.get(table.name):
                    await conn.execute(
                        composed(
                            "ALTER TABLE ONLY {} REPLICA IDENTITY {}", table.name.sql(), sql.SQL(identity)
                        )
                    )
            cursor = await conn.execute(
                "SELECT r.prrelid::bigint FROM pg_catalog.pg_publication_rel AS r "
                "JOIN pg_catalog.pg_publication AS p ON p.oid = r.prpubid WHERE p.pubname = $1",
                [publication],
            )
            there = {row[0] async for row in cursor}
            published = [
                composed("ONLY {}", table.name.sql())
                for table in tables
                if not table.unlogged and table.oid not in there
            ]
            if published:
                await conn.execute(
                    composed(
                        "ALTER PUBLICATION {} ADD TABLE {}",
                        sql.Identifier(publication),
                        sql.SQL(", ").join(published),
                    )
                )

    async def _without_default_privileges(self) -> None:
        """Take back what default privileges gave to the objects that were just made: what they had then is granted next."""
        conn, end = self._sides.source, self._sides.source_end
        names = set(self._lost.values()) - {_PUBLIC}
        with translate(end):
            made = [
                address for address, name in (await restore_objects.objects(conn)).items() if name in names
            ]
            cursor = await conn.execute(
                restore_objects.statement("grants"), [[each[0] for each in made], [each[1] for each in made]]
            )
            statements = [row[0].encode() async for row in cursor]
        await ownership.grant(conn, end, statements)

    async def _make_public(self) -> None:
        """The schema that every database begins with is in no dump: it is made as the target has it."""
        with translate(self._sides.target_end):
            cursor = await self._sides.target.execute(
                "SELECT n.nspowner::regrole::text, pg_catalog.obj_description(n.oid, 'pg_namespace'), "
                "ARRAY(SELECT pg_catalog.format('GRANT %s ON SCHEMA public TO %s', a.privilege_type, "
                "CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END) "
                "|| CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END "
                "FROM pg_catalog.aclexplode(n.nspacl) AS a WHERE a.grantee <> n.nspowner) "
                "FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'public'"
            )
            row = await cursor.fetchone()
        assert row is not None
        owner, comment, grants = row
        conn = self._sides.source
        with translate(self._sides.source_end):
            await conn.execute("CREATE SCHEMA public")
            if comment is not None:
                await conn.execute(composed("COMMENT ON SCHEMA public IS {}", sql.Literal(comment)))
        # the server's own spelling, quoted by it
        given = [composed("ALTER SCHEMA public OWNER TO {}", sql.SQL(owner)).as_bytes()]
        await ownership.grant(conn, self._sides.source_end, [*given, *(each.encode() for each in grants)])

    async def _fill_views(self) -> None:
        """Fill the materialised views that are filled on the target, in the order in which they were made."""
        with translate(self._sides.target_end):
            cursor = await self._sides.target.execute(
                "SELECT c.oid::bigint FROM pg_catalog.pg_class AS c WHERE c.relkind = 'm' AND c.relispopulated ORDER BY 1"
            )
            filled = [row[0] async for row in cursor]
        for address in [(1259, oid) for oid in filled]:
            if address not in self._lost:
                continue
            name = self._relations[address]
            try:
                async with self._sides.source.transaction():
                    await self._sides.source.execute(composed("REFRESH MATERIALIZED VIEW {}", name.sql()))
            except psycopg.Error as error:
                with translate(self._sides.source_end):
                    if not isinstance(error, ROW_REFUSED):
                        raise
                self.left.append(
                    Left(*name, f"materialised view {name}", f"stays empty: {one_line(str(error))}")
                )


def _turn(entry: Described) -> int:
    """Indexes come first: a partition that is attached to a table with indexes would be given others otherwise. Pure."""
    if entry.words.startswith("TABLE ATTACH "):
        return 1
    return 0 if entry.words.startswith(("INDEX ", "CONSTRAINT ")) and "ATTACH" not in entry.words[:13] else 2


async def move_sequences(
    sides: Sides, made: Collection[QualifiedName], restarted: Collection[QualifiedName]
) -> None:
    """Set the sequences that were made again, and those of tables that restarted them: never backwards."""
    with translate(sides.target_end):
        names = {*made, *await _sequences_of(sides.target, restarted)}
        if not names:
            return
        wanted = {(each.schema, each.name): each for each in await sequences.read(sides.target, names)}
    with translate(sides.source_end):
        now = {(each.schema, each.name): each for each in await sequences.read(sides.source, names)}
        await sequences.move(sides.source, ahead(now, wanted))


def ahead(
    now: Mapping[tuple[str, str], SequenceState], wanted: Mapping[tuple[str, str], SequenceState]
) -> list[SequenceState]:
    """The wanted states of the sequences that are behind them. Pure."""
    return [state for name, state in wanted.items() if name in now and now[name].steps_to(state) > 0]


async def _sequences_of(conn: AsyncConnection, tables: Collection[QualifiedName]) -> set[QualifiedName]:
    """The sequences that belong to columns of these tables. Raises psycopg's errors."""
    cursor = await conn.execute(
        "SELECT n.nspname::text, s.relname::text FROM pg_catalog.pg_class AS s "
        "JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace "
        "JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = s.oid "
        "AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i') "
        "JOIN pg_catalog.pg_class AS t ON t.oid = d.refobjid "
        "JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace "
        "JOIN unnest($1::text[], $2::text[]) AS w (schema, name) ON w.schema = tn.nspname AND w.name = t.relname "
        "WHERE s.relkind = 'S'",
        [[each.schema for each in tables], [each.name for each in tables]],
    )
    return {QualifiedName(*row) async for row in cursor}
