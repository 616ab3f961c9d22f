-- What only a superuser can make: kind and name, as a person would write them. Members of extensions left out.
SELECT o.kind, i.identity AS name
FROM (
    SELECT 'event trigger', 'pg_catalog.pg_event_trigger'::regclass, e.oid FROM pg_catalog.pg_event_trigger AS e
    UNION ALL
    SELECT 'function', 'pg_catalog.pg_proc'::regclass, p.oid
    FROM pg_catalog.pg_proc AS p
    JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
    WHERE NOT l.lanpltrusted
    UNION ALL
    SELECT 'type', 'pg_catalog.pg_type'::regclass, t.oid
    FROM pg_catalog.pg_type AS t
    WHERE t.typtype = 'b' AND t.typcategory <> 'A'
    UNION ALL SELECT 'language', 'pg_catalog.pg_language'::regclass, l.oid FROM pg_catalog.pg_language AS l
    UNION ALL SELECT 'operator class', 'pg_catalog.pg_opclass'::regclass, c.oid FROM pg_catalog.pg_opclass AS c
    UNION ALL
    SELECT 'foreign-data wrapper', 'pg_catalog.pg_foreign_data_wrapper'::regclass, w.oid
    FROM pg_catalog.pg_foreign_data_wrapper AS w
    UNION ALL
    SELECT 'text search template', 'pg_catalog.pg_ts_template'::regclass, t.oid FROM pg_catalog.pg_ts_template AS t
    UNION ALL SELECT 'text search parser', 'pg_catalog.pg_ts_parser'::regclass, p.oid FROM pg_catalog.pg_ts_parser AS p
) AS o (kind, classid, objid)
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
WHERE o.objid >= 16384
    AND coalesce(i.schema, '') !~ '^pg_'
    AND NOT EXISTS (
        SELECT
        FROM pg_catalog.pg_depend AS d
        WHERE d.classid = o.classid AND d.objid = o.objid AND d.deptype = 'e'
    )
ORDER BY 1, 2
