-- A replication slot of this database: what the server keeps for it, and how much it would keep at the most.
-- invalidation_reason came with 17; as JSON the slot has it or has not.
SELECT
    s.slot_name AS name,
    s.active,
    coalesce(s.wal_status, '') AS wal_status,
    coalesce(pg_catalog.to_jsonb(s) ->> 'invalidation_reason', '') AS invalidation_reason,
    s.confirmed_flush_lsn AS confirmed,
    coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn), 0)::bigint AS retained,
    CASE WHEN pg_catalog.current_setting('max_slot_wal_keep_size') <> '-1' THEN
        -- the larger one counts
        greatest(
            pg_catalog.pg_size_bytes(pg_catalog.current_setting('max_slot_wal_keep_size')),
            pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_keep_size'))
        )
    END AS "limit",
    pg_catalog.pg_current_wal_flush_lsn() AS written
FROM pg_catalog.pg_replication_slots AS s
WHERE s.slot_name = $1 AND s.database = pg_catalog.current_database()
