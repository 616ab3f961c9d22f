-- The sequences of users: names, direction, and where they end. Where each stands is read from the sequence itself.
SELECT
    n.nspname AS schema,
    c.relname AS name,
    s.seqincrement AS increment,
    CASE WHEN s.seqincrement > 0 THEN s.seqmax ELSE s.seqmin END AS final_value,
    s.seqcache AS cache,
    s.seqcycle AS cycles
FROM pg_catalog.pg_sequence AS s
JOIN pg_catalog.pg_class AS c ON c.oid = s.seqrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relpersistence <> 't'
    AND n.nspname <> 'information_schema'
    AND n.nspname <> 'pglockstep'
    AND n.nspname !~ '^pg_'
    AND NOT EXISTS (
        SELECT
        FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    )
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
