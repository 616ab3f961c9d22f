"""Consecutive transactions gathered into batches, each for one commit on the target. Pure.

A batch holds complete transactions; only one too large for a batch arrives in parts, which stay in one target
transaction until its commit. Inside of a batch the changes of each table are a run of their own, in the source's
order; between runs order does not matter, because nothing of the target's fires for our rows. What does matter to
every table, a TRUNCATE or a table described anew, starts another round of runs.

A gate, if there is one, is asked before a transaction joins a batch. What it does not let pass is held back, and with it
everything behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pglockstep.apply.net import Change
from pglockstep.apply.runs import Batch, Round, Run
from pglockstep.apply.statements import Keeping, TableWriter, truncate
from pglockstep.errors import ProtocolViolation
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
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
from pglockstep.wal.pgoutput import decode

#: The prefix of the logical messages that mark a barrier; their content is the link's id.
BARRIER_PREFIX = "pglockstep barrier"

#: When a batch is full: enough for sets to pay, little enough to hold three of them. In bytes of the stream, with
#: so many more for each change.
FULL = 4 << 20
_EACH = 64

_INSERT, _UPDATE, _DELETE, _RELATION, _BEGIN = b"IUDRB"
#: Where the OID of a change's table ends; behind it stands which of its rows comes first.
_OID = 4


class Gate(Protocol):
    """Whether what a transaction does may go to the target. Asked once for each; what it answers no to is held back."""

    def whole(self, begin: Begin, commit: Commit, batch: Batch) -> bool:
        """A transaction that is in memory."""

    def part(self, begin: Begin, batch: Batch) -> bool:
        """A part of one that is too large for that, before it goes into the target's open transaction."""

    def end(self, begin: Begin, commit: Commit) -> bool:
        """The commit of such a one, when all of its parts are there."""


