-- Tables with triggers or foreign keys of the user's: what would fire on the target for every row that we write.
SELECT DISTINCT n.nspname AS schema, c.relname AS name
FROM pg_catalog.pg_trigger AS t
JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_constraint AS k ON k.oid = t.tgconstraint
WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pglockstep')
    AND t.tgenabled <> 'D'
    AND (NOT t.tgisinternal OR k.contype = 'f')
ORDER BY 1, 2
