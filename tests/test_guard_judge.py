"""The judge's rules, one by one, and what it says of them."""

from __future__ import annotations

import msgspec
import pytest

from pglockstep.config.sections import GuardConfig, TableGuardConfig
from pglockstep.config.values import TablePattern
from pglockstep.guard.answers import PASS, Answer, Ask, Pass, Recount, Trip, Used
from pglockstep.guard.transaction import Tally, Transaction
from pglockstep.observe.incident import Loss
from pglockstep.units import Lsn
from simulated_source import DAY, SECOND, Source, Table, Work, numbered

USER = [(b"%d" % n, b"name %d" % n, b"mail %d" % n) for n in range(22)]
COLUMNS = ("id", "name", "mail")


def source_with(guard: GuardConfig | None = None, rows: int = 22, *, full: bool = False) -> Source:
    """A source with a table User."""
    values = [(b"%d" % n, b"name %d" % n, b"mail %d" % n) for n in range(rows)]
    source = Source(guard or GuardConfig(), Table("User", values, COLUMNS, full=full))
    source.count_all()
    return source


def deleting(source: Source, count: int, table: str = "User", first: int = 0) -> Work:
    """A transaction that deletes rows."""
    work = source.begin()
    for key in list(work.rows(table))[first : first + count]:
        work.delete(table, key)
    return work


def tripped(answer: Pass | Trip) -> Trip:
    """The answer, which is that a rule tripped."""
    assert isinstance(answer, Trip), answer
    return answer


@pytest.mark.parametrize("part", [0, 7])
def test_a_wipe_in_one_transaction(part: int) -> None:
    """DELETE without WHERE trips, whole or in parts; the sentence has the numbers, the loss has keys; nothing is noted."""
    source = source_with()
    trip = tripped(source.commit(deleting(source, 22), part=part))
    assert trip.kind == "delete"
    assert trip.message == ('a transaction (xid 701) deletes 22 of 22 rows of public."User": more than 30 %')
    (loss,) = trip.losses
    assert (loss.schema, loss.table, loss.rows_before, loss.rows_lost) == ("public", "User", 22, 22)
    assert loss.keys[:2] == ("id = 0", "id = 1")
    assert len(loss.keys) == 10
    assert trip.since_lsn is None
    source.check_counts()
    assert source.judge.counts.rows(source.tables["User"].shape.name) == 22


@pytest.mark.parametrize("part", [0, 4])
def test_the_share_that_may_go(part: int) -> None:
    """30 % of 30 rows are 9: they pass, 10 do not."""
    for count, passes in ((9, True), (10, False)):
        source = source_with(rows=30)
        answer = source.commit(deleting(source, count), part=part)
        assert isinstance(answer, Pass) is passes
        source.check_counts()


def test_shares_are_exact() -> None:
    """0.29 of 100 rows are 29, though the nearest binary float is a little less."""
    source = source_with(GuardConfig(max_delete_fraction=0.29), rows=100)
    assert source.commit(deleting(source, 29)) == PASS


def test_the_number_that_may_go() -> None:
    """`max_delete_rows` holds however large a table is, and on small ones too; 0 means that no row may go."""
    source = source_with(GuardConfig(max_delete_rows=5), rows=1000)
    trip = tripped(source.commit(deleting(source, 6)))
    assert trip.message.endswith('6 of 1000 rows of public."User": more than 5 rows')
    source = source_with(GuardConfig(max_delete_rows=0), rows=3)
    assert tripped(source.commit(deleting(source, 1))).kind == "delete"


def test_small_tables_are_not_judged_by_shares() -> None:
    """Below `min_table_rows` most rows may go; a row more, and they may not."""
    source = source_with(rows=19)
    assert source.commit(deleting(source, 18)) == PASS
    source = source_with(rows=20)
    assert tripped(source.commit(deleting(source, 18)))


