-- The foreign-data wrappers that foreign servers of users stand on.
SELECT DISTINCT w.fdwname::text AS name
FROM pg_catalog.pg_foreign_server AS s
JOIN pg_catalog.pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw
ORDER BY 1
