-- What would fire on the target for rows that we write: triggers, foreign keys and rules of users' tables.
-- $1: whether we write as a replica, so that only what is ENABLE ALWAYS or ENABLE REPLICA fires.
SELECT n.nspname AS schema, c.relname AS name, f.kind, f.name AS trigger
FROM (
    SELECT t.tgrelid AS relation, 'trigger' AS kind, t.tgname AS name
    FROM pg_catalog.pg_trigger AS t
    LEFT JOIN pg_catalog.pg_constraint AS k ON k.oid = t.tgconstraint
    JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    -- our own watch knows our sessions, and leaves their rows alone
    WHERE t.tgenabled <> 'D' AND p.pronamespace IS DISTINCT FROM pg_catalog.to_regnamespace('pglockstep')
        AND (NOT t.tgisinternal OR k.contype = 'f')
        AND (NOT $1 OR (t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal))
    UNION ALL
    SELECT r.ev_class, 'rule', r.rulename
    FROM pg_catalog.pg_rewrite AS r
    WHERE r.ev_type <> '1' AND r.ev_enabled <> 'D'
        AND (NOT $1 OR r.ev_enabled IN ('A', 'R'))
) AS f
JOIN pg_catalog.pg_class AS c ON c.oid = f.relation AND c.relkind IN ('r', 'p')
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pglockstep')
ORDER BY 1, 2, 3 DESC, 4
