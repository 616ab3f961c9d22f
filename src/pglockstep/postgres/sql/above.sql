-- Every ordinary table of a user, and what it is a partition of, the nearest first.
SELECT n.nspname, c.relname, over_n.nspname, over.relname
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN LATERAL pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY AS up (relid, place)
    ON c.relispartition AND up.relid <> c.oid
LEFT JOIN pg_catalog.pg_class AS over ON over.oid = up.relid
LEFT JOIN pg_catalog.pg_namespace AS over_n ON over_n.oid = over.relnamespace
WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
ORDER BY c.oid, up.place
