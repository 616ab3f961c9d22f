-- Every object of users', by the names that both servers know it by. Left out: what PostgreSQL keeps for itself, what is
-- ours, and our triggers on users' tables.
SELECT o.classid::bigint, o.objid::bigint, i.type, i.identity
FROM (
    SELECT d.classid, d.objid FROM pg_catalog.pg_depend AS d WHERE d.objid >= 16384 AND d.deptype <> 'e'
    UNION
    SELECT 'pg_catalog.pg_namespace'::regclass, n.oid
    FROM pg_catalog.pg_namespace AS n
    WHERE n.oid >= 16384 OR n.nspname = 'public'
) AS o
-- An object that was made in a schema while that was dropped is left without one: the server would fall over its name.
CROSS JOIN LATERAL pg_catalog.pg_identify_object(
    o.classid,
    CASE
        WHEN EXISTS (
            SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.classid = o.classid AND d.objid = o.objid AND d.refclassid = 'pg_catalog.pg_namespace'::regclass
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_namespace AS n WHERE n.oid = d.refobjid)
        ) THEN NULL
        ELSE o.objid
    END,
    0
) AS i
LEFT JOIN pg_catalog.pg_trigger AS t ON o.classid = 'pg_catalog.pg_trigger'::regclass AND t.oid = o.objid
LEFT JOIN pg_catalog.pg_event_trigger AS e ON o.classid = 'pg_catalog.pg_event_trigger'::regclass AND e.oid = o.objid
LEFT JOIN pg_catalog.pg_proc AS f ON f.oid = coalesce(t.tgfoid, e.evtfoid)
WHERE i.identity IS NOT NULL
    AND o.classid NOT IN (
        'pg_catalog.pg_publication'::regclass, 'pg_catalog.pg_publication_rel'::regclass, 'pg_catalog.pg_subscription'::regclass
    )
    AND coalesce(i.schema, '') !~ '^pg_' AND i.identity !~ '^"?pg_(toast|temp)'
    AND coalesce(i.schema, '') <> 'pglockstep' AND i.identity <> 'pglockstep'
    AND NOT coalesce(t.tgisinternal, false)
    AND (f.pronamespace IS NULL OR f.pronamespace::regnamespace::text <> 'pglockstep')
