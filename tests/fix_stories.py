"""What happens to tables on a source: each story has a schema of its own, and can be told again and again.

A story leaves rows behind that the next telling meets, so that what comes late meets what came early, in one batch or
in several.
"""

from __future__ import annotations

from typing import NamedTuple

#: Kept outside of its row where the column's storage is external; `{n}` is the telling's number.
BIG = "repeat('big{n}', 2000)"


class Story(NamedTuple):
    """A schema, and transactions: a list of statements is one, a single statement too."""

    setup: str
    transactions: tuple[str | list[str], ...]
    #: the oldest source and target that know its SQL
    since: int = 14


_TOAST = """
CREATE TABLE t (id int PRIMARY KEY, v text, big text, doc text);
ALTER TABLE t ALTER big SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL;
INSERT INTO t SELECT n, 'v', repeat('old' || n, 2000), repeat('doc', 2000) FROM generate_series(1, 20) AS n;
"""
_TOASTED = (
    "UPDATE t SET v = 'touched {n}'",
    "UPDATE t SET v = v || '!' WHERE id % 2 = 0",
    f"UPDATE t SET big = {BIG} WHERE id = 3",
    "UPDATE t SET v = NULL WHERE id = 3",
    ["UPDATE t SET v = 'x' WHERE id = 4", f"UPDATE t SET doc = {BIG} WHERE id = 4", "UPDATE t SET v = 'y' WHERE id = 4"],
    # a key that changes beside values that do not travel, there and back
    ["UPDATE t SET id = id + 1000 WHERE id = 5", "UPDATE t SET v = 'moved' WHERE id = 1005"],
    "UPDATE t SET id = 5, v = 'back {n}' WHERE id = 1005",
    f"UPDATE t SET id = 1006, big = {BIG} WHERE id = 6",
    "UPDATE t SET id = 6 WHERE id = 1006",
    "UPDATE t SET big = doc WHERE id = 7",
    "UPDATE t SET big = NULL WHERE id = 8",
    f"UPDATE t SET big = {BIG} WHERE id = 8",
    # another row under a key that was there a moment ago, and nothing of the old one left in it
    ["DELETE FROM t WHERE id = 9", "INSERT INTO t (id, v) VALUES (9, 'fresh')", "UPDATE t SET v = 'twice' WHERE id = 9"],
    ["DELETE FROM t WHERE id = 10", f"INSERT INTO t VALUES (10, 'n', {BIG}, NULL)"],
    "UPDATE t SET v = 'after' WHERE id = 10",
    ["INSERT INTO t VALUES (11000 + {n}, 'gone', NULL, NULL)", "DELETE FROM t WHERE id = 11000 + {n}"],
)  # fmt: skip

