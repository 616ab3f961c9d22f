-- What would fire on the target for rows that we write: triggers and foreign keys of users' tables.
-- $1: whether we write as a replica, so that only ENABLE ALWAYS and ENABLE REPLICA triggers fire.
SELECT n.nspname AS schema, c.relname AS name, t.tgname AS trigger
FROM pg_catalog.pg_trigger AS t
JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_constraint AS k ON k.oid = t.tgconstraint
WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pglockstep')
    AND t.tgenabled <> 'D'
    AND (NOT t.tgisinternal OR k.contype = 'f')
    AND (NOT $1 OR (t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal))
ORDER BY 1, 2, 3