@pytest.mark.parametrize("part", [0, 1])
def test_an_emptied_table_that_stood_for_a_day(part: int) -> None:
    """However small: a day after it was filled it is not emptied; before, it may be."""
    for age, passes in ((DAY - 2 * SECOND, True), (DAY, False)):
        source = source_with(rows=3)
        answer = source.commit(deleting(source, 3), after=age / SECOND, part=part)
        assert isinstance(answer, Pass) is passes
    assert 'deletes 3 of 3 rows of public."User": it has held rows for a day' in tripped(answer).message


def test_a_table_that_is_filled_anew_is_young() -> None:
    """A table that is emptied in its first day, and filled again, begins its day anew."""
    source = source_with(rows=3)
    assert source.commit(deleting(source, 3)) == PASS
    work = source.begin()
    work.insert("User", b"7", b"a", b"b")
    assert source.commit(work, after=86_000) == PASS
    assert source.commit(deleting(source, 1), after=3_600) == PASS


def test_floors() -> None:
    """A transaction that leaves fewer rows than the floor is of the kind floor, though a share was exceeded as well."""
    guard = GuardConfig(floors={("public", "User"): 5}, max_delete_fraction=1.0)
    source = source_with(guard)
    assert source.commit(deleting(source, 17)) == PASS
    trip = tripped(source.commit(deleting(source, 1)))
    assert trip.kind == "floor"
    assert trip.message == (
        'a transaction (xid 702) deletes 1 of 5 rows of public."User": '
        "4 rows would be left, below its floor of 5"
    )
    source = source_with(GuardConfig(floors={("public", "User"): 5}))
    trip = tripped(source.commit(deleting(source, 18)))
    assert trip.kind == "floor"
    assert "more than 30 % and 4 rows would be left" in trip.message


def test_below_its_floor_a_table_may_grow() -> None:
    """A table that holds fewer rows than its floor from the start may be filled and changed, and lose no more."""
    source = source_with(GuardConfig(floors={("public", "User"): 50}))
    work = source.begin()
    work.insert("User", b"x", b"a", b"b")
    work.update("User", b"1", b"c", b"d")
    assert source.commit(work) == PASS
    assert tripped(source.commit(deleting(source, 1))).kind == "floor"


def test_a_floor_holds_for_a_table_that_is_not_judged() -> None:
    """`judge = false` lets everything go but what the floor keeps."""
    tables = {TablePattern('public."User"'): TableGuardConfig(judge=False)}
    source = source_with(GuardConfig(tables=tables), rows=500)
    work = source.begin()
    work.truncate("User")
    assert source.commit(work) == PASS
    source = source_with(GuardConfig(tables=tables, floors={("public", "User"): 5}), rows=500)
    assert source.commit(deleting(source, 495)) == PASS
    assert tripped(source.commit(deleting(source, 1))).kind == "floor"
    work = source.begin()
    work.truncate("User")
    assert tripped(source.commit(work)).kind == "floor"


@pytest.mark.parametrize("part", [0, 1])
def test_truncate(part: int) -> None:
    """TRUNCATE of rows that stood trips, refilled or not; in parts it does before the commit."""
    source = source_with()
    work = source.begin()
    work.truncate("User")
    work.insert("User", b"new", b"a", b"b")
    trip = tripped(source.commit(work, part=part))
    assert (trip.kind, trip.losses) == ("truncate", (Loss("public", "User", 22, 22),))
    more = (
        "; what else it does has not been judged yet, and is asked about if it is let through" if part else ""
    )
    assert trip.message == 'a transaction (xid 701) truncates public."User": it held 22 rows' + more
    source.check_counts()


def test_truncate_of_what_the_transaction_filled_itself() -> None:
    """An empty table that is filled and truncated again has lost nothing."""
    source = source_with(rows=0)
    work = source.begin()
    work.insert("User", b"1", b"a", b"b")
    work.truncate("User")
    work.insert("User", b"2", b"a", b"b")
    assert source.commit(work) == PASS
    source.check_counts()


