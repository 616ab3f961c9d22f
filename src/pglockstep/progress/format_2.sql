-- Format 2: what the guard needs here.

-- The watch: what it wrote down until somebody of ours has dealt with it, and how our sessions are known.
CREATE TABLE pglockstep.watch (
    -- a session of ours shows this as setting pglockstep.token where it may not act as a replica
    token text NOT NULL
);

INSERT INTO pglockstep.watch VALUES (gen_random_uuid() || '/' || gen_random_uuid());

-- Sequences, because reading them makes no foreign transaction depend on another: the number of the last foreign write,
-- and of the last one that has been dealt with. Between them lies what is kept, and that is bounded.
CREATE SEQUENCE pglockstep.foreign_write_number;
CREATE SEQUENCE pglockstep.foreign_write_done MINVALUE 0 START 0;

CREATE TABLE pglockstep.foreign_write (
    number bigint PRIMARY KEY,
    at timestamptz NOT NULL,
    xid bigint NOT NULL,
    operation text NOT NULL,
    schema_name text,
    table_name text,
    row_count bigint,
    object text,
    who text NOT NULL,
    application text,
    client text,
    statement text
);

-- Last images of rows that were deleted here because the source deleted them: the text of each column, by name, so that a
-- row can be put back whatever has become of its table since. `lsn`: up to where the source's transactions reached that
-- were applied together with the deletion.
CREATE TABLE pglockstep.deleted (
    lsn pg_lsn NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    schema_name text NOT NULL,
    table_name text NOT NULL,
    columns text[] NOT NULL,
    image text[] NOT NULL
);

-- rows come in the order of both, so what is old is found by a few entries for many pages
CREATE INDEX deleted_lsn ON pglockstep.deleted USING brin (lsn) WITH (pages_per_range = 32);
CREATE INDEX deleted_at ON pglockstep.deleted USING brin (deleted_at) WITH (pages_per_range = 32);

-- Transactions with which something is put back on the source. Their xid is noted here before any of them can commit:
-- the source itself then knows whether it did, whoever has been killed meanwhile.
CREATE TABLE pglockstep.restoring (
    incident text PRIMARY KEY,
    xid text NOT NULL,
    pid integer NOT NULL,
    marker pg_lsn NOT NULL,
    began_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    outcome text
);

UPDATE pglockstep.format SET version = 2;
