-- Of the schemas named in $1, those that are here and that our role may not make anything in.
SELECT n.nspname::text AS name
FROM pg_catalog.pg_namespace AS n
WHERE n.nspname = ANY ($1) AND NOT pg_catalog.has_schema_privilege(n.oid, 'CREATE')
ORDER BY n.nspname COLLATE "C"
