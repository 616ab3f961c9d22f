-- Sequences that belong to a column of a table, by serial or as an identity, with that table.
SELECT n.nspname AS schema, s.relname AS name, tn.nspname AS table_schema, t.relname AS table_name
FROM pg_catalog.pg_class AS s
JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
JOIN pg_catalog.pg_depend AS d
    ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = s.oid
    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
JOIN pg_catalog.pg_class AS t ON t.oid = d.refobjid
JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace
WHERE s.relkind = 'S' AND s.relpersistence <> 't'
