"""The session that repeats a source's transactions on the target, row by row in the source's order.

Its promise: progress moves in the very commit that carries the rows, so a crash at any instruction repeats
nothing and loses nothing. Complete transactions at hand share one target commit; statements travel in
libpq's pipeline. Nothing is skipped: a row that is not there, or that the target refuses, ends the session,
and its open transaction is rolled back.

In *careful* mode every transaction commits by itself and statements go one at a time: slower, but a refusal
names its statement. It is how a failed batch is tried again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.adapt import Dumper
from psycopg.rows import TupleRow

from pglockstep.apply.statements import Statement, TableWriter, truncate
from pglockstep.errors import ApplyRefused, ProtocolViolation
from pglockstep.postgres import catalog
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, is_gone, translate, translated
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.frames import unix_time
from pglockstep.wal.messages import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Relation,
    Truncate,
    Update,
)

#: Statements sent to the target before their results are read, and their parameters' bytes.
_PIPELINED = 500
_PIPELINED_BYTES = 1 << 20


#: How many transactions in careful mode are enough to be past the one that was refused.
_CAREFUL_TRANSACTIONS = 1000


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
    """Applies messages in order. One instance lives as long as its connection, which already holds the lock."""

    def __init__(
        self,
        end: End,
        conn: AsyncConnection[TupleRow],
        link: str,
        progress: Lsn,
        *,
        careful: bool = False,
        at_barrier: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._end = end
        self._conn = conn
        self._link = link
        self._careful = careful
        self._at_barrier = at_barrier
        self._tables: dict[QualifiedName, Table] = {}
        self._writers: dict[int, TableWriter] = {}
        self._pending: list[Statement] = []
        self._pending_bytes = 0
        self._in_source_transaction = False
        self._skipping = False
        self._open = False
        self._carry = False
        self._last_commit: Commit | None = None
        self._has_changes = False
        self._group_transactions = 0
        self._group: Counter[str] = Counter()
        self.progress = progress
        self.transactions = 0
        self.changes: Counter[str] = Counter()
        self.last_applied_at: datetime | None = None
        #: commits that the target has made but perhaps not yet flushed, oldest first
        self.unflushed: deque[Commitment] = deque()
        conn.adapters.register_dumper(bytes, _SourceText)

    @property
    def in_transaction(self) -> bool:
        """Whether the source's current transaction has begun here and not ended yet."""
        return self._in_source_transaction

    async def start(self) -> None:
        """Before the first message: read the target's catalog, and see how far its WAL is.

        An earlier session may have committed our progress without waiting for the disk.
        """
        with translate(self._end):
            cursor = await self._conn.execute("SELECT pg_catalog.pg_current_wal_insert_lsn()::text")
            row = await cursor.fetchone()
        assert row is not None
        self.unflushed.append(Commitment(Lsn.parse(row[0]), self.progress))
        await self.load_tables()

    async def load_tables(self) -> None:
        """Read the target's catalog."""
        with translate(self._end):
            self._tables = {table.name: table for table in await catalog.tables(self._conn)}

    async def apply(self, messages: Sequence[Message]) -> None:
        """Apply messages; every transaction that is complete afterwards is committed."""
        last = next((i for i in range(len(messages) - 1, -1, -1) if isinstance(messages[i], Commit)), -1)
        for index, message in enumerate(messages):
            await self._take(message, commit=index == last or self._careful)
        await self._flush()

    async def move_progress(self, lsn: Lsn) -> None:
        """Note that the source has nothing to send before `lsn`; only between transactions."""
        if lsn > self.progress and not self._open and not self._in_source_transaction:
            await self._commit(lsn, None)

    async def _take(self, message: Message, *, commit: bool) -> None:
        match message:
            case Begin():
                if self._in_source_transaction:
                    raise ProtocolViolation("the source began a transaction inside another")
                self._in_source_transaction = True
                # its commit record starts before our progress: applied already
                self._skipping = message.final_lsn < self.progress
            case Commit():
                await self._take_commit(message, commit=commit)
            case Relation():
                await self._take_relation(message)
            case Insert() | Update() | Delete() | Truncate():
                if not self._in_source_transaction:
                    raise ProtocolViolation("the source sent a change outside of any transaction")
                if not self._skipping:
                    await self._add(self._statement(message))
            case LogicalMessage():
                if (
                    message.prefix == BARRIER_PREFIX
                    and message.content.decode(errors="replace") == self._link
                ):
                    self._carry = True
            case _:
                pass

    async def _take_commit(self, message: Commit, *, commit: bool) -> None:
        if not self._in_source_transaction:
            raise ProtocolViolation("the source ended a transaction that did not begin")
        self._in_source_transaction = False
        if not self._skipping:
            self._last_commit = message
            self._group_transactions += self._has_changes
        self._has_changes = False
        self._skipping = False
        if commit and self._last_commit is not None:
            done, self._last_commit = self._last_commit, None
            await self._commit(Lsn(done.end_lsn), done)

    async def _take_relation(self, message: Relation) -> None:
        name = QualifiedName(message.schema, message.name)
        if name not in self._tables or message.relation_id in self._writers:
            # described anew: both ends may have been altered
            await self.load_tables()
        if name not in self._tables:
            raise ApplyRefused(
                f"table {name} is not on the target",
                hint=f"create it there as it is on the source, or leave it out with exclude = ['{name}']",
            )
        try:
            self._writers[message.relation_id] = TableWriter(message, self._tables[name])
        except ApplyRefused:
            # the target may have been altered since its catalog was read
            await self.load_tables()
            self._writers[message.relation_id] = TableWriter(message, self._tables[name])

    def _statement(self, change: Insert | Update | Delete | Truncate) -> Statement:
        try:
            if isinstance(change, Truncate):
                names = [self._writers[each].table.name for each in change.relation_ids]
                # the source's sequences may have moved on since: the target's must not stay behind their start
                self._carry = self._carry or change.restart_identity
                return truncate(names, restart_identity=change.restart_identity)
            writer = self._writers[change.relation_id]
        except KeyError:
            raise ProtocolViolation("the source sent a change of a table that it did not describe") from None
        if isinstance(change, Insert):
            return writer.insert(change)
        return writer.update(change) if isinstance(change, Update) else writer.delete(change)

    async def _add(self, statement: Statement) -> None:
        self._pending.append(statement)
        self._pending_bytes += sum(len(value) for value in statement.parameters if value is not None)
        self._group[statement.verb.lower()] += 1
        self._has_changes = True
        if len(self._pending) >= _PIPELINED or self._pending_bytes >= _PIPELINED_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        if not self._pending:
            return
        statements, self._pending, self._pending_bytes = self._pending, [], 0
        if self._careful:
            await self._run_one_by_one(statements)
            return
        with translate(self._end):
            async with self._conn.pipeline():
                await self._begin()
                cursors = [
                    await self._conn.execute(each.query, each.parameters, prepare=True) for each in statements
                ]
        for statement, cursor in zip(statements, cursors, strict=True):
            _demand_one_row(statement, cursor.rowcount)

    async def _run_one_by_one(self, statements: Sequence[Statement]) -> None:
        with translate(self._end):
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

    async def _begin(self) -> None:
        if not self._open:
            await self._conn.execute("BEGIN")
            await self._conn.execute("SET CONSTRAINTS ALL DEFERRED")
            self._open = True

    async def _commit(self, lsn: Lsn, commit: Commit | None) -> None:
        """Write `lsn` as progress and commit it with everything since the last commit."""
        await self._flush()
        if self._carry and self._at_barrier is not None:
            await self._at_barrier()
        self._carry = False
        time = None if commit is None else datetime.fromtimestamp(unix_time(commit.commit_time), UTC)
        with translate(self._end):
            async with self._conn.pipeline():
                await self._begin()
                moved = await self._conn.execute(
                    "UPDATE pglockstep.progress SET lsn = $1::pg_lsn, commit_time = coalesce($2, commit_time), "
                    "written_at = pg_catalog.clock_timestamp() WHERE link = $3 AND lsn <= $1::pg_lsn",
                    [str(lsn), time, self._link],
                )
            if moved.rowcount != 1:
                raise ApplyRefused(
                    "the link's progress on the target is gone or moved on without us",
                    hint="did somebody change schema pglockstep there? `pglockstep check` tells how the ends stand",
                )
            async with self._conn.pipeline():
                done = await self._conn.execute("COMMIT")
                position = await self._conn.execute("SELECT pg_catalog.pg_current_wal_insert_lsn()::text")
            row = await position.fetchone()
        if done.statusmessage != "COMMIT":
            raise ApplyRefused(
                "the target rolled a transaction back instead of committing it", hint="see the target's log"
            )
        self._open = False
        self.progress = lsn
        if row is not None:
            self.unflushed.append(Commitment(Lsn.parse(row[0]), lsn))
        self.transactions += self._group_transactions
        if self.transactions >= _CAREFUL_TRANSACTIONS:
            self._careful = False
        self.changes += self._group
        self._group_transactions = 0
        self._group = Counter()
        if commit is not None:
            self.last_applied_at = datetime.now(UTC)


#: The prefix of the logical messages that mark a barrier; their content is the link's id.
BARRIER_PREFIX = "pglockstep barrier"


def _demand_one_row(statement: Statement, rows: int) -> None:
    if statement.one_row and rows != 1:
        raise ApplyRefused(
            f"the {statement} found {rows} rows on the target instead of one: the target was changed by somebody else",
            hint="`pglockstep check` shows how the ends differ; put the row right on the target, and the link goes on",
        )
