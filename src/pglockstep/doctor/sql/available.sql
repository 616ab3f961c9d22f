-- The extensions that a server could make, and whether an ordinary role may make them.
SELECT v.name AS name, pg_catalog.bool_or(v.trusted OR NOT v.superuser) AS by_anyone
FROM pg_catalog.pg_available_extension_versions AS v
GROUP BY v.name
ORDER BY v.name COLLATE "C"
