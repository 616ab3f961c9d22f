-- The statements that take from objects just made what default privileges gave them, and give back what those kept from
-- them: a dump's grants begin with what PostgreSQL itself gives. $1, $2: the objects' catalogs and OIDs.
WITH made AS (
    SELECT m.classid, m.objid FROM unnest($1::oid[], $2::oid[]) AS m (classid, objid)
),
held (words, name, has, built_in) AS (
    SELECT
        CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass::text,
        c.relacl, pg_catalog.acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)
    FROM pg_catalog.pg_class AS c
    JOIN made ON made.classid = 'pg_catalog.pg_class'::regclass AND made.objid = c.oid
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    UNION ALL
    SELECT 'ROUTINE', f.oid::regprocedure::text, f.proacl, pg_catalog.acldefault('f', f.proowner)
    FROM pg_catalog.pg_proc AS f
    JOIN made ON made.classid = 'pg_catalog.pg_proc'::regclass AND made.objid = f.oid
    UNION ALL
    SELECT 'TYPE', t.oid::regtype::text, t.typacl, pg_catalog.acldefault('T', t.typowner)
    FROM pg_catalog.pg_type AS t
    JOIN made ON made.classid = 'pg_catalog.pg_type'::regclass AND made.objid = t.oid
    UNION ALL
    SELECT 'SCHEMA', n.oid::regnamespace::text, n.nspacl, pg_catalog.acldefault('n', n.nspowner)
    FROM pg_catalog.pg_namespace AS n
    JOIN made ON made.classid = 'pg_catalog.pg_namespace'::regclass AND made.objid = n.oid
),
too_much AS (
    SELECT h.words, h.name, a.grantee, a.privilege_type FROM held AS h CROSS JOIN LATERAL pg_catalog.aclexplode(h.has) AS a
    EXCEPT
    SELECT h.words, h.name, a.grantee, a.privilege_type FROM held AS h CROSS JOIN LATERAL pg_catalog.aclexplode(h.built_in) AS a
),
too_little AS (
    SELECT h.words, h.name, a.grantee, a.privilege_type
    FROM held AS h
    CROSS JOIN LATERAL pg_catalog.aclexplode(h.built_in) AS a
    WHERE h.has IS NOT NULL
    EXCEPT
    SELECT h.words, h.name, a.grantee, a.privilege_type FROM held AS h CROSS JOIN LATERAL pg_catalog.aclexplode(h.has) AS a
)
SELECT pg_catalog.format('REVOKE %s ON %s %s FROM %s', privilege_type, words, name,
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
FROM too_much
UNION ALL
SELECT pg_catalog.format('GRANT %s ON %s %s TO %s', privilege_type, words, name,
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
FROM too_little
