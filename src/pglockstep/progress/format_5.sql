-- Format 5: what is held back.

-- A transaction of the source's that a rule tripped over, by where its commit record starts: whoever comes next, and has not
-- seen what led to it, holds it as well. `losses` as whoever wrote it encodes them.
CREATE TABLE pglockstep.held (
    lsn pg_lsn PRIMARY KEY,
    kind text NOT NULL,
    message text NOT NULL,
    losses text NOT NULL,
    since_lsn pg_lsn,
    at timestamptz NOT NULL DEFAULT pg_catalog.now()
);

UPDATE pglockstep.format SET version = 5;