def test_truncate_allowed() -> None:
    """`truncate = "allow"` lets it pass, and what it took is no loss within the window; a floor holds all the same."""
    source = source_with(GuardConfig(truncate="allow"), rows=100)
    work = source.begin()
    work.truncate("User")
    for number in range(50):
        work.insert("User", b"new %d" % number, b"a", b"b")
    assert source.commit(work) == PASS
    assert source.commit(deleting(source, 1), after=1) == PASS
    source = source_with(GuardConfig(truncate="allow", floors={("public", "User"): 5}))
    work = source.begin()
    work.truncate("User")
    assert tripped(source.commit(work)).kind == "floor"


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("part", [0, 5])
@pytest.mark.parametrize("value", [None, b"gone"])
def test_a_wipe_by_update(part: int, full: bool, value: bytes | None) -> None:
    """A column that becomes NULL, or one value, in more than half of the rows trips; in half of them it passes."""
    for count, passes in ((11, True), (12, False)):
        source = source_with(full=full)
        work = source.begin()
        for number in range(count):
            work.update("User", b"%d" % number, b"name %d" % number, value)
        answer = source.commit(work, part=part)
        assert isinstance(answer, Pass) is passes
        assert len(source.questions) == (not passes and not full)
    trip = tripped(answer)
    assert (trip.kind, trip.losses[0].columns, trip.losses[0].rows_lost) == ("update", ("mail",), 12)
    what = "NULL" if value is None else "one same value"
    assert trip.message == (
        f'a transaction (xid 701) turns mail into {what} in 12 of 22 rows of public."User": more than 50 %'
    )


def test_a_wipe_by_delete_and_insert_of_other_values() -> None:
    """Rows that come back with a column emptied are changed rows."""
    source = source_with(GuardConfig(max_delete_fraction=1.0))
    work = source.begin()
    for number in range(22):
        work.delete("User", b"%d" % number)
        work.insert("User", b"%d" % number, b"name %d" % number, None)
    assert tripped(source.commit(work)).losses[0].columns == ("mail",)


def test_several_tables_are_one_incident() -> None:
    """All losses of a transaction are told together, under the most serious kind."""
    others = [Table(f"t{number}", numbered(100, b"x"), ("id", "v")) for number in range(5)]
    source = Source(GuardConfig(), *others)
    source.count_all()
    work = deleting(source, 50, "t1")
    for key in list(work.rows("t3"))[:40]:
        work.delete("t3", key)
    for key in list(work.rows("t4"))[:31]:
        work.delete("t4", key)
    work.delete("t0", b"1")
    work.truncate("t2")
    trip = tripped(source.commit(work))
    assert trip.kind == "truncate"
    # with what no rule would have minded: whoever puts the one back wants the other, too
    assert [(loss.table, loss.rows_lost) for loss in trip.losses] == [
        ("t0", 1),
        ("t1", 50),
        ("t2", 100),
        ("t3", 40),
        ("t4", 31),
    ]
    assert trip.message == (
        "a transaction (xid 701) truncates public.t2: it held 100 rows; "
        "also public.t1 (50 rows), public.t3 (40 rows), public.t4 (31 rows), 1 more"
    )


@pytest.mark.parametrize("full", [True, False])
def test_a_wipe_by_update_is_in_the_incident(full: bool) -> None:
    """Beside a wipe by delete it is told with it, whether the target has to be asked or not, and passes with it."""
    source = Source(
        GuardConfig(),
        Table("t1", numbered(100, b"x"), ("id", "v")),
        Table("t2", [(b"%d" % n, b"v%d" % n) for n in range(100)], ("id", "v"), full=full),
    )
    source.count_all()
    work = deleting(source, 100, "t1")
    for key in list(work.rows("t2")):
        work.update("t2", key, None)
    trip = tripped(source.commit(work))
    assert (trip.kind, [loss.table for loss in trip.losses]) == ("delete", ["t1", "t2"])
    source.judge.let_through(source.incident(trip))
    work = deleting(source, 100, "t1")
    for key in list(work.rows("t2")):
        work.update("t2", key, None)
    assert source.tell(work) == PASS


