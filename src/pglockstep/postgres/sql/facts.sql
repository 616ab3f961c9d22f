-- What a server and our role on it allow, in one row.
SELECT
    current_setting('server_version_num')::integer AS version,
    (SELECT system_identifier FROM pg_catalog.pg_control_system())::text AS system_identifier,
    d.oid::bigint AS database_oid,
    d.datname AS database,
    pg_catalog.pg_encoding_to_char(d.encoding) AS encoding,
    current_user::text AS role,
    r.rolsuper AS superuser,
    r.rolreplication AS replication,
    r.rolbypassrls AS bypass_row_security,
    pg_catalog.pg_is_in_recovery() AS in_recovery,
    current_setting('wal_level') AS wal_level,
    current_setting('max_replication_slots')::integer AS max_slots,
    (SELECT count(*) FROM pg_catalog.pg_replication_slots) AS used_slots,
    current_setting('max_wal_senders')::integer AS max_senders,
    (SELECT count(*) FROM pg_catalog.pg_stat_replication) AS used_senders,
    pg_catalog.has_database_privilege(d.oid, 'CREATE') AS can_create,
    pg_catalog.has_database_privilege(d.oid, 'TEMPORARY') AS can_stage
FROM pg_catalog.pg_database AS d
JOIN pg_catalog.pg_roles AS r ON r.rolname = current_user
WHERE d.datname = pg_catalog.current_database()
