"""Sequences are ahead of the rows that they number, whenever one looks, and of no more than they have to be."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_roads import demand_identical
from fix_servers import Cli, Connection, Pair, as_plain_roles, connect, on_all_pairs, wait_until
from pglockstep.link.carrier import LEAST, MOST, lead, moved_on
from pglockstep.postgres.sequences import SequenceState
from test_run import daemon

pytestmark = pytest.mark.unguarded

# --- the rules -------------------------------------------------------------------------------------


@st.composite
def states(draw: st.DrawFn) -> SequenceState:
    """A sequence of any kind, anywhere within its bounds."""
    increment = draw(st.integers(-100, 100).filter(bool))
    low, high = sorted(draw(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))))
    return SequenceState(
        "public",
        "s",
        draw(st.integers(low, high)),
        draw(st.booleans()),
        increment,
        high if increment > 0 else low,
        draw(st.integers(1, 1000)),
        draw(st.booleans()),
    )


@given(states(), st.integers(0, 100_000))
def test_ahead_is_within_the_bounds(state: SequenceState, numbers: int) -> None:
    """Carried ahead, a sequence stands on a number of its own, not behind where it stood, with half of its rest to come."""
    there = state.ahead_by(numbers)
    went = state.steps_to(there)
    assert 0 <= went <= numbers
    if state.cycles:
        assert there == state
    if went:
        left = (state.final_value - state.next_value) // state.increment + 1
        assert went <= left / 2
        assert (there.last_value - state.next_value) % abs(state.increment) == 0
        assert (state.final_value - there.last_value) * state.increment >= 0


@given(states(), st.integers(-(10**6), 10**6), st.integers(0, 100_000))
def test_never_backwards_and_never_short(source: SequenceState, distance: int, numbers: int) -> None:
    """Wherever the target's stands, afterwards it is not behind the source's, nor behind where it stood itself."""
    start = source.next_value + distance
    target = SequenceState("public", "s", start, False, source.increment, source.final_value)
    after = moved_on(source, target, numbers) or target
    assert source.steps_to(after) >= 0
    assert target.steps_to(after) >= 0
    assert moved_on(source, after, numbers) is None


def test_moved_on_when_half_is_used_up() -> None:
    """Nothing is set for every number that the source gives, and exactly the source's position where no lead is asked for."""
    source = SequenceState("public", "s", 100, True, 1, 2**63 - 1)
    target = SequenceState("public", "s", 132, True, 1, 2**63 - 1)
    moved = [
        at
        for at in range(100, 200)
        if (found := moved_on(SequenceState("public", "s", at, True, 1, 2**63 - 1), target, 32))
        and (target := found)
    ]
    assert moved == [117, 134, 151, 168, 185]
    assert moved_on(source, SequenceState("public", "s", 99, True, 1, 2**63 - 1), 0) == source
    assert moved_on(source, source, 0) is None


def test_the_faster_the_further() -> None:
    """At the least 32 or what two sessions take at once, at the most ten thousand."""
    assert [lead(used, 1) for used in (-5, 0, 16, 17, 1000, 10**6)] == [LEAST, 32, 32, 34, 2000, MOST]
    assert [lead(0, cache) for cache in (16, 17, 1000, 100_000)] == [32, 34, 2000, 200_000]


# --- on real servers -------------------------------------------------------------------------------


def position(conn: Connection, sequence: str) -> tuple[int, bool]:
    """A sequence's last_value and is_called."""
    row = conn.execute(f"SELECT last_value, is_called FROM {sequence}".encode()).fetchone()
    assert row is not None
    return row[0], row[1]


#: Tables whose rows have their numbers from sequences in every way there is, and a statement that inserts `{n}` rows.
KINDS = {
    "CREATE TABLE plain (id serial PRIMARY KEY)": "INSERT INTO plain SELECT FROM generate_series(1, {n})",
    "CREATE TABLE always (id bigint GENERATED ALWAYS AS IDENTITY (INCREMENT 7) PRIMARY KEY)":
        "INSERT INTO always SELECT FROM generate_series(1, {n})",
    "CREATE SEQUENCE cellar INCREMENT -1; CREATE TABLE down (id int PRIMARY KEY DEFAULT nextval('cellar'))":
        "INSERT INTO down SELECT FROM generate_series(1, {n})",
    # by nothing that the catalog knows of
    "CREATE SEQUENCE app INCREMENT 50 CACHE 10; CREATE TABLE loose (id bigint PRIMARY KEY)":
        "INSERT INTO loose SELECT nextval('app') FROM generate_series(1, {n})",
}  # fmt: skip
AHEAD = (
    "SELECT coalesce((SELECT max(id) FROM plain), 0) < (SELECT last_value + is_called::int FROM plain_id_seq), "
    "coalesce((SELECT max(id) FROM always), 0) < (SELECT last_value + 7 * is_called::int FROM always_id_seq), "
    "coalesce((SELECT min(id) FROM down), 0) > (SELECT last_value - is_called::int FROM cellar), "
    "coalesce((SELECT max(id) FROM loose), 0) < (SELECT last_value + 50 * is_called::int FROM app)"
)