def test_a_floor_under_what_is_truncated_and_filled_in_parts() -> None:
    """Before the commit nobody knows how many rows will be left."""
    source = source_with(GuardConfig(truncate="allow", floors={("public", "User"): 5}))
    work = source.begin()
    work.truncate("User")
    transaction = source.transaction(work.tallies())
    assert source.judge.part(transaction) == PASS
    for number in range(10):
        work.insert("User", b"new%d" % number, b"x", b"y")
    work.truncated.clear()
    assert source.judge.part(source.transaction(work.tallies())) == PASS
    assert source.judge.end(transaction) == PASS
    source.check_counts()


def test_dropped_tables() -> None:
    """A table that is gone trips with the rows that it held, several as one incident; allowed by pattern it passes."""
    tables = {TablePattern("public.events_*"): TableGuardConfig(drop="allow")}
    source = Source(
        GuardConfig(tables=tables),
        Table("users", numbered(3), ("id",)),
        Table("orders", numbered(1), ("id",)),
        Table("events_2020", numbered(1000), ("id",)),
    )
    assert source.drop("events_2020") == PASS
    trip = tripped(source.drop("users", "orders", how="renamed"))
    assert trip.kind == "drop"
    assert (
        trip.message == "public.orders was renamed on the source: it held 1 row; also public.users (3 rows)"
    )
    assert [loss.rows_lost for loss in trip.losses] == [1, 3]
    source.judge.let_through(source.incident(trip))
    assert source.drop("users", "orders") == PASS
    assert source.judge.counts.rows(source.tables["users"].shape.name) is None


def test_an_approved_incident_passes_once() -> None:
    """What was approved passes, and is no loss within the window any more; the next one is judged anew."""
    source = source_with(rows=100)
    work = deleting(source, 40)
    trip = tripped(source.commit(work))
    source.judge.let_through(source.incident(trip))
    work = deleting(source, 40)
    assert source.tell(work) == PASS
    source.check_counts()
    assert source.commit(deleting(source, 1), after=1) == PASS
    assert tripped(source.commit(deleting(source, 40), after=1))


def test_no_more_passes_than_was_approved() -> None:
    """An approval is for the losses of the incident: more rows, another table or a wiped column trip all the same."""
    source = source_with(rows=100)
    trip = tripped(source.commit(deleting(source, 40)))
    source.judge.let_through(source.incident(trip))
    assert tripped(source.tell(deleting(source, 41)))


def test_an_announced_purge() -> None:
    """Rows up to the announced number pass, in one transaction or several, and it is told how many were used."""
    source = source_with(rows=100)
    source.judge.allow([source.allowance("a", "User", 100, seconds=600)])
    assert source.commit(deleting(source, 60)) == Pass((Used("a", 60),))
    assert source.commit(deleting(source, 40), after=1) == Pass((Used("a", 40),))
    work = source.begin()
    for row in USER:
        work.insert("User", *row)
    assert source.commit(work, after=200) == PASS
    assert tripped(source.commit(deleting(source, 22), after=1))
    source.check_counts()


def test_an_announced_purge_ends() -> None:
    """What is committed after its end is not covered; what is written down as used is not there any more."""
    source = source_with(rows=100)
    source.judge.allow([source.allowance("a", "User", 100, seconds=60)])
    assert tripped(source.commit(deleting(source, 60), after=61))
    allowance = source.allowance("b", "User", 90, seconds=60)
    source.judge.allow([allowance])
    assert isinstance(source.commit(deleting(source, 40)), Pass)
    # told anew by someone who does not know yet what was used
    source.judge.allow([allowance])
    assert isinstance(source.commit(deleting(source, 40)), Pass)
    assert tripped(source.commit(deleting(source, 20)))


def test_a_remembered_decision() -> None:
    """The same up to so many rows passes night after night, but no more of them within a window."""
    source = source_with(rows=2000)
    source.judge.allow([source.allowance("r", "User", 700, kind="delete")])
    assert source.commit(deleting(source, 700)) == Pass((Used("r", 700),))
    assert tripped(source.commit(deleting(source, 400), after=30))
    assert source.commit(deleting(source, 400), after=86_400) == Pass((Used("r", 400),))
    assert tripped(source.commit(deleting(source, 701), after=86_400)).kind == "delete"


