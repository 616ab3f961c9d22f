-- Format 4: how often the link has marked its source.

-- The number stands on the source, too, as a comment on the link's publication, and is written there first: a source with a
-- lower one is an older copy of itself, however far its WAL has come since.
CREATE TABLE pglockstep.generation (number bigint NOT NULL);

INSERT INTO pglockstep.generation VALUES (0);

UPDATE pglockstep.format SET version = 4;
