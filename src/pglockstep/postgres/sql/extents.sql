-- How large each of the tables is now, in pages of its own and in bytes with what is stored aside, and the base type of
-- each of its columns that travel: built-in types by name, 'enum' for any enum, '' for all others.
WITH RECURSIVE base (type_oid, oid, typbasetype) AS (
    SELECT t.oid, t.oid, t.typbasetype
    FROM pg_catalog.pg_type AS t
    WHERE t.oid IN (SELECT a.atttypid FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = ANY ($1))
    UNION ALL
    SELECT base.type_oid, t.oid, t.typbasetype
    FROM base
    JOIN pg_catalog.pg_type AS t ON t.oid = base.typbasetype
)
SELECT
    c.oid,
    -- only what stores rows by page can be cut by pages
    CASE (SELECT m.amname FROM pg_catalog.pg_am AS m WHERE m.oid = c.relam)
        WHEN 'heap' THEN coalesce(pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint, 0)
        ELSE 0
    END AS pages,
    coalesce(pg_catalog.pg_table_size(c.oid), 0) AS bytes,
    ARRAY(
        SELECT CASE WHEN t.typtype = 'e' THEN 'enum' WHEN t.oid < 10000 THEN t.typname::text ELSE '' END
        FROM pg_catalog.pg_attribute AS a
        JOIN base ON base.type_oid = a.atttypid AND base.typbasetype = 0
        JOIN pg_catalog.pg_type AS t ON t.oid = base.oid
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    ) AS types
FROM pg_catalog.pg_class AS c
WHERE c.oid = ANY ($1)
