"""A first copy by several workers: how it is cut up, what travels in binary, and that everything arrives all the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_copy import answer, configured, nothing_left, once, only_on_the_source, refused
from fix_servers import Cli, Pair, on_all_pairs, wait_until
from pglockstep.cli.copying import sentence
from pglockstep.copy.plan import parts, units
from pglockstep.copy.tally import CopyProgress, Tally
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.extents import Extent, is_binary
from pglockstep.postgres.names import QualifiedName

pytestmark = pytest.mark.unguarded

EVERYTHING = '''
CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN small AS int CHECK (VALUE < 10); CREATE TYPE duo AS (a int, b mood);
CREATE TABLE "Big ""one""" (id int PRIMARY KEY, gone int, v text, m mood, s small, i interval);
ALTER TABLE "Big ""one""" DROP gone;
INSERT INTO "Big ""one""" SELECT n, repeat('x', 500), 'ok', n % 10, '1 day' FROM generate_series(1, 150000) AS n;
CREATE INDEX "Odd;\n--\n-- TOC entry 1 (class 1259 OID 1)\n" ON "Big ""one""" (v, m);
CREATE UNIQUE INDEX ON "Big ""one""" ((id + 1)) INCLUDE (m);
CREATE TABLE mixed (id int PRIMARY KEY, d duo, ds duo[], ms mood[], r int4range, ns numeric[]);
INSERT INTO mixed SELECT n, (n, 'sad'::mood)::duo, ARRAY[(n, 'ok'::mood)::duo], '{sad,ok}', int4range(n, n + 2), '{1.00,NULL,NaN}'
    FROM generate_series(1, 500) AS n;
