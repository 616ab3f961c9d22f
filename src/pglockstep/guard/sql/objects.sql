-- Every object of a user's that a dump can bring back, by PostgreSQL's own words for it, which are the same on every
-- server. relation_…: the table that it belongs to, or it itself; other_…: the table that a foreign key refers to.
-- part, definition: of a default its column, of a table's check its name, and what either says.
WITH object (class_oid, oid, relation, other, part, definition) AS (
    SELECT 'pg_catalog.pg_class'::regclass::oid, c.oid,
        coalesce(
            (SELECT i.indrelid FROM pg_catalog.pg_index AS i WHERE i.indexrelid = c.oid),
            (
                SELECT d.refobjid FROM pg_catalog.pg_depend AS d
                WHERE c.relkind = 'S' AND d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i') LIMIT 1
            ),
            c.oid
        ),
        NULL::oid, NULL::text, NULL::text
    FROM pg_catalog.pg_class AS c
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'i', 'I') AND c.relpersistence <> 't'
        -- these come with their constraint
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_constraint AS k WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x')
        )
    UNION ALL
    SELECT 'pg_catalog.pg_constraint'::regclass, k.oid, nullif(k.conrelid, 0), nullif(k.confrelid, 0),
        k.conname::text, CASE WHEN k.contype = 'c' AND k.conrelid <> 0 THEN pg_catalog.pg_get_constraintdef(k.oid) END
    FROM pg_catalog.pg_constraint AS k
    -- a column's NOT NULL is told with the column; what a partition or an heir has from above comes from there, but for
    -- what is an index
    WHERE k.contype IN ('p', 'u', 'x')
        OR k.contype IN ('c', 'f') AND k.conparentid = 0 AND (k.conislocal OR k.conrelid = 0)
    UNION ALL
    SELECT 'pg_catalog.pg_attrdef'::regclass, d.oid, d.adrelid, NULL, a.attname::text,
        pg_catalog.pg_get_expr(d.adbin, d.adrelid)
    FROM pg_catalog.pg_attrdef AS d
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE a.attgenerated = ''
    UNION ALL
    SELECT 'pg_catalog.pg_trigger'::regclass, t.oid, t.tgrelid, NULL, NULL, NULL
    FROM pg_catalog.pg_trigger AS t
    JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND t.tgparentid = 0
        AND p.pronamespace IS DISTINCT FROM pg_catalog.to_regnamespace('pglockstep')
    UNION ALL
    SELECT 'pg_catalog.pg_rewrite'::regclass, r.oid, r.ev_class, NULL, NULL, NULL
    FROM pg_catalog.pg_rewrite AS r WHERE r.rulename <> '_RETURN'
    UNION ALL SELECT 'pg_catalog.pg_policy'::regclass, oid, polrelid, NULL, NULL, NULL FROM pg_catalog.pg_policy
    UNION ALL
    SELECT 'pg_catalog.pg_type'::regclass, t.oid, NULL, NULL, NULL, NULL
    FROM pg_catalog.pg_type AS t
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = t.typrelid
    WHERE t.typtype IN ('d', 'e', 'r') OR t.typtype = 'b' AND t.typelem = 0 OR c.relkind = 'c'
    UNION ALL SELECT 'pg_catalog.pg_namespace'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_namespace
    UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_proc
    UNION ALL SELECT 'pg_catalog.pg_extension'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_extension
    UNION ALL SELECT 'pg_catalog.pg_cast'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_cast
    UNION ALL SELECT 'pg_catalog.pg_operator'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_operator
    UNION ALL SELECT 'pg_catalog.pg_opclass'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_opclass
    UNION ALL SELECT 'pg_catalog.pg_opfamily'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_opfamily
    UNION ALL SELECT 'pg_catalog.pg_collation'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_collation
    UNION ALL SELECT 'pg_catalog.pg_conversion'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_conversion
    UNION ALL SELECT 'pg_catalog.pg_ts_config'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_ts_config
    UNION ALL SELECT 'pg_catalog.pg_ts_dict'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_ts_dict
    UNION ALL SELECT 'pg_catalog.pg_statistic_ext'::regclass, oid, stxrelid, NULL, NULL, NULL FROM pg_catalog.pg_statistic_ext
    UNION ALL
    SELECT 'pg_catalog.pg_foreign_data_wrapper'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_foreign_data_wrapper
    UNION ALL SELECT 'pg_catalog.pg_foreign_server'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_foreign_server
    UNION ALL SELECT 'pg_catalog.pg_event_trigger'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_event_trigger
    UNION ALL SELECT 'pg_catalog.pg_language'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_language
    UNION ALL SELECT 'pg_catalog.pg_default_acl'::regclass, oid, NULL, NULL, NULL, NULL FROM pg_catalog.pg_default_acl
)
SELECT
    o.class_oid,
    o.oid,
    i.type AS kind,
    i.identity,
    n.nspname AS relation_schema,
    c.relname AS relation_name,
    c.relkind::text AS relation_kind,
    other_n.nspname AS other_schema,
    other_c.relname AS other_name,
    o.part,
    o.definition
FROM object AS o
-- An object that was made in a schema while that was dropped is left without one: the server would fall over its name.
CROSS JOIN LATERAL pg_catalog.pg_identify_object(
    o.class_oid,
    CASE
        WHEN o.oid < 16384 AND o.class_oid <> 'pg_catalog.pg_namespace'::regclass THEN NULL
        WHEN EXISTS (
            SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.classid = o.class_oid AND d.objid = o.oid AND d.refclassid = 'pg_catalog.pg_namespace'::regclass
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_namespace AS n WHERE n.oid = d.refobjid)
        ) THEN NULL
        ELSE o.oid
    END,
    0
) AS i
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = o.relation
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class AS other_c ON other_c.oid = o.other
LEFT JOIN pg_catalog.pg_namespace AS other_n ON other_n.oid = other_c.relnamespace
WHERE (o.oid >= 16384 OR i.type = 'schema' AND i.identity = 'public')
    AND coalesce(i.schema, n.nspname, '') !~ '^(pg_|pglockstep$|information_schema$)'
    AND i.identity !~ '^(pglockstep$|pg_temp|pg_toast)'
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = o.class_oid AND d.objid = o.oid AND d.deptype = 'e'
    )
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE o.relation IS NOT NULL AND d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = o.relation
            AND d.deptype = 'e'
    )