STORIES: dict[str, Story] = {
    "toast": Story(_TOAST, _TOASTED),
    "toast_full": Story(_TOAST + "ALTER TABLE t REPLICA IDENTITY FULL;", _TOASTED),
    "toast_index": Story(
        _TOAST + "ALTER TABLE t DROP CONSTRAINT t_pkey; CREATE UNIQUE INDEX i ON t (id);"
        "ALTER TABLE t ALTER id SET NOT NULL, REPLICA IDENTITY USING INDEX i;",
        _TOASTED,
    ),
    "toast_bare": Story(_TOAST + "ALTER TABLE t DROP CONSTRAINT t_pkey;", _TOASTED),
    "toast_key": Story(
        "CREATE TABLE t (k text PRIMARY KEY, v text, big text);"
        "ALTER TABLE t ALTER k SET STORAGE EXTERNAL, ALTER big SET STORAGE EXTERNAL;"
        "INSERT INTO t SELECT repeat(chr(64 + n), 2500), 'v', repeat('z', 4000) FROM generate_series(1, 9) AS n",
        (
            "UPDATE t SET v = 'touched {n}'",
            "UPDATE t SET v = v || '!' WHERE k ~ '^A'",
            ["UPDATE t SET k = repeat('x', 2500) WHERE k ~ '^B'", "UPDATE t SET v = 'w' WHERE k ~ '^x'"],
            "UPDATE t SET k = repeat('B', 2500) WHERE k ~ '^x'",
            f"UPDATE t SET big = {BIG} WHERE k ~ '^C'",
            ["DELETE FROM t WHERE k ~ '^D'", "INSERT INTO t VALUES (repeat('D', 2500), 'new {n}', NULL)"],
        ),
    ),
    "bare": Story(
        "CREATE TABLE t (n int, x numeric, j json, b jsonb, f float8, p point, a text[]);"
        "CREATE TABLE one (v text); CREATE TABLE none ();"
        "INSERT INTO t SELECT 1, 1.0, '{{\"a\":1}}', '{{}}', 'NaN', '(0,0)', '{{NULL}}' FROM generate_series(1, 10);"
        "INSERT INTO one SELECT NULL FROM generate_series(1, 10); INSERT INTO none DEFAULT VALUES",
        (
            "INSERT INTO t SELECT 1, 1.00, '{{\"a\": 1}}', '{{}}', '-0', '(-0,0)', '{{NULL}}' FROM generate_series(1, 6)",
            "INSERT INTO t SELECT NULL FROM generate_series(1, 4)",
            "UPDATE t SET x = 1.00 WHERE ctid = (SELECT min(ctid) FROM t WHERE x::text = '1.0')",
            "UPDATE t SET x = 1.0 WHERE ctid = (SELECT max(ctid) FROM t WHERE x::text = '1.00')",
            "UPDATE t SET j = 'null' WHERE ctid = (SELECT min(ctid) FROM t WHERE j IS NULL)",
            "UPDATE t SET j = NULL WHERE ctid = (SELECT max(ctid) FROM t WHERE j::text = 'null')",
            "UPDATE t SET n = n + 1 WHERE ctid = (SELECT min(ctid) FROM t)",
            "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE x IS NULL ORDER BY ctid LIMIT 2)",
            "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE x = 1 ORDER BY ctid DESC LIMIT 4)",
            # nothing but the same again: a row that is the row before it
            "UPDATE t SET n = n WHERE ctid = (SELECT min(ctid) FROM t)",
            ["INSERT INTO one VALUES ('a'), ('a'), (''), (NULL)", "UPDATE one SET v = '' WHERE v IS NULL"],
            "UPDATE one SET v = NULL WHERE ctid = (SELECT min(ctid) FROM one WHERE v = '')",
            "DELETE FROM one WHERE ctid IN (SELECT min(ctid) FROM one GROUP BY v)",
            "INSERT INTO none DEFAULT VALUES",
            ["INSERT INTO none SELECT FROM generate_series(1, 3)", "DELETE FROM none WHERE ctid = (SELECT max(ctid) FROM none)"],
        ),
    ),
    "nothing_words": Story(
        "CREATE TABLE t (id int PRIMARY KEY, v text, j jsonb, a text[]); CREATE TABLE u (v text, j json)",
        (
            "INSERT INTO t VALUES (1, NULL, NULL, NULL), (2, '', 'null', '{{}}'), (3, 'NULL', '\"null\"', '{{NULL}}'), "
            "(4, '\\N', '\"\"', '{{\"NULL\"}}'), (5, '\\.', '\"\\\\N\"', '{{\"\"}}') ON CONFLICT (id) DO UPDATE "
            "SET v = excluded.v, j = excluded.j, a = excluded.a",
            "UPDATE t SET v = NULL WHERE v = ''",
            "UPDATE t SET v = '' WHERE id = 1",
            "UPDATE t SET j = 'null' WHERE j IS NULL",
            "UPDATE t SET j = NULL, a = NULL WHERE id = 2",
            "UPDATE t SET v = 'null', a = '{{null}}' WHERE id = 4",
            "INSERT INTO u SELECT v, j::json FROM t",
            "UPDATE u SET v = NULL WHERE v = '\\N'",
            "DELETE FROM u WHERE ctid IN (SELECT min(ctid) FROM u GROUP BY v, j::text)",
        ),
    ),
    "generated": Story(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED);"
        "CREATE TABLE d (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v int);"
        "CREATE TABLE other (v int, n int GENERATED ALWAYS AS IDENTITY, id int PRIMARY KEY)",
        (
            "INSERT INTO t (v) SELECT generate_series(1, 20)",
            "UPDATE t SET v = v + 1 WHERE id % 3 = 0",
            "INSERT INTO t (id, v) OVERRIDING SYSTEM VALUE SELECT coalesce(min(id), 0) - 1, 1 FROM t",
            "UPDATE t SET id = DEFAULT WHERE id = (SELECT max(id) FROM t)",
            "DELETE FROM t WHERE id = (SELECT min(id) FROM t)",
            "INSERT INTO d (v) SELECT generate_series(1, 5)",
            "UPDATE d SET id = -id - 10000 * {n} WHERE id = (SELECT max(id) FROM d)",
            "INSERT INTO other (v, id) VALUES ({n}, {n})",
            # an identity column outside of the key takes no SET either
            "UPDATE other SET n = DEFAULT, v = 1 WHERE id = {n}",
            "UPDATE other SET v = 2 WHERE id = {n}",
        ),
    ),
    "unique_deferred": Story(
        "CREATE TABLE seat (id int PRIMARY KEY, place int NOT NULL UNIQUE DEFERRABLE INITIALLY IMMEDIATE);"
        "INSERT INTO seat SELECT n, n FROM generate_series(1, 30) AS n;"
        "CREATE TABLE key (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);"
        "INSERT INTO key SELECT n, 'k' || n FROM generate_series(1, 30) AS n;"
        "CREATE TABLE late (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO late SELECT n, n FROM generate_series(1, 30) AS n",
        (
            "UPDATE seat SET place = CASE place WHEN 1 THEN 2 ELSE 1 END WHERE place IN (1, 2)",
            "UPDATE seat SET place = 31 - place",
            "UPDATE seat SET place = place % 30 + 1",
            "UPDATE key SET id = 31 - id",
            ["UPDATE key SET id = id % 30 + 1", "UPDATE key SET v = v || '.' WHERE id < 5"],
            ["INSERT INTO late VALUES (100 + {n}, 1)", "UPDATE late SET u = -{n} WHERE u = 1 AND id < 100"],
            "UPDATE late SET u = 1 WHERE u = -{n} AND id < 100 AND NOT EXISTS (SELECT FROM late WHERE u = 1)",
            ["DELETE FROM late WHERE id > 100", "UPDATE late SET u = 1 WHERE u = -{n}"],
        ),
    ),
    "unique_at_once": Story(
        "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, w int);"
        "CREATE UNIQUE INDEX ON t (w) WHERE w > 0; CREATE UNIQUE INDEX ON t (lower(u) DESC);"
        "INSERT INTO t SELECT n, 'u' || n, n FROM generate_series(1, 40) AS n;"
        "CREATE TABLE span (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&));"
        "INSERT INTO span SELECT n, int4range(n * 10, n * 10 + 9) FROM generate_series(1, 20) AS n",
        (
            # a swap by way of a third value, in three transactions and in one
            "UPDATE t SET u = 'hand' WHERE id = 1", "UPDATE t SET u = (SELECT 'u' || 1) WHERE u = 'u2'",
            "UPDATE t SET u = 'u2' WHERE u = 'hand'",
            ["UPDATE t SET w = -w WHERE id IN (3, 4)", "UPDATE t SET w = 1000 - w WHERE id IN (3, 4)"],
            "UPDATE t SET w = 4 WHERE id = 3 AND NOT EXISTS (SELECT FROM t WHERE w = 4)",
            # the value moves on to another row, which was there before, or comes only now
            ["DELETE FROM t WHERE id = 5", "INSERT INTO t VALUES (500 + {n}, 'u5', 5)"],
            ["DELETE FROM t WHERE id = 500 + {n}", "INSERT INTO t VALUES (5, 'u5', 5)"],
            "UPDATE t SET u = NULL WHERE id = 6", "UPDATE t SET u = 'u6' WHERE id = 7", "UPDATE t SET u = 'u7' WHERE id = 6",
            "UPDATE t SET u = NULL WHERE id = 7", "UPDATE t SET u = 'u6' WHERE id = 6", "UPDATE t SET u = 'u7' WHERE id = 7",
            # keys that follow one another, upwards and downwards
            "UPDATE t SET id = 1000 WHERE id = 40", "UPDATE t SET id = 40 WHERE id = 39", "UPDATE t SET id = 39 WHERE id = 38",
            "UPDATE t SET id = 38 WHERE id = 1000",
            ["DELETE FROM t WHERE id = 20", "UPDATE t SET id = 20 WHERE id = 21", "INSERT INTO t VALUES (21, 'u{n}.', NULL)"],
            ["UPDATE t SET u = 'u20' || {n} WHERE id = 20"],
            "DELETE FROM t WHERE u = 'u{n}.'", "INSERT INTO t VALUES (21, 'U{n}.', NULL)",
            "UPDATE span SET r = int4range(1000 + {n} * 10, 1005 + {n} * 10) WHERE id = 1",
            "UPDATE span SET r = int4range(10, 19) WHERE id = 2",
            "UPDATE span SET r = int4range(20, 29) WHERE id = 1",
            ["DELETE FROM span WHERE id = 3", "INSERT INTO span VALUES (300 + {n}, int4range(30, 39))"],
            ["DELETE FROM span WHERE id = 300 + {n}", "INSERT INTO span VALUES (3, int4range(30, 39))"],
            ["UPDATE span SET r = 'empty' WHERE id IN (1, 2)", "UPDATE span SET r = int4range(id * 10, id * 10 + 9) WHERE id < 3"],
        ),
    ),
    "nulls_not_distinct": Story(
        "CREATE TABLE t (id int PRIMARY KEY, a int, UNIQUE NULLS NOT DISTINCT (a));"
        "INSERT INTO t VALUES (1, NULL), (2, 2)",
        (
            "UPDATE t SET a = 3 WHERE id = 1", "UPDATE t SET a = NULL WHERE id = 2",
            "UPDATE t SET a = 2 WHERE id = 2", "UPDATE t SET a = NULL WHERE id = 1",
        ),
        since=15,
    ),
    "partitions": Story(
        "CREATE TABLE p (id int, day date NOT NULL, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE old PARTITION OF p FOR VALUES FROM (MINVALUE) TO ('2020-01-01');"
        "CREATE TABLE new PARTITION OF p FOR VALUES FROM ('2020-01-01') TO (MAXVALUE) PARTITION BY HASH (id);"
        "CREATE TABLE new0 (gone int, v text, day date NOT NULL, id int NOT NULL); ALTER TABLE new0 DROP gone;"
        "ALTER TABLE new ATTACH PARTITION new0 FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE new1 PARTITION OF new FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "CREATE TABLE bare (k text, v text) PARTITION BY LIST (k);"
        "CREATE TABLE bare_a PARTITION OF bare FOR VALUES IN ('a'); CREATE TABLE bare_rest PARTITION OF bare DEFAULT",
        (
            "INSERT INTO p SELECT n, date '2019-12-01' + n % 60, 'v{n}' FROM generate_series({n} * 100, {n} * 100 + 50) AS n",
            "UPDATE p SET day = day + 400 WHERE day < '2020-01-01' AND id % 5 = 0",
            "UPDATE p SET day = day - 400 WHERE day > '2020-12-01' AND id % 2 = 0",
            "UPDATE p SET id = -id WHERE id % 7 = 0",
            "DELETE FROM p WHERE id < 0",
            "TRUNCATE old",
            "TRUNCATE ONLY new1",
            "INSERT INTO p VALUES (-{n}, '2019-01-01', 'after'), (-{n}, '2021-01-01', 'after')",
            "INSERT INTO bare SELECT chr(97 + n % 3), 'v' FROM generate_series(1, 9) AS n",
            "UPDATE bare SET k = 'b' WHERE ctid = (SELECT min(ctid) FROM bare_a) AND k = 'a'",
            "UPDATE bare SET k = 'a' WHERE ctid = (SELECT max(ctid) FROM bare_rest) AND k <> 'a'",
            ["DELETE FROM p WHERE day < '2019-12-10'", "TRUNCATE new0", "INSERT INTO p VALUES ({n}, '2022-02-02', NULL)"],
        ),
    ),
    "inheritance": Story(
        "CREATE TABLE a (id int PRIMARY KEY, v text, n int);"
        "CREATE TABLE b (n int, extra text DEFAULT 'x', v text, id int PRIMARY KEY); ALTER TABLE b INHERIT a;"
        "CREATE TABLE c () INHERITS (b)",
        (
            "INSERT INTO a VALUES ({n}, 'a', 1); INSERT INTO b (id, v) VALUES ({n}, 'b'); INSERT INTO c (id, v) VALUES ({n}, 'c')",
            "UPDATE a SET v = v || '!' WHERE id = {n}",
            "UPDATE ONLY a SET n = 5 WHERE id = {n}",
            "INSERT INTO c (id, v) VALUES ({n}, 'c')",
            "DELETE FROM ONLY b WHERE id = {n} - 2",
            "DELETE FROM c WHERE ctid = (SELECT min(ctid) FROM c)",
            "UPDATE a SET id = id + 1000 WHERE id = {n} - 1",
            "TRUNCATE ONLY a", "INSERT INTO a VALUES (-{n}, 'after', NULL)",
            ["TRUNCATE b", "INSERT INTO b (id, v) VALUES (-{n}, 'again')"],
        ),
    ),
    "truncate_group": Story(
        "CREATE TABLE root (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY);"
        "CREATE TABLE leaf (id int PRIMARY KEY, root int REFERENCES root ON DELETE CASCADE);"
        "CREATE TABLE aside (v text)",
        (
            ["INSERT INTO root SELECT FROM generate_series(1, 5)", "INSERT INTO leaf SELECT id, id FROM root"],
            "INSERT INTO aside SELECT 'x' FROM generate_series(1, 5)",
            "DELETE FROM root WHERE id = (SELECT min(id) FROM root)",
            "TRUNCATE root, leaf", "INSERT INTO root DEFAULT VALUES",
            ["INSERT INTO leaf SELECT id, id FROM root", "TRUNCATE root CASCADE", "INSERT INTO root VALUES (7)"],
            "TRUNCATE root RESTART IDENTITY CASCADE", "TRUNCATE aside",
            ["INSERT INTO root DEFAULT VALUES", "INSERT INTO aside VALUES ('y'), ('y')"],
            ["SAVEPOINT s", "TRUNCATE aside", "ROLLBACK TO s", "DELETE FROM aside WHERE ctid = (SELECT min(ctid) FROM aside)"],
        ),
    ),
    "foreign_keys": Story(
        "CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON UPDATE CASCADE);"
        "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED;"
        "CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON DELETE CASCADE)",
        (
            ["INSERT INTO a VALUES ({n}, {n})", "INSERT INTO b VALUES ({n}, {n})"],
            "UPDATE a SET id = id + 1000 WHERE id = {n}",
            "DELETE FROM b WHERE id = {n} - 1",
            "INSERT INTO tree SELECT {n} * 100 + n, nullif({n} * 100 + n / 2, {n} * 100) FROM generate_series(1, 20) AS n",
            "DELETE FROM tree WHERE id = {n} * 100 + 2",
        ),
    ),
    "triggers": Story(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE audit (at serial, op text);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN INSERT INTO triggers.audit (op) VALUES (TG_OP); RETURN NULL; END$$;"
        "CREATE TRIGGER n AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();"
        "CREATE RULE r AS ON INSERT TO audit WHERE NEW.op = 'DELETE' DO ALSO UPDATE triggers.t SET v = 'rule' WHERE id = 0",
        (
            "INSERT INTO t SELECT n, 'v' FROM generate_series(0, 9) AS n ON CONFLICT DO NOTHING",
            "UPDATE t SET v = v || '+'",
            "DELETE FROM t WHERE id = 9",
        ),
    ),
    "savepoints": Story(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE bare (v text)",
        (
            [
                "INSERT INTO t VALUES ({n}, 'kept')", "SAVEPOINT a", "UPDATE t SET v = 'lost' WHERE id = {n}",
                "INSERT INTO t VALUES (-{n}, 'lost')", "INSERT INTO bare VALUES ('lost')", "SAVEPOINT b",
                "DELETE FROM t", "ROLLBACK TO b", "UPDATE t SET v = 'lost too'", "ROLLBACK TO a",
                "UPDATE t SET v = v || '+' WHERE id = {n}", "SAVEPOINT c", "INSERT INTO bare VALUES ('kept')", "RELEASE c",
            ],
            ["DELETE FROM t WHERE id = {n}", "SAVEPOINT a", "INSERT INTO t VALUES ({n}, 'second')", "RELEASE a"],
        ),
    ),
    "counters": Story(
        "CREATE TABLE hot (id int PRIMARY KEY, n bigint, v text); INSERT INTO hot SELECT n, 0, '' FROM generate_series(1, 3) AS n",
        (
            *["UPDATE hot SET n = n + 1 WHERE id = 1"] * 20,
            *["UPDATE hot SET n = n + 1, v = v || 'x' WHERE id = 2", "UPDATE hot SET v = NULL WHERE id = 3"] * 5,
            ["UPDATE hot SET n = n * 2 WHERE id = 3", "UPDATE hot SET v = '' WHERE id = 3"],
            "INSERT INTO hot SELECT n, 0, 'bulk' FROM generate_series({n} * 1000, {n} * 1000 + 400) AS n",
            "UPDATE hot SET v = 'bulk {n}' WHERE id >= {n} * 1000",
            "DELETE FROM hot WHERE id >= {n} * 1000 AND id % 2 = 0",
        ),
    ),
    "columns_gone": Story(
        "CREATE TABLE t (a int, b text, id int, c text); ALTER TABLE t DROP a;"
        "ALTER TABLE t ADD a numeric DEFAULT 7, DROP c, ADD PRIMARY KEY (id); ALTER TABLE t ADD c text",
        (
            "INSERT INTO t (id, b) VALUES ({n}, 'b')", "UPDATE t SET c = a::text, a = NULL WHERE id = {n}",
            "UPDATE t SET id = id + 1000 WHERE id = {n}",
        ),
    ),
    "wide_key": Story(
        "CREATE TABLE t (a int, b text, c date, d bool, v int, PRIMARY KEY (d, c, b, a)); CREATE TABLE j (a int, b int, "
        "PRIMARY KEY (b, a))",
        (
            "INSERT INTO t SELECT n, 'b' || n % 3, date '2000-01-01' + n, n % 2 = 0, {n} FROM generate_series(1, 20) AS n "
            "ON CONFLICT (d, c, b, a) DO UPDATE SET v = excluded.v",
            "UPDATE t SET a = a + 1000 * {n} WHERE a = 3", "UPDATE t SET d = NOT d WHERE b = 'b1'", "DELETE FROM t WHERE a > 900 OR b = 'b1'",
            # a table that is nothing but its key
            "INSERT INTO j SELECT n, {n} FROM generate_series(1, 9) AS n", "UPDATE j SET a = -a WHERE b = {n}",
            "UPDATE j SET a = a WHERE b = {n}", "DELETE FROM j WHERE a < -5",
        ),
    ),
    'the "Odd" \\ $1 %s {{}} schema \'': Story(
        'CREATE TABLE " User " ("select" int PRIMARY KEY, "%s" text, "$1" text, "a""b" text, "{{}}" text, "\\" text, "É 😀" text);'
        'CREATE TABLE "%" ("" "" text)'.replace('"" ""', '"""$1"" "'),
        (
            'INSERT INTO " User " VALUES ({n}, \'%s\', \'$1\', NULL, \'{{}}\', \'\\\', \'😀\')',
            'UPDATE " User " SET "%s" = "$1", "\\" = NULL, "É 😀" = "É 😀" || 1 WHERE "select" = {n}',
            'UPDATE " User " SET "select" = -"select" WHERE "select" = {n}',
            'INSERT INTO "%" VALUES (\'%\'), (\'%\'), (NULL)',
            'UPDATE "%" SET """$1"" " = \'%s\' WHERE ctid = (SELECT min(ctid) FROM "%")',
            'DELETE FROM "%" WHERE ctid = (SELECT max(ctid) FROM "%")',
        ),
    ),
    "é" * 31 + "x": Story(
        f'CREATE TABLE "{"x" * 63}" ("{"c" * 63}" int PRIMARY KEY, "{"C" * 63}" text, "{"ü" * 31}" text)',
        (
            f'INSERT INTO "{"x" * 63}" VALUES ({{n}}, \'a\', NULL)',
            f'UPDATE "{"x" * 63}" SET "{"ü" * 31}" = \'b\' WHERE "{"c" * 63}" = {{n}}',
            f'UPDATE "{"x" * 63}" SET "{"c" * 63}" = -"{"c" * 63}" WHERE "{"c" * 63}" = {{n}}',
        ),
    ),
    "virtual": Story(
        "CREATE TABLE t (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v + 1) VIRTUAL, s int GENERATED ALWAYS AS (v) STORED)",
        ("INSERT INTO t VALUES ({n}, 1)", "UPDATE t SET v = v + 1 WHERE id = {n}", "UPDATE t SET id = -id WHERE id = {n}"),
        since=18,
    ),
    "without_overlaps": Story(
        "CREATE TABLE t (r int4range, during tsrange, v text, PRIMARY KEY (r, during WITHOUT OVERLAPS))",
        (
            "INSERT INTO t VALUES (int4range({n}, {n} + 1), '[2000-01-01, 2001-01-01)', 'a')",
            "UPDATE t SET v = 'b' WHERE r @> {n}",
            "UPDATE t SET during = '[2000-06-01, 2002-01-01)' WHERE r @> {n}",
            "DELETE FROM t WHERE r @> {n} - 2",
        ),
        since=18,
    ),
}  # fmt: skip