CREATE TABLE parts (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2000-01-01') TO ('2001-01-01');
CREATE TABLE parts_2 (day date NOT NULL, id int NOT NULL); ALTER TABLE parts ATTACH PARTITION parts_2 DEFAULT;
INSERT INTO parts SELECT n, date '2000-12-01' + n FROM generate_series(1, 100) AS n;
CREATE TABLE parent (id int, v text); CREATE TABLE heir (more int) INHERITS (parent);
INSERT INTO parent VALUES (1, 'p'); INSERT INTO heir VALUES (2, 'h', 3);
CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED);
INSERT INTO made (a) SELECT generate_series(1, 100);
CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
CREATE TABLE empty (id int PRIMARY KEY); CREATE UNLOGGED TABLE fleeting (v int); INSERT INTO fleeting VALUES (1), (1);
CREATE TABLE apart (v text UNIQUE, r int4range, EXCLUDE USING gist (r WITH &&)); INSERT INTO apart VALUES ('x', '[1,2)');
ALTER TABLE mixed ADD FOREIGN KEY (id) REFERENCES "Big ""one"""; ALTER TABLE made ADD FOREIGN KEY (a) REFERENCES mixed;
CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM mixed; CREATE UNIQUE INDEX ON seen (count);
'''


@on_all_pairs
def test_everything_arrives(pair: Pair, cli: Cli) -> None:
    """Three workers, one table in parts, every kind of table: identical, in rows, indexes and constraints."""
    source = pair.on_source()
    source.execute(EVERYTHING.encode())
    if source.execute("SELECT FROM pg_available_extensions WHERE name = 'citext'").rowcount:
        target = pair.on_target()
        if target.execute("SELECT FROM pg_available_extensions WHERE name = 'citext'").rowcount:
            source.execute(
                "CREATE EXTENSION citext; CREATE TABLE ci (v citext PRIMARY KEY); INSERT INTO ci VALUES ('A')"
            )
    configured(cli, pair, "jobs = 3\n")
    link = answer(cli("once", "--json"))
    assert link["verdict"] == "identical"
    assert link["schema_differences"] == []
    target = pair.on_target()
    cut = target.execute(
        "SELECT max(parts), count(*) FROM pglockstep.copied WHERE table_name ~ '^Big'"
    ).fetchone()
    assert cut is not None
    assert cut[0] == cut[1] > 1
    indexes = "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index "
    mine = "JOIN pg_class AS c ON c.oid = indrelid WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1"
    assert (
        target.execute((indexes + mine).encode()).fetchall()
        == source.execute((indexes + mine).encode()).fetchall()
    )
    leftover = "SELECT (SELECT count(*) FROM pglockstep.built), (SELECT count(*) FROM pglockstep.restored)"
    assert target.execute(leftover.encode()).fetchone() == (0, 0)


def test_two_workers_are_at_work_at_once(pair: Pair, cli: Cli) -> None:
    """`jobs` is honoured: as many sessions fill the target, and one job is one."""
    pair.on_source().execute(
        "CREATE FUNCTION wait() RETURNS bool LANGUAGE plpgsql AS $$BEGIN "
        "IF current_setting('application_name') ~ 'copy-in' THEN PERFORM pg_sleep(0.7); END IF; RETURN true; END$$"
    )
    for number in range(4):
        pair.on_source().execute(
            f"CREATE TABLE t{number} (id int, CHECK (public.wait())); INSERT INTO t{number} VALUES (1)".encode()
        )
    busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^pglockstep copy-in' AND wait_event = 'PgSleep'"
    target = pair.on_target()
    configured(cli, pair, "jobs = 4\n")
    process = cli.start("once")
    wait_until(lambda: target.execute(busy.encode()).fetchone() == (4,), what="four workers")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


@pytest.mark.parametrize("tables", [250, pytest.param(1000, marks=pytest.mark.soak)])
def test_many_small_tables(pair: Pair, cli: Cli, tables: int) -> None:
    """They cost no connection and no process each."""
    with pair.on_source() as source, source.transaction():
        for number in range(tables):
            source.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY, v text UNIQUE)".encode())
            source.execute(f"INSERT INTO t{number} VALUES (1, 'x')".encode())
    link = once(cli, pair)
    assert (link["verdict"], link["copied_rows"]) == ("identical", tables)


def test_a_refused_row_is_told_at_once(pair: Pair, cli: Cli) -> None:
    """A first row that the target refuses ends a large table's copy; all that was made is gone again."""
    source = pair.on_source()
    only_on_the_source(source)
    source.execute(
        "CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 100000)"
    )
    source.execute("CREATE TABLE b (id int, v text, CHECK (public.here()))")
    source.execute("INSERT INTO b SELECT n, repeat('x', 300) FROM generate_series(1, 100000) AS n")
    message, _ = refused(cli("once", "--source", pair.source, "--target", pair.target), 5)
    assert "not here" in message
    nothing_left(pair, {"b": "d", "other": "d"})


@pytest.mark.superusers
def test_an_extension_that_was_there_stays(pair: Pair, cli: Cli) -> None:
    """Taking back drops what the copy made: an extension that the target had before is not of it."""
    name = "vector" if pair.source_server.major >= 16 else "citext"
    available = f"SELECT FROM pg_available_extensions WHERE name = '{name}'".encode()
    source, target = pair.on_source(), pair.on_target()
    assert source.execute(available).rowcount == target.execute(available).rowcount == 1
    for conn in (source, target):
        conn.execute(f"CREATE EXTENSION {name}".encode())
    only_on_the_source(source)
    source.execute("CREATE TABLE b (id int, CHECK (public.here())); INSERT INTO b VALUES (1)")
    message, _ = refused(cli("once", "--source", pair.source, "--target", pair.target), 5)
    assert "not here" in message
    assert target.execute(f"SELECT FROM pg_extension WHERE extname = '{name}'".encode()).rowcount == 1
    assert target.execute("SELECT to_regclass('b'), to_regprocedure('here()')").fetchone() == (None, None)


def test_progress_goes_to_stderr_only(pair: Pair, cli: Cli) -> None:
    """``--json`` stays one document, whatever is told of the copy meanwhile; the summary has rows, bytes and seconds."""
    pair.on_source().execute(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)"
    )
    done = cli("once", "--source", pair.source, "--target", pair.target, "--json")
    assert json.loads(done.stdout)["links"][0]["copied_rows"] == 1000
    assert "copied 1000 rows of 1 tables in " in done.stderr


# --- pure ------------------------------------------------------------------------------------------


def table(oid: int, *, columns: int = 1) -> Table:
    """A table of so many columns."""
    return Table(
        oid, QualifiedName("public", f"t{oid}"), tuple(Column(f"c{n}", "int", 23) for n in range(columns))
    )


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**12)), min_size=1, max_size=20),
    st.integers(1, 16),
)
def test_every_page_is_in_one_part(sizes: list[tuple[int, int]], jobs: int) -> None:
    """The parts of a table follow one another without gap or overlap, the last has no end; large tables come first."""
    tables = [table(number) for number in range(len(sizes))]
    extents = {number: Extent(pages, size, ("int4",)) for number, (pages, size) in enumerate(sizes)}
    found = units(tables, extents, jobs, same_major=True)
    for each in tables:
        mine = sorted((unit for unit in found if unit.table is each), key=lambda unit: unit.part)
        assert [unit.part for unit in mine] == list(range(mine[0].parts))
        assert mine[0].first_page == 0
        assert [unit.end_page for unit in mine] == [*(unit.first_page for unit in mine[1:]), None]
    order = [extents[unit.table.oid].bytes for unit in found]
    assert order == sorted(order, reverse=True)


def test_small_and_columnless_tables_are_whole() -> None:
    """One worker cuts nothing; neither is a table cut that is small, or has no columns to select."""
    large = Extent(1 << 20, 1 << 33, ("int4",))
    assert parts(table(1), large, 4) > 1
    assert parts(table(1), large, 1) == 1
    assert parts(table(1, columns=0), large, 4) == 1
    assert parts(table(1), Extent(10, 81920, ("int4",)), 4) == 1


def test_what_travels_in_binary() -> None:
    """Built-in scalars and enums do; what carries OIDs, belongs to an extension or changed between versions does not."""
    assert is_binary(("int4", "text", "enum", "numeric", "_int4"), same_major=False)
    assert not is_binary(("int4", ""), same_major=True)
    assert not is_binary(("regclass",), same_major=True)
    assert is_binary(("interval",), same_major=True)
    assert not is_binary(("interval",), same_major=False)


def test_how_far_it_is_in_words() -> None:
    """Share, rate and time left from plain counts; nothing is said that nobody can know yet."""
    told: list[CopyProgress] = []
    clock = iter(range(0, 100, 10))
    tally = Tally(told.append, clock=lambda: float(next(clock)))
    tally.enter("schema")
    tally.tables, tally.size = 4, 4000
    tally.moved(1000)
    tally.enter("rows")
    assert sentence(told[-1]) == "rows: 0 of 4 tables, 25% of 3.9 kB, 50 B/s, about 60 s left"
    tally.landed(1000, 2000, 10)
    tally.tables_done = 2
    tally.enter("rows")
    assert (told[-1].share, told[-1].rows) == (0.5, 10)
    tally.enter("keys and the rest")
    assert sentence(told[-1]) == "keys and the rest: 2 of 4 tables"