@on_all_pairs
@as_plain_roles
def test_no_row_has_a_number_that_is_still_to_come(pair: Pair, cli: Cli) -> None:
    """Single rows, bursts and giants: whoever looks at the target meanwhile finds each sequence past every row."""
    source = pair.on_source()
    for made in KINDS:
        source.execute(made.encode())
    looks, wrong, done = 0, [], threading.Event()

    def watch() -> None:
        nonlocal looks
        with connect(pair.target) as conn:
            # the rows of one moment, and the sequences of a moment that is no earlier, read in one statement
            while not done.is_set():
                found = conn.execute(AHEAD.encode()).fetchone()
                looks += 1
                if found != (True, True, True, True):
                    wrong.append(found)

    with daemon(cli, pair):
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for count in (1, 1, 16, 17, 33, 1000, 1, 20_000, 3, 100, 100):
                for insert in KINDS.values():
                    source.execute(insert.format(n=count).encode())
                time.sleep(0.1)
            rows = sum((1, 1, 16, 17, 33, 1000, 1, 20_000, 3, 100, 100))
            counts = b"SELECT FROM plain UNION ALL SELECT FROM always UNION ALL SELECT FROM down UNION ALL SELECT FROM loose"
            target = pair.on_target()
            wait_until(lambda: target.execute(counts).rowcount == 4 * rows, 30, "all rows")
        finally:
            done.set()
            watcher.join()
    assert looks > 20
    assert not wrong, (len(wrong), looks, wrong[:3])


def test_the_source_is_lost_in_the_middle_of_a_burst(pair: Pair, cli: Cli) -> None:
    """A source that crashes while its rows arrive: those that did have no number that the target's sequence still gives."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id serial PRIMARY KEY, v text)")
    with daemon(cli, pair):
        try:
            for _ in range(30):
                source.execute("INSERT INTO t (v) SELECT repeat('x', 200) FROM generate_series(1, 1000)")
            pair.source_server.stop("immediate")
            target = pair.on_target()

            def settled() -> bool:
                before = target.execute("SELECT count(*) FROM t").fetchone()
                time.sleep(0.5)
                return target.execute("SELECT count(*) FROM t").fetchone() == before

            wait_until(settled, 20, "the last rows")
            row = target.execute("SELECT nextval('t_id_seq') > max(id), count(*) > 0 FROM t").fetchone()
            assert row == (True, True)
        finally:
            pair.source_server.start()


def test_the_source_is_lost_while_the_target_is_away(pair: Pair, cli: Cli) -> None:
    """Rows that only the journal had when the source was lost have no number that the target's sequence still gives."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id serial PRIMARY KEY)")
    with daemon(cli, pair):
        pair.target_server.stop("fast")
        try:
            source.execute("INSERT INTO t SELECT FROM generate_series(1, 3000)")
            at = source.execute("SELECT pg_current_wal_lsn()").fetchone()
            received = "SELECT FROM pg_replication_slots WHERE database = current_database() AND confirmed_flush_lsn >= %s"
            wait_until(lambda: source.execute(received.encode(), at).rowcount, 20, "the journal to have them")
            pair.source_server.stop("immediate")
            pair.target_server.start()
            target = pair.on_target()
            wait_until(lambda: target.execute("SELECT FROM t").rowcount == 3000, 20, "the rows")
            assert target.execute("SELECT nextval('t_id_seq') > 3000").fetchone() == (True,)
        finally:
            for server in (pair.source_server, pair.target_server):
                if server.pid is None:
                    server.start()


def test_a_source_that_does_not_answer(pair: Pair, cli: Cli) -> None:
    """A session of the source's that hangs holds up rows for a moment only, and their numbers are passed all the same."""
    source, target = pair.on_source(), pair.on_target()
    source.execute("CREATE TABLE t (id serial PRIMARY KEY)")
    with daemon(cli, pair):
        ours = b"SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^pglockstep seq'"
        (pid,) = wait_until(lambda: source.execute(ours).fetchone(), 5, "the session") or (0,)
        os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(1, 6):
                source.execute("INSERT INTO t SELECT FROM generate_series(1, 1000)")
                wait_until(lambda: target.execute("SELECT FROM t").rowcount == number * 1000, 6, "the rows")  # noqa: B023
                assert target.execute(
                    "SELECT last_value > max(id) FROM t, t_id_seq GROUP BY last_value"
                ).fetchone() == (True,)
        finally:
            os.kill(pid, signal.SIGCONT)


