-- The relations of users in a database: what makes a target "not empty". Left out: PostgreSQL's own, ours, and
-- members of extensions.
SELECT
    n.nspname AS schema,
    c.relname AS name,
    CASE c.relkind
        WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
        WHEN 'f' THEN 'foreign table' ELSE 'table'
    END AS kind
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    AND c.relpersistence <> 't'
    AND n.nspname <> 'information_schema'
    AND n.nspname <> 'pglockstep'
    AND n.nspname !~ '^pg_'
    AND NOT EXISTS (
        SELECT
        FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    )
ORDER BY c.relkind <> 'r', n.nspname COLLATE "C", c.relname COLLATE "C"
