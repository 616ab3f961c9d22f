-- What cannot be made without a relation that it refers to: one row for each pair, by foreign keys, inheritance,
-- queries, defaults, policies, function bodies and row types. A sequence of a column counts as its table.
WITH relation AS MATERIALIZED (
    SELECT c.oid, c.relkind, c.relispartition, n.nspname AS schema, c.relname AS name
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
        AND c.relpersistence <> 't'
        AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pglockstep')
        AND NOT EXISTS (
            SELECT
            FROM pg_catalog.pg_depend AS d
            WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
        )
),
-- what stands for a relation: itself, its row type and that type's arrays, the sequences of its columns
stands_for (classid, objid, relation) AS (
    SELECT 'pg_catalog.pg_class'::regclass, r.oid, r.oid FROM relation AS r
    UNION ALL
    SELECT 'pg_catalog.pg_type'::regclass, t.oid, r.oid
    FROM relation AS r
    JOIN pg_catalog.pg_type AS e ON e.typrelid = r.oid
    JOIN pg_catalog.pg_type AS t ON t.oid IN (e.oid, e.typarray)
    UNION ALL
    SELECT d.classid::regclass, d.objid, r.oid
    FROM relation AS r
    JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = r.oid AND d.refobjsubid > 0
        AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
    JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
),
-- what a relation consists of
part (classid, objid, relation, how) AS (
    SELECT 'pg_catalog.pg_class'::regclass, r.oid, r.oid,
        CASE WHEN r.relispartition THEN 'is a partition of' ELSE 'inherits from or has a column of the type of' END
    FROM relation AS r
    UNION ALL
    SELECT 'pg_catalog.pg_constraint'::regclass, k.oid, k.conrelid,
        CASE k.contype WHEN 'f' THEN 'has a foreign key to' ELSE 'has a constraint that uses' END
    FROM pg_catalog.pg_constraint AS k
    UNION ALL
    SELECT 'pg_catalog.pg_rewrite'::regclass, w.oid, w.ev_class,
        CASE w.rulename WHEN '_RETURN' THEN 'reads' ELSE 'has a rule that uses' END
    FROM pg_catalog.pg_rewrite AS w
    UNION ALL
    SELECT 'pg_catalog.pg_attrdef'::regclass, a.oid, a.adrelid, 'has a default that uses' FROM pg_catalog.pg_attrdef AS a
    UNION ALL
    SELECT 'pg_catalog.pg_policy'::regclass, p.oid, p.polrelid, 'has a policy that uses' FROM pg_catalog.pg_policy AS p
)
SELECT DISTINCT
    CASE r.relkind
        WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'type'
        ELSE 'table'
    END AS kind,
    r.schema, r.name, p.how, o.schema AS other_schema, o.name AS other_name
FROM part AS p
JOIN relation AS r ON r.oid = p.relation
JOIN pg_catalog.pg_depend AS d ON d.classid = p.classid AND d.objid = p.objid
JOIN stands_for AS s ON s.classid = d.refclassid AND s.objid = d.refobjid
JOIN relation AS o ON o.oid = s.relation AND o.oid <> r.oid
UNION
SELECT 'function', n.nspname, f.proname, 'uses', o.schema, o.name
FROM pg_catalog.pg_proc AS f
JOIN pg_catalog.pg_namespace AS n ON n.oid = f.pronamespace AND n.nspname !~ '^pg_'
JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = f.oid
JOIN stands_for AS s ON s.classid = d.refclassid AND s.objid = d.refobjid
JOIN relation AS o ON o.oid = s.relation
WHERE n.nspname NOT IN ('information_schema', 'pglockstep')
ORDER BY kind, schema, name, how DESC, other_schema, other_name