@as_plain_roles
def test_exact_without_a_daemon(pair: Pair, cli: Cli) -> None:
    """`once` puts every sequence where the source's stands; one that a daemon carried ahead stays, and is no difference."""
    source, target = pair.on_source(), pair.on_target()
    source.execute("CREATE TABLE t (id serial PRIMARY KEY); CREATE SEQUENCE other")
    demand_identical(cli, pair, "once")
    source.execute("INSERT INTO t SELECT FROM generate_series(1, 100); SELECT nextval('other')")
    demand_identical(cli, pair, "once")
    assert position(target, "t_id_seq") == (100, True)
    assert position(target, "other") == (1, True)
    with daemon(cli, pair) as running:
        wait_until(lambda: position(target, "t_id_seq") == (132, True), 5, "the lead")
        assert running.run("check")["sequences_behind"] == []
        source.execute("INSERT INTO t DEFAULT VALUES")
        link = running.run("check")
        assert (link["verdict"], link["sequences_behind"], link["schema_differences"]) == (
            "identical",
            [],
            [],
        )
    link = demand_identical(cli, pair, "once")
    assert link["sequences_behind"] == []
    assert position(target, "t_id_seq") == (132, True)
    # further than the lead reached
    source.execute("SELECT setval('t_id_seq', 1000)")
    demand_identical(cli, pair, "once")
    assert position(target, "t_id_seq") == (1000, True)


def test_ahead_of_what_moves_without_rows(pair: Pair, cli: Cli) -> None:
    """Numbers that no row has used are followed by the clock, with a lead that grows with the pace, up to no end of theirs."""
    source, target = pair.on_source(), pair.on_target()
    source.execute(
        "CREATE SEQUENCE burnt; CREATE SEQUENCE few AS smallint MAXVALUE 50; CREATE SEQUENCE round MAXVALUE 90 CYCLE"
    )
    with daemon(cli, pair):
        for _ in range(30):
            source.execute("SELECT nextval('burnt') FROM generate_series(1, 500)")
            source.execute("SELECT nextval('few') WHERE (SELECT last_value FROM few) < 40")
            source.execute("SELECT nextval('round')")
            time.sleep(0.1)
        wait_until(lambda: position(target, "burnt")[0] >= 15_000 + 4 * LEAST, 5, "the lead")
        assert position(target, "burnt")[0] <= 15_000 + MOST
        wait_until(lambda: position(target, "round") == (30, True), 5, "the one that cycles")
        assert position(target, "few")[0] <= 40
        source.execute("SELECT nextval('few') FROM generate_series(1, 20)")
        wait_until(lambda: position(target, "few")[0] == 50, 5, "the end of the small one")
        source.execute("SELECT nextval('round') FROM generate_series(1, 60)")
        wait_until(lambda: position(target, "round")[0] == 90, 5, "the end of the round one")


def test_a_lock_on_a_sequence_holds_up_no_row(pair: Pair, cli: Cli) -> None:
    """While a transaction of either end's has a sequence locked, rows go on to arrive; then it is carried again."""
    source, target = pair.on_source(), pair.on_target()
    source.execute("CREATE TABLE t (id serial PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
    with daemon(cli, pair):
        for number, conninfo in enumerate((pair.source, pair.target)):
            with connect(conninfo) as locker:
                locker.execute("BEGIN; ALTER SEQUENCE t_id_seq MINVALUE 1")
                source.execute(
                    f"INSERT INTO other SELECT n FROM generate_series({number * 10}, {number * 10 + 9}) AS n".encode()
                )
                wait_until(
                    lambda: target.execute("SELECT FROM other").rowcount == number * 10 + 10,  # noqa: B023
                    5,
                    "rows beside the lock",
                )
                locker.execute("COMMIT")
        source.execute("SELECT setval('t_id_seq', 500)")
        wait_until(lambda: position(target, "t_id_seq")[0] > 500, 5, "the sequence")


@pytest.mark.parametrize("restart", ["RESTART", "CONTINUE"])
def test_sequences_that_start_again(pair: Pair, cli: Cli, restart: str) -> None:
    """After TRUNCATE … RESTART IDENTITY the target's starts again too, with its lead; without it, it stays."""
    source, target = pair.on_source(), pair.on_target()
    source.execute(
        "CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t SELECT FROM generate_series(1, 5000)"
    )
    with daemon(cli, pair):
        source.execute(f"TRUNCATE t {restart} IDENTITY; INSERT INTO t DEFAULT VALUES".encode())
        wait_until(lambda: target.execute("SELECT FROM t").rowcount == 1, 10, "the row")
        last = position(target, "t_id_seq")[0]
        assert (last < 200) is (restart == "RESTART")
        assert last > (1 if restart == "RESTART" else 5001)
