-- Large objects in the order of their OIDs: of those behind $1 or those of $2 (NULL: all), at most $3.
--   content   what one holds, as a hash over its pieces and the number of its whole ones; NULL if our role may not read it
-- No more than one piece of an object is in memory at a time.
SELECT
    m.oid::bigint AS oid,
    CASE WHEN m.readable THEN (
        WITH RECURSIVE piece (number, hash, bytes) AS (
            SELECT 0::bigint, sha256(p.data), length(p.data)
            FROM (SELECT lo_get(m.oid, 0, 1048576) AS data OFFSET 0) AS p
            UNION ALL
            SELECT l.number + 1, sha256(l.hash || p.data), length(p.data)
            FROM piece AS l
            CROSS JOIN LATERAL (SELECT lo_get(m.oid, (l.number + 1) * 1048576, 1048576) AS data OFFSET 0) AS p
            WHERE l.bytes = 1048576
        )
        SELECT hash || int8send(number) FROM piece ORDER BY number DESC LIMIT 1
    ) END AS content
FROM (
    SELECT
        o.oid,
        pg_has_role(o.lomowner, 'USAGE') OR current_setting('lo_compat_privileges')::boolean OR EXISTS (
            SELECT
            FROM aclexplode(o.lomacl) AS a
            WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE'))
        ) AS readable
    FROM pg_largeobject_metadata AS o
    WHERE o.oid > $1::bigint::oid AND ($2::bigint[] IS NULL OR o.oid::bigint = ANY ($2))
    ORDER BY o.oid
    LIMIT $3
) AS m
ORDER BY m.oid
