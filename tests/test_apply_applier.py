"""The applier on a real target: progress and rows in one commit, whatever is cut off, repeated or refused."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import LiteralString

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from fix_mirror import contents
from fix_recorder import Recorder
from fix_servers import Pair, Servers, connect, drop_database, majors, wait_until
from pglockstep.apply.applier import Applier
from pglockstep.apply.batch import BARRIER_PREFIX
from pglockstep.errors import (
    ApplyRefused,
    LockstepError,
    ProtocolViolation,
    RowsDiffer,
    TargetBusy,
    TargetError,
    TargetUnreachable,
)
from pglockstep.postgres.connect import End
from pglockstep.postgres.connect import connect as connect_end
from pglockstep.progress import target as progress
from pglockstep.units import Lsn
from pglockstep.wal.frames import unix_time
from pglockstep.wal.messages import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    Truncate,
    TypeName,
    Update,
)

#: Where the target's progress stands at first, in the tests that make their messages by themselves.
START = Lsn(1000)

# --- a target --------------------------------------------------------------------------------------


class Target:
    """A target with a link's progress in it."""

    def __init__(self, conninfo: str, sets_from: int) -> None:
        self.end = End("target", "test", conninfo, lock_timeout=0.2)
        self.sets_from = sets_from
        self.conn = connect(conninfo)
        self.link = ""

    def ready(self, at: Lsn = START, *statements: LiteralString) -> None:
        """Create what is there, and note that the first copy is complete as of `at`."""
        for statement in statements:
            self.conn.execute(statement)

        async def create() -> str:
            conn = await connect_end(self.end, "copy")
            async with conn:
                record = await progress.create(conn, "test", "source")
                await progress.complete_copy(conn, record.id, at)
                return record.id

        self.link = asyncio.run(create())

    @property
    def progress(self) -> Lsn:
        """What is stored, seen from outside of the applier's session."""
        row = self.conn.execute("select lsn::text from pglockstep.progress").fetchone()
        assert row is not None
        return Lsn.parse(row[0])

    @asynccontextmanager
    async def applying(
        self,
        *,
        careful: bool = False,
        role: str = "replica",
        at_barrier: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Applier]:
        """An applier on a session of its own, from the stored progress; what it left open is lost."""
        conn = await connect_end(self.end, "apply", session_replication_role=role)
        try:
            record = await progress.read(conn)
            assert record is not None
            assert record.progress is not None
            applier = Applier(
                self.end,
                conn,
                record.id,
                record.progress,
                careful=careful,
                sets_from=self.sets_from,
                at_barrier=at_barrier,
            )
            await applier.load_tables()
            yield applier
        finally:
            await conn.close()

    def apply(self, *batches: Sequence[Message], careful: bool = False, role: str = "replica") -> Applier:
        """Apply batches of messages in a session of their own, and leave it."""

        async def apply() -> Applier:
            async with self.applying(careful=careful, role=role) as applier:
                for batch in batches:
                    await applier.apply(batch)
                return applier

        return asyncio.run(apply())

    def refuses(
        self, kind: type[LockstepError], *batches: Sequence[Message], careful: bool = False
    ) -> LockstepError:
        """The error that applying ends with; it has to leave rows and progress as they were."""
        before = self.progress, contents(self.conn)
        with pytest.raises(kind) as caught:
            self.apply(*batches, careful=careful)
        assert (self.progress, contents(self.conn)) == before
        assert type(caught.value) is kind
        return caught.value


@pytest.fixture(scope="module")
def database(servers: Servers) -> Iterator[str]:
    """One database for all of these tests, of the newest version."""
    server, name = servers.target(majors[-1]), f"applied {secrets.token_hex(4)}"
    with connect(server.conninfo()) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    yield server.conninfo(name)
    drop_database(server, name)


@pytest.fixture(params=[1, 1_000_000], ids=["sets", "rows"])
def target(request: pytest.FixtureRequest, database: str) -> Iterator[Target]:
    """A target with nothing in it yet; changes go to it as sets however few they are, or row by row however many."""
    made = Target(database, request.param)
    with made.conn:
        yield made
        made.conn.execute(
            "drop schema if exists pglockstep cascade; drop schema public cascade; create schema public"
        )


# --- messages made by hand -------------------------------------------------------------------------

