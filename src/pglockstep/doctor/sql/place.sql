-- Where a session really is, and what its database is like.
SELECT
    pg_catalog.pg_backend_pid() AS backend_pid,
    coalesce(pg_catalog.host(pg_catalog.inet_server_addr()), '') AS address,
    coalesce(pg_catalog.inet_server_port(), 0) AS port,
    current_setting('ssl')::boolean AS offers_tls,
    EXISTS (
        SELECT FROM pg_catalog.pg_stat_gssapi AS g WHERE g.pid = pg_catalog.pg_backend_pid() AND g.encrypted
    ) AS gss_encrypted,
    pg_catalog.pg_database_size(d.oid) AS size,
    d.datcollate::text AS collate,
    -- columns that came with 15, and the name of one that changed with 17
    coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') AS provider,
    coalesce(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale', '') AS locale,
    (
        SELECT nullif(s.setting, '-1')::bigint * 1048576
        FROM pg_catalog.pg_settings AS s
        WHERE s.name = 'max_slot_wal_keep_size'
    ) AS slot_limit,
    -- in seconds, new in 18; 0 means never
    coalesce((
        SELECT s.setting::integer FROM pg_catalog.pg_settings AS s WHERE s.name = 'idle_replication_slot_timeout'
    ), 0) AS idle_slot_timeout,
    pg_catalog.to_regnamespace('pglockstep') IS NOT NULL AS has_our_schema
FROM pg_catalog.pg_database AS d
WHERE d.datname = pg_catalog.current_database()
