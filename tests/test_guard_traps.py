"""The traps of guards: wipes in disguise, which trip; and what only looks like one, which does not."""

from __future__ import annotations

import random

import pytest

from pglockstep.config.sections import GuardConfig, TableGuardConfig
from pglockstep.config.values import TablePattern
from pglockstep.guard.answers import PASS, Pass, Trip
from pglockstep.guard.counts import TableCount
from simulated_source import DAY, SECOND, Source, Table, Work, numbered

COLUMNS = ("id", "v", "w")


def table(name: str = "t", rows: int = 1000, *, full: bool = False) -> Table:
    """A table with so many rows, whose second column differs from row to row."""
    return Table(name, [(b"%d" % n, b"v%d" % n, b"w%d" % n) for n in range(rows)], COLUMNS, full=full)


def one_source(*tables: Table, guard: GuardConfig | None = None) -> Source:
    """A source that has been counted."""
    source = Source(guard or GuardConfig(), *(tables or (table(),)))
    source.count_all()
    return source


def delete(source: Source, count: int, name: str = "t") -> Work:
    """A transaction that deletes the first rows."""
    work = source.begin()
    for key in list(work.rows(name))[:count]:
        work.delete(name, key)
    return work


# --- a wipe in disguise -----------------------------------------------------------------------------------


def until_it_trips(source: Source, size: int, pause: float, name: str = "t") -> Trip:
    """Delete so many rows again and again."""
    while source.tables[name].rows:
        answer = source.commit(delete(source, size, name), after=pause)
        if isinstance(answer, Trip):
            return answer
    raise AssertionError("the wipe passed")


@pytest.mark.parametrize(("size", "pause"), [(1, 0), (1, 0.03), (7, 1), (299, 59)])
def test_a_wipe_in_many_transactions(size: int, pause: float) -> None:
    """In 1,000 transactions or 4, at once or over a minute: 700 of 1,000 rows stay."""
    source = one_source()
    trip = until_it_trips(source, size, pause)
    assert trip.kind == "delete"
    assert len(source.tables["t"].rows) >= 700
    source.check_counts()


def test_a_wipe_in_many_transactions_among_updates() -> None:
    """Updates and rows that come and go at the same time hide nothing."""
    source = one_source()
    trip = None
    for number in range(1000):
        work = source.begin()
        work.insert("t", b"new%d" % number, b"x", b"y")
        work.delete("t", b"new%d" % number)
        work.delete("t", b"%d" % number)
        if number < 999:
            work.update("t", b"%d" % (number + 1), b"changed", b"y")
        answer = source.commit(work, after=0.02)
        if isinstance(answer, Trip):
            trip = answer
            break
    assert trip is not None
    assert trip.kind == "delete"
    assert len(source.tables["t"].rows) == 700


def test_a_wipe_across_a_restart() -> None:
    """What was lost before the daemon restarted adds up with what is lost after."""
    source = one_source()
    for _ in range(25):
        assert source.commit(delete(source, 10), after=0.1) == PASS
    kept = source.judge.counts.remember()
    after = Source(GuardConfig(), source.tables["t"])
    after.time, after.lsn = source.time, source.lsn
    for count in kept:
        after.judge.counts.recall(count, source.judge.counts.position)
    until_it_trips(after, 10, 0.1)
    assert len(after.tables["t"].rows) == 700


@pytest.mark.parametrize("set_back", [2, 3600, 20 * 365 * 86_400])
def test_a_wipe_while_the_clock_is_set_back(set_back: int) -> None:
    """The window neither begins anew nor stands still: the wipe trips, and ordinary deletes afterwards do not."""
    source = one_source()
    for _ in range(20):
        assert source.commit(delete(source, 10), after=0.1) == PASS
    source.time -= set_back * SECOND
    until_it_trips(source, 10, 0.1)
    assert len(source.tables["t"].rows) == 700
    for _ in range(20):
        assert source.commit(delete(source, 10), after=20) == PASS or source.time


def test_ordinary_deletes_while_the_clock_is_set_back() -> None:
    """A clock that was set back by hours does not make a minute of them."""
    source = one_source()
    for number in range(60):
        if number % 10 == 5:
            source.time -= 7200 * SECOND
        assert source.commit(delete(source, 10), after=20) == PASS


