"""What a target lacks of its source's schema: objects, by PostgreSQL's own words for them, and columns. Reads only.

What the target has beyond that is its own affair, but for columns of tables that we fill: a row of ours must fit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import class_row

from pglockstep.postgres.names import QualifiedName, quote_if_needed

#: How often tables that are gone before they are locked are looked up again.
_PINS = 5


class SchemaObject(msgspec.Struct, frozen=True):
    """One object, as `pg_identify_object` names it, with the row of the catalog that a dump knows it by."""

    class_oid: int
    oid: int
    kind: str
    identity: str
    relation_schema: str | None = None
    relation_name: str | None = None
    relation_kind: str | None = None
    other_schema: str | None = None
    other_name: str | None = None
    part: str | None = None
    definition: str | None = None

    @property
    def relation(self) -> QualifiedName | None:
        """The relation that it is, or belongs to."""
        if self.relation_schema is None or self.relation_name is None:
            return None
        return QualifiedName(self.relation_schema, self.relation_name)

    @property
    def other(self) -> QualifiedName | None:
        """The table that a foreign key refers to."""
        if self.other_schema is None or self.other_name is None:
            return None
        return QualifiedName(self.other_schema, self.other_name)

    @property
    def is_table(self) -> bool:
        """Whether it is a table that holds rows."""
        return self.kind == "table" and self.relation_kind == "r"

    def __str__(self) -> str:
        return f"{self.kind} {self.identity}"


class TableColumn(msgspec.Struct, frozen=True):
    """One column of a table, as its server spells it."""

    schema: str
    table: str
    name: str
    type: str
    collation: str | None
    not_null: bool
    generated: str
    expression: str | None
    inherited: bool

    @property
    def owner(self) -> QualifiedName:
        """The table."""
        return QualifiedName(self.schema, self.table)

    @property
    def place(self) -> tuple[str, str, str]:
        """What tells it from every other column."""
        return self.schema, self.table, self.name

    def holds_as(self, other: TableColumn) -> bool:
        """Whether the values of one fit into the other; an expression may read differently on another server."""
        return (self.type, self.collation, self.generated) == (other.type, other.collation, other.generated)

    def added(self) -> sql.Composed:
        """What makes it: the table is empty, and its default is put back as an object of its own."""
        parts: list[sql.Composable] = [
            sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}").format(
                self.owner.sql(), sql.Identifier(self.name), sql.SQL(self.type)
            )
        ]
        if self.collation:
            parts.append(sql.SQL("COLLATE {}").format(sql.SQL(self.collation)))
        if self.expression:
            how = sql.SQL("STORED" if self.generated == "s" else "VIRTUAL")
            parts.append(sql.SQL("GENERATED ALWAYS AS ({}) {}").format(sql.SQL(self.expression), how))
        if self.not_null:
            parts.append(sql.SQL("NOT NULL"))
        return sql.SQL(" ").join(parts)

    def dropped(self) -> sql.Composed:
        """What takes it away; never with anything that somebody else made of it."""
        return sql.SQL("ALTER TABLE {} DROP COLUMN IF EXISTS {}").format(
            self.owner.sql(), sql.Identifier(self.name)
        )

    def maybe_null(self) -> sql.Composed:
        """What allows NULL in it again."""
        return sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL").format(
            self.owner.sql(), sql.Identifier(self.name)
        )

    def never_null(self) -> sql.Composed:
        """What forbids NULL in it again."""
        return sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET NOT NULL").format(
            self.owner.sql(), sql.Identifier(self.name)
        )


class Schema(NamedTuple):
    """What a database consists of, as far as a heal cares."""

    objects: Sequence[SchemaObject]
    columns: Sequence[TableColumn]


class Missing(msgspec.Struct, frozen=True):
    """What the target lacks. `objects` are the source's; `added` and `dropped` columns concern tables that it has.

    `loose`: columns that lost their NOT NULL; `tight`: columns that refuse NULL where the source's do not.
    """

    objects: tuple[SchemaObject, ...] = ()
    added: tuple[TableColumn, ...] = ()
    dropped: tuple[TableColumn, ...] = ()
    loose: tuple[TableColumn, ...] = ()
    tight: tuple[TableColumn, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.objects or self.added or self.dropped or self.loose or self.tight)

    @property
    def tables(self) -> set[QualifiedName]:
        """Tables that are not there at all."""
        return {each.relation for each in self.objects if each.is_table and each.relation}

    @property
    def altered(self) -> set[QualifiedName]:
        """Tables that are there and lack a column: no row of theirs is whole."""
        return {each.owner for each in self.added}

    @property
    def at_one_moment(self) -> set[QualifiedName]:
        """Tables on either side of foreign keys to be made: these must show one moment, or a row could find no other."""
        pairs = [(each.relation, each.other) for each in self.objects if each.other]
        return {table for pair in pairs for table in pair if table}

    @property
    def by_hand(self) -> tuple[SchemaObject, ...]:
        """Defaults and checks of tables that are there: a dump has them only within the table's own statement."""
        new = {each.relation for each in self.objects if each.kind in ("table", "foreign table")}
        return tuple(
            each for each in self.objects if each.definition is not None and each.relation not in new
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All that has to be made, in words."""
        columns = (f"column {each.owner}.{quote_if_needed(each.name)}" for each in self.added)
        return (*map(str, self.objects), *columns)


async def read(conn: AsyncConnection[Any]) -> Schema:
    """What the database behind `conn` consists of. Raises psycopg's errors.

    No schema that holds a table can be dropped meanwhile, and none for as long as a transaction that is open already.
    """
    async with conn.transaction():
        await _pin(conn)
        async with conn.cursor(row_factory=class_row(SchemaObject)) as objects:
            await objects.execute(_statement("objects"))
            found = await objects.fetchall()
        async with conn.cursor(row_factory=class_row(TableColumn)) as columns:
            await columns.execute(_statement("columns"))
            return Schema(found, await columns.fetchall())


async def _pin(conn: AsyncConnection[Any]) -> None:
    """Lock one table of each schema, as a reader does: whoever drops a schema waits for it, or is waited for.

    `pg_identify_object` of an object whose schema is gone ends the server's process, and with it every session (seen on 18):
    PostgreSQL quotes the schema's name without looking whether it has found one.
    """
    for _ in range(_PINS):
        cursor = await conn.execute(
            "SELECT DISTINCT ON (n.nspname) n.nspname, c.relname FROM pg_catalog.pg_class AS c "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^(pg_|information_schema$)' "
            "AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT') "
            "ORDER BY n.nspname, c.oid"
        )
        tables = [QualifiedName(*row).sql() for row in await cursor.fetchall()]
        if not tables:
            return
        only = sql.SQL(", ").join(sql.SQL("ONLY {}").format(each) for each in tables)
        with suppress(psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            async with conn.transaction():
                await conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(only))
            return


def missing(source: Schema, target: Schema, left_out: Collection[QualifiedName]) -> Missing:
    """What the target lacks of the source, what belongs to relations that are `left_out` aside. Pure."""
    here = {(each.kind, each.identity) for each in target.objects}
    objects = [
        each
        for each in source.objects
        if (each.kind, each.identity) not in here and each.relation not in left_out
    ]
    tables = {each.owner for each in target.columns} - set(left_out)
    there = {each.place: each for each in source.columns if each.owner in tables}
    mine = {each.place: each for each in target.columns}
    filled = {each.owner for each in there.values()}
    wrong = {place for place, each in there.items() if place in mine and not each.holds_as(mine[place])}
    return Missing(
        tuple(objects),
        tuple(each for place, each in there.items() if place not in mine or place in wrong),
        tuple(
            each
            for place, each in mine.items()
            if each.owner in filled and (place not in there or place in wrong)
        ),
        tuple(
            each
            for place, each in there.items()
            if place in mine and place not in wrong and each.not_null and not mine[place].not_null
        ),
        tuple(
            each
            for place, each in there.items()
            if place in mine and place not in wrong and mine[place].not_null and not each.not_null
        ),
    )


def put_back_by_hand(objects: Iterable[SchemaObject]) -> Iterator[sql.Composed]:
    """The statements for defaults and checks of tables that are there. Pure; definitions are the source's own spelling."""
    for each in objects:
        assert each.relation is not None
        assert each.part is not None
        assert each.definition is not None
        words = (
            "ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {}"
            if each.kind == "default value"
            else "ALTER TABLE {} ADD CONSTRAINT {} {}"
        )
        yield sql.SQL(words).format(each.relation.sql(), sql.Identifier(each.part), sql.SQL(each.definition))


@cache
def _statement(name: str) -> bytes:
    return files("pglockstep.guard").joinpath("sql", f"{name}.sql").read_bytes()