TABLE = "create table t (id int primary key, v text)"
T = Relation(7, "public", "t", "d", (RelationColumn("id", 23, -1, True), RelationColumn("v", 25, -1, False)))


def insert(number: int, value: str = "x") -> Insert:
    """A row of table t."""
    return Insert(7, (str(number).encode(), value.encode()))


def update(number: int, value: str) -> Update:
    """A change of a row of table t."""
    return Update(7, (str(number).encode(), value.encode()))


def transaction(commit: int, end: int, *changes: Message) -> list[Message]:
    """One whole transaction, whose commit record goes from `commit` to `end`."""
    return [Begin(commit, 0, 1), *changes, Commit(commit, end, 0)]


# --- progress and rows -----------------------------------------------------------------------------


def test_progress_moves_with_the_rows(target: Target) -> None:
    """After every transaction the stored progress is its end, and nobody ever sees one without the other."""
    target.ready(START, TABLE)

    async def apply() -> None:
        async with target.applying() as applier:
            for number in range(5):
                begin, *changes, commit = transaction(
                    1000 + number * 100, 1050 + number * 100, T, insert(number)
                )
                before = target.progress, contents(target.conn)
                await applier.apply([begin, *changes])
                assert (applier.in_transaction, target.progress, contents(target.conn)) == (True, *before)
                await applier.apply([commit])
                end = 1050 + number * 100
                assert (applier.in_transaction, applier.progress, target.progress) == (False, end, end)
                assert len(contents(target.conn)["public.t"]) == number + 1

    asyncio.run(apply())


def test_what_was_done_is_told(target: Target) -> None:
    """The applier counts transactions with changes and changes by kind, and knows the target's own positions."""
    target.ready(START, TABLE)
    moment = datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=UTC)
    time = round((moment.timestamp() - unix_time(0)) * 1_000_000)
    applier = target.apply(
        [*transaction(1000, 1010, T, insert(1), insert(2)), *transaction(1020, 1030, update(1, "a"))],
        transaction(1040, 1050),
        [
            Begin(1060, time, 9),
            Delete(7, (b"2", None), True),
            Truncate((7,), False, False),
            Commit(1060, 1070, time),
        ],
    )
    assert applier.transactions == 3
    assert applier.changes == {"insert": 2, "update": 1, "delete": 1, "truncate": 1}
    assert applier.last_applied_at is not None
    assert [each.source for each in applier.unflushed] == [1030, 1050, 1070]
    positions = [each.target for each in applier.unflushed]
    assert positions == sorted(positions)
    row = target.conn.execute("select commit_time from pglockstep.progress").fetchone()
    assert row == (moment,)


def test_transactions_at_hand_share_a_commit(target: Target) -> None:
    """Complete transactions of one batch are committed together, carefully each by itself."""
    target.ready(START, TABLE)
    batch = [each for n in range(10) for each in transaction(1000 + n * 10, 1005 + n * 10, T, insert(n))]
    assert len(target.apply(batch).unflushed) == 1
    batch = [each for n in range(10) for each in transaction(2000 + n * 10, 2005 + n * 10, T, insert(50 + n))]
    assert len(target.apply(batch, careful=True).unflushed) == 10


