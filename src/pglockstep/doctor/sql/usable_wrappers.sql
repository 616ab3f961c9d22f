-- The foreign-data wrappers that our role may use.
SELECT w.fdwname::text AS name
FROM pg_catalog.pg_foreign_data_wrapper AS w
WHERE pg_catalog.has_foreign_data_wrapper_privilege(w.oid, 'USAGE')
