"""Whether foreign keys hold: for a session that acts as a replica nobody looks."""

from __future__ import annotations

from collections.abc import Collection

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep.postgres.names import QualifiedName

# a constraint of a partitioned table stands for those of its partitions, on either side
_CONCERNED = """
WITH RECURSIVE concerned (oid) AS (
    SELECT unnest($1::text[])::regclass::oid
    UNION
    SELECT i.inhparent FROM concerned JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = concerned.oid
)
SELECT k.conname, cn.nspname, c.relname, pn.nspname, p.relname,
    ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u (number, n)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.n),
    ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u (number, n)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = u.number ORDER BY u.n),
    ARRAY(SELECT pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname)
        FROM unnest(k.conpfeqop) WITH ORDINALITY AS u (oid, n)
        JOIN pg_catalog.pg_operator AS o ON o.oid = u.oid
        JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace ORDER BY u.n)
FROM pg_catalog.pg_constraint AS k
JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace AS cn ON cn.oid = c.relnamespace
JOIN pg_catalog.pg_class AS p ON p.oid = k.confrelid
JOIN pg_catalog.pg_namespace AS pn ON pn.oid = p.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.convalidated
    AND (k.conrelid IN (SELECT oid FROM concerned) OR k.confrelid IN (SELECT oid FROM concerned))
ORDER BY 2, 3, 1
"""


async def broken(conn: AsyncConnection[TupleRow], tables: Collection[QualifiedName]) -> str | None:
    """A foreign key of these tables, or to them, that does not hold, as part of a sentence. None if all do.

    Looks at every row of the tables that refer. Raises psycopg's errors.
    """
    cursor = await conn.execute(_CONCERNED, [[each.sql().as_string() for each in tables]])
    for name, *parts in await cursor.fetchall():
        child, parent = QualifiedName(*parts[:2]), QualifiedName(*parts[2:4])
        referring, referred, equal = parts[4:]
        alike = sql.SQL(" AND ").join(
            sql.SQL("p.{} {} c.{}").format(sql.Identifier(theirs), sql.SQL(operator), sql.Identifier(ours))
            for ours, theirs, operator in zip(referring, referred, equal, strict=True)
        )
        filled = sql.SQL(" AND ").join(
            sql.SQL("c.{} IS NOT NULL").format(sql.Identifier(each)) for each in referring
        )
        query = sql.SQL(
            "SELECT FROM {} AS c WHERE {} AND NOT EXISTS (SELECT FROM {} AS p WHERE {}) LIMIT 1"
        ).format(child.sql(), filled, parent.sql(), alike)
        if (await conn.execute(query, prepare=False)).rowcount:
            return f"foreign key {name} of {child} to {parent}"
    return None
