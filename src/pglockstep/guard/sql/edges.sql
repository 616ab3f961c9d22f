-- What hangs on what, among users' objects: each pair once, whole objects only. The schema public counts as a user's.
SELECT DISTINCT d.classid::bigint, d.objid::bigint, d.refclassid::bigint, d.refobjid::bigint
FROM pg_catalog.pg_depend AS d
WHERE d.objid >= 16384
    AND (d.refobjid >= 16384 OR d.refclassid = 'pg_catalog.pg_namespace'::regclass)
    AND d.deptype IN ('n', 'a', 'i', 'P', 'S')