def test_what_an_allowance_covers() -> None:
    """Its own kind and milder ones; a change of values only by its own."""
    source = source_with()
    source.judge.allow([source.allowance("d", "User", 22, kind="delete")])
    work = source.begin()
    work.truncate("User")
    assert tripped(source.commit(work)).kind == "truncate"
    source.judge.allow([source.allowance("t", "User", 22, kind="truncate")])
    wipe = source.begin()
    for number in range(22):
        wipe.update("User", b"%d" % number, None, None)
    assert tripped(source.commit(wipe)).kind == "update"
    assert source.commit(deleting(source, 22)) == Pass((Used("t", 22),))


def test_a_question_is_about_what_becomes() -> None:
    """The question has the table, the column, the value, the rows' keys and what is too many."""
    source = source_with()
    work = source.begin()
    for number in range(22):
        work.update("User", b"%d" % number, b"x", None)
    answer = source.judge.judge(source.transaction(work.tallies()))
    assert isinstance(answer, Ask)
    first, second = answer.questions
    assert (first.name, first.value, first.limit) == ("name", b"x", 11)
    assert (second.name, second.value) == ("mail", None)
    assert first.keys == tuple((b"%d" % number,) for number in range(22))
    trip = tripped(source.judge.answer([3, 22]))
    assert trip.losses[0].columns == ("mail",)


def test_unknown_counts_are_asked_for() -> None:
    """Where the number of rows is unknown nothing is guessed; what takes no rows passes without it."""
    source = Source(GuardConfig(), Table("User", USER, COLUMNS))
    work = source.begin()
    work.insert("User", b"x", None, None)
    work.update("User", b"1", None, None)
    assert source.commit(work) == PASS
    work = deleting(source, 1)
    source.lsn += 10
    name = source.tables["User"].shape.name
    assert source.judge.judge(source.transaction(work.tallies())) == Recount((name,))
    work.undo()
    assert source.commit(deleting(source, 1)) == PASS
    assert source.recounts == 1
    source.check_counts()


def test_a_count_that_cannot_be_is_recounted() -> None:
    """More deletes than rows: the count was wrong. Where it is right, the target's rows are what may be lost."""
    source = source_with(rows=100)
    name = source.tables["User"].shape.name
    source.judge.counts.seed(name, 5, source.lsn, source.time)
    source.judge.counts.account(name).fresh = False
    assert source.commit(deleting(source, 10)) == PASS
    assert source.recounts == 1
    source.judge.counts.seed(name, 5, source.lsn + 10, source.time)
    source.lsn += 10
    trip = tripped(source.commit(deleting(source, 60), after=90_000))
    assert trip.losses[0].rows_before == 5


def test_what_was_copied_is_not_counted_twice() -> None:
    """A transaction that begins its commit before the copy's LSN is in the count already, and is not judged."""
    source = source_with()
    name = source.tables["User"].shape.name
    source.judge.counts.seed(name, 22, 1_000, source.time)
    assert source.commit(deleting(source, 22)) == PASS
    assert source.judge.counts.rows(name) == 22


def test_a_transaction_that_comes_again() -> None:
    """After an interruption the stream repeats what passed already: it passes, and is not noted twice."""
    source = source_with()
    work = deleting(source, 3)
    assert source.commit(work) == PASS
    again = source.transaction(work.tallies())
    assert source.judge.judge(again) == PASS
    assert (source.judge.part(again), source.judge.end(again)) == (PASS, PASS)
    source.check_counts()


def test_a_large_transaction_that_is_begun_anew() -> None:
    """The parts of one that was interrupted do not count with those of its repetition."""
    source = source_with(rows=100)
    work = deleting(source, 20)
    source.judge.part(source.transaction(work.tallies()))
    source.judge.give_up()
    work.undo()
    assert source.commit(deleting(source, 20), part=10) == PASS
    source.check_counts()


