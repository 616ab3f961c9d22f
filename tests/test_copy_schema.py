"""A schema of everything that PostgreSQL has arrives whole: what pg_dump says of both ends is the same."""

from __future__ import annotations

import difflib

import pytest

from fix_copy import MakeRole, check, dumped, identities, make_role, once
from fix_servers import INSTALLED, Cli, Pair, on_all_pairs

__all__ = ["make_role"]

#: Relations, one statement block a theme. Every version from 15 on takes it.
TABLES = r"""
CREATE SCHEMA app;
CREATE SCHEMA "Odd ""%s"" {0};
schema";
COMMENT ON SCHEMA app IS 'it''s; -- a
comment with \restrict x';

CREATE TYPE app.mood AS ENUM ('sad', 'ok', 'it''s "fine"');
CREATE DOMAIN app.positive AS numeric(12, 4) DEFAULT 1 NOT NULL CHECK (VALUE > 0);
CREATE TYPE app.pair AS (a int, "B c" app.mood);
CREATE TYPE app.span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE COLLATION app.upside (provider = libc, locale = 'C');
COMMENT ON TYPE app.mood IS 'moods';

CREATE TABLE app."select" (
    id bigint GENERATED ALWAYS AS IDENTITY (START 5 INCREMENT 5) PRIMARY KEY,
    "from" text COLLATE app.upside NOT NULL DEFAULT 'a;b', mood app.mood, price app.positive, pair app.pair[], span app.span,
    twice numeric GENERATED ALWAYS AS (price * 2) STORED,
    CONSTRAINT "check %s ;" CHECK (length("from") < 100)
) WITH (fillfactor = 70, autovacuum_enabled = false);
COMMENT ON TABLE app."select" IS 'a table';
COMMENT ON COLUMN app."select"."from" IS 'a column';
COMMENT ON CONSTRAINT "check %s ;" ON app."select" IS 'a constraint';
INSERT INTO app."select" ("from", mood, pair, span)
    SELECT 'row ' || n, 'ok', ARRAY[(n, 'sad')::app.pair], app.span(n, n + 1) FROM generate_series(1, 50) AS n;
CREATE TABLE "Odd ""%s"" {0};
schema"."tab	le '\ ü日本 {1} %(x)s" ("co""l;
" int PRIMARY KEY, "%" text);
INSERT INTO "Odd ""%s"" {0};
schema"."tab	le '\ ü日本 {1} %(x)s" VALUES (1, 'x');
CREATE TABLE app.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa (
    bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb serial PRIMARY KEY);

CREATE TABLE app.egg (id int PRIMARY KEY, hen int);
CREATE TABLE app.hen (id int PRIMARY KEY, egg int REFERENCES app.egg DEFERRABLE INITIALLY DEFERRED);
INSERT INTO app.egg VALUES (1, 1); INSERT INTO app.hen VALUES (1, 1);
ALTER TABLE app.egg ADD FOREIGN KEY (hen) REFERENCES app.hen ON DELETE SET NULL;
INSERT INTO app.egg VALUES (2, NULL);
ALTER TABLE app.egg ADD CONSTRAINT small CHECK (id < 2) NOT VALID;
CREATE TABLE app.odd (id int UNIQUE DEFERRABLE, during tsrange, note text,
    EXCLUDE USING gist (during WITH &&) DEFERRABLE, UNIQUE NULLS NOT DISTINCT (note));
CREATE TABLE app.orphan (egg int); INSERT INTO app.orphan VALUES (77);
ALTER TABLE app.orphan ADD CONSTRAINT broken FOREIGN KEY (egg) REFERENCES app.egg NOT VALID;

CREATE TABLE app.event (id int, day date, kind text, PRIMARY KEY (id, day, kind)) PARTITION BY RANGE (day);
CREATE TABLE app.event_old PARTITION OF app.event FOR VALUES FROM (MINVALUE) TO ('2020-01-01') PARTITION BY LIST (kind);
CREATE TABLE app.event_old_a PARTITION OF app.event_old FOR VALUES IN ('a', 'it''s') PARTITION BY HASH (id);
CREATE TABLE app.event_old_a0 PARTITION OF app.event_old_a FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE app.event_old_a1 (kind text NOT NULL, id int NOT NULL, day date NOT NULL);  -- another order of columns
ALTER TABLE app.event_old_a ATTACH PARTITION app.event_old_a1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE app.event_rest PARTITION OF app.event DEFAULT;
CREATE TABLE app.ticket (id int PRIMARY KEY, event int, day date, kind text,
    FOREIGN KEY (event, day, kind) REFERENCES app.event);
CREATE TABLE app.leafless (a int) PARTITION BY LIST (a);
ALTER TABLE app.event ADD FOREIGN KEY (id) REFERENCES app.egg;
INSERT INTO app.event VALUES (1, '2000-01-01', 'a'), (2, '2000-01-01', 'it''s'), (1, '2021-01-01', 'z');
INSERT INTO app.ticket VALUES (1, 1, '2000-01-01', 'a');
CREATE INDEX event_day ON app.event (day DESC NULLS LAST) INCLUDE (kind) WHERE id > 0;
COMMENT ON INDEX app.event_day IS 'an index';

CREATE TABLE app.parent (a int, b text, c int);
CREATE TABLE app.child (c int, b text, d int, a int) INHERITS (app.parent);
ALTER TABLE app.child ALTER b SET DEFAULT 'child''s';
INSERT INTO app.parent VALUES (1, 'p', 2); INSERT INTO app.child (c, b, d, a) VALUES (1, 'c', 3, 4);

CREATE UNLOGGED TABLE app.fleeting (id int PRIMARY KEY); INSERT INTO app.fleeting VALUES (1);
CREATE TABLE app.keyless (v text, j json); INSERT INTO app.keyless VALUES ('x', '{}'), ('x', '{}'), (NULL, NULL);
CREATE TABLE app.silent (v text); ALTER TABLE app.silent REPLICA IDENTITY NOTHING;
CREATE TABLE app.loud (id int PRIMARY KEY, v text); ALTER TABLE app.loud REPLICA IDENTITY FULL;
CREATE TABLE app.indexed (id int NOT NULL, v text);
CREATE UNIQUE INDEX indexed_id ON app.indexed (id); ALTER TABLE app.indexed REPLICA IDENTITY USING INDEX indexed_id;
CREATE TABLE app.gone (id int NOT NULL);
CREATE UNIQUE INDEX gone_id ON app.gone (id); ALTER TABLE app.gone REPLICA IDENTITY USING INDEX gone_id;
DROP INDEX app.gone_id;
CREATE TABLE app.nothing (); INSERT INTO app.nothing DEFAULT VALUES; INSERT INTO app.nothing DEFAULT VALUES;
CREATE TABLE app.computed_only (id int PRIMARY KEY, a int GENERATED ALWAYS AS (1 + 1) STORED);
INSERT INTO app.computed_only VALUES (1);
CREATE TABLE app.holey (a int, b int, c int); ALTER TABLE app.holey DROP b; INSERT INTO app.holey VALUES (1, 3);
CREATE TABLE app.typed OF app.pair (PRIMARY KEY (a));

CREATE SEQUENCE app.uncalled START 7; SELECT setval('app.uncalled', 41, false);
CREATE SEQUENCE app.down AS smallint INCREMENT -3 MINVALUE -30 MAXVALUE 9 START 9 CYCLE; SELECT nextval('app.down');
CREATE SEQUENCE app.full MAXVALUE 3 CACHE 5; SELECT setval('app.full', 3);
CREATE TABLE app.by_default (id int GENERATED BY DEFAULT AS IDENTITY, n int DEFAULT nextval('app.uncalled'));
INSERT INTO app.by_default (id) VALUES (9);
"""