def test_care_ends_when_it_has_served(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past enough transactions without a refusal, the rest shares commits again."""
    monkeypatch.setattr("pglockstep.apply.applier._CAREFUL_TRANSACTIONS", 3)
    target.ready(START, TABLE)
    batch = [each for n in range(10) for each in transaction(1000 + n * 10, 1005 + n * 10, T, insert(n))]
    applier = target.apply(batch, careful=True)
    assert [each.source for each in applier.unflushed] == [1005, 1015, 1025, 1095]
    assert len(contents(target.conn)["public.t"]) == 10


def test_transactions_that_share_an_lsn(target: Target) -> None:
    """A commit record that starts where progress stands was never applied; one that ends there was."""
    target.ready(START, TABLE)
    first, second = transaction(1000, 1100, T, insert(1)), transaction(1100, 1200, T, insert(2))
    target.apply(first)
    target.apply(first + second)
    assert contents(target.conn) == {"public.t": ["(1,x)", "(2,x)"]}
    assert target.apply(first + second).transactions == 0
    assert target.progress == 1200


@pytest.mark.parametrize("careful", [False, True])
def test_a_repeated_stream_changes_nothing(target: Target, careful: bool) -> None:
    """What is applied already is skipped whole, mixed with new transactions in one batch too."""
    target.ready(START, "create table t (id int, v text)")
    unkeyed = Relation(7, "public", "t", "f", T.columns)
    old = [each for n in range(3) for each in transaction(1000 + n * 10, 1010 + n * 10, unkeyed, insert(1))]
    new = transaction(1030, 1040, insert(2))
    target.apply(old)
    applier = target.apply(old + new + transaction(1005, 1010, insert(9)), careful=careful)
    assert contents(target.conn) == {"public.t": ["(1,x)", "(1,x)", "(1,x)", "(2,x)"]}
    assert applier.progress == target.progress == 1040
    assert applier.changes == {"insert": 1}


def test_what_carries_no_rows_is_passed_over(target: Target) -> None:
    """Origins, names of types and other people's messages are no changes."""
    target.ready(START, TABLE)
    others = [Origin(1, "far"), TypeName(99, "public", "mood"), LogicalMessage(True, 1, "theirs", b"\xff")]
    applier = target.apply([LogicalMessage(False, 1, "theirs", b""), *transaction(1000, 1010, *others)])
    assert (applier.transactions, applier.progress, target.progress) == (0, 1010, 1010)


# --- more than the pipeline holds ------------------------------------------------------------------


def test_rows_of_a_large_table_are_looked_up(target: Target) -> None:
    """However many changes come at once, no batch reads the table, or its index from the beginning, to find them."""
    target.ready(START, TABLE, "insert into t select i, 'x' from generate_series(1, 200000) i", "analyze t")
    changed = range(150_001, 165_001)
    changes: list[Message] = [update(number, "y") for number in changed]
    changes += [Delete(7, (str(number).encode(), None), old_is_key=True) for number in changed]

    async def apply() -> None:
        async with target.applying() as applier:
            await applier.start()
            half = len(changes) // 2
            await applier.apply([T, *transaction(1000, 1100, *changes[:half])])
            await applier.apply(transaction(1100, 1200, *changes[half:]))

    asyncio.run(apply())
    read = wait_until(lambda: _read(target), what="the session's statistics")
    assert len(changes) <= read < 2 * len(changes)


def _read(target: Target) -> int:
    """How many rows of t, alive or not, have been read to find others; 0 while that is not told yet."""
    row = target.conn.execute(
        "select idx_tup_read + seq_tup_read from pg_stat_user_indexes join pg_stat_user_tables using (relid) "
        "where pg_stat_user_tables.relname = 't' and idx_tup_read > 0"
    ).fetchone()
    return row[0] if row else 0


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(1700, 1), (6, 700_000)], ids=["many rows", "large rows"])
def test_a_transaction_larger_than_the_pipeline(target: Target, rows: int, size: int, careful: bool) -> None:
    """However large a transaction is, nothing of it is seen before its end, and then all of it."""
    target.ready(START, TABLE)
    messages = transaction(1000, 1010, T, *(insert(n, "x" * size) for n in range(rows)))
    piece = len(messages) // 4

    async def apply() -> None:
        async with target.applying(careful=careful) as applier:
            for start in range(0, len(messages), piece):
                assert contents(target.conn) == {"public.t": []}
                await applier.apply(messages[start : start + piece])

    asyncio.run(apply())
    assert target.conn.execute("select count(*), min(length(v)) from t").fetchone() == (rows, size)
    assert target.progress == 1010


# --- crashes ---------------------------------------------------------------------------------------

#: Of each kind something: keys, none, duplicates, TOAST, identities, a group to truncate.
TABLES: tuple[LiteralString, ...] = (
    "create table keyed (id int primary key, v text, big text)",
    "alter table keyed alter big set storage external",
    "create table log (v text)",
    "alter table log replica identity full",
    "create table numbered (id int primary key, n int generated always as identity)",
    "create table child (id int primary key, parent int references numbered)",
)

STEPS: tuple[LiteralString, ...] = (
    "insert into keyed values (1, 'a', repeat('x', 4000)), (2, 'b', null); insert into log values ('a'), ('a')",
    "update keyed set v = 'c'; insert into log values ('a')",
    "update keyed set id = 3 where id = 1; delete from log where ctid = (select min(ctid) from log)",
    "insert into numbered (id) values (1), (2), (3); insert into child values (1, 1), (2, 3)",
    "update numbered set n = default where id = 2; update log set v = 'b' where ctid = (select max(ctid) from log)",
    "truncate child, numbered; insert into log values (null), ('a')",
    "insert into numbered (id) values (4); delete from keyed where id = 2",
)


