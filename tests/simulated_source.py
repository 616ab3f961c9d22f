"""A source and a target in a few dictionaries, with a judge between them: what passes it is committed on both."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pglockstep.config.sections import GuardConfig
from pglockstep.guard.answers import Answer, Ask, Pass, Question, Recount, Trip
from pglockstep.guard.judge import Gone, Judge
from pglockstep.guard.policy import Rulebook
from pglockstep.guard.transaction import Change, Shape, Tally, Transaction
from pglockstep.observe.incident import Allowance, Incident, Kind
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.messages import Delete, Insert, Row, Update, Value

SECOND = 1_000_000
DAY = 86_400 * SECOND
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

#: Rows by their first column, which is the key.
Rows = dict[Value, Row]


class Table:
    """A table with the key ``id``, or without any; then its first column just happens to be unique."""

    def __init__(self, name: str, rows: Sequence[Row], columns: Sequence[str], *, full: bool = False) -> None:
        self.shape = Shape(QualifiedName("public", name), tuple(columns), () if full else (0,))
        self.rows: Rows = {row[0]: row for row in rows}
        self.full = full


class Work:
    """One transaction being made: what it did, and what stood before."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.changes: dict[str, list[Change]] = {}
        self.before: dict[str, Rows] = {}
        self.fresh: dict[str, set[Value]] = {}
        self.truncated: set[str] = set()

    def rows(self, table: str) -> Rows:
        """The rows as the transaction sees them."""
        return self._source.tables[table].rows

    def insert(self, table: str, *row: Value) -> None:
        """Bring a row."""
        rows = self._touch(table, row[0])
        assert row[0] not in rows
        rows[row[0]] = row
        self._note(table, Insert(1, row))

    def delete(self, table: str, key: Value) -> None:
        """Take a row."""
        old = self._touch(table, key).pop(key)
        full = self._source.tables[table].full
        sent: Row = old if full else (key, *[None] * (len(old) - 1))
        self._note(table, Delete(1, sent, old_is_key=not full))

    def update(self, table: str, key: Value, *values: Value, to: Value = None) -> None:
        """Give the row of `key` other values, and another key if there is one in `to`."""
        rows = self._touch(table, key)
        now = key if to is None else to
        self._touch(table, now)
        old = rows.pop(key)
        assert now not in rows
        rows[now] = (now, *values)
        if self._source.tables[table].full:
            self._note(table, Update(1, rows[now], old))
        else:
            told: Row | None = None if to is None else (key, *[None] * len(values))
            self._note(table, Update(1, rows[now], told, old_is_key=to is not None))

    def truncate(self, table: str) -> None:
        """Take all rows at once."""
        rows = self.rows(table)
        for key in list(rows):
            self._touch(table, key)
        rows.clear()
        self.truncated.add(table)
        self.changes[table] = []

    def lost(self, table: str) -> int:
        """How many keys stood before and are gone, if no row got another key."""
        rows = self.rows(table)
        return sum(1 for key, row in self.before.get(table, {}).items() if row and key not in rows)

    def undo(self) -> None:
        """Have everything as it was."""
        for table, before in self.before.items():
            rows = self.rows(table)
            for key, row in before.items():
                if row:
                    rows[key] = row
                else:
                    rows.pop(key, None)

    def tallies(self) -> list[Tally]:
        """What the judge is told."""
        return [self._tally(table, self.changes[table]) for table in self.changes]

    def parts(self, size: int) -> list[list[Tally]]:
        """The same in parts of `size` changes."""
        if self.truncated:
            return [self.tallies()]
        return [
            [self._tally(table, changes[start : start + size])]
            for table, changes in self.changes.items()
            for start in range(0, len(changes), size)
        ]

    def answer(self, question: Question) -> int:
        """What the target has to say."""
        table, column, value = question.shape.name.name, question.column, question.value
        rows, before = self.rows(table), self.before.get(table, {})
        if question.keys is None:
            grown = 0
            for key, old in before.items():
                grown += rows.get(key, (None,) * 9)[column] == value if key in rows else 0
                grown -= bool(old) and old[column] == value
            return max(0, grown)
        stood = [before.get(key, rows.get(key, ())) for (key,) in question.keys]
        assert all(stood)
        return sum(1 for row in stood if row[column] != value)

    def _touch(self, table: str, key: Value) -> Rows:
        rows = self.rows(table)
        self.before.setdefault(table, {}).setdefault(key, rows.get(key, ()))
        return rows

    def _note(self, table: str, change: Change) -> None:
        self.changes.setdefault(table, []).append(change)

    def _tally(self, table: str, changes: Sequence[Change]) -> Tally:
        kinds = [type(change) for change in changes]
        return Tally(
            self._source.tables[table].shape,
            inserted=kinds.count(Insert),
            updated=kinds.count(Update),
            deleted=kinds.count(Delete),
            truncated=table in self.truncated,
            changes=lambda: changes,
        )