CODE = r"""
CREATE FUNCTION app.tricky(a text DEFAULT 'x;y') RETURNS text LANGUAGE plpgsql AS $body$
BEGIN
    -- Name: a; Type: ACL
    a := a || $q$;'"\$q$ || ';'; /* $$ ;
\restrict x
\unrestrict x
SET transaction_timeout = 0;
SET lock_timeout = 0;
    */
    RETURN a;
END $body$;
CREATE FUNCTION app.standard(a int, OUT b int) IMMUTABLE LANGUAGE sql BEGIN ATOMIC SELECT a + 1; SELECT a + 2; END;
CREATE FUNCTION app.by_row(r app.keyless) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE SET search_path = app AS 'SELECT r.v';
CREATE PROCEDURE app.perform(INOUT n int) LANGUAGE sql AS 'SELECT n;';
CREATE AGGREGATE app.total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0', COMBINEFUNC = int4pl, PARALLEL = SAFE);
CREATE FUNCTION app.same(int, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1::text = $2';
CREATE OPERATOR app.=== (FUNCTION = app.same, LEFTARG = int, RIGHTARG = text);
CREATE OPERATOR FAMILY app.family USING btree;
CREATE OPERATOR CLASS app.class FOR TYPE int USING btree FAMILY app.family AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(int, int);
CREATE CAST (app.pair AS text) WITH INOUT;
COMMENT ON FUNCTION app.tricky IS 'a function'; COMMENT ON AGGREGATE app.total(int) IS 'an aggregate';
COMMENT ON OPERATOR app.=== (int, text) IS 'an operator';

CREATE VIEW app.v AS SELECT id, "from", twice FROM app."select";
CREATE VIEW app.vv WITH (security_barrier) AS SELECT * FROM app.v WHERE id > 10 WITH LOCAL CHECK OPTION;
CREATE RECURSIVE VIEW app.counted(n) AS VALUES (1) UNION ALL SELECT n + 1 FROM counted WHERE n < 5;
CREATE MATERIALIZED VIEW app.m AS SELECT count(*) AS n FROM app.vv;
CREATE MATERIALIZED VIEW app.a_on_m AS SELECT n * 2 AS n FROM app.m;
CREATE UNIQUE INDEX a_on_m_n ON app.a_on_m (n);
CREATE MATERIALIZED VIEW app.empty AS SELECT 1 AS one WITH NO DATA;
CREATE MATERIALIZED VIEW app.was_filled AS SELECT 1 AS one;
CREATE MATERIALIZED VIEW app.stale AS SELECT * FROM app.was_filled; REFRESH MATERIALIZED VIEW app.was_filled WITH NO DATA;
COMMENT ON VIEW app.v IS 'a view'; COMMENT ON COLUMN app.v."from" IS 'its column';

CREATE FUNCTION app.fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO app.fired VALUES (TG_NAME); RETURN NEW; END $$;
CREATE TABLE app.fired (name text);
CREATE TRIGGER usual BEFORE INSERT OR UPDATE OF v ON app.loud FOR EACH ROW EXECUTE FUNCTION app.fire();
CREATE TRIGGER always AFTER INSERT ON app.loud FOR EACH ROW EXECUTE FUNCTION app.fire('it''s', 'x;');
CREATE TRIGGER replica AFTER INSERT ON app.loud FOR EACH ROW EXECUTE FUNCTION app.fire();
CREATE TRIGGER off AFTER INSERT ON app.loud FOR EACH STATEMENT EXECUTE FUNCTION app.fire();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON app.loud DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.id < 0) EXECUTE FUNCTION app.fire();
CREATE TRIGGER every AFTER INSERT ON app.event FOR EACH ROW WHEN (NEW.id < 0) EXECUTE FUNCTION app.fire();
COMMENT ON TRIGGER usual ON app.loud IS 'a trigger';
INSERT INTO app.loud VALUES (1, 'x');
ALTER TABLE app.loud DISABLE TRIGGER off;
CREATE RULE quiet AS ON DELETE TO app.fired DO INSTEAD NOTHING;
CREATE RULE also AS ON INSERT TO app.loud DO ALSO NOTHING; ALTER TABLE app.loud DISABLE RULE also;
COMMENT ON RULE quiet ON app.fired IS 'a rule';
ALTER TABLE app.parent ENABLE ROW LEVEL SECURITY; ALTER TABLE app.parent FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON app.parent AS RESTRICTIVE FOR SELECT USING (b = current_user);
CREATE POLICY hidden ON app.parent FOR ALL TO pg_monitor USING (false) WITH CHECK (a > 0);
COMMENT ON POLICY own ON app.parent IS 'a policy';

CREATE TEXT SEARCH DICTIONARY app.dict (TEMPLATE = simple, STOPWORDS = english);
CREATE TEXT SEARCH CONFIGURATION app.conf (COPY = english);
ALTER TEXT SEARCH CONFIGURATION app.conf ALTER MAPPING FOR asciiword WITH app.dict;
CREATE STATISTICS app.stat (ndistinct, mcv) ON a, b FROM app.parent; ALTER STATISTICS app.stat SET STATISTICS 50;
CREATE FOREIGN DATA WRAPPER "dummy fdw";
CREATE SERVER "far away" FOREIGN DATA WRAPPER "dummy fdw" OPTIONS (host 'it''s');
CREATE USER MAPPING FOR PUBLIC SERVER "far away";
CREATE FOREIGN TABLE app.abroad (id int OPTIONS (o 'x')) SERVER "far away";
CREATE CONVERSION app.conv FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;

CREATE FUNCTION app.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TAG IN ('GRANT', 'ALTER TABLE', 'CREATE INDEX', 'REFRESH MATERIALIZED VIEW') AND current_database() ~ '^tgt' THEN
        RAISE 'fired for %', TG_TAG;
    END IF;
END $$;
CREATE EVENT TRIGGER ddl_usual ON ddl_command_end EXECUTE FUNCTION app.on_ddl();
CREATE EVENT TRIGGER ddl_replica ON sql_drop WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION app.on_ddl();
ALTER EVENT TRIGGER ddl_replica DISABLE;
COMMENT ON EVENT TRIGGER ddl_usual IS 'an event trigger';

CREATE PUBLICATION mine FOR TABLE app.egg; COMMENT ON PUBLICATION mine IS 'of the user''s';
CREATE PUBLICATION all_of_app FOR TABLES IN SCHEMA app;
"""

