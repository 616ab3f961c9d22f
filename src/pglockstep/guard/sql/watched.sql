-- Which of our triggers each of these tables has, and each partitioned table above it: a statement that names the root
-- fires the root's triggers, not the leaves'. $1, $2: schemas and names.
WITH RECURSIVE wanted (oid) AS (
    SELECT c.oid
    FROM unnest($1::text[], $2::text[]) AS w (schema_name, table_name)
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = w.schema_name
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.table_name AND c.relkind IN ('r', 'p')
    UNION
    SELECT i.inhparent FROM wanted JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = wanted.oid
)
SELECT
    n.nspname AS schema,
    c.relname AS name,
    ARRAY(
        SELECT t.tgname::text
        FROM pg_catalog.pg_trigger AS t
        JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = c.oid AND t.tgenabled = 'O' AND p.pronamespace = pg_catalog.to_regnamespace('pglockstep')
        ORDER BY 1
    ) AS triggers
FROM wanted
JOIN pg_catalog.pg_class AS c ON c.oid = wanted.oid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname <> 'pglockstep'
ORDER BY 1, 2
