"""The window, the counts and the rules in force: small pure parts of the guard."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pglockstep.config.sections import GuardConfig, TableGuardConfig
from pglockstep.config.values import TablePattern
from pglockstep.guard.counts import Counts, TableCount
from pglockstep.guard.policy import UNLIMITED, Rulebook, Rules
from pglockstep.guard.window import LEAD, STEPS, Clock, Window
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Duration

NAME = QualifiedName("public", "t")
SECOND = 1_000_000


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 50)), max_size=60))
def test_what_stood_before_the_window(changes: list[tuple[int, int]]) -> None:
    """The least number of rows in the steps before the window, as a plain look at the whole past has it; little is kept."""
    window = Window(60, 10)
    past = [(-1, 10)]
    step = 0
    for pause, rows in changes:
        step += pause
        first, end = step - STEPS - LEAD, step - STEPS
        at_first = [held for when, held in past if when < first] or [10]
        expected = min([at_first[-1], *(held for when, held in past if first <= when < end)])
        assert window.stood(step) == expected
        window.note(step, past[-1][1], rows, step + 1)
        past.append((step, rows))
    assert len(window._entries) <= STEPS + LEAD + 1


def test_losses_that_were_settled_are_forgotten() -> None:
    """What was decided about does not add up with what follows."""
    window = Window(60, 100)
    window.note(0, 100, 40, 7)
    assert (window.stood(5), window.losing_since(5)) == (100, 7)
    window.settle(40)
    assert (window.stood(5), window.losing_since(5)) == (40, 0)
    window = Window(60, 100)
    window.note(0, 100, 90, 7)
    window.note(20, 90, 80, 8)
    window.settle(40)
    assert [window.stood(step) for step in (30, 65, 85)] == [40, 40, 40]


def test_what_chance_does_to_a_queue() -> None:
    """The swing grows with the rows that pass through; a wipe has none of its own, and it ends with the window."""
    window = Window(60, 100)
    window.note(0, 100, 40, 7, 0, 60)
    assert window.swing(0) == 0
    for step in range(60):
        window.note(step, 40, 40, 7, 1000, 1000)
    assert window.swing(59) == 1385
    assert window.swing(59 + STEPS) == 178
    assert window.swing(60 + STEPS) == 0


def test_a_clock_that_is_set_back() -> None:
    """Time goes on from where it was; commits that are a little out of order do not move it."""
    clock = Clock()
    heard = []
    for second in (100, 101, 100.5, 102, 50, 51, 53, 120):
        heard.append(clock.tell(round(second * SECOND)) / SECOND)
        clock.advance(round(second * SECOND))
    assert heard == [100, 101, 101, 102, 102, 103, 105, 172]


@given(st.lists(st.integers(0, 10**9), max_size=30))
def test_time_never_goes_back(times: list[int]) -> None:
    """Whatever a clock does."""
    clock = Clock()
    latest = 0
    for time in times:
        assert clock.tell(time) >= latest
        latest = clock.tell(time)
        clock.advance(time)
        assert clock.tell(time) >= latest


def test_rules_of_one_table() -> None:
    """A name comes before patterns, the first pattern before others; what is left out is as in the link's guard."""
    guard = GuardConfig(
        max_delete_rows=7,
        floors={("public", "User"): 5},
        tables={
            TablePattern("public.*"): TableGuardConfig(drop="allow", window=Duration(5)),
            TablePattern("public.u?er"): TableGuardConfig(truncate="allow"),
            TablePattern("public.user"): TableGuardConfig(judge=False),
        },
    )
    user = Rules.of(guard, QualifiedName("public", "user"))
    assert not user.judge
    assert [user.drop, user.truncate, user.max_delete_rows] == ["hold", "hold", 7]
    other = Rules.of(guard, QualifiedName("public", "uber"))
    assert [other.judge, other.drop, other.truncate, other.window] == [True, "allow", "hold", 5]
    elsewhere = Rules.of(guard, QualifiedName("app", "user"))
    assert [elsewhere.drop, elsewhere.window, elsewhere.keep_deleted] == ["hold", 60, 3600]
    assert Rules.of(guard, QualifiedName("public", "User")).floor == 5
    assert elsewhere.floor == 0
    assert elsewhere.max_delete_fraction == Fraction(3, 10)


def test_rules_of_a_partition() -> None:
    """Its own name, then those of what it is a partition of, the nearest first, then patterns; also once it is gone."""
    root, half, leaf, other = (QualifiedName("public", name) for name in ("root", "half", "leaf", "other"))
    guard = GuardConfig(
        floors={("public", "root"): 9},
        tables={
            TablePattern("public.*"): TableGuardConfig(max_delete_rows=1),
            TablePattern("public.root"): TableGuardConfig(max_delete_rows=2),
            TablePattern("public.half"): TableGuardConfig(max_delete_rows=3),
            TablePattern("public.other"): TableGuardConfig(max_delete_rows=4),
        },
    )
    rules = Rulebook(guard)
    assert rules.of(leaf).max_delete_rows == 1
    assert rules.learn({leaf: (half, root), other: (root,)})
    assert [rules.of(each).max_delete_rows for each in (leaf, other, root)] == [3, 4, 2]
    assert (rules.of(leaf).floor, rules.sharing(leaf), rules.shared) == (0, (root,), {root: (leaf, other)})
    assert not rules.learn({other: (root,)})
    assert rules.sharing(leaf) == (root,)
    assert rules.learn({leaf: ()})
    assert rules.of(leaf).max_delete_rows == 1
    assert rules.shared == {root: (other,)}


