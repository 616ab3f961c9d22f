"""Random histories with wipes in them: what the judge lets pass keeps to the rules, and what it stops breaks one.

The rules are worked out here a second time, naively, from the whole past of a table that is simulated.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import sqrt

from hypothesis import given, settings
from hypothesis import strategies as st

from pglockstep.config.sections import GuardConfig
from pglockstep.guard.answers import Pass, Trip
from pglockstep.wal.messages import Value
from simulated_source import DAY, SECOND, Source, Table, Work

COLUMNS = ("id", "v", "w")

GUARDS = st.builds(
    GuardConfig,
    max_delete_fraction=st.sampled_from([0.07, 0.3, 0.5, 1.0]),
    max_delete_rows=st.sampled_from([2, 30, 100_000]),
    max_update_fraction=st.sampled_from([0.2, 0.5, 1.0]),
    min_table_rows=st.sampled_from([0, 7, 20]),
    truncate=st.sampled_from(["hold", "hold", "allow"]),
    floors=st.sampled_from([{}, {}, {("public", "t"): 5}]),
)
PAUSES = st.sampled_from([0, 0.01, 0.4, 1, 7, 31, 59, 61, 75, 4000, 90_000])
WAYS = [
    "delete",
    "delete",
    "trickle",
    "insert",
    "refill",
    "rewrite",
    "replace",
    "update",
    "empty",
    "truncate",
    "mix",
]


class Past:
    """A table's numbers of rows since the beginning, and what they allow, by the letter of the rules."""

    def __init__(self, guard: GuardConfig, rows: int, time: int) -> None:
        self.guard = guard
        self.held = [(-(10**18), rows)]
        self.traffic: list[tuple[int, int, int]] = []
        self.filled = time
        self.step = 1 * SECOND

    def too_many(self, lost: int, rows: int) -> bool:
        """Whether so many of `rows` rows are more than may be lost."""
        share = Fraction(str(self.guard.max_delete_fraction)) * rows
        judged = rows >= self.guard.min_table_rows
        return lost > self.guard.max_delete_rows or (judged and lost > share)

    def turned(self, rows_turned: int, rows: int) -> bool:
        """Whether too many were turned into one value."""
        share = Fraction(str(self.guard.max_update_fraction)) * rows
        return rows >= self.guard.min_table_rows and rows_turned > share

    def least(self, first: int, end: int) -> int:
        """The least number of rows between two times."""
        at_first = [rows for when, rows in self.held if when <= first][-1]
        return min([at_first, *(rows for when, rows in self.held if first < when <= end)])

    def swing(self, since: int) -> float:
        """Four standard deviations of what passed through."""
        came = sum(came for when, came, _ in self.traffic if when >= since)
        went = sum(went for when, _, went in self.traffic if when >= since)
        return 4 * sqrt(2 * min(came, went))

    def drained(self, time: int, after: int, first: float, end: float, since: float) -> bool:
        """Whether too many of those that stood between `first` and `end` seconds before `time` are gone."""
        stood = self.least(time - round(first * SECOND), time - round(end * SECOND))
        chance = self.swing(time - round(since * SECOND))
        return self.too_many(stood - after, stood) and stood - after > int(chance)

    def note(self, time: int, before: int, after: int, came: int, went: int, *, settle: bool) -> None:
        """A transaction passed; `settle`: what it took does not count any more."""
        if settle:
            self.held = [(when, min(rows, after)) for when, rows in self.held]
        self.held.append((time, after))
        self.traffic.append((time, came, went))
        if after and not before:
            self.filled = time


