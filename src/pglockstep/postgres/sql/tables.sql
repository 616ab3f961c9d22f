-- Every table that holds rows of its own: ordinary tables and partition leaves, permanent and unlogged.
-- Left out: temporary tables, our own schema, PostgreSQL's schemas, members of extensions, foreign tables
-- and partitioned roots (their rows live in the leaves).
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    c.relpersistence::text = 'u' AS unlogged,
    c.relreplident::text AS replica_identity,
    c.relrowsecurity AS row_security,
    c.relforcerowsecurity AS forced_row_security,
    pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owned,
    pg_catalog.has_table_privilege(c.oid, 'SELECT') AS readable,
    pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS reachable,
    o.rolname AS owner,
    o.rolsuper AS owner_is_superuser,
    ARRAY(
        SELECT a.attname::text
        FROM pg_catalog.pg_index AS i
        CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, position)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND k.position <= i.indnkeyatts
        ORDER BY k.position
    ) AS primary_key,
    EXISTS (
        SELECT FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND NOT i.indimmediate
    ) AS has_deferrable,
    -- a deferrable primary key is no replica identity
    EXISTS (
        SELECT
        FROM pg_catalog.pg_index AS i
        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate AND i.indislive
            AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
    ) AS has_identity_index,
    EXISTS (
        SELECT
        FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::smallint[])
        WHERE i.indrelid = c.oid AND a.attgenerated <> ''
            AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
    ) AS has_generated_identity
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_roles AS o ON o.oid = c.relowner
WHERE c.relkind = 'r'
    AND c.relpersistence <> 't'
    AND n.nspname <> 'information_schema'
    AND n.nspname <> 'pglockstep'
    AND n.nspname !~ '^pg_'
    AND NOT EXISTS (
        SELECT
        FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    )
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