def live(pair: Pair) -> Iterator[Message]:
    """Do `STEPS` on a source and more beside them, so that some transactions end where the next one's commit starts."""
    source, other = pair.on_source(), pair.on_source()
    with Recorder(pair.source) as recorder:
        for number, step in enumerate(STEPS):
            source.execute("begin")
            other.execute("begin")
            source.execute(step)
            other.execute("insert into log values (%s), ('a')", [f"other {number}"])
            first, second = (source, other) if number % 2 else (other, source)
            first.execute("commit")
            second.execute("commit")
            with source.transaction(force_rollback=True):
                source.execute("insert into log values ('never')")
            source.execute("select pg_logical_emit_message(%s, 'theirs', '')", [number % 2 == 0])
        yield from recorder.messages()


def chunks(messages: Sequence[Message], sizes: Sequence[int]) -> Iterator[Sequence[Message]]:
    """`messages` in pieces of these sizes, over and over."""
    start, turn = 0, 0
    while start < len(messages):
        size = sizes[turn % len(sizes)]
        yield messages[start : start + size]
        start, turn = start + size, turn + 1


@pytest.mark.superusers
@pytest.mark.parametrize("careful", [False, True], ids=["batches", "careful"])
def test_a_crash_loses_nothing_and_repeats_nothing(pair: Pair, target: Target, careful: bool) -> None:
    """Cut off at any messages, any number of times, and started again with the whole stream: the target is the source.

    After each crash the rows are just those of the stored progress. While nothing is in flight progress may
    follow the source's own position, as far as where the next commit record starts.
    """
    source = pair.on_source()
    for statement in TABLES:
        source.execute(statement)
    row = source.execute("select pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    start = Lsn.parse(row[0])
    target.ready(start, *TABLES)
    messages = list(live(pair))
    commits = [message for message in messages if isinstance(message, Commit)]
    assert len(commits) == 2 * len(STEPS) + (len(STEPS) + 1) // 2
    assert any(one.end_lsn == two.commit_lsn for one, two in pairwise(commits))

    # what the rows are at each position, from a run that nothing disturbs
    states = {start: contents(target.conn)}
    for number, message in enumerate(messages):
        if isinstance(message, Commit):
            target.apply(messages[: number + 1])
            states[Lsn(message.end_lsn)] = contents(target.conn)
    assert states[Lsn(commits[-1].end_lsn)] == contents(source)

    def start_over() -> None:
        target.conn.execute("truncate keyed, log, numbered, child")
        target.conn.execute("update pglockstep.progress set lsn = %s", [str(start)])

    async def session(cut: int, sizes: Sequence[int], *, follow: bool) -> None:
        async with target.applying(careful=careful) as applier:
            done = 0
            for chunk in chunks(messages[:cut], sizes):
                await applier.apply(chunk)
                done += len(chunk)
                following = [each.final_lsn for each in messages[done:] if isinstance(each, Begin)]
                if follow and following and not applier.in_transaction:
                    await applier.move_progress(Lsn(following[0]))

    cuts = st.tuples(
        st.integers(0, len(messages)), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.booleans()
    )

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.lists(cuts, min_size=1, max_size=3))
    def crash(sessions: list[tuple[int, list[int], bool]]) -> None:
        start_over()
        for cut, sizes, follow in sessions:
            asyncio.run(session(cut, sizes, follow=follow))
            reached = max(lsn for lsn in states if lsn <= target.progress)
            assert contents(target.conn) == states[reached]
        asyncio.run(session(len(messages), [len(messages)], follow=False))
        assert contents(target.conn) == contents(source)
        assert target.progress == commits[-1].end_lsn

    crash()


