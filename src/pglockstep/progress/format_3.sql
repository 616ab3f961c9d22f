-- Format 3: tables that do not follow their source any more, since an incident was rejected.
CREATE TABLE pglockstep.detached (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    incident text NOT NULL,
    at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (schema_name, table_name)
);

UPDATE pglockstep.format SET version = 3;