@pytest.mark.parametrize("value", [None, b"gone", b"true"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("part", [0, 300])
def test_a_wipe_by_update(value: bytes | None, full: bool, part: int) -> None:
    """To NULL, to one same text, by a mark that says deleted; with a key or without; whole or in parts."""
    source = one_source(table(full=full))
    work = source.begin()
    for key in list(work.rows("t")):
        work.update("t", key, key, value)
    answer = source.commit(work, part=part)
    assert isinstance(answer, Trip)
    assert (answer.kind, answer.losses[0].columns, answer.losses[0].rows_lost) == ("update", ("w",), 1000)


@pytest.mark.parametrize("how", ["dropped", "renamed", "replaced"])
def test_a_wipe_by_drop(how: str) -> None:
    """A table that is gone, goes by another name or was made anew is held."""
    answer = one_source().drop("t", how=how)
    assert isinstance(answer, Trip)
    assert answer.kind == "drop"
    assert f"was {how} on the source" in answer.message


@pytest.mark.parametrize("part", [0, 100])
def test_a_wipe_by_truncate_and_filling_anew(part: int) -> None:
    """New rows under the old keys do not undo a TRUNCATE: nobody knows which rows it took."""
    source = one_source()
    work = source.begin()
    work.truncate("t")
    for number in range(1000):
        work.insert("t", b"%d" % number, None, None)
    answer = source.commit(work, part=part)
    assert isinstance(answer, Trip)
    assert answer.kind == "truncate"


@pytest.mark.parametrize("part", [0, 100])
def test_a_wipe_by_other_rows(part: int) -> None:
    """As many new rows as old ones went hide nothing within a transaction: rows are known by their key."""
    source = one_source()
    work = source.begin()
    for number in range(400):
        work.delete("t", b"%d" % number)
        work.insert("t", b"junk%d" % number, b"x", b"y")
    answer = source.commit(work, part=part)
    assert isinstance(answer, Trip)
    assert answer.losses[0].rows_lost == 400


def test_a_wipe_of_a_table_that_nobody_counted() -> None:
    """After a restart without a memory the table is counted before anything passes."""
    source = Source(GuardConfig(), table())
    assert isinstance(source.commit(delete(source, 301)), Trip)
    assert source.recounts == 1


def test_a_wipe_of_a_small_table() -> None:
    """Three rows that have stood for a day are not emptied, at once or one by one."""
    for size in (3, 1):
        source = one_source(table(rows=3))
        source.time += DAY
        until_it_trips(source, size, 100)
        assert source.tables["t"].rows


# --- what only looks like one -----------------------------------------------------------------------------


@pytest.mark.parametrize("counted", [True, False])
def test_pgbench(counted: bool) -> None:
    """Its transactions pass by their numbers alone; a filler that always was NULL is asked about once it must be."""
    accounts = Table("accounts", numbered(1000, b"0", None), ("aid", "abalance", "filler"))
    tellers = Table("tellers", numbered(10, b"0", None), ("tid", "tbalance", "filler"))
    branches = Table("branches", numbered(1, b"0", None), ("bid", "bbalance", "filler"))
    history = Table("history", (), ("hid", "delta", "filler"), full=True)
    source = Source(GuardConfig(), accounts, tellers, branches, history)
    if counted:
        source.count_all()
    dice = random.Random(7)
    for number in range(5000):
        work = source.begin()
        delta = b"%d" % dice.randint(-5000, 5000)
        work.update("accounts", b"%d" % dice.randrange(1000), delta, None)
        work.update("tellers", b"%d" % dice.randrange(10), delta, None)
        work.update("branches", b"0", delta, None)
        work.insert("history", b"%d" % number, delta, None)
        assert source.commit(work, after=0.001) == PASS
    assert not source.questions
    assert not source.recounts


@pytest.mark.parametrize("part", [0, 200])
def test_a_filler_that_always_was_null(part: int) -> None:
    """All rows are updated and a column is NULL in each: the target says that it was so before, and they pass."""
    source = one_source(Table("accounts", numbered(1000, b"0", None), ("aid", "abalance", "filler")))
    work = source.begin()
    for number in range(1000):
        work.update("accounts", b"%d" % number, b"balance %d" % number, None)
    assert source.commit(work, part=part) == PASS
    assert [question.name for question in source.questions] == ["filler"]
    assert (source.questions[0].keys is None) is bool(part)


@pytest.mark.parametrize("backlog", [0, 40, 500])
def test_a_job_queue(backlog: int) -> None:
    """1,000 jobs a second come and as many go, in an order and to a length that is left to chance. It never trips."""
    source = one_source(table("jobs", backlog))
    dice = random.Random(backlog)
    number = 0
    lengths = set()
    for _ in range(150_000):
        work = source.begin()
        if dice.random() < 0.5 or not work.rows("jobs"):
            work.insert("jobs", b"job%d" % number, b"x", b"y")
            number += 1
        else:
            work.delete("jobs", next(iter(work.rows("jobs"))))
        assert source.commit(work, after=0.0005) == PASS
        lengths.add(len(work.rows("jobs")))
    assert max(lengths) - min(lengths) > 200
    source.check_counts()


def test_a_job_queue_that_is_filled_in_bursts() -> None:
    """Every second 1,000 jobs come at once, and go one by one."""
    source = one_source(table("jobs", 50))
    number = 0
    for _ in range(100):
        work = source.begin()
        for _ in range(1000):
            work.insert("jobs", b"job%d" % number, b"x", b"y")
            number += 1
        assert source.commit(work, after=0.1) == PASS
        for _ in range(1000):
            assert source.commit(delete(source, 1, "jobs"), after=0.0008) == PASS


@pytest.mark.parametrize("part", [0, 64])
def test_a_nightly_purge_of_a_tenth(part: int) -> None:
    """10 % of a table, night after night."""
    source = one_source()
    for night in range(10):
        count = len(source.tables["t"].rows) // 10
        assert source.commit(delete(source, count), after=86_400, part=part) == PASS, night


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("part", [0, 300])
def test_a_table_that_is_rewritten(part: int, full: bool) -> None:
    """DELETE and INSERT of all rows under the same keys; without a key, of the same rows."""
    source = one_source(table(full=full))
    work = source.begin()
    rows = list(work.rows("t").values())
    for row in rows:
        work.delete("t", row[0])
    for row in rows:
        work.insert("t", *row)
    assert source.commit(work, part=part) == PASS
    source.check_counts()


@pytest.mark.parametrize("part", [0, 300])
def test_a_table_whose_keys_change(part: int) -> None:
    """All rows get other keys; the same rows stand."""
    source = one_source()
    work = source.begin()
    for number in range(1000):
        work.update("t", b"%d" % number, b"v%d" % number, b"w%d" % number, to=b"new%d" % number)
    assert source.commit(work, part=part) == PASS
    source.check_counts()


def test_a_rewrite_under_other_keys_needs_one_decision() -> None:
    """A rewrite with new keys is held; remembered, it passes from then on, and the table has lost nothing in number."""
    source = one_source()

    def rewrite(night: int) -> Work:
        work = delete(source, 1000)
        for number in range(1000):
            work.insert("t", b"%d in night %d" % (number, night), b"v%d" % number, b"w%d" % number)
        return work

    trip = source.commit(rewrite(0))
    assert isinstance(trip, Trip)
    source.judge.allow([source.allowance("r", "t", trip.losses[0].rows_lost, kind=trip.kind)])
    for night in range(1, 30):
        assert isinstance(source.commit(rewrite(night), after=5), Pass)
    source.check_counts()


def test_a_purge_in_batches_needs_one_decision() -> None:
    """Half of a table in batches is held where it goes too far; remembered, the same passes the night after."""
    source = one_source(table(rows=100_000))
    nights: list[int] = []
    for night in range(3):
        held = 0
        while len(source.tables["t"].rows) > 100_000 >> (night + 1):
            answer = source.commit(delete(source, 1000), after=0.1)
            if isinstance(answer, Trip):
                held += 1
                loss = answer.losses[0].rows_lost
                source.judge.allow([source.allowance("r", "t", loss, kind=answer.kind)])
        nights.append(held)
        source.time += DAY
    assert nights == [1, 0, 0]


def test_a_partition_is_dropped() -> None:
    """Where the configuration says so for its pattern; the others are held all the same."""
    guard = GuardConfig(tables={TablePattern("public.events_*"): TableGuardConfig(drop="allow")})
    source = one_source(table("events_1"), table("events_2"), table("t"), guard=guard)
    assert source.drop("events_1") == PASS
    assert isinstance(source.drop("events_2", "t"), Trip)


@pytest.mark.parametrize("part", [0, 100])
def test_an_announced_purge_of_everything(part: int) -> None:
    """By DELETE, TRUNCATE or DROP, of one transaction or many."""
    for way in ("delete", "truncate", "drop", "batches"):
        source = one_source(guard=GuardConfig(floors={("public", "t"): 100}))
        source.time += DAY
        source.judge.allow([source.allowance("a", "t", 1000, seconds=600)])
        if way == "drop":
            answer = source.drop("t")
        elif way == "batches":
            while source.tables["t"].rows:
                answer = source.commit(delete(source, 10), after=0.1, part=part)
                assert isinstance(answer, Pass), (answer, len(source.tables["t"].rows))
        else:
            work = delete(source, 1000) if way == "delete" else source.begin()
            if way == "truncate":
                work.truncate("t")
            answer = source.commit(work, part=part)
        assert isinstance(answer, Pass)
        assert answer.used


def test_a_load_and_its_update_in_one_transaction() -> None:
    """Rows that a transaction brings, sets and throws away itself are no loss, whole or in parts."""
    for part in (0, 500):
        source = one_source(table(rows=100))
        work = source.begin()
        for number in range(3000):
            work.insert("t", b"new%d" % number, b"v", b"w%d" % number)
        for number in range(3000):
            work.update("t", b"new%d" % number, None, None)
        for number in range(2000):
            work.delete("t", b"new%d" % number)
        assert source.commit(work, part=part) == PASS
        source.check_counts()


def test_both_ends_empty_at_first() -> None:
    """Tables without rows are filled, emptied on the same day and dropped of their rows without a word."""
    source = Source(GuardConfig(), table(rows=0))
    source.judge.counts.recall(
        TableCount(name=source.tables["t"].shape.name, rows=0, lsn=source.lsn), source.lsn
    )
    work = source.begin()
    work.truncate("t")
    assert source.commit(work) == PASS
    for number in range(15):
        work = source.begin()
        work.insert("t", b"%d" % number, b"v", b"w")
        assert source.commit(work, after=1) == PASS
    assert source.commit(delete(source, 15), after=1) == PASS
