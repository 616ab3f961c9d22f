-- Slots of links of ours on this database.
SELECT s.slot_name::text AS name
FROM pg_catalog.pg_replication_slots AS s
WHERE s.database = pg_catalog.current_database() AND pg_catalog.starts_with(s.slot_name::text, 'pglockstep_')