class BatchBuilder:
    """Takes the stream's messages one by one; hands out batches.

    What begins before `position` has been applied already and is left out. `one_by_one`: every transaction is a
    batch of its own. `copied`: tables that were copied later than the rest, and as of when. `table_of` gives the
    target's table of a name, or raises. `keeping`: as `TableWriter` takes it. While something is `held` back by the
    `gate`, nothing more is taken; nor is a transaction whose commit record starts at `cut` or later, unless that is 0:
    `at_cut` when one has been met.
    """

    def __init__(
        self,
        link: str,
        position: Lsn,
        table_of: Callable[[QualifiedName], Table],
        *,
        copied: Mapping[QualifiedName, Lsn] | None = None,
        gate: Gate | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        self._keeping = keeping
        self._link = link
        self._copied = copied or {}
        self._gate = gate
        self._begun = Begin(0, 0, 0)
        self._held: Batch | None = None
        # the commit that was taken while the part before it is held back
        self._ending: Commit | None = None
        self._large = False
        self._table_of = table_of
        self._announced: dict[int, Relation] = {}
        self._writers: dict[int, TableWriter] = {}
        self._sealed: deque[Batch] = deque()
        self._ready = Batch()
        self._current = Batch()
        self._runs: Round = {}
        self._final_lsn = 0
        self._leave_out = False
        self._most = FULL
        self.position = position
        self.in_transaction = False
        self.one_by_one = False
        self.held = False
        self.cut = 0
        self.at_cut = False

    @property
    def full(self) -> int:
        """How many batches there are that no more belongs into."""
        return len(self._sealed)

    @property
    def ready(self) -> bool:
        """Whether there is a batch to hand out: a full one, or a complete transaction."""
        return bool(self._sealed) or self._ready.commit is not None

    @property
    def size(self) -> int:
        """How large the complete transactions are that no full batch has yet."""
        return self._ready.size

    def knows(self, relation_id: int) -> bool:
        """Whether the table has been described before."""
        return relation_id in self._writers

    def describe(self, relation: Relation, table: Table) -> None:
        """Note how the stream and the target have a table. Raises `ApplyRefused` where they do not fit."""
        self._writers[relation.relation_id] = TableWriter(relation, table, self._keeping)
        if relation.relation_id in self._runs:
            self._runs = {}

    def announce(self, relation: Relation) -> None:
        """Note a description that was sent before the first message; the table may have gone since."""
        self._announced[relation.relation_id] = relation

    def feed(self, payloads: Sequence[bytes], start: int = 0) -> int:
        """Take the messages in `payloads` from `start` on; returns the index of the first that was not taken.

        That is where a `Relation` stands, which has to be described before what follows it; where there are two
        full batches, or something is held back, or cut off, so that the rest has to wait; or the end. Raises what `decode` and
        `take` raise.
        """
        for index in range(start, len(payloads)):
            data = payloads[index]
            size = len(data)
            kind = data[0] if size else 0
            if kind == _RELATION or self.held or len(self._sealed) > 1:
                return index
            if kind == _BEGIN and self.cut and int.from_bytes(data[1:9], "big") >= self.cut:
                self.at_cut = True
                return index
            if kind in (_INSERT, _UPDATE, _DELETE) and size > _OID + 1:
                # most messages by far; what is in them, nobody may ever ask
                self._sent(data, kind, size)
            else:
                self.take(decode(data), size)
        return len(payloads)

    def take(self, message: Message, size: int) -> None:
        """Take one message but a `Relation`; `size` is its length on the wire, in bytes."""
        if isinstance(message, (Insert, Update, Delete)):
            self._change(message, size)
        elif isinstance(message, Begin):
            self._begin(message)
        elif isinstance(message, Commit):
            self._end(message)
        elif isinstance(message, Truncate):
            self._truncate(message)
        elif isinstance(message, LogicalMessage):
            content = message.content.decode(errors="replace")
            if message.prefix == BARRIER_PREFIX and content == self._link:
                self._current.carry = True

    def _sent(self, data: bytes, kind: int, size: int) -> None:
        if self._leave_out:
            return
        relation_id = data[1] << 24 | data[2] << 16 | data[3] << 8 | data[4]
        run = self._runs.get(relation_id)
        if run is None and (run := self._start_run(relation_id)) is None:
            return
        run.take(data, kind)
        self._grew(size)

    def _change(self, change: Change, size: int) -> None:
        if self._leave_out:
            return
        run = self._runs.get(change.relation_id)
        if run is None and (run := self._start_run(change.relation_id)) is None:
            return
        run.put(change)
        self._grew(size)

    def _grew(self, size: int) -> None:
        current = self._current
        current.size += size + _EACH
        if current.size >= self._most:
            self._part()

    def _begin(self, message: Begin) -> None:
        if self.in_transaction:
            raise ProtocolViolation("the source began a transaction inside another")
        self.in_transaction = True
        self._runs = {}
        self._begun = message
        self._final_lsn = message.final_lsn
        # its commit record starts before our position: applied already
        self._leave_out = message.final_lsn < self.position

    def seal(self) -> Batch:
        """Hand out the oldest batch; there is one if `ready`."""
        if self._sealed:
            return self._sealed.popleft()
        batch, self._ready = self._ready, Batch()
        return batch

    def _part(self) -> None:
        """Make a batch of what there is of a large transaction, behind the complete ones before it."""
        if self._ready.commit is not None:
            self._sealed.append(self._ready)
            self._ready = Batch()
        part, self._current = self._current, Batch()
        # it counts when it is complete
        self._current.transactions, part.transactions = part.transactions, 0
        part.upto = self._final_lsn + 1
        self._runs = {}
        self._large = True
        if self._gate is not None and not self._gate.part(self._begun, part):
            self._hold(part)
        else:
            self._sealed.append(part)

    def _start_run(self, relation_id: int) -> Run | None:
        writer = self._writer(relation_id)
        if self._holds(writer):
            return None
        if not self._runs:
            self._current.steps.append(self._runs)
        run = self._runs[relation_id] = Run(writer)
        self._current.transactions = 1
        return run

    def _holds(self, writer: TableWriter) -> bool:
        """Whether the table was copied with this transaction in it."""
        return bool(self._copied) and self._final_lsn < self._copied.get(writer.table.name, 0)

    def _writer(self, relation_id: int) -> TableWriter:
        if not self.in_transaction:
            raise ProtocolViolation("the source sent a change outside of any transaction")
        try:
            return self._writers[relation_id]
        except KeyError:
            pass
        relation = self._announced.pop(relation_id, None)
        if relation is None:
            raise ProtocolViolation("the source sent a change of a table that it did not describe")
        self.describe(relation, self._table_of(QualifiedName(relation.schema, relation.name)))
        return self._writers[relation_id]

    def _truncate(self, message: Truncate) -> None:
        writers = [self._writer(each) for each in message.relation_ids]
        tables = [writer.table.name for writer in writers if not self._holds(writer)]
        if self._leave_out or not tables:
            return
        self._current.steps.append(truncate(tables, restart_identity=message.restart_identity))
        # the source's sequences may have moved on since: the target's must not stay behind their start
        self._current.carry = self._current.carry or message.restart_identity
        self._current.transactions = 1
        self._runs = {}

    def _end(self, message: Commit) -> None:
        if not self.in_transaction:
            raise ProtocolViolation("the source ended a transaction that did not begin")
        self.in_transaction = False
        if self._leave_out:
            self._current = Batch()
            self._leave_out = False
            return
        self.position = Lsn(message.end_lsn)
        if self._gate is not None and self._large and self._current.steps:
            # it is judged when all of it is there: the commit goes by itself
            self._part()
        if self.held:
            self._ending = message
        else:
            self._close(message)

    def _close(self, message: Commit) -> None:
        """All that a transaction did has been taken, and may go on but for its commit."""
        done, self._current = self._current, Batch()
        done.commit = message
        done.upto = message.end_lsn
        large, self._large = self._large, False
        passes = True
        if self._gate is not None:
            if large:
                passes = self._gate.end(self._begun, message)
            elif done.steps:
                passes = self._gate.whole(self._begun, message, done)
        if passes:
            self._complete(done)
        else:
            self._hold(done)

    def _complete(self, done: Batch) -> None:
        if self._ready.commit is None:
            self._ready = done
        else:
            self._ready.add(done)
        if self.one_by_one or self._ready.size >= FULL:
            self._sealed.append(self._ready)
            self._ready = Batch()

    def _hold(self, batch: Batch) -> None:
        self._held = batch
        self.held = True

    def release(self) -> None:
        """What was held back may go on. What comes behind it may be held back in its turn."""
        held, self._held = self._held, None
        self.held = False
        assert held is not None
        if held.commit is None:
            self._sealed.append(held)
        else:
            self._complete(held)
        ending, self._ending = self._ending, None
        if ending is not None:
            self._close(ending)
