"""The session that repeats a source's transactions on the target.

Its promise: progress moves in the very commit that carries the rows, so a crash at any instruction repeats
nothing and loses nothing. Nothing is skipped: a row that is not there, or that the target refuses, ends the
session, and its open transaction is rolled back.

A table's few changes go row by row, in one exchange with the target; many go as sets. A set that the target
refuses, because unique values change hands inside of it, is repeated row by row in the source's order.

In *careful* mode every transaction commits by itself and statements go one at a time: slower, but a refusal
names its statement. It is how a failed batch is tried again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncCursor, sql
from psycopg.adapt import Dumper
from psycopg.rows import TupleRow

from pglockstep import failpoints
from pglockstep.apply.batch import BatchBuilder, Gate
from pglockstep.apply.net import Irregular
from pglockstep.apply.runs import Batch, Run
from pglockstep.apply.session import Outcome, Query, Session
from pglockstep.apply.sets import TableSets
from pglockstep.apply.staging import Staging
from pglockstep.apply.statements import Keeping, Statement
from pglockstep.errors import ApplyRefused, RowsDiffer, TargetError
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, is_gone, translate, translated
from pglockstep.postgres.names import OUR_SCHEMA, QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.frames import unix_time
from pglockstep.wal.messages import Commit, Message, Relation

#: From how many changes on a table's run goes as sets: below, the statements of rows cost less than a set's.
SETS_FROM = 40
#: Statements sent to the target before their results are read, and their parameters' bytes.
_PIPELINED = 1000
_PIPELINED_BYTES = 1 << 20
#: How many transactions in careful mode are enough to be past the one that was refused.
_CAREFUL_TRANSACTIONS = 1000

#: A set's rows are to be found by their index, unless they are a good part of the table: left to itself the planner
#: would read much of the table again for every batch, and would read an index from its beginning for a merge.
_PLANNING = b"SET jit = off; SET enable_mergejoin = off; SET random_page_cost = 1.1; SET seq_page_cost = 20"
_BEGIN = (b"BEGIN", b"SET CONSTRAINTS ALL DEFERRED")
#: Fails, and the transaction with it, unless just our row moves, and forwards.
_MOVE_PROGRESS = b"""
WITH moved AS (
    UPDATE pglockstep.progress
    SET lsn = $1::pg_lsn, commit_time = coalesce($2::timestamptz, commit_time),
        written_at = pg_catalog.clock_timestamp()
    WHERE link = $3 AND lsn <= $1::pg_lsn
    RETURNING 1
)
SELECT CASE count(*) WHEN 1 THEN 1 ELSE ('pglockstep.progress: ' || count(*))::integer END FROM moved
"""
#: For statements that keep what they delete: up to where the source's transactions reach that are applied together.
UPTO = sql.SQL("pg_catalog.current_setting('pglockstep.upto')::pg_lsn")
_SET_UPTO = b"SELECT pg_catalog.set_config('pglockstep.upto', $1, false)"
_PROGRESS = QualifiedName(OUR_SCHEMA, "progress")
_POSITION: Query = (b"SELECT pg_catalog.pg_current_wal_insert_lsn()::text", ())


class _SourceText(Dumper):
    """Hands a value's bytes on as they came: text whose type the target's own column decides."""

    oid = 0

    def dump(self, obj: bytes) -> bytes:
        return obj


class Commitment(msgspec.Struct, frozen=True):
    """`source` is complete on the target once the target's WAL is flushed up to `target`."""

    target: Lsn
    source: Lsn


