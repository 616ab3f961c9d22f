-- What the database behind the session is made of, as a row of JSON: columns differ between versions.
SELECT
    pg_catalog.to_jsonb(d) AS row,
    pg_catalog.pg_encoding_to_char(d.encoding) AS encoding,
    pg_catalog.pg_get_userbyid(d.datdba) AS owner,
    (SELECT t.spcname FROM pg_catalog.pg_tablespace AS t WHERE t.oid = d.dattablespace) AS tablespace,
    pg_catalog.shobj_description(d.oid, 'pg_database') AS comment,
    CASE WHEN d.datacl IS NOT NULL THEN ARRAY(
        SELECT ARRAY[
            CASE WHEN a.grantee = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(a.grantee) END,
            a.privilege_type,
            a.is_grantable::text
        ]
        FROM pg_catalog.aclexplode(d.datacl) AS a
        ORDER BY 1
    ) END AS grants,
    ARRAY(
        SELECT ARRAY[
            CASE WHEN s.setrole = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(s.setrole) END,
            pg_catalog.split_part(c.line, '=', 1),
            pg_catalog.substr(c.line, pg_catalog.strpos(c.line, '=') + 1)
        ]
        FROM pg_catalog.pg_db_role_setting AS s
        CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS c (line)
        WHERE s.setdatabase = d.oid
        ORDER BY 1
    ) AS settings
FROM pg_catalog.pg_database AS d
WHERE d.datname = pg_catalog.current_database()
