"""`include` and `exclude`: what is left out is left alone, and what cannot stand without it is refused beforehand."""

from __future__ import annotations

import pytest

from fix_copy import answer, configured, identities, nothing_left, refused
from fix_servers import Cli, Pair
from pglockstep.config.values import TablePattern
from pglockstep.copy.selection import Reference, Selection
from pglockstep.errors import ConfigError
from pglockstep.postgres.names import QualifiedName


def selection(include: str = "", exclude: str = "") -> Selection:
    """A selection of patterns that are separated by spaces."""
    return Selection(
        tuple(TablePattern.parse(each) for each in include.split()),
        tuple(TablePattern.parse(each) for each in exclude.split()),
    )


def test_what_is_carried() -> None:
    """Without patterns everything; exclude wins over include."""
    assert selection().is_everything
    assert selection().carries("a", "b")
    some = selection("app.* public.t", "app.log*")
    assert [
        some.carries(*name) for name in [("app", "x"), ("public", "t"), ("public", "u"), ("app", "log1")]
    ] == [
        True,
        True,
        False,
        False,
    ]
    names = [QualifiedName("app", "logs"), QualifiedName("app", "x")]
    assert some.left_out(names) == names[:1]


def test_only_what_is_carried_needs_its_references() -> None:
    """A reference matters only from something carried to something left out; functions are always carried."""
    one, other = QualifiedName("app", "one"), QualifiedName("app", "Other")
    reads = Reference("view", one, "reads", other)
    for fine in (selection(), selection(exclude="app.*"), selection(exclude="app.one"), selection("x.*")):
        fine.demand_whole([reads])
    without = selection(exclude='app."Other"')
    with pytest.raises(ConfigError, match=r'view app\.one reads app\."Other"') as caught:
        without.demand_whole([reads, reads])
    assert "1 more" in caught.value.message
    assert "leave app.one out" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        selection("x.*").demand_whole([Reference("function", one, "uses", other)])
    assert "leave" not in caught.value.hint


def test_excluded_tables_are_left_alone(pair: Pair, cli: Cli) -> None:
    """A table left out is neither made, filled, published nor altered, with its views, leaves and keys."""
    source = pair.on_source()
    source.execute("""
        CREATE SCHEMA app; CREATE SCHEMA other;
        CREATE TABLE app.kept (id serial PRIMARY KEY, v text); INSERT INTO app.kept (v) VALUES ('x');
        CREATE TABLE app."left Out" (id int PRIMARY KEY, kept int REFERENCES app.kept);
        CREATE TABLE app.keyless_log (v text); INSERT INTO app.keyless_log VALUES ('x');
        CREATE VIEW app.log_view AS SELECT * FROM app.keyless_log;
        CREATE TABLE app.whole (id int, day int) PARTITION BY RANGE (day);
        CREATE TABLE app.whole_1 PARTITION OF app.whole FOR VALUES FROM (0) TO (10);
        CREATE TABLE app.whole_2_log PARTITION OF app.whole FOR VALUES FROM (10) TO (20);
        INSERT INTO app.whole VALUES (1, 1), (2, 11);
        CREATE TABLE other.t (id int PRIMARY KEY); CREATE SEQUENCE other.free;
    """)
    before = identities(source)
    configured(cli, pair, """exclude = ['app."left Out"', 'app.*log*']\n""")
    link = answer(cli("once", "--json"))
    assert [table["table"] for table in link["tables"]] == ["kept", "whole_1", "t"]
    assert (link["verdict"], link["copied_rows"]) == ("identical", 2)
    target = pair.on_target()
    made = target.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace "
        "WHERE relkind IN ('r', 'p', 'v') AND nspname IN ('app', 'other') ORDER BY 1"
    ).fetchall()
    assert made == [("kept",), ("t",), ("whole",), ("whole_1",)]
    published = source.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1").fetchall()
    assert published == [("kept",), ("t",), ("whole_1",)]
    now = identities(source)
    assert {table for table in now if now[table] != before[table]} == {"app.whole_1"}
    source.execute("UPDATE app.keyless_log SET v = 'y'; INSERT INTO app.kept (v) VALUES ('y')")
    assert answer(cli("once", "--json"))["applied_changes"] == 1
    assert answer(cli("check", "--json"))["verdict"] == "identical"


def test_sequences_of_excluded_tables_are_left_alone(pair: Pair, cli: Cli) -> None:
    """Sequences of columns go with their tables, serial ones and identities alike."""
    pair.on_source().execute("""
        CREATE TABLE a (id serial PRIMARY KEY); CREATE TABLE b (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
        CREATE TABLE kept (id serial PRIMARY KEY); CREATE SEQUENCE free;
    """)
    configured(cli, pair, 'exclude = ["public.a", "public.b"]\n')
    link = answer(cli("once", "--json"))
    assert link["verdict"] == "identical"
    query = "SELECT sequencename FROM pg_sequences WHERE schemaname <> 'pglockstep' ORDER BY 1"
    assert pair.on_target().execute(query).fetchall() == [("free",), ("kept_id_seq",)]


#: What refers to table app.out, what is left out, and how the sentence goes on.
BROKEN = {
    "foreign key": (
        "CREATE TABLE app.b (out int REFERENCES app.out)",
        "table app.b has a foreign key to app.out",
    ),
    "view": ("CREATE VIEW app.b AS SELECT id FROM app.out", "view app.b reads app.out"),
    "materialised": (
        "CREATE MATERIALIZED VIEW app.b AS SELECT id FROM app.out",
        "materialized view app.b reads app.out",
    ),
    "inheritance": ("CREATE TABLE app.b () INHERITS (app.out)", "table app.b inherits from"),
    "row type": (
        "CREATE TABLE app.b (o app.out[])",
        "table app.b inherits from or has a column of the type of app.out",
    ),
    "default": (
        "CREATE TABLE app.b (n int DEFAULT nextval('app.out_id_seq'))",
        "table app.b has a default that uses app.out",
    ),
    "policy": (
        "CREATE TABLE app.b (n int); CREATE POLICY p ON app.b USING (EXISTS (SELECT FROM app.out))",
        "table app.b has a policy that uses app.out",
    ),
    "rule": (
        "CREATE TABLE app.b (n int); CREATE RULE r AS ON INSERT TO app.b DO ALSO DELETE FROM app.out",
        "table app.b has a rule that uses app.out",
    ),
    "function": (
        "CREATE FUNCTION app.b(o app.out) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "function app.b uses app.out",
    ),
    "leaf": (
        "CREATE TABLE app.b PARTITION OF app.root FOR VALUES IN (1)",
        "table app.b is a partition of app.root",
    ),
}


def test_what_cannot_stand_alone_is_refused(pair: Pair, cli: Cli) -> None:
    """Something carried that refers to something left out: both are named before anything is changed."""
    source = pair.on_source()
    for number, (statement, _) in enumerate(BROKEN.values()):
        schema = f"app{number}"
        source.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.out (id serial PRIMARY KEY)".encode())
        source.execute(f"CREATE TABLE {schema}.root (id int) PARTITION BY LIST (id)".encode())
        source.execute(statement.replace("app.", f"{schema}.").encode())
    before = identities(source)
    for number, (_, sentence) in enumerate(BROKEN.values()):
        schema = f"app{number}"
        configured(cli, pair, f'exclude = ["{schema}.out", "{schema}.root"]\n')
        message, hint = refused(cli("once"), 3)
        assert sentence.replace("app.", f"{schema}.") in message
        assert f"carry {schema}." in hint
    nothing_left(pair, before)
