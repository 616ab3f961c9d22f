-- The foreign keys that have one of these tables on either side, each with both tables and their columns in order.
SELECT
    n.nspname AS schema, c.relname AS name, k.conname AS constraint_name,
    rn.nspname AS other_schema, r.relname AS other_name, r.relkind = 'p' AS other_is_partitioned,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(k.conkey) WITH ORDINALITY AS u (attnum, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.attnum
        ORDER BY u.place
    ) AS columns,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(k.confkey) WITH ORDINALITY AS u (attnum, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = u.attnum
        ORDER BY u.place
    ) AS other_columns,
    ARRAY(
        SELECT pg_catalog.format('OPERATOR(%I.%s)', o.nspname, p.oprname)
        FROM unnest(k.conpfeqop) WITH ORDINALITY AS u (oid, place)
        JOIN pg_catalog.pg_operator AS p ON p.oid = u.oid
        JOIN pg_catalog.pg_namespace AS o ON o.oid = p.oprnamespace
        ORDER BY u.place
    ) AS operators
FROM pg_catalog.pg_constraint AS k
JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid AND c.relkind = 'r'
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class AS r ON r.oid = k.confrelid
JOIN pg_catalog.pg_namespace AS rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f'
    -- a partition of the other table has one of its own, which says the same
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_constraint AS w
        WHERE w.oid = k.conparentid AND w.conrelid = k.conrelid
    )
    AND (k.conrelid = ANY ($1::oid[]) OR k.confrelid = ANY ($1::oid[])
        OR EXISTS (
            SELECT FROM pg_catalog.pg_inherits AS h
            WHERE h.inhrelid = ANY ($1::oid[]) AND h.inhparent = k.confrelid
        ))
ORDER BY 1, 2, 3