@pytest.mark.parametrize("what", ["deletes", "updates", "truncates"])
def test_a_large_transaction_is_judged_again(what: str) -> None:
    """One that tripped trips again, with the same numbers, however often it is asked about; what is allowed by then passes."""
    source = source_with(rows=100, full=True)
    work = deleting(source, 40) if what == "deletes" else source.begin()
    if what == "updates":
        for key in list(work.rows("User")):
            work.update("User", key, None, b"mail")
    elif what == "truncates":
        work.truncate("User")
    parts = [source.transaction(tallies) for tallies in work.parts(15)]
    end = source.transaction()

    def tell(part: Transaction) -> Answer:
        return source.judge.part(part) if part is not end else source.judge.end(part)

    answers = [tell(each) for each in (*parts, end)]
    assert [isinstance(each, Trip) for each in answers[-2:]] == [what == "truncates", True]
    last = parts[-1] if what == "truncates" else end
    trip = tell(last)
    assert isinstance(trip, Trip)
    # before its end it says that not all is known
    assert msgspec.structs.replace(trip, message="") == msgspec.structs.replace(answers[-1], message="")
    assert ("has not been judged yet" in trip.message) == (what == "truncates")
    assert tell(last) == trip
    rows = trip.losses[0].rows_lost
    source.judge.allow([source.allowance("1", "User", rows)])
    assert {tell(last), tell(end)} <= {PASS, Pass((Used("1", rows),))}
    source.judge.give_up()
    source.check_counts()


def test_a_table_that_has_just_grown_large_enough() -> None:
    """The rows that made it so count at once: shares hold for the very next transaction."""
    source = source_with(rows=19)
    assert source.commit(deleting(source, 1)) == PASS
    work = source.begin()
    for number in range(22):
        work.insert("User", b"new%d" % number, b"v%d" % number, b"w%d" % number)
    assert source.commit(work) == PASS
    assert tripped(source.commit(deleting(source, 15))).losses[0].rows_before == 40
    wipe = source.begin()
    for key in list(wipe.rows("User")):
        wipe.update("User", key, None, b"v")
    assert tripped(source.commit(wipe)).kind == "update"


def test_a_table_that_has_just_shrunk() -> None:
    """A share of what is left is less than it was of what there was."""
    source = source_with(rows=100)
    assert source.commit(deleting(source, 30)) == PASS
    wipe = source.begin()
    for key in list(wipe.rows("User"))[:36]:
        wipe.update("User", key, None, key)
    trip = tripped(source.commit(wipe))
    assert (trip.losses[0].rows_before, trip.losses[0].rows_lost) == (70, 36)


def test_losses_go_on_adding_up_over_a_recount() -> None:
    """A count that turns out wrong does not begin the window anew."""
    source = source_with(rows=1000)
    name = source.tables["User"].shape.name
    assert source.commit(deleting(source, 250)) == PASS
    source.judge.counts.account(name).forget()
    trip = tripped(source.commit(deleting(source, 60), after=1))
    assert source.recounts == 1
    assert (trip.losses[0].rows_before, trip.losses[0].rows_lost) == (1000, 310)


def test_an_empty_transaction_moves_the_position() -> None:
    """One that touched none of our tables passes, and is in the counts from then on."""
    source = source_with()
    assert source.judge.judge(source.transaction()) == PASS
    assert source.judge.counts.position == source.lsn + 10


def test_a_tally_without_changes_has_none() -> None:
    """A TRUNCATE alone has no changes to give."""
    source = source_with()
    assert Tally(source.tables["User"].shape, truncated=True).list_changes() == ()


def test_where_the_losses_of_many_began() -> None:
    """A wipe in small transactions trips just before the one that goes too far, and knows the first."""
    source = source_with(rows=1000)
    first = source.lsn + 10
    for number in range(300):
        assert source.commit(deleting(source, 1), after=0.05) == PASS, number
    trip = tripped(source.commit(deleting(source, 1), after=0.05))
    assert trip.since_lsn == Lsn(first)
    assert trip.message == (
        "transactions within 1m, the last one xid 1001, delete 301 of 1000 rows of "
        'public."User": more than 30 %'
    )
    assert (trip.losses[0].rows_before, trip.losses[0].rows_lost) == (1000, 301)
