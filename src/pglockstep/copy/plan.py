"""What a copy has to do, cut into units that workers can share: whole tables, and page ranges of large ones. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from psycopg import sql

from pglockstep.postgres.catalog import Table
from pglockstep.postgres.extents import Extent, is_binary

#: A table is cut only into parts that are worth a transaction of their own, and into no more than a worker can balance.
_PART_BYTES = 32 << 20
_PARTS_PER_WORKER = 4
#: A table that is smaller is not worth a new file: its rows are frozen by a later vacuum.
_FREEZE_BYTES = 1 << 20


class Unit(msgspec.Struct, frozen=True):
    """One COPY: a whole table, or the rows of a range of its pages, of which the last range has no end."""

    table: Table
    part: int
    parts: int
    first_page: int
    end_page: int | None
    bytes: int
    binary: bool

    @property
    def copy_out(self) -> sql.Composed:
        """The COPY on the source, of the table's own rows and without what generates itself."""
        if self.parts == 1:
            return sql.SQL("COPY {}{} TO STDOUT{}").format(
                self.table.name.sql(), _listed(self.table), self._options()
            )
        where = sql.SQL("ctid >= '({},0)'::pg_catalog.tid").format(self.first_page)
        if self.end_page is not None:
            where += sql.SQL(" AND ctid < '({},0)'::pg_catalog.tid").format(self.end_page)
        return sql.SQL("COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT{}").format(
            sql.SQL(", ").join(sql.Identifier(column.name) for column in self.table.data_columns),
            self.table.name.sql(),
            where,
            self._options(),
        )

    @property
    def frozen(self) -> bool:
        """Whether the rows are written into a fresh file, frozen: that spares the target a second and a third writing."""
        return self.parts == 1 and self.bytes >= _FREEZE_BYTES

    @property
    def copy_in(self) -> sql.Composed:
        """The COPY on the target, in a transaction that the caller has begun."""
        copy = sql.SQL("COPY {}{} FROM STDIN{}").format(
            self.table.name.sql(), _listed(self.table), self._options(freeze=self.frozen)
        )
        if not self.frozen:
            return copy
        return sql.SQL("TRUNCATE ONLY {}; {}").format(self.table.name.sql(), copy)

    def _options(self, *, freeze: bool = False) -> sql.SQL:
        chosen = ["FORMAT binary"] * self.binary + ["FREEZE"] * freeze
        return sql.SQL(" (" + ", ".join(chosen) + ")" if chosen else "")


def _listed(table: Table) -> sql.Composable:
    if not table.data_columns:
        return sql.SQL("")
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.data_columns)
    return sql.SQL(" ({})").format(names)


def units(
    tables: Iterable[Table], extents: Mapping[int, Extent], jobs: int, *, same_major: bool
) -> list[Unit]:
    """The units of these tables, the largest first: what takes longest must not be begun last."""
    found: list[Unit] = []
    for table in tables:
        extent = extents[table.oid]
        count = parts(table, extent, jobs)
        edges = [extent.pages * number // count for number in range(count)]
        binary = is_binary(extent.types, same_major=same_major)
        for part, (first, end) in enumerate(zip(edges, [*edges[1:], None], strict=True)):
            found.append(Unit(table, part, count, first, end, extent.bytes // count, binary))
    # parts of one table stay together: its indexes can be built the sooner
    size = {table.oid: extents[table.oid].bytes for table in tables}
    return sorted(found, key=lambda unit: (-size[unit.table.oid], unit.table.name, unit.part))


def parts(table: Table, extent: Extent, jobs: int) -> int:
    """Into how many parts a table is cut."""
    if jobs == 1 or not table.data_columns:
        return 1
    return max(1, min(jobs * _PARTS_PER_WORKER, extent.bytes // _PART_BYTES, extent.pages))
