-- A replication slot of this database: what the server keeps for it, and how much it would keep at the most.
-- invalidation_reason came with 17; as JSON the slot has it or has not. A limit below zero is none.
SELECT
    s.slot_name AS name,
    s.active,
    coalesce(s.wal_status, '') AS wal_status,
    coalesce(pg_catalog.to_jsonb(s) ->> 'invalidation_reason', '') AS invalidation_reason,
    s.confirmed_flush_lsn::text AS confirmed,
    coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn), 0)::bigint AS retained,
    -- both settings are megabytes, and the larger one counts
    greatest(keep.setting::bigint, spare.setting::bigint) * 1048576 AS limit_bytes,
    keep.setting::bigint >= 0 AS limited,
    pg_catalog.pg_current_wal_flush_lsn()::text AS written
FROM pg_catalog.pg_replication_slots AS s
JOIN pg_catalog.pg_settings AS keep ON keep.name = 'max_slot_wal_keep_size'
JOIN pg_catalog.pg_settings AS spare ON spare.name = 'wal_keep_size'
WHERE s.slot_name = $1 AND s.database = pg_catalog.current_database()
