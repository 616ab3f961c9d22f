-- The roles of a server, and whether ours may give things to them ($1: the server's major version).
SELECT
    r.rolname::text AS name,
    r.rolsuper AS superuser,
    pg_catalog.pg_has_role(r.oid, CASE WHEN $1 >= 16 THEN 'SET' ELSE 'MEMBER' END) AS can_give
FROM pg_catalog.pg_roles AS r