def test_a_session_that_is_killed(target: Target) -> None:
    """A target that goes away in the middle of a transaction is unreachable for now, and kept nothing of it."""
    target.ready(START, TABLE)
    begin, *changes, commit = transaction(1000, 1010, T, *map(insert, range(10)))

    async def apply() -> None:
        async with target.applying() as applier:
            await applier.apply([begin, *changes])
            target.conn.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name like %s",
                ["pglockstep apply %"],
            )
            with pytest.raises(TargetUnreachable) as caught:
                await applier.apply([commit])
            assert caught.value.transient

    asyncio.run(apply())
    assert (contents(target.conn), target.progress) == ({"public.t": []}, START)
    target.apply([begin, *changes, commit])
    assert len(contents(target.conn)["public.t"]) == 10


# --- what the target refuses -----------------------------------------------------------------------


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("change", [update(5, "b"), Delete(7, (b"5", None), True)], ids=["update", "delete"])
def test_a_row_that_is_not_there(target: Target, change: Message, careful: bool) -> None:
    """A change that finds no row stops with table, key and hint, and nothing of its transaction stays."""
    target.ready(START, TABLE, "insert into t values (1, 'a')")
    changes = [update(1, "b"), *map(insert, range(100, 1300)), change, insert(6)]
    error = target.refuses(RowsDiffer, transaction(1000, 1010, T, *changes), careful=careful)
    verb = type(change).__name__.upper()
    assert error.message.startswith(f"the {verb} of public.t where id = '5' found 0 rows on the target")
    assert "pglockstep check" in error.hint
    assert not error.transient


def test_a_refused_batch_and_its_careful_repetition(target: Target) -> None:
    """A batch goes back whole; carefully, the transactions before the refused one are committed."""
    target.ready(START, TABLE)
    good, bad = transaction(1000, 1010, T, insert(1)), transaction(1020, 1030, insert(2), update(5, "b"))
    target.refuses(RowsDiffer, good + bad)
    with pytest.raises(ApplyRefused, match="where id = '5' found 0 rows"):
        target.apply(good + bad, careful=True)
    assert (contents(target.conn), target.progress) == ({"public.t": ["(1,x)"]}, 1010)


def test_rows_of_one_key(target: Target) -> None:
    """A key that names two rows on the target is refused as well: neither of them is guessed at."""
    target.ready(START, "create table t (id int, v text)", "insert into t values (1, 'a'), (1, 'b')")
    error = target.refuses(RowsDiffer, transaction(1000, 1010, T, update(1, "c")))
    assert "found 2 rows on the target instead of one" in error.message


def test_careful_mode_names_the_statement(target: Target) -> None:
    """A statement that the target refuses is named by verb, table and key when it is tried by itself."""
    target.ready(START, "create table t (id int primary key, v text check (v <> 'bad'))")
    refused = transaction(1000, 1010, T, insert(1), insert(2, "bad"), insert(3))
    error = target.refuses(TargetError, refused)
    assert "violates check constraint" in error.message
    error = target.refuses(ApplyRefused, refused, careful=True)
    assert error.message.startswith(
        "the target refused the INSERT of public.t where id = '2': new row for relation"
    )
    assert "public.t" in error.hint


def test_a_locked_table_is_no_refusal(target: Target) -> None:
    """What passes by itself is tried again by the link: carefully too, it is not called a refusal."""
    target.ready(START, TABLE)
    for careful in (False, True):
        with connect(target.end.conninfo) as other, other.transaction():
            other.execute("lock table t in share mode")
            error = target.refuses(TargetBusy, transaction(1000, 1010, T, insert(1)), careful=careful)
        assert error.transient


def test_a_constraint_that_speaks_at_the_commit(target: Target) -> None:
    """A deferred constraint is judged at the commit; what it refuses leaves nothing, progress neither."""
    target.ready(START, "create table p (id int primary key)", TABLE)
    target.conn.execute("alter table t add foreign key (id) references p deferrable")
    with pytest.raises(TargetError, match="violates foreign key"):
        target.apply(transaction(1000, 1010, T, insert(1)), role="origin")
    assert (contents(target.conn)["public.t"], target.progress) == ([], START)
    parent = Relation(8, "public", "p", "d", T.columns[:1])
    target.apply(transaction(1000, 1010, T, insert(1), parent, Insert(8, (b"1",))), role="origin")
    assert contents(target.conn) == {"public.p": ["(1)"], "public.t": ["(1,x)"]}


def test_a_table_that_the_target_lacks(target: Target) -> None:
    """A table that is not there is named, with both ways out."""
    target.ready(START)
    odd = Relation(7, "public", "Odd %s", "d", T.columns)
    error = target.refuses(ApplyRefused, transaction(1000, 1010, odd, insert(1)))
    assert error.message == 'table public."Odd %s" is not on the target'
    assert "exclude" in error.hint


