-- Who may do what with the objects of users: one row for each object, but of columns only those with grants of their own.
--   kind, schema, name, part, parents   as schema.sql has them
--   owner                               whose it is
--   grants                              {{grantee, privilege, whether it may be passed on, grantor}, ...}; PUBLIC is ''
-- An object that nobody has granted anything on has what PostgreSQL gives by default. Left out: as in schema.sql.
WITH
space AS (
    SELECT oid, nspname AS schema, nspowner, nspacl
    FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'pglockstep')
),
member AS MATERIALIZED (
    SELECT classid, objid
    FROM pg_depend
    WHERE deptype = 'e'
        OR deptype = 'i' AND classid IN ('pg_proc'::regclass, 'pg_type'::regclass)
),
relation AS MATERIALIZED (
    SELECT c.oid, c.relname, c.relkind, c.relowner, c.relacl, s.schema
    FROM pg_class AS c
    JOIN space AS s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
        AND c.relpersistence <> 't'
        AND NOT EXISTS (SELECT FROM member AS e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid)
),
object (kind, schema, name, part, parents, owner, acl) AS (
    SELECT 'schema', '', s.schema::text, NULL::text, NULL::text[], s.nspowner, coalesce(s.nspacl, acldefault('n', s.nspowner))
    FROM space AS s
    WHERE NOT EXISTS (SELECT FROM member AS e WHERE e.classid = 'pg_namespace'::regclass AND e.objid = s.oid)
    UNION ALL
    SELECT
        CASE c.relkind
            WHEN 'f' THEN 'foreign table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
            WHEN 'S' THEN 'sequence' ELSE 'table'
        END,
        c.schema, c.relname, NULL,
        (
            SELECT ARRAY[[t.schema, t.relname]]::text[]
            FROM pg_depend AS d
            JOIN relation AS t ON t.oid = d.refobjid
            WHERE c.relkind = 'S' AND d.classid = 'pg_class'::regclass AND d.objid = c.oid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
            LIMIT 1
        ),
        c.relowner,
        coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))
    FROM relation AS c
    UNION ALL
    SELECT 'column', c.schema, c.relname, a.attname, ARRAY[[c.schema, c.relname]]::text[], c.relowner, a.attacl
    FROM relation AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attacl IS NOT NULL
    UNION ALL
    SELECT
        CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END,
        s.schema, format('%s(%s)', p.proname, oidvectortypes(p.proargtypes)), NULL, NULL,
        p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
    FROM space AS s
    JOIN pg_proc AS p ON p.pronamespace = s.oid
    WHERE NOT EXISTS (SELECT FROM member AS e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid)
    UNION ALL
    SELECT
        CASE t.typtype
            WHEN 'e' THEN 'enum' WHEN 'd' THEN 'domain' WHEN 'r' THEN 'range' WHEN 'c' THEN 'composite type'
            ELSE 'base type'
        END,
        s.schema, t.typname, NULL, NULL, t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
    FROM space AS s
    JOIN pg_type AS t ON t.typnamespace = s.oid
    WHERE t.typisdefined
        AND NOT EXISTS (SELECT FROM member AS e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid)
)
SELECT
    o.kind, o.schema, o.name, o.part, o.parents, w.rolname::text AS owner,
    (
        SELECT array_agg(ARRAY[
            CASE a.grantee WHEN 0 THEN '' ELSE coalesce(t.rolname, a.grantee::text) END,
            a.privilege_type,
            a.is_grantable::text,
            coalesce(f.rolname, a.grantor::text)
        ])
        FROM aclexplode(o.acl) AS a
        LEFT JOIN pg_roles AS t ON t.oid = a.grantee
        LEFT JOIN pg_roles AS f ON f.oid = a.grantor
        WHERE a.grantee <> o.owner
    ) AS grants
FROM object AS o
JOIN pg_roles AS w ON w.oid = o.owner
