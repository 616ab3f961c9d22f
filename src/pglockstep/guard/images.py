"""Last images of deleted rows: how a deletion on the target keeps them, in the same statement. Pure.

What stays below every limit passes the guard; only when the last of many small deletions trips a rule is it known that the
first ones belonged to a wipe. Their rows are gone from the target by then: so each deletion leaves what it deleted in
``pglockstep.deleted``, for as long as ``guard.keep_deleted`` says.

An image is the text of each column, with the columns' names. That outlives whatever happens to the table: a column that is
gone is left out when the row is put back, one that has come takes its default. Generated columns are computed again.
"""

from __future__ import annotations

from psycopg import sql

from pglockstep.guard.rows import composed, joined, only, text_of
from pglockstep.postgres.catalog import Table


def keeping(delete: sql.Composable, table: Table, lsn: sql.Composable, alias: str = "") -> sql.Composed:
    """`delete` as a statement that keeps the images of what it deletes, and touches as many rows as before.

    `delete` deletes from `table`, which it calls `alias`, and returns nothing. `lsn`: a value or a parameter, up to where
    the source's transactions reach that are applied together.
    """
    return composed(
        "WITH gone AS ({} RETURNING {} AS image) "
        "INSERT INTO pglockstep.deleted (lsn, schema_name, table_name, columns, image) SELECT {}, {}, image FROM gone",
        delete,
        _image(table, *([alias] if alias else [])),
        lsn,
        _label(table),
    )


def keeping_all(table: Table, lsn: sql.Composable) -> sql.Composed:
    """The statement that keeps the images of all rows of a table: to be run before the TRUNCATE that takes them."""
    return composed(
        "INSERT INTO pglockstep.deleted (lsn, schema_name, table_name, columns, image) SELECT {}, {}, {} FROM {}",
        lsn,
        _label(table),
        _image(table, "t"),
        only(table, "t"),
    )


def pruning(keep: float, most: int = 10_000) -> sql.Composed:
    """The statement that forgets the oldest images of more than `keep` seconds ago, up to `most` of them."""
    return composed(
        "DELETE FROM pglockstep.deleted WHERE ctid = ANY (ARRAY("
        "SELECT ctid FROM pglockstep.deleted WHERE deleted_at < pg_catalog.now() - pg_catalog.make_interval(secs => {}) "
        "LIMIT {}))",
        sql.Literal(keep),
        sql.Literal(most),
    )


def _image(table: Table, *alias: str) -> sql.Composable:
    return composed("ARRAY[{}]::text[]", joined(", ", [text_of(each, *alias) for each in table.data_columns]))


def _label(table: Table) -> sql.Composable:
    columns = sql.Literal([each.name for each in table.data_columns])
    return composed(
        "{}, {}, {}::text[]", sql.Literal(table.name.schema), sql.Literal(table.name.name), columns
    )
