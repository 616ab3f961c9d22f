-- Who a server is, in one row. The timeline is that of the WAL which is being written: the last checkpoint's may be older.
SELECT
    (SELECT system_identifier FROM pg_catalog.pg_control_system())::text AS system,
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint())
        ELSE ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::integer
    END AS timeline,
    d.oid::bigint AS database_oid,
    d.datname::text AS database,
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
        ELSE pg_catalog.pg_current_wal_flush_lsn() END::text AS written,
    (
        SELECT count(*) FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^(pg_|information_schema$|pglockstep$)'
    ) AS tables
FROM pg_catalog.pg_database AS d
WHERE d.datname = pg_catalog.current_database()