def test_tables_made_or_altered_meanwhile(target: Target) -> None:
    """A table made, or put right, after the catalog was read is found when the stream comes to it."""
    target.ready(START)

    async def apply() -> None:
        async with target.applying() as applier:
            target.conn.execute("create table t (id int primary key)")
            with pytest.raises(ApplyRefused, match="no column v"):
                await applier.apply(transaction(1000, 1010, T, insert(1)))
        async with target.applying() as applier:
            target.conn.execute("alter table t add v text")
            await applier.apply(transaction(1000, 1010, T, insert(1)))
            target.conn.execute("alter table t add w text")
            wider = Relation(7, "public", "t", "d", (*T.columns, RelationColumn("w", 25, -1, False)))
            await applier.apply(transaction(1020, 1030, wider, Insert(7, (b"2", b"b", b"c"))))

    asyncio.run(apply())
    assert contents(target.conn) == {"public.t": ["(1,x,)", "(2,b,c)"]}


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        (("real", 700), ("double precision", 701), "0.1"),
        (("integer", 23), ("text", 25), "007"),
        (("date", 1082), ("timestamp", 1114), "2024-02-29 12:30:00"),
        (("integer", 23), ("public.small", 99_999), "7"),
    ],
)
def test_a_column_that_changes_its_type(
    target: Target, before: tuple[LiteralString, int], after: tuple[LiteralString, int], value: str
) -> None:
    """Once both ends have another type, values arrive as they are: nothing of the old type is left in the session."""
    name, oid = before
    target.conn.execute("create domain small as int")
    target.conn.execute(sql.SQL("create table t (id int primary key, v {})").format(sql.SQL(name)))
    target.ready(START)

    async def apply() -> None:
        async with target.applying() as applier:
            old = Relation(7, "public", "t", "d", (T.columns[0], RelationColumn("v", oid, -1, False)))
            new = Relation(7, "public", "t", "d", (T.columns[0], RelationColumn("v", after[1], -1, False)))
            null = Insert(7, (b"1", None))
            await applier.apply(transaction(1000, 1010, old, null))
            target.conn.execute(
                sql.SQL("alter table t alter v type {0} using null").format(sql.SQL(after[0]))
            )
            await applier.apply(transaction(1020, 1030, new, Insert(7, (b"2", value.encode()))))

    asyncio.run(apply())
    assert target.conn.execute("select v::text from t where id = 2").fetchone() == (value,)


def family(*names: str) -> list[Relation]:
    """Tables of one column, with their numbers as OIDs."""
    return [Relation(10 + n, "public", name, "d", T.columns[:1]) for n, name in enumerate(names)]


def test_truncate_of_partitioned_families(target: Target) -> None:
    """The leaves of tables that refer to one another are emptied together, though their roots are not named."""
    target.ready(
        START,
        "create table p (id int primary key) partition by list (id)",
        "create table p1 partition of p for values in (1)",
        "create table p2 partition of p for values in (2)",
        "create table q (id int references p) partition by list (id)",
        "create table q1 partition of q for values in (1)",
        "create table q2 partition of q for values in (2)",
        "insert into p values (1), (2)",
        "insert into q values (1), (2)",
    )
    leaves = family("p1", "p2", "q1", "q2")
    messages = transaction(1000, 1010, *leaves, Truncate((10, 11, 12, 13), False, False), Insert(10, (b"1",)))
    target.refuses(TargetError, messages)
    target.apply(messages, careful=True)
    rows = {"public.p1": ["(1)"], "public.p2": [], "public.q1": [], "public.q2": []}
    assert (contents(target.conn), target.progress) == (rows, 1010)


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize("then", ["cascade", "set null"])
def test_truncate_takes_nothing_along(target: Target, role: str, then: LiteralString) -> None:
    """Rows that refer to a truncated table on the target alone are neither deleted nor changed for its sake."""
    target.ready(
        START,
        "create table a (id int primary key)",
        "create table ours (id int references a on delete cascade)",
        "insert into a values (1)",
        "insert into ours values (1)",
    )
    target.conn.execute(
        sql.SQL(
            "alter table ours drop constraint ours_id_fkey, add foreign key (id) references a on delete {}"
        ).format(sql.SQL(then))
    )
    messages = transaction(1000, 1010, *family("a"), Truncate((10,), False, False))
    with suppress(TargetError):
        target.apply(messages, careful=True, role=role)
    assert contents(target.conn)["public.ours"] == ["(1)"]