ROLES = r"""
ALTER SCHEMA app OWNER TO "Both %s";
GRANT USAGE ON SCHEMA app TO source_only, other;
ALTER TABLE app.egg OWNER TO "Both %s"; ALTER TABLE app.hen OWNER TO source_only;
ALTER VIEW app.v OWNER TO "Both %s"; ALTER MATERIALIZED VIEW app.m OWNER TO "Both %s";
ALTER SEQUENCE app.down OWNER TO "Both %s"; ALTER TYPE app.pair OWNER TO "Both %s"; ALTER DOMAIN app.positive OWNER TO "Both %s";
ALTER TYPE app.mood OWNER TO "Both %s"; ALTER TYPE app.span OWNER TO "Both %s"; ALTER TABLE app.typed OWNER TO "Both %s";
ALTER FUNCTION app.tricky OWNER TO "Both %s"; ALTER PROCEDURE app.perform OWNER TO "Both %s";
ALTER AGGREGATE app.total(int) OWNER TO "Both %s"; ALTER OPERATOR app.=== (int, text) OWNER TO "Both %s";
ALTER OPERATOR FAMILY app.family USING btree OWNER TO "Both %s"; ALTER OPERATOR CLASS app.class USING btree OWNER TO "Both %s";
ALTER COLLATION app.upside OWNER TO "Both %s"; ALTER CONVERSION app.conv OWNER TO "Both %s";
ALTER TEXT SEARCH CONFIGURATION app.conf OWNER TO "Both %s"; ALTER TEXT SEARCH DICTIONARY app.dict OWNER TO "Both %s";
ALTER STATISTICS app.stat OWNER TO "Both %s"; ALTER FOREIGN TABLE app.abroad OWNER TO "Both %s";
GRANT USAGE ON FOREIGN DATA WRAPPER "dummy fdw" TO "Both %s"; ALTER SERVER "far away" OWNER TO "Both %s";
ALTER TABLE app.event OWNER TO "Both %s"; ALTER TABLE app.event_old_a0 OWNER TO "Both %s";
GRANT SELECT, UPDATE ON app.egg TO other WITH GRANT OPTION;
SET SESSION AUTHORIZATION other; GRANT SELECT ON app.egg TO PUBLIC; RESET SESSION AUTHORIZATION;
GRANT SELECT ("from"), UPDATE ("from", mood) ON app."select" TO "Both %s";
GRANT ALL ON app.ticket TO source_only;
GRANT EXECUTE ON FUNCTION app.tricky TO other; REVOKE EXECUTE ON FUNCTION app.tricky FROM PUBLIC;
REVOKE ALL ON TYPE app.mood FROM PUBLIC; GRANT USAGE ON SEQUENCE app.down TO other;
REVOKE ALL ON LANGUAGE plpgsql FROM PUBLIC; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT SELECT ON "Odd ""%s"" {0};
schema"."tab	le '\ ü日本 {1} %(x)s" TO other;
ALTER DEFAULT PRIVILEGES FOR ROLE "Both %s" IN SCHEMA app GRANT SELECT ON TABLES TO other;
ALTER DEFAULT PRIVILEGES FOR ROLE source_only REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
"""


