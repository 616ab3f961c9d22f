-- The tables of a publication whose UPDATEs and DELETEs PostgreSQL refuses to their users, because they could not say
-- which row it was: an identity without an index that still stands, or, from 18 on, with a generated column in it.
-- may_alter: whether our role may change the identity. has_generated: from 18 on FULL would be refused as well.
SELECT
    n.nspname AS schema,
    c.relname AS name,
    c.relreplident::text AS identity,
    pg_catalog.pg_has_role(c.relowner, 'USAGE') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_alter,
    coalesce(g.has_generated, false) AS has_generated
FROM pg_catalog.pg_publication AS p
JOIN pg_catalog.pg_publication_rel AS r ON r.prpubid = p.oid
JOIN pg_catalog.pg_class AS c ON c.oid = r.prrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN (SELECT pg_catalog.current_setting('server_version_num')::integer >= 180000 AS strict) AS s
LEFT JOIN pg_catalog.pg_index AS i
    ON i.indrelid = c.oid AND i.indisvalid AND i.indimmediate AND i.indislive
    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
CROSS JOIN LATERAL (
    SELECT
        pg_catalog.bool_or(true) AS has_generated,
        pg_catalog.bool_or(a.attnum = ANY ((i.indkey::smallint[])[0:i.indnkeyatts - 1])) AS in_index
    FROM pg_catalog.pg_attribute AS a
    WHERE s.strict AND a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''
) AS g
WHERE p.pubname = $1
    AND CASE
        WHEN c.relreplident = 'f' THEN coalesce(g.has_generated, false)
        ELSE i.indexrelid IS NULL OR coalesce(g.in_index, false)
    END
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