# --- progress that is not ours ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "meddling",
    ["update pglockstep.progress set lsn = 'FF/0'", "delete from pglockstep.progress"],
    ids=["moved on", "gone"],
)
def test_progress_that_somebody_else_moved(target: Target, meddling: LiteralString) -> None:
    """Where progress is not as it was left, nothing is committed."""
    target.ready(START, TABLE)

    async def apply() -> None:
        async with target.applying() as applier:
            target.conn.execute(meddling)
            with pytest.raises(ApplyRefused, match="progress on the target is gone or moved on"):
                await applier.apply(transaction(1000, 1010, T, insert(1)))

    asyncio.run(apply())
    assert contents(target.conn) == {"public.t": []}


def test_progress_follows_an_idle_source(target: Target) -> None:
    """Between transactions progress moves with the source's position: forward, and never inside a transaction."""
    target.ready(START, TABLE)

    async def apply() -> None:
        async with target.applying() as applier:
            await applier.move_progress(Lsn(1500))
            assert (applier.progress, target.progress, applier.transactions) == (1500, 1500, 0)
            await applier.move_progress(Lsn(1400))
            assert target.progress == 1500
            begin, *changes, commit = transaction(1600, 1700, T, insert(1))
            for message in (begin, *changes):
                await applier.apply([message])
                await applier.move_progress(Lsn(1650))
                assert (applier.progress, target.progress) == (1500, 1500)
            await applier.apply([commit])
            assert target.progress == 1700
            # a transaction that is skipped is in flight all the same
            await applier.apply([Begin(1650, 0, 1)])
            await applier.move_progress(Lsn(1800))
            assert target.progress == 1700

    asyncio.run(apply())
    assert contents(target.conn) == {"public.t": ["(1,x)"]}


# --- barriers --------------------------------------------------------------------------------------


def test_barriers(target: Target) -> None:
    """Our own barrier calls for its work once, before its commit, and so does RESTART IDENTITY; others' do not."""
    target.ready(START, TABLE)
    seen: list[Lsn] = []

    async def at_barrier() -> None:
        # before its commit: what others see is still the progress of before
        seen.append(target.progress)

    def barrier(link: bytes) -> LogicalMessage:
        return LogicalMessage(True, 1, BARRIER_PREFIX, link)

    async def apply() -> None:
        async with target.applying(at_barrier=at_barrier) as applier:
            await applier.apply(
                transaction(1000, 1010, T, insert(1), barrier(b"another"), barrier(bytes([255])))
            )
            assert seen == []
            await applier.apply(transaction(1020, 1030, insert(2), barrier(target.link.encode()), insert(3)))
            assert seen == [1010]
            await applier.apply(transaction(1040, 1050, insert(4), Truncate((7,), False, False)))
            assert seen == [1010]
            # sequences that start again are behind at once, if the source's have moved on since
            await applier.apply(transaction(1060, 1070, Truncate((7,), False, True)))
            assert seen == [1010, 1050]

    asyncio.run(apply())
    assert target.progress == 1070


# --- a stream that is none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        pytest.param([Begin(1000, 0, 1), Begin(1010, 0, 2)], "inside another", id="begin in a transaction"),
        pytest.param([T, insert(1)], "outside of any transaction", id="change outside"),
        pytest.param([Truncate((7,), False, False)], "outside of any transaction", id="truncate outside"),
        pytest.param([Commit(1000, 1010, 0)], "that did not begin", id="commit outside"),
        pytest.param(transaction(1000, 1010, insert(1)), "did not describe", id="change of an unknown table"),
        pytest.param(
            transaction(1000, 1010, T, Truncate((7, 8), False, False)),
            "did not describe",
            id="truncate of an unknown table",
        ),
    ],
)
def test_a_stream_out_of_order(target: Target, messages: list[Message], said: str) -> None:
    """Messages in an order that no server sends stop the link before anything is committed."""
    target.ready(START, TABLE)
    error = target.refuses(ProtocolViolation, messages)
    assert said in error.message
