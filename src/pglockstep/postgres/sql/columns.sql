-- The columns of the tables whose OIDs are given, in the order of their numbers.
-- equality: the "=" that an index over the type would use, spelled so that no search_path is needed; empty
-- where there is none that is sure to work (arrays and composites may hold members without one).
-- base_type: what a domain stands on, with its modifier; empty for any other type.
WITH base AS (
    WITH RECURSIVE chain (type_oid, oid, basetype, typtype, modifier, next_modifier) AS (
        SELECT t.oid, t.oid, t.typbasetype, t.typtype, -1, t.typtypmod
        FROM pg_catalog.pg_type AS t
        WHERE t.oid IN (SELECT a.atttypid FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = ANY ($1))
        UNION ALL
        SELECT chain.type_oid, t.oid, t.typbasetype, t.typtype, chain.next_modifier, t.typtypmod
        FROM chain
        JOIN pg_catalog.pg_type AS t ON t.oid = chain.basetype
    )
    SELECT chain.type_oid, chain.oid, chain.typtype, chain.modifier FROM chain WHERE chain.basetype = 0
),
equality AS (
    SELECT DISTINCT ON (base.type_oid)
        base.type_oid,
        pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname) AS operator
    FROM base
    JOIN pg_catalog.pg_opclass AS c
        ON c.opcdefault
        AND (
            c.opcintype = base.oid
            OR (base.typtype = 'e' AND c.opcintype = 'pg_catalog.anyenum'::regtype)
            OR (base.typtype = 'r' AND c.opcintype = 'pg_catalog.anyrange'::regtype)
            OR EXISTS (
                SELECT
                FROM pg_catalog.pg_cast AS k
                WHERE k.castsource = base.oid AND k.casttarget = c.opcintype
                    AND k.castmethod = 'b' AND k.castcontext = 'i'
            )
        )
    JOIN pg_catalog.pg_am AS m ON m.oid = c.opcmethod AND m.amname = 'btree'
    JOIN pg_catalog.pg_amop AS p
        ON p.amopfamily = c.opcfamily AND p.amoplefttype = c.opcintype
        AND p.amoprighttype = c.opcintype AND p.amopstrategy = 3
    JOIN pg_catalog.pg_operator AS o ON o.oid = p.amopopr
    JOIN pg_catalog.pg_namespace AS n ON n.oid = o.oprnamespace
    ORDER BY base.type_oid, c.opcintype = base.oid DESC
)
SELECT
    a.attrelid AS table_oid,
    a.attname AS name,
    pg_catalog.format_type(a.atttypid, a.atttypmod) AS type_name,
    a.atttypid AS type_oid,
    a.atttypmod AS type_modifier,
    a.attgenerated::text AS generated,
    a.attidentity::text AS identity,
    coalesce(e.operator, '') AS equality,
    CASE WHEN b.oid <> a.atttypid THEN pg_catalog.format_type(b.oid, b.modifier) ELSE '' END AS base_type
FROM pg_catalog.pg_attribute AS a
JOIN base AS b ON b.type_oid = a.atttypid
LEFT JOIN equality AS e ON e.type_oid = a.atttypid
WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
