"""What the source lacks of the target's schema, made there again: whole objects, and columns of tables that stand.

Nothing is dropped: what only the source has stays. A constraint that rows written since do not fulfil is left out and told.
The transaction is the caller's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import psycopg
from psycopg import sql

from pglockstep.errors import SourceLacks, one_line
from pglockstep.guard import missing as schemas
from pglockstep.guard.missing import Missing, TableColumn, put_back_by_hand
from pglockstep.guard.restore_outcome import Left
from pglockstep.guard.restore_rows import ROW_REFUSED, Sides, said
from pglockstep.guard.restore_schema import Remaking, ahead
from pglockstep.guard.rows import composed
from pglockstep.postgres import sequences
from pglockstep.postgres.connect import translate
from pglockstep.postgres.dump import SchemaArchive
from pglockstep.postgres.names import QualifiedName, quote_if_needed


class RefillingSchema:
    """Makes again what is missing. `archive` holds the target's schema without what is `left_out`."""

    def __init__(
        self, sides: Sides, archive: SchemaArchive, major: int, left_out: Collection[QualifiedName]
    ) -> None:
        self._sides = sides
        self._remaking = Remaking(sides, archive, major)
        self._left_out = left_out
        self._lacks = Missing()
        self._left: list[Left] = []

    @property
    def made(self) -> tuple[str, ...]:
        """What is made again, in words."""
        return (
            *self._remaking.made,
            *(f"COLUMN {each.owner}.{quote_if_needed(each.name)}" for each in self._lacks.added),
        )

    @property
    def left(self) -> Sequence[Left]:
        """What could not be made, and why."""
        return [*self._remaking.left, *self._left]

    async def before_rows(self) -> None:
        """Make what rows need: types, columns, tables."""
        sides = self._sides
        await self._remaking.survey(None)
        with translate(sides.target_end):
            wanted = await schemas.read(sides.target)
        with translate(sides.source_end):
            self._lacks = schemas.missing(wanted, await schemas.read(sides.source), self._left_out)
        await self._remaking.foundations()
        with translate(sides.source_end):
            await self._columns()
        await self._remaking.objects()

    async def _columns(self) -> None:
        """Have each column that the target has of a table that stands, able to hold what the target holds."""
        source, lacks = self._sides.source, self._lacks
        theirs = {each.place: each for each in lacks.dropped}
        for column in lacks.added:
            if column.inherited:
                continue
            if column.place in theirs:
                await self._alter_type(column, theirs[column.place])
            else:
                # rows that only the source has do not have it: whether it may be NULL is settled behind the rows
                await source.execute(msgspec.structs.replace(column, not_null=False).added())
        for column in lacks.tight:
            await source.execute(column.maybe_null())

    async def _alter_type(self, wanted: TableColumn, found: TableColumn) -> None:
        """A column that another type was given since; raises `SourceLacks` if the server knows no way from one to the other."""
        name = f"{wanted.owner}.{quote_if_needed(wanted.name)}"
        try:
            if wanted.generated or found.generated:
                raise psycopg.errors.DatatypeMismatch("a generated column stays what it is")
            async with self._sides.source.transaction():
                # the type's spelling is the server's own
                await self._sides.source.execute(
                    composed(
                        "ALTER TABLE {} ALTER COLUMN {} TYPE {}{}",
                        wanted.owner.sql(),
                        sql.Identifier(wanted.name),
                        sql.SQL(wanted.type),
                        sql.SQL(f" COLLATE {wanted.collation}" if wanted.collation else ""),
                    )
                )
        except psycopg.Error as error:
            if error.sqlstate is None or error.sqlstate[:2] not in ("42", "22", "0A"):
                raise
            raise SourceLacks(
                f"column {name} is of type {found.type} on the source and of type {wanted.type} on the target: "
                f"{one_line(str(error))}",
                hint=f"nothing was changed; ALTER TABLE {wanted.owner} ALTER COLUMN {quote_if_needed(wanted.name)} TYPE "
                f"{wanted.type} USING … on the source, then decide again",
            ) from error

    async def after_rows(self) -> None:
        """Make what rows would have been in the way of, and set sequences, never backwards."""
        sides, lacks = self._sides, self._lacks
        await self._remaking.after_rows()
        with translate(sides.source_end):
            by_hand = [each for each in lacks.by_hand if not self._remaking.knows(each.class_oid, each.oid)]
            for each, statement in zip(by_hand, put_back_by_hand(by_hand), strict=True):
                await self._unless_refused(statement, f"{each.kind} {each.identity}", each.relation)
            never_null = [each for each in lacks.added if each.not_null and not each.inherited]
            for column in [*never_null, *lacks.loose]:
                what = f"NOT NULL of column {quote_if_needed(column.name)}"
                await self._unless_refused(column.never_null(), what, column.owner)
        with translate(sides.target_end):
            wanted = {(each.schema, each.name): each for each in await sequences.read(sides.target)}
        with translate(sides.source_end):
            now = {(each.schema, each.name): each for each in await sequences.read(sides.source)}
            await sequences.move(sides.source, ahead(now, wanted))

    async def _unless_refused(
        self, statement: sql.Composed, what: str, relation: QualifiedName | None
    ) -> None:
        try:
            async with self._sides.source.transaction():
                await self._sides.source.execute(statement, prepare=False)
        except (*ROW_REFUSED, psycopg.errors.DuplicateObject) as error:
            where = relation or QualifiedName("", "")
            self._left.append(Left(*where, what, f"rows written since do not fulfil it: {said(error)}"))
