-- Every object of a user that has an owner, and the statement's words that name it. Sequences that belong to a
-- column follow their table; members of extensions follow their extension.
WITH owned (classid, objid, owner) AS (
    SELECT 'pg_catalog.pg_class'::regclass, c.oid, c.relowner
    FROM pg_catalog.pg_class AS c
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
        OR (c.relkind = 'S' AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
        ))
    UNION ALL SELECT 'pg_catalog.pg_namespace'::regclass, oid, nspowner FROM pg_catalog.pg_namespace
    UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, oid, proowner FROM pg_catalog.pg_proc
    UNION ALL
    SELECT 'pg_catalog.pg_type'::regclass, t.oid, t.typowner
    FROM pg_catalog.pg_type AS t
    LEFT JOIN pg_catalog.pg_class AS c ON c.oid = t.typrelid
    WHERE t.typtype IN ('b', 'd', 'e', 'r') AND t.typelem = 0 OR c.relkind = 'c'
    UNION ALL SELECT 'pg_catalog.pg_operator'::regclass, oid, oprowner FROM pg_catalog.pg_operator
    UNION ALL SELECT 'pg_catalog.pg_opclass'::regclass, oid, opcowner FROM pg_catalog.pg_opclass
    UNION ALL SELECT 'pg_catalog.pg_opfamily'::regclass, oid, opfowner FROM pg_catalog.pg_opfamily
    UNION ALL SELECT 'pg_catalog.pg_collation'::regclass, oid, collowner FROM pg_catalog.pg_collation
    UNION ALL SELECT 'pg_catalog.pg_conversion'::regclass, oid, conowner FROM pg_catalog.pg_conversion
    UNION ALL SELECT 'pg_catalog.pg_ts_config'::regclass, oid, cfgowner FROM pg_catalog.pg_ts_config
    UNION ALL SELECT 'pg_catalog.pg_ts_dict'::regclass, oid, dictowner FROM pg_catalog.pg_ts_dict
    UNION ALL SELECT 'pg_catalog.pg_statistic_ext'::regclass, oid, stxowner FROM pg_catalog.pg_statistic_ext
    UNION ALL SELECT 'pg_catalog.pg_foreign_data_wrapper'::regclass, oid, fdwowner FROM pg_catalog.pg_foreign_data_wrapper
    UNION ALL SELECT 'pg_catalog.pg_foreign_server'::regclass, oid, srvowner FROM pg_catalog.pg_foreign_server
    UNION ALL SELECT 'pg_catalog.pg_event_trigger'::regclass, oid, evtowner FROM pg_catalog.pg_event_trigger
    UNION ALL SELECT 'pg_catalog.pg_language'::regclass, oid, lanowner FROM pg_catalog.pg_language
    UNION ALL SELECT 'pg_catalog.pg_largeobject'::regclass, oid, lomowner FROM pg_catalog.pg_largeobject_metadata
)
SELECT
    CASE i.type
        WHEN 'composite type' THEN 'type'
        WHEN 'statistics object' THEN 'statistics'
        WHEN 'foreign-data wrapper' THEN 'foreign data wrapper'
        ELSE i.type
    END AS kind,
    i.identity AS identity,
    r.rolname AS owner
FROM owned AS o
-- An object that was made in a schema while that was dropped is left without one: the server would fall over its name.
CROSS JOIN LATERAL pg_catalog.pg_identify_object(
    o.classid,
    CASE
        WHEN o.objid < 16384 THEN NULL
        WHEN EXISTS (
            SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.classid = o.classid AND d.objid = o.objid AND d.refclassid = 'pg_catalog.pg_namespace'::regclass
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_namespace AS n WHERE n.oid = d.refobjid)
        ) THEN NULL
        ELSE o.objid
    END,
    0
) AS i
JOIN pg_catalog.pg_roles AS r ON r.oid = o.owner
WHERE o.objid >= 16384
    AND coalesce(i.schema, '') <> 'pglockstep'
    AND i.identity <> 'pglockstep'
    AND coalesce(i.schema, '') !~ '^pg_'
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = o.classid AND d.objid = o.objid AND d.deptype = 'e'
    )
ORDER BY o.objid