def test_limits() -> None:
    """Shares hold from `min_table_rows` on, the number of rows always."""
    rules = Rules.of(GuardConfig(), NAME)
    assert [rules.may_lose(rows) for rows in (0, 19, 20, 1000, 10**9)] == [100_000, 100_000, 6, 300, 100_000]
    assert [rules.may_turn(rows) for rows in (19, 20, 1001)] == [UNLIMITED, 10, 500]
    unjudged = Rules.of(GuardConfig(tables={TablePattern("public.t"): TableGuardConfig(judge=False)}), NAME)
    assert (unjudged.may_lose(10**9), unjudged.may_turn(10**9)) == (UNLIMITED, UNLIMITED)


def counts_with(rows: int) -> Counts:
    """The count of one table, as of LSN 100."""
    counts = Counts(Rulebook(GuardConfig()))
    counts.seed(NAME, rows, 100, 5 * SECOND)
    return counts


def test_a_count_is_remembered() -> None:
    """What was counted is what is remembered, with its LSN and since when there have been rows."""
    counts = counts_with(7)
    kept = TableCount(name=NAME, rows=7, lsn=100, filled_since=5 * SECOND)
    assert counts.remember() == [kept]
    again = Counts(Rulebook(GuardConfig()))
    again.recall(kept, 100)
    assert again.rows(NAME) == 7
    assert again.remember() == [kept]


def test_a_count_that_is_older_than_the_stream_is_unknown() -> None:
    """What was committed in between is not in it; but the table has been filled for as long as it had."""
    counts = Counts(Rulebook(GuardConfig()))
    counts.recall(TableCount(name=NAME, rows=7, lsn=100, filled_since=5), 101)
    assert counts.rows(NAME) is None
    counts.seed(NAME, 9, 101, 8)
    assert counts.account(NAME).filled_since == 5


def test_losses_go_on_adding_up_after_a_restart() -> None:
    """What was lost within the window before is remembered, and counts until a window has passed."""
    counts = Counts(Rulebook(GuardConfig()))
    counts.recall(TableCount(name=NAME, rows=70, lsn=100, filled_since=5, lost=30), 100)
    account = counts.account(NAME)
    account.reckon(1000)
    assert account.free_deletes == 0
    account.reckon(1000 + STEPS)
    assert account.free_deletes == 0
    account.reckon(1001 + STEPS)
    assert account.free_deletes == 21


def test_a_queue_is_known_for_one_after_a_restart() -> None:
    """What passed through it is remembered with its time, also if it is counted anew, and for no longer than a window."""
    counts = counts_with(100)
    account = counts.account(NAME)
    for step in range(50):
        account.reckon(step)
        account.note(200, 200, 100, 200 + step, step * account.width)
    swing = account.window.swing(49)
    assert swing > 500
    again = Counts(Rulebook(GuardConfig()))
    for each in counts.remember():
        assert len(each.passed) <= 7
        again.recall(each, 300)
    assert again.rows(NAME) is None
    assert again.stood(NAME) == 100
    again.seed(NAME, 100, 300, 50 * account.width)
    assert again.swing(NAME, 50 * account.width) == swing
    # each sum goes when its first step does: never later than what is in it
    assert again.swing(NAME, 65 * account.width) <= account.window.swing(65)
    assert again.swing(NAME, 65 * account.width) > 0
    assert again.swing(NAME, 120 * account.width) == 0


def test_a_table_that_is_empty_has_no_age() -> None:
    """It begins when there are rows."""
    counts = counts_with(0)
    account = counts.account(NAME)
    assert account.filled_since is None
    account.note(3, 0, 3, 110, 9 * SECOND)
    assert account.filled_since == 9 * SECOND


def test_a_pattern_names_one_table_or_many() -> None:
    """Without a wildcard outside of quotes it is the name of one."""
    assert TablePattern.parse('public."a*"').names_one
    assert not TablePattern.parse("public.a*").names_one
    assert not TablePattern.parse("?.a").names_one


def test_the_fewest_rows_lately() -> None:
    """What a queue fell to within the window, at whichever end of a step; what is longer ago does not count."""
    window = Window(60, 100)
    assert window.lowest() is None
    window.note(10, 100, 5, 1)
    window.note(10, 5, 100, 2)
    window.note(11, 100, 60, 3)
    assert window.lowest() == 5
    window.note(11 + STEPS, 60, 70, 4)
    assert window.lowest() == 60
