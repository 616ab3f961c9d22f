"""A first copy that fails says why in one line and leaves both ends as they were."""

from __future__ import annotations

import contextlib
import time

import pytest

from fix_copy import IMPATIENT, configured, identities, nothing_left, once, only_on_the_source, refused
from fix_servers import INSTALLED, Cli, Pair

TABLES = """
CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'x'), (2, 'y');
CREATE TABLE keyless (v text); INSERT INTO keyless VALUES ('x');
CREATE TABLE silent (v text); ALTER TABLE silent REPLICA IDENTITY NOTHING;
CREATE TABLE loud (id int PRIMARY KEY); ALTER TABLE loud REPLICA IDENTITY FULL;
SELECT lo_from_bytea(0, 'x');
"""


@pytest.fixture
def before(pair: Pair) -> dict[str, str]:
    """The replica identities of a source that holds a few tables."""
    conn = pair.on_source()
    conn.execute(TABLES.encode())
    return identities(conn)


def fails(cli: Cli, pair: Pair, code: int, settings: str = IMPATIENT) -> tuple[str, str]:
    """Run `once`, which has to fail with `code`: its line and its hint."""
    configured(cli, pair, settings)
    return refused(cli("once"), code)


def test_an_object_of_the_same_name(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """A function that the target already has is refused by name; with it gone the copy goes through."""
    pair.on_source().execute("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    target = pair.on_target()
    target.execute("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'")
    message, hint = fails(cli, pair, 5)
    assert 'function "f"' in message
    assert "the target stays empty" in hint
    nothing_left(pair, before)
    target.execute("DROP FUNCTION f()")
    assert once(cli, pair)["verdict"] == "identical"


@pytest.mark.skipif(
    not {15, 16} <= set(INSTALLED), reason="needs a server with contrib modules beside one without"
)
@pytest.mark.parametrize("pair", [(15, 16)], indirect=True)
def test_an_extension_that_the_target_lacks(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """A missing extension is named, and the hint says to install it."""
    source = pair.on_source()
    if not source.execute("SELECT FROM pg_available_extensions WHERE name = 'hstore'").rowcount:
        pytest.skip("this server has no contrib modules")
    source.execute("CREATE EXTENSION hstore; CREATE TABLE h (id int PRIMARY KEY, v hstore)")
    message, hint = fails(cli, pair, 5)
    assert "hstore" in message
    assert "install" in hint
    nothing_left(pair, before | {"h": "d"})


@pytest.mark.superusers
def test_a_policy_for_a_role_that_the_target_lacks(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """A policy names a role of the source's only: the hint says to create it."""
    source = pair.on_source()
    source.execute("CREATE ROLE only_here; CREATE POLICY p ON a TO only_here USING (true)")
    try:
        message, hint = fails(cli, pair, 5)
    finally:
        source.execute("DROP POLICY p ON a; DROP ROLE only_here")
    assert 'role "only_here" does not exist' in message
    assert "CREATE ROLE" in hint
    nothing_left(pair, before)


@pytest.mark.skipif(not {16, 18} <= set(INSTALLED), reason="needs a newer and an older server")
@pytest.mark.parametrize("pair", [(18, 16)], indirect=True)
def test_a_heir_with_a_key_of_its_own_on_an_older_target(
    pair: Pair, cli: Cli, before: dict[str, str]
) -> None:
    """pg_dump of 18 writes NOT NULL of an inherited column as only 18 reads it: told, and nothing is left."""
    pair.on_source().execute("CREATE TABLE t (id int); CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (t)")
    message, hint = fails(cli, pair, 5)
    assert "NOT NULL id" in message
    assert "the target stays empty" in hint
    nothing_left(pair, before | {"t": "d", "heir": "d"})


def test_a_row_that_the_target_refuses(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """A check that holds on the source only ends the copy in the midst of the rows."""
    source = pair.on_source()
    only_on_the_source(source)
    source.execute("CREATE TABLE b (id int PRIMARY KEY, CHECK (public.here())); INSERT INTO b VALUES (1)")
    message, _ = fails(cli, pair, 5)
    assert "not here" in message
    nothing_left(pair, before | {"b": "d"})


@pytest.mark.superusers
def test_a_row_that_the_source_cannot_read(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """A table that the source itself fails to read is the source's fault, while the target is half full."""
    source = pair.on_source()
    source.execute("CREATE TYPE e AS ENUM ('lost')")
    source.execute("CREATE TABLE z (id int PRIMARY KEY, v e); INSERT INTO z VALUES (1, 'lost')")
    source.execute("DELETE FROM pg_enum WHERE enumlabel = 'lost'")
    message, _ = fails(cli, pair, 4)
    assert "enum" in message
    nothing_left(pair, before | {"z": "d"})


@pytest.mark.superusers
def test_a_dump_that_fails(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """What pg_dump says is told, as the source's fault."""
    source = pair.on_source()
    source.execute("CREATE VIEW w AS SELECT 1 AS one; DELETE FROM pg_rewrite WHERE ev_class = 'w'::regclass")
    message, _ = fails(cli, pair, 4)
    assert "pg_dump" in message
    nothing_left(pair, before)


def test_no_free_slot(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """All replication slots taken: told before anything is changed."""
    conn = pair.on_source()
    made: list[str] = []
    with contextlib.suppress(Exception):
        for number in range(100):
            conn.execute(f"SELECT pg_create_physical_replication_slot('filler_{number}')".encode())
            made.append(f"filler_{number}")
    try:
        message, hint = fails(cli, pair, 4)
    finally:
        for name in made:
            conn.execute("SELECT pg_drop_replication_slot(%s)", [name])
    assert "no free replication slot" in message
    assert "max_replication_slots" in hint
    nothing_left(pair, before)


def test_an_open_transaction_is_named(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """A slot waits for an open transaction no longer than six lock_timeouts, then names its pid."""
    other = pair.on_source()
    with other.transaction(force_rollback=True):
        other.execute("INSERT INTO a VALUES (3, 'z')")
        began = time.monotonic()
        message, hint = fails(cli, pair, 4)
        assert time.monotonic() - began < 15
        assert f"pid {other.info.backend_pid}, open for" in message
        assert "COMMIT" in hint
        nothing_left(pair, before)


def test_a_prepared_transaction_is_named(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """A prepared transaction holds a slot up for ever: its gid is named, even one of another database."""
    other = pair.on_source()
    other.execute("BEGIN; INSERT INTO a VALUES (3, 'z'); PREPARE TRANSACTION 'for%ever'")
    try:
        message, hint = fails(cli, pair, 4)
    finally:
        other.execute("ROLLBACK PREPARED 'for%ever'")
    assert "'for%ever'" in message
    assert "ROLLBACK PREPARED" in hint
    nothing_left(pair, before)


@pytest.mark.parametrize("table", ["silent", "a"])
def test_a_locked_table_is_named(pair: Pair, cli: Cli, before: dict[str, str], table: str) -> None:
    """A table locked by others cannot be given an identity, or be published: the copy gives up, others stay as they were."""
    other = pair.on_source()
    with other.transaction(force_rollback=True):
        other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        message, _ = fails(cli, pair, 4)
        if table == "silent":
            assert "public.silent" in message
            assert f"{other.info.backend_pid}" in message
        nothing_left(pair, before)


@pytest.mark.parametrize(
    ("made", "named", "dropped"),
    [
        ('CREATE TABLE "Mine" (id int)', 'table public."Mine"', 'DROP TABLE "Mine"'),
        ("SELECT lo_create(90210)", "large object", "SELECT lo_unlink(90210)"),
    ],
    ids=["table", "large object"],
)
def test_a_target_that_holds_something(
    pair: Pair, cli: Cli, before: dict[str, str], made: str, named: str, dropped: str
) -> None:
    """A target with a table or a large object of somebody's is not empty, and not touched."""
    target = pair.on_target()
    target.execute(made.encode())
    message, _ = fails(cli, pair, 5)
    assert named in message
    # it is there still
    target.execute(dropped.encode())
    nothing_left(pair, before)


def test_tables_without_key_may_be_refused(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """without_key = "refuse" names the tables and changes nothing."""
    message, hint = fails(cli, pair, 4, 'without_key = "refuse"\n')
    assert "public.keyless, public.silent" in message
    assert "primary key" in hint
    nothing_left(pair, before)


def test_planner_statistics_do_not_decide(pair: Pair, cli: Cli, before: dict[str, str]) -> None:
    """An ANALYZE of the target that fails after the copy was committed is a warning; the copy stands."""
    source = pair.on_source()
    source.execute(
        "CREATE FUNCTION upto(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$BEGIN "
        "IF current_setting('application_name') ~ 'once' THEN RAISE 'no statistics'; END IF; RETURN n; END$$"
    )
    source.execute("CREATE INDEX ON a (public.upto(id)); ANALYZE a")
    done = cli("once", "--source", pair.source, "--target", pair.target)
    assert done.returncode == 0, done.stderr
    assert "not analysed" in done.stderr