class Source:
    """Tables, a clock, and the judge that every transaction has to pass. Nothing is counted until a rule asks for it."""

    def __init__(self, guard: GuardConfig, *tables: Table) -> None:
        self.judge = Judge(Rulebook(guard))
        self.tables = {table.shape.name.name: table for table in tables}
        self.time = 20 * 365 * DAY
        self.lsn = 100
        self.xid = 700
        self.recounts = 0
        self.questions: list[Question] = []

    def count_all(self) -> None:
        """Count every table, as the first copy does."""
        for table in self.tables.values():
            self.judge.counts.seed(table.shape.name, len(table.rows), self.lsn, self.time)

    def begin(self) -> Work:
        """Begin a transaction."""
        return Work(self)

    def commit(self, work: Work, *, after: float = 0, part: int = 0) -> Pass | Trip:
        """Commit `work`, so many seconds later, in parts of so many changes if `part`; undone if it trips."""
        self.time += round(after * SECOND)
        self.lsn += 10
        self.xid += 1
        answer = self.tell(work, part=part)
        if isinstance(answer, Trip):
            work.undo()
        return answer

    def transaction(self, tallies: Sequence[Tally] = ()) -> Transaction:
        """The latest transaction."""
        return Transaction(self.xid, self.lsn, self.lsn + 10, self.time, tallies)

    def tell(self, work: Work, *, part: int = 0) -> Pass | Trip:
        """Have the judge judge it, and give it what it asks for."""
        whole = self.transaction(work.tallies())
        if part:
            for tallies in work.parts(part):
                answer: Answer = self.judge.part(self.transaction(tallies))
                if isinstance(answer, Trip):
                    return answer
        for _ in range(2):
            answer = self.judge.end(whole) if part else self.judge.judge(whole)
            if not isinstance(answer, Recount):
                break
            self.recounts += 1
            for name in answer.tables:
                before = work.before.get(name.name, {})
                rows = work.rows(name.name)
                stood = len(rows) - sum(1 for key, row in before.items() if key in rows and not row)
                stood += sum(1 for key, row in before.items() if row and key not in rows)
                self.judge.counts.seed(name, stood, self.lsn, self.time)
        if isinstance(answer, Ask):
            self.questions += answer.questions
            answer = self.judge.answer([work.answer(each) for each in answer.questions])
        assert isinstance(answer, (Pass, Trip))
        return answer

    def drop(self, *tables: str, how: str = "dropped") -> Pass | Trip:
        """Drop tables."""
        gone = [Gone(QualifiedName("public", table), how) for table in tables]
        answer = self.judge.dropped(gone, self.time)
        if isinstance(answer, Recount):
            for name in answer.tables:
                self.judge.counts.seed(name, len(self.tables[name.name].rows), self.lsn, self.time)
            answer = self.judge.dropped(gone, self.time)
        assert isinstance(answer, (Pass, Trip))
        return answer

    def check_counts(self) -> None:
        """What the judge believes is so."""
        for table in self.tables.values():
            assert self.judge.counts.rows(table.shape.name) in (None, len(table.rows))

    def incident(self, trip: Trip) -> Incident:
        """The incident that the latest transaction is held by."""
        return Incident(
            link="main",
            side="source",
            kind=trip.kind,
            message=trip.message,
            tables=trip.losses,
            opened_at=EPOCH + timedelta(microseconds=self.time),
            xid=self.xid,
            lsn=str(Lsn(self.lsn)),
        )

    def allowance(
        self, id: str, table: str, rows: int, *, kind: Kind | None = None, seconds: float | None = None
    ) -> Allowance:
        """An allowance; announced for so many seconds, or remembered."""
        now = EPOCH + timedelta(microseconds=self.time)
        until = None if seconds is None else now + timedelta(seconds=seconds)
        return Allowance(id=id, schema="public", table=table, rows=rows, kind=kind, until=until, at=now)


def numbered(count: int, *values: Value) -> list[Row]:
    """Rows with the keys 0, 1, 2, …, and the same values otherwise."""
    return [(b"%d" % number, *values) for number in range(count)]
