-- How many large objects there are, and those that our role may not read.
SELECT
    count(*) AS count,
    coalesce(pg_catalog.array_agg(m.oid::bigint ORDER BY m.oid) FILTER (
        WHERE NOT pg_catalog.pg_has_role(m.lomowner, 'USAGE')
            AND NOT EXISTS (
                SELECT
                FROM pg_catalog.aclexplode(m.lomacl) AS a
                WHERE a.privilege_type = 'SELECT'
                    AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE'))
            )
    ), '{}') AS unreadable
FROM pg_catalog.pg_largeobject_metadata AS m
