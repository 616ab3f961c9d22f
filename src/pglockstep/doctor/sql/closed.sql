-- What PUBLIC may not do here: '' stands for connecting to the database, the rest are schemas without USAGE.
SELECT '' AS name
WHERE NOT pg_catalog.has_database_privilege('public', pg_catalog.current_database(), 'CONNECT')
UNION ALL
SELECT n.nspname::text
FROM pg_catalog.pg_namespace AS n
WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pglockstep')
    AND NOT pg_catalog.has_schema_privilege('public', n.oid, 'USAGE')
ORDER BY 1
