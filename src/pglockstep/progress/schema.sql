-- Everything of ours on a target. `pglockstep teardown` removes it.
CREATE SCHEMA pglockstep;

COMMENT ON SCHEMA pglockstep IS 'What pglockstep remembers here; remove it with "pglockstep teardown"';

-- A newer pglockstep upgrades this format in place, an older one refuses it.
CREATE TABLE pglockstep.format (version integer NOT NULL);

INSERT INTO pglockstep.format VALUES (1);

-- The link that fills this database. Its slot and publication on the source are named after its id.
CREATE TABLE pglockstep.link (
    id text PRIMARY KEY,
    name text NOT NULL,
    source_identity text NOT NULL,
    phase text NOT NULL CHECK (phase IN ('copying', 'streaming')),
    created_at timestamptz NOT NULL DEFAULT now(),
    copied_at timestamptz
);

-- How far the target is complete. Written in the same commit as the rows that it speaks of; the spare room on
-- the page keeps these updates off any index.
CREATE TABLE pglockstep.progress (
    link text PRIMARY KEY REFERENCES pglockstep.link,
    lsn pg_lsn NOT NULL,
    commit_time timestamptz,
    written_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

-- Tables of the source that had no replica identity, and what they had instead.
CREATE TABLE pglockstep.replica_identity (
    link text REFERENCES pglockstep.link,
    schema_name text,
    table_name text,
    before text NOT NULL CHECK (before IN ('d', 'n', 'i')),
    PRIMARY KEY (link, schema_name, table_name)
);

-- What a copy that is under way has made here: of which schema of the source's, where the link's slot starts, and the
-- statements that take it away again.
CREATE TABLE pglockstep.restored (
    link text PRIMARY KEY REFERENCES pglockstep.link,
    lsn pg_lsn NOT NULL,
    digest text NOT NULL,
    removal text NOT NULL
);

-- The parts of tables that have arrived, and as of which LSN. Written in the same commit as the rows.
CREATE TABLE pglockstep.copied (
    link text REFERENCES pglockstep.link,
    schema_name text,
    table_name text,
    part integer,
    parts integer NOT NULL,
    lsn pg_lsn NOT NULL,
    row_count bigint NOT NULL,
    bytes bigint NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (link, schema_name, table_name, part)
);

-- Indexes, and constraints that are indexes, that a copy under way has built.
CREATE TABLE pglockstep.built (
    link text REFERENCES pglockstep.link,
    schema_name text,
    index_name text,
    PRIMARY KEY (link, schema_name, index_name)
);
