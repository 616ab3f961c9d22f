-- Transactions that the making of a slot would wait for: prepared ones, and those open for $1 seconds or more.
SELECT
    NULL::integer AS pid,
    p.gid AS gid,
    p.database::text AS database,
    '' AS application,
    extract(epoch FROM pg_catalog.clock_timestamp() - p.prepared)::float8 AS seconds
FROM pg_catalog.pg_prepared_xacts AS p
UNION ALL
SELECT
    a.pid,
    '',
    coalesce(a.datname, ''),
    coalesce(a.application_name, ''),
    extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::float8
FROM pg_catalog.pg_stat_activity AS a
WHERE a.backend_xid IS NOT NULL
    AND a.pid <> pg_catalog.pg_backend_pid()
    AND a.xact_start < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1::float8)
ORDER BY seconds DESC
