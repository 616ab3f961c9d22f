-- Format 3: which tables follow the source.

-- Those that do not any more, since an incident was rejected.
CREATE TABLE pglockstep.detached (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    incident text NOT NULL,
    at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (schema_name, table_name)
);

-- Those that do, by the OIDs that they have there: a table of the same name may be another one.
CREATE TABLE pglockstep.source_table (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    source_oid oid NOT NULL,
    PRIMARY KEY (schema_name, table_name)
);

UPDATE pglockstep.format SET version = 3;
