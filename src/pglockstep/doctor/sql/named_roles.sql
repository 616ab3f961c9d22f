-- The roles that the policies, and the grants, of users' objects name.
WITH acl (acl) AS (
    SELECT c.relacl FROM pg_catalog.pg_class AS c WHERE c.oid >= 16384
    UNION ALL SELECT a.attacl FROM pg_catalog.pg_attribute AS a WHERE a.attrelid >= 16384
    UNION ALL SELECT n.nspacl FROM pg_catalog.pg_namespace AS n WHERE n.oid >= 16384 OR n.nspname = 'public'
    UNION ALL SELECT p.proacl FROM pg_catalog.pg_proc AS p WHERE p.oid >= 16384
    UNION ALL SELECT t.typacl FROM pg_catalog.pg_type AS t WHERE t.oid >= 16384
    UNION ALL SELECT d.defaclacl FROM pg_catalog.pg_default_acl AS d
    UNION ALL SELECT m.lomacl FROM pg_catalog.pg_largeobject_metadata AS m
)
SELECT r.rolname::text AS name, pg_catalog.bool_or(named.by_policy) AS by_policy
FROM (
    SELECT u.role, true FROM pg_catalog.pg_policy AS p CROSS JOIN LATERAL unnest(p.polroles) AS u (role)
    UNION
    SELECT e.grantee, false FROM acl CROSS JOIN LATERAL pg_catalog.aclexplode(acl.acl) AS e
) AS named (role, by_policy)
JOIN pg_catalog.pg_roles AS r ON r.oid = named.role
WHERE r.rolname !~ '^pg_'
GROUP BY r.rolname
ORDER BY r.rolname COLLATE "C"
