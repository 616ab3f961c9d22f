-- How each of these tables stands, from the catalog and the statistics alone. $1, $2: schemas and names.
SELECT
    w.schema_name AS schema,
    w.table_name AS name,
    c.oid AS oid,
    c.relfilenode AS file,
    -- what a TRUNCATE leaves behind, and a VACUUM FULL or CLUSTER does not
    coalesce(c.reltuples = -1 AND c.relpages = 0, false) AS fresh,
    coalesce(pg_catalog.pg_stat_get_live_tuples(c.oid), 0) AS rows,
    ARRAY(
        SELECT ARRAY[
            a.attname::text,
            pg_catalog.concat_ws(' ', a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated, a.attidentity)
        ]
        FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attnum
    ) AS columns,
    (
        SELECT count(*)
        FROM pg_catalog.pg_trigger AS t
        JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = c.oid AND t.tgenabled = 'O' AND p.pronamespace = pg_catalog.to_regnamespace('pglockstep')
    ) AS triggers
FROM unnest($1::text[], $2::text[]) AS w (schema_name, table_name)
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = w.schema_name
LEFT JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.table_name AND c.relkind = 'r'
ORDER BY 1, 2
