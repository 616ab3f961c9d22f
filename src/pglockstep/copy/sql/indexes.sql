-- The indexes of these tables as an archive knows them: by themselves, or by the constraint that each stands for.
SELECT
    coalesce(k.tableoid, c.tableoid) AS class_oid,
    coalesce(k.oid, c.oid) AS oid,
    i.indrelid AS table_oid,
    n.nspname AS schema,
    c.relname AS name
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_constraint AS k
    ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = ANY ($1)
