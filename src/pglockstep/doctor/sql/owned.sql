-- What a copy reads, and whose it is: tables, partitioned tables, sequences that stand alone, large objects
-- (as one row for each owner), each with what PUBLIC may do there.
SELECT
    c.relkind::text AS kind,
    n.nspname AS schema,
    c.relname AS name,
    '{}'::bigint[] AS oids,
    r.rolname AS owner,
    r.rolsuper AS owner_is_superuser
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_roles AS r ON r.oid = c.relowner
WHERE c.relkind IN ('r', 'p', 'S')
    AND c.relpersistence <> 't'
    AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pglockstep')
    AND NOT EXISTS (
        SELECT
        FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
            -- a sequence of a column follows its table
            AND (d.deptype = 'e' OR (c.relkind = 'S' AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0))
    )
UNION ALL
SELECT 'L', '', '', pg_catalog.array_agg(m.oid::bigint ORDER BY m.oid), r.rolname, r.rolsuper
FROM pg_catalog.pg_largeobject_metadata AS m
JOIN pg_catalog.pg_roles AS r ON r.oid = m.lomowner
GROUP BY r.rolname, r.rolsuper
ORDER BY 1, 2, 3