class Applier:
    """Applies batches in order. One instance lives as long as its connection, which already holds the lock.

    `catalog_conn`, if it is another one, is where the target's catalog is read while a batch is under way;
    `copied` are the tables that were copied later than `progress`, and as of when. `at_barrier` is awaited before the
    commit of a batch with a barrier, or of rows of which `outran`, told of each table's inserts, says so. `gate`: who
    is asked before a transaction goes on. `keeping`: as `TableWriter` takes it; what it makes may read `UPTO`. `emptying` is
    awaited with tables before they are emptied, in that transaction, and with up to where the batch reaches. `followed`:
    the target's tables by the OIDs of the source's that they follow, whatever these are called there by now.
    """

    def __init__(
        self,
        end: End,
        conn: AsyncConnection[TupleRow],
        link: str,
        progress: Lsn,
        *,
        careful: bool = False,
        sets_from: int = SETS_FROM,
        at_barrier: Callable[[], Awaitable[None]] | None = None,
        outran: Callable[[QualifiedName, int], bool] | None = None,
        catalog_conn: AsyncConnection[TupleRow] | None = None,
        copied: Mapping[QualifiedName, Lsn] | None = None,
        gate: Gate | None = None,
        keeping: Keeping | None = None,
        emptying: Callable[[Sequence[Table], Lsn], Awaitable[None]] | None = None,
        followed: Mapping[int, QualifiedName] | None = None,
    ) -> None:
        self._followed = followed or {}
        self._end = end
        self._conn = conn
        self._session = Session(conn)
        self._staging = Staging(end, self._session)
        self._catalog_conn = catalog_conn or conn
        self._link = link
        self._sets_from = sets_from
        self._at_barrier = at_barrier
        self._outran = outran
        self._tables: dict[QualifiedName, Table] = {}
        self._sets: dict[QualifiedName, TableSets] = {}
        self._numbered = 0
        self._pending: list[Statement] = []
        self._pending_bytes = 0
        self._open = False
        self._carry = False
        self._group: Counter[str] = Counter()
        self._careful = careful
        #: gathers messages into the batches that `run` takes
        self.builder = BatchBuilder(link, progress, self._table, copied=copied, gate=gate, keeping=keeping)
        self._keeps = keeping is not None
        self._emptying = emptying
        self.builder.one_by_one = careful
        self.progress = progress
        self.transactions = 0
        self.changes: Counter[str] = Counter()
        #: runs that went as sets, and runs that had to be repeated row by row
        self.sets = 0
        self.clashes = 0
        self.last_applied_at: datetime | None = None
        #: tables that a TRUNCATE of the source's emptied here; whoever looks at the target's files takes them from here
        self.truncated: set[QualifiedName] = set()
        #: commits that the target has made but perhaps not yet flushed, oldest first
        self.unflushed: deque[Commitment] = deque()
        conn.adapters.register_dumper(bytes, _SourceText)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open here, or has begun on its way from the source."""
        return self._open or self.builder.in_transaction

    async def start(self) -> None:
        """Before the first message: read the target's catalog, and see how far its WAL is.

        An earlier session may have committed our progress without waiting for the disk.
        """
        with translate(self._end):
            await self._session.script(_PLANNING)
            (position,) = await self._session.run([_POSITION])
        self._note_commit(position, self.progress)
        await self.load_tables()

    async def load_tables(self) -> None:
        """Read the target's catalog."""
        with translate(self._end):
            self._tables = {table.name: table for table in await catalog.tables(self._catalog_conn)}

    async def describe(self, relation: Relation) -> None:
        """Take a table's description; raises `ApplyRefused` if the target's table does not fit it."""
        name = self._name_here(relation)
        if name not in self._tables or self.builder.knows(relation.relation_id):
            # described anew: both ends may have been altered
            await self.load_tables()
            name = self._name_here(relation)
        try:
            self.builder.describe(relation, self._table(name))
        except ApplyRefused:
            # the target may have been altered since its catalog was read
            await self.load_tables()
            self.builder.describe(relation, self._table(name))

    def announce(self, relation: Relation) -> None:
        """Note a description that was sent before the first message; the table may have gone since."""
        name = self._name_here(relation)
        self.builder.announce(msgspec.structs.replace(relation, schema=name.schema, name=name.name))

    def _name_here(self, relation: Relation) -> QualifiedName:
        """The target's table: what follows this very table, whatever it and others are called by now; else that of its name."""
        return self._followed.get(relation.relation_id) or QualifiedName(relation.schema, relation.name)

    def _table(self, name: QualifiedName) -> Table:
        if name not in self._tables:
            raise ApplyRefused(
                f"table {name} is not on the target",
                hint=f"create it there as it is on the source, or leave it out with exclude = ['{name}']",
            )
        return self._tables[name]

    async def apply(self, messages: Sequence[Message]) -> None:
        """Apply messages as they come; every transaction that is complete afterwards is committed."""
        for message in messages:
            if isinstance(message, Relation):
                await self.describe(message)
            else:
                self.builder.take(message, 0)
            while self.builder.full:
                await self.run(self.builder.seal())
        if self.builder.ready:
            await self.run(self.builder.seal())

    async def run(self, batch: Batch) -> None:
        """Apply a batch, and commit it unless it ends in the middle of a transaction."""
        self._carry = self._carry or batch.carry
        if self._keeps and batch.deletes:
            upto = str(Lsn(batch.upto)).encode()
            await self._add(Statement(_SET_UPTO, (upto,), "SELECT", _PROGRESS, one_row=False))
        for step in batch.steps:
            if isinstance(step, Statement):
                self._group["truncate"] += 1
                self.truncated.update(step.emptied)
                await self._flush()
                if self._emptying is not None:
                    await self._begin()
                    with translate(self._end):
                        await self._emptying([self._table(name) for name in step.emptied], Lsn(batch.upto))
                await self._add(step)
                await self._flush()
            else:
                for run in step.values():
                    await self._run(run)
        if batch.commit is None:
            await self._flush()
            failpoints.reach("apply.part")
            return
        await self._commit(Lsn(batch.commit.end_lsn), batch.commit)
        self.transactions += batch.transactions
        self.changes += self._group
        self._group.clear()
        self.last_applied_at = datetime.now(UTC)
        if self.transactions >= _CAREFUL_TRANSACTIONS:
            self._careful = self.builder.one_by_one = False

    async def move_progress(self, lsn: Lsn) -> None:
        """Note that the source has nothing to send before `lsn`; only between transactions."""
        if lsn > self.progress and not self.in_transaction:
            await self._commit(lsn, None)

    async def _run(self, run: Run) -> None:
        counts = {"insert": run.inserted, "update": run.updated, "delete": run.deleted}
        for kind, count in counts.items():
            if count:
                self._group[kind] += count
        if run.inserted and self._outran is not None and self._outran(run.writer.table.name, run.inserted):
            self._carry = True
        if not self._careful and len(run) >= self._sets_from and await self._as_sets(run):
            return
        statement = run.writer.statement
        for change in run.changes:
            await self._add(statement(change))

    async def _as_sets(self, run: Run) -> bool:
        """Carry out a run as sets; false, with nothing done, if it has to go row by row."""
        sets = self._sets.get(run.writer.table.name)
        if sets is None or sets.writer is not run.writer:
            self._numbered += 1
            sets = self._sets[run.writer.table.name] = TableSets(run.writer, self._numbered)
        if not sets.fits:
            return False
        try:
            steps = sets.of(run)
        except Irregular:
            return False
        await self._flush()
        begin, self._open = () if self._open else _BEGIN, True
        if await self._staging.carry_out(steps, begin):
            self.sets += 1
            return True
        self.clashes += 1
        return False

    async def _add(self, statement: Statement) -> None:
        self._pending.append(statement)
        self._pending_bytes += sum(len(value) for value in statement.parameters if value is not None)
        if len(self._pending) >= _PIPELINED or self._pending_bytes >= _PIPELINED_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """Run what is pending, and see that each statement touched what it should."""
        if not self._pending:
            return
        if self._careful:
            await self._run_one_by_one(self._take_pending())
        else:
            await self._exchange([])

    async def _exchange(self, then: Sequence[Query]) -> list[Outcome]:
        """Run what is pending, and `then`, in one exchange; returns what `then` came to."""
        begin = [] if self._open else [(each, ()) for each in _BEGIN]
        statements = self._take_pending()
        queries = [*begin, *((each.query, each.parameters) for each in statements), *then]
        self._open = True
        with translate(self._end):
            outcomes = await self._session.run(queries)
        for statement, outcome in zip(statements, outcomes[len(begin) :], strict=False):
            _demand_one_row(statement, outcome.rows)
        return outcomes[len(outcomes) - len(then) :]

    def _take_pending(self) -> list[Statement]:
        statements, self._pending, self._pending_bytes = self._pending, [], 0
        return statements

    async def _begin(self) -> None:
        if not self._open:
            self._open = True  # while we wait, too: others look for a moment between two transactions
            with translate(self._end):
                await self._session.script(b";".join(_BEGIN))

    async def _run_one_by_one(self, statements: Sequence[Statement]) -> None:
        await self._begin()
        for statement in statements:
            try:
                cursor = await self._run_one(statement)
            except psycopg.Error as error:
                known = translated(self._end, error)
                if is_gone(error) or known.transient:
                    raise known from error
                raise ApplyRefused(
                    f"the target refused the {statement}: {known.message.removeprefix('the target refused: ')}",
                    hint=f"put {statement.table} on the target right; the link then goes on with this very change",
                ) from error
            _demand_one_row(statement, cursor.rowcount)

    async def _run_one(self, statement: Statement) -> AsyncCursor[TupleRow]:
        if not statement.instead:
            return await self._conn.execute(statement.query, statement.parameters, prepare=True)
        try:
            async with self._conn.transaction():
                return await self._conn.execute(statement.query)
        except psycopg.errors.FeatureNotSupported:
            role = await self._conn.execute("SELECT pg_catalog.current_setting('session_replication_role')")
            if await role.fetchone() != ("replica",):
                # foreign keys are not quiet: a DELETE could take along rows of tables that the source left alone
                raise
            for query in statement.instead:
                cursor = await self._conn.execute(query)
            return cursor

    async def _commit(self, lsn: Lsn, commit: Commit | None) -> None:
        """Write `lsn` as progress and commit it with everything since the last commit."""
        if self._careful or any(statement.verb != "INSERT" for statement in self._pending):
            # what may find no row is looked at before its commit
            await self._flush()
        if self._carry and self._at_barrier is not None:
            await self._flush()
            await self._at_barrier()
        self._carry = False
        time = None
        if commit is not None:
            time = datetime.fromtimestamp(unix_time(commit.commit_time), UTC).isoformat().encode()
        move: Query = (_MOVE_PROGRESS, (str(lsn).encode(), time, self._link.encode()))
        failpoints.reach("apply.commit")
        try:
            _, done, position = await self._exchange([move, (b"COMMIT", ()), _POSITION])
        except TargetError as error:
            if "pglockstep.progress: " not in error.message:
                raise
            raise ApplyRefused(
                "the link's progress on the target is gone or moved on without us",
                hint="did somebody change schema pglockstep there? `pglockstep check` tells how the ends stand",
            ) from error
        if done.tag != b"COMMIT":
            raise ApplyRefused(
                "the target rolled a transaction back instead of committing it", hint="see the target's log"
            )
        failpoints.reach("apply.committed")
        self._open = False
        self._staging.ended()
        self.progress = lsn
        self._note_commit(position, lsn)

    def _note_commit(self, position: Outcome, source: Lsn) -> None:
        assert position.value is not None
        self.unflushed.append(Commitment(Lsn.parse(position.value.decode()), source))


def _demand_one_row(statement: Statement, rows: int) -> None:
    if statement.one_row and rows != 1:
        raise RowsDiffer(
            f"the {statement} found {rows} rows on the target instead of one: the target was changed by somebody else",
            statement.table,
            hint="`pglockstep check` shows how the ends differ; put the row right on the target, and the link goes on",
        )