def difference(source: str, target: str) -> set[str]:
    """The lines, other than comments, that only one of two dumps has: ``- `` the source's, ``+ `` the target's."""
    found = difflib.ndiff(source.splitlines(), target.splitlines())
    return {line for line in found if line[:2] in ("- ", "+ ") and line[2:] and not line[2:].startswith("--")}


@on_all_pairs
@pytest.mark.superusers
def test_everything_arrives(make_role: MakeRole, pair: Pair, cli: Cli) -> None:
    """Every kind of object, with hostile names and bodies, owners and grants, arrives as it was; nothing of ours stays."""
    for server in (pair.source_server, pair.target_server):
        make_role(server, "Both %s")
        make_role(server, "other")
    make_role(pair.source_server, "source_only")
    source = pair.on_source()
    source.execute(TABLES.encode())
    source.execute(CODE.encode())
    source.execute(ROLES.encode())
    source.execute(
        "CREATE SUBSCRIPTION mine CONNECTION '' PUBLICATION x WITH (connect = false, slot_name = NONE)"
    )
    before, source_dump = identities(source), dumped(pair.source_server, pair.source)
    try:
        link = once(cli, pair)
    finally:
        source.execute("ALTER SUBSCRIPTION mine SET (slot_name = NONE); DROP SUBSCRIPTION mine")
    assert link["schema_differences"] == []
    assert link["verdict"] == "identical"
    target = pair.on_target()
    # what we changed on the source is not what the user had, and the target has the latter
    after = {table: "n" if table == "app.gone" else kind for table, kind in before.items()}
    assert {name: kind for name, kind in identities(target).items() if "pglockstep" not in name} == after
    assert {table for table, kind in identities(source).items() if kind != before[table]} >= {
        "app.keyless",
        "app.silent",
        "app.gone",
        "app.nothing",
    }
    assert target.execute("SELECT pubname FROM pg_publication").fetchall() == []
    assert target.execute(
        "SELECT count(*) FROM pg_subscription WHERE subname = 'mine' AND subdbid = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchone() == (0,)
    assert target.execute("SELECT name FROM app.fired ORDER BY 1").fetchall() == [
        ("always",),
        ("off",),
        ("replica",),
        ("usual",),
    ]
    assert (
        target.execute("SELECT n FROM app.a_on_m").fetchall()
        == source.execute("SELECT n FROM app.a_on_m").fetchall()
    )
    unfilled = "SELECT relname FROM pg_class WHERE relkind = 'm' AND NOT relispopulated ORDER BY 1"
    assert target.execute(unfilled).fetchall() == [("empty",), ("stale",), ("was_filled",)]
    for sequence, expected in (("uncalled", (42, True)), ("down", (9, True)), ("full", (3, True))):
        state = f"SELECT last_value, is_called FROM app.{sequence}"
        if sequence != "uncalled":
            assert target.execute(state.encode()).fetchone() == expected
    assert target.execute("SELECT nextval('app.uncalled')").fetchone() == (42,)
    if pair.source_server.major == pair.target_server.major:
        assert (
            difference(source_dump, dumped(pair.target_server, pair.target))
            == {
                "+ ALTER TABLE ONLY app.gone REPLICA IDENTITY NOTHING;",  # its index was gone, which means the same
                "- ALTER TABLE app.hen OWNER TO source_only;",
                "+ ALTER TABLE app.hen OWNER TO postgres;",
                "- GRANT USAGE ON SCHEMA app TO source_only;",
                "- GRANT ALL ON TABLE app.ticket TO source_only;",
                "- ALTER DEFAULT PRIVILEGES FOR ROLE source_only REVOKE ALL ON FUNCTIONS  FROM PUBLIC;",
            }
        )
    done = cli("teardown", "--source", pair.source, "--target", pair.target, "--yes")
    assert done.returncode == 0, done.stderr
    assert identities(source) == before | {"app.gone": "n"}
    assert check(cli, pair)["schema_differences"] == []


@pytest.mark.skipif(18 not in INSTALLED, reason="needs PostgreSQL 18")
@pytest.mark.superusers
def test_what_18_brought_arrives(pair: Pair, cli: Cli) -> None:
    """Virtual columns, named and unchecked constraints, keys over periods: the newest version's own things."""
    source = pair.on_source()
    source.execute("""
        CREATE TABLE t (id int CONSTRAINT "must be" NOT NULL, v int GENERATED ALWAYS AS (id + 1) VIRTUAL,
            w int, PRIMARY KEY (id));
        ALTER TABLE t ADD CONSTRAINT w_there NOT NULL w NOT VALID, ADD CONSTRAINT lax CHECK (w > 5) NOT ENFORCED;
        INSERT INTO t VALUES (1, DEFAULT, 1);
        CREATE TABLE period (id int4range, valid daterange, PRIMARY KEY (id, valid WITHOUT OVERLAPS));
        CREATE TABLE within (id int4range, valid daterange,
            FOREIGN KEY (id, PERIOD valid) REFERENCES period (id, PERIOD valid));
        INSERT INTO period VALUES ('[1,2)', '[2000-01-01,2001-01-01)');
        INSERT INTO within VALUES ('[1,2)', '[2000-02-01,2000-03-01)');
        CREATE TABLE lax (id int PRIMARY KEY, w int REFERENCES lax NOT ENFORCED);
        CREATE EXTENSION vector; CREATE TABLE embedded (id int PRIMARY KEY, e vector(3));
        INSERT INTO embedded VALUES (1, '[1,-0,3.5e-20]');
        CREATE INDEX ON embedded USING hnsw (e vector_l2_ops);
    """)
    before = dumped(pair.source_server, pair.source)
    assert once(cli, pair)["verdict"] == "identical"
    assert difference(before, dumped(pair.target_server, pair.target)) == set()


def test_a_dropped_public_schema_is_told(pair: Pair, cli: Cli) -> None:
    """A source without schema public: everything arrives, and the target's own public is no hindrance."""
    source = pair.on_source()
    source.execute("DROP SCHEMA public; CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY)")
    link = once(cli, pair)
    assert link["verdict"] == "identical"


@pytest.mark.skipif(15 not in INSTALLED, reason="needs a server with contrib modules")
@pytest.mark.parametrize("pair", [(15, 15)], indirect=True)
@pytest.mark.superusers
def test_extensions_arrive(pair: Pair, cli: Cli) -> None:
    """Extensions come with their version's objects, once, and columns of their types with their rows."""
    source = pair.on_source()
    present = {row[0] for row in source.execute("SELECT name FROM pg_available_extensions").fetchall()}
    if not {"hstore", "citext", "file_fdw"} <= present:
        pytest.skip("this server has no contrib modules")
    source.execute("""
        CREATE SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext; CREATE EXTENSION citext; CREATE EXTENSION btree_gist;
        CREATE EXTENSION file_fdw; COMMENT ON EXTENSION citext IS 'mine';
        CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
        CREATE FOREIGN TABLE f (line text) SERVER files OPTIONS (filename '/etc/hostname');
        CREATE TABLE t (id citext PRIMARY KEY, h ext.hstore, during tsrange, n int,
            EXCLUDE USING gist (n WITH =, during WITH &&));
        CREATE INDEX ON t USING gin (h);
        INSERT INTO t VALUES ('A', '"a b"=>NULL, c=>"\\"d"', '[2000-01-01,2001-01-01)', 1);
    """)
    before = dumped(pair.source_server, pair.source)
    assert once(cli, pair)["verdict"] == "identical"
    assert difference(before, dumped(pair.target_server, pair.target)) == set()