class Story:
    """A table, what happens to it, and what has to come of it."""

    def __init__(self, guard: GuardConfig, rows: int, *, full: bool) -> None:
        values = [(b"%d" % n, b"v%d" % n, b"w%d" % n) for n in range(rows)]
        self.source = Source(guard, Table("t", values, COLUMNS, full=full))
        self.source.count_all()
        self.past = Past(guard, rows, self.source.time)
        self.guard = guard
        self.next = rows
        self.trips = 0

    def act(self, way: str, size: int, pause: float, part: int) -> None:
        """One thing that an application does: a transaction, or many small ones."""
        if way == "trickle":
            for _ in range(size):
                self.commit("delete", 1, pause / size, part)
        else:
            self.commit(way, size, pause, part)

    def commit(self, way: str, size: int, pause: float, part: int) -> None:
        """Make one transaction, and check what is said of it."""
        work = self.source.begin()
        rows = work.rows("t")
        before = dict(rows)
        some = list(rows)[:size]
        if way == "truncate":
            work.truncate("t")
        if way in ("insert", "truncate"):
            self.bring(work, size if way == "insert" else size // 2)
        if way in ("delete", "replace", "mix"):
            for key in some:
                work.delete("t", key)
        if way == "rewrite":
            for key in some:
                old = rows[key]
                work.delete("t", key)
                work.insert("t", *old)
        if way == "refill":
            self.bring(work, size)
            for key in list(rows)[-(size // 2) :] if size > 1 else []:
                work.delete("t", key)
        if way in ("replace", "mix"):
            self.bring(work, size)
        if way in ("update", "mix"):
            for key in list(rows)[:size]:
                work.update("t", key, key, rows[key][2])
        if way == "empty":
            for key in some:
                work.update("t", key, rows[key][1], None if size % 2 else b"gone")
        after = dict(rows)
        answer = self.source.commit(work, after=pause, part=part)
        self.check(work, answer, before, after)

    def bring(self, work: Work, count: int) -> None:
        """Insert rows that never were."""
        for _ in range(count):
            work.insert("t", b"new %d" % self.next, b"v%d" % self.next, b"w%d" % self.next)
            self.next += 1

    def check(
        self,
        work: Work,
        answer: Pass | Trip,
        before: dict[Value, tuple[Value, ...]],
        after: dict[Value, tuple[Value, ...]],
    ) -> None:
        """What passed keeps to every rule; what tripped breaks one, and its loss is told as it is."""
        past, guard, time = self.past, self.guard, self.source.time
        truncated = "t" in work.truncated
        floor = guard.floors.get(("public", "t"), 0)
        lost = len(before.keys() - after.keys())
        shrinks = len(after) < len(before)
        became = 0
        for column in (1, 2):
            turned = Counter(
                row[column]
                for key, row in after.items()
                if key in before and before[key][column] != row[column]
            )
            became = max([became, *(rows for value, rows in turned.items() if value is None or rows > 1)])
        certain = {
            "truncate": truncated and bool(before) and guard.truncate == "hold",
            "floor": len(after) < floor and shrinks,
        }
        if not truncated:
            certain["delete"] = past.too_many(lost, len(before))
            certain["emptied"] = bool(before) and not after and time - past.filled >= DAY
            certain["update"] = past.turned(became, len(before))
        if isinstance(answer, Pass):
            assert not any(certain.values()), certain
            if shrinks and not truncated:
                # at the least: the table was not shorter than this for a step more than the judge looks at
                assert not past.drained(time, len(after), 71, 60, 61)
            changes = work.changes.get("t", [])
            kinds = [type(change).__name__ for change in changes]
            came, went = kinds.count("Insert"), kinds.count("Delete")
            past.note(time, len(before), len(after), came, went, settle=truncated)
        else:
            self.trips += 1
            assert any(certain.values()) or (shrinks and past.drained(time, len(after), 70, 61, 59))
            (loss,) = answer.losses
            if answer.kind == "update":
                assert loss.rows_lost == became
            elif certain["truncate"]:
                assert loss.rows_lost == len(before)
            elif "within" not in answer.message:
                assert loss.rows_lost == (len(before) if truncated else lost)
            assert self.source.tables["t"].rows == before
        self.source.check_counts()


@given(
    GUARDS,
    st.integers(0, 70),
    st.lists(
        st.tuples(st.sampled_from(WAYS), st.integers(1, 60), PAUSES, st.sampled_from([0, 0, 5])), max_size=25
    ),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_what_passes_keeps_to_the_rules(
    guard: GuardConfig, rows: int, acts: list[tuple[str, int, float, int]], full: bool
) -> None:
    """In one transaction, in many small ones, across the window's borders, mixed with whatever else: no wipe passes."""
    story = Story(guard, rows, full=full)
    for way, size, pause, part in acts:
        story.act(way, size, pause, part)


@given(
    st.lists(
        st.tuples(st.sampled_from(["insert", "refill", "rewrite", "update"]), st.integers(1, 60), PAUSES),
        max_size=25,
    ),
    st.sampled_from([0, 5]),
    st.booleans(),
)
@settings(deadline=None)
def test_without_a_loss_nothing_trips(acts: list[tuple[str, int, float]], part: int, full: bool) -> None:
    """Under the strictest rules there are: nothing may go, and nothing may be turned."""
    guard = GuardConfig(max_delete_rows=0, max_update_fraction=0.001, min_table_rows=0)
    story = Story(guard, 40, full=full)
    for way, size, pause in acts:
        story.act(way, size, pause, part)
    assert not story.trips


@given(
    st.lists(st.tuples(st.integers(1, 9), PAUSES, st.booleans()), max_size=60),
    st.integers(0, 60),
    st.sampled_from([1, 3, 29]),
)
@settings(deadline=None)
def test_a_wipe_within_a_window_is_stopped(
    before: list[tuple[int, float, bool]], quiet: int, size: int
) -> None:
    """Whatever went on before: of a table that has stood for a while, at most the share that may go goes in a minute."""
    story = Story(GuardConfig(), 300, full=False)
    for count, pause, grows in before:
        story.act("insert" if grows else "update", count, pause, 0)
    rows = story.source.tables["t"].rows
    story.source.time += (75 + quiet) * SECOND
    stood = len(rows)
    for _ in range(stood // size):
        story.commit("delete", size, 59 * size / stood, 0)
        if story.trips:
            break
    assert story.trips
    assert len(rows) >= stood * 0.7 > len(rows) - size
