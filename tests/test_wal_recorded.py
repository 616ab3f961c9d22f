"""What every installed server really sends, recorded at test time, decodes to what was done there."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from struct import unpack
from typing import NamedTuple

import pytest
from psycopg import sql

from encode_pgoutput import encode
from fix_servers import Connection, MakeDatabase, Servers, connect, majors
from pglockstep.postgres.connect import End
from pglockstep.postgres.connect import connect as connect_end
from pglockstep.wal.frames import unix_time
from pglockstep.wal.messages import (
    UNCHANGED,
    Begin,
    Binary,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    Truncate,
    TypeName,
    Update,
    Value,
)
from pglockstep.wal.pgoutput import decode

# --- recording -------------------------------------------------------------------------------------

_READ = (
    "SELECT data FROM pg_catalog.pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', "
    "'publication_names', 'everything', 'messages', 'true', 'binary', $2)"
)


@dataclass(frozen=True)
class Recorder:
    """Keeps what happens in a database from now on, and gives it out as the server would stream it."""

    conninfo: str
    binary: bool = False
    slot: str = field(default_factory=lambda: f"recorder_{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        with connect(self.conninfo) as conn:
            conn.execute("create publication everything for all tables")
            conn.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot])

    def payloads(self) -> list[bytes]:
        """What the server has to send since the last call, read through a session of ours."""
        return asyncio.run(self._read())

    def messages(self) -> list[Message]:
        """The same, decoded; encoded again it has to be what the server sent."""
        payloads = self.payloads()
        decoded = [decode(payload) for payload in payloads]
        for message, payload in zip(decoded, payloads, strict=True):
            if not isinstance(message, LogicalMessage | Relation | TypeName | Commit):
                assert encode(message) == payload
        return decoded

    async def _read(self) -> list[bytes]:
        conn = await connect_end(End("source", "recorder", self.conninfo), "stream")
        async with conn:
            cursor = await conn.execute(_READ, [self.slot, str(self.binary).lower()])
            return [row[0] for row in await cursor.fetchall()]


class Event(NamedTuple):
    """One change in words: the table by name, each row by its columns' names, int4 as text in either form."""

    verb: str
    table: str
    new: dict[str, Value] | None = None
    old: dict[str, Value] | None = None
    old_is_key: bool = False


def events(messages: Sequence[Message]) -> list[Event]:
    """The changes of a recording; what the relations say is taken into account."""
    relations: dict[int, Relation] = {}
    found: list[Event] = []
    for message in messages:
        if isinstance(message, Relation):
            relations[message.relation_id] = message
        elif isinstance(message, Insert | Update | Delete):
            relation = relations[message.relation_id]
            new = None if isinstance(message, Delete) else _named(relation, message.new)
            old = None if isinstance(message, Insert) else message.old
            found.append(
                Event(
                    type(message).__name__.lower(),
                    f"{relation.schema}.{relation.name}",
                    new,
                    None if old is None else _named(relation, old),
                    not isinstance(message, Insert) and message.old_is_key,
                )
            )
        elif isinstance(message, Truncate):
            tables = [relations[each] for each in message.relation_ids]
            names = sorted(f"{table.schema}.{table.name}" for table in tables)
            options = " cascade" * message.cascade + " restart identity" * message.restart_identity
            found.append(Event("truncate" + options, ", ".join(names)))
    return found


def _named(relation: Relation, row: Sequence[Value]) -> dict[str, Value]:
    return {
        column.name: _plain(value, column.type_oid) for column, value in zip(relation.columns, row, strict=True)
    }


def _plain(value: Value, type_oid: int) -> Value:
    """A value as text, whichever form it came in; of binary ones just int4 and those like text are known."""
    if not isinstance(value, Binary):
        return value
    return str(unpack("!i", value)[0]).encode() if type_oid == 23 else bytes(value)


def only(messages: Sequence[Message], *kinds: type[Message]) -> list[Message]:
    """The messages of these kinds."""
    return [message for message in messages if isinstance(message, kinds)]


class Source(NamedTuple):
    """A database that is being recorded."""

    recorder: Recorder
    conn: Connection


@pytest.fixture(params=[False, True], ids=["text", "binary"])
def binary(request: pytest.FixtureRequest) -> bool:
    """Whether values are asked for in their binary form."""
    return bool(request.param)


@pytest.fixture(params=majors)
def source(
    request: pytest.FixtureRequest, servers: Servers, make_database: MakeDatabase, binary: bool
) -> Iterator[Source]:
    """An empty recorded database on each installed version, in either form of values."""
    conninfo = make_database(servers.source(request.param))
    with connect(conninfo) as conn:
        yield Source(Recorder(conninfo, binary), conn)


def big(letter: str) -> bytes:
    """A value that PostgreSQL keeps outside of its row, in a column of external storage."""
    return letter.encode() * 5000


# --- rows ------------------------------------------------------------------------------------------


def test_a_transaction_and_its_rows(source: Source, binary: bool) -> None:
    """BEGIN and COMMIT frame the rows and agree; NULL, an empty and a strange text arrive as what they are."""
    recorder, conn = source
    conn.execute("create table t (id int primary key, v text)")
    strange = "ü'\"\\%s $1\n\t\U0001f418"
    with conn.transaction():
        conn.execute("insert into t values (1, 'x'), (2, null), (3, ''), (-4, %s)", [strange])
        row = conn.execute("select pg_current_xact_id()::text::int8").fetchone()
    assert row is not None

    sent = recorder.messages()
    begin, relation, *rows, commit = sent
    assert isinstance(begin, Begin)
    assert begin.xid == row[0] % 2**32
    assert isinstance(commit, Commit)
    assert (commit.commit_lsn, commit.commit_time) == (begin.final_lsn, begin.commit_time)
    assert commit.end_lsn > commit.commit_lsn
    assert abs(unix_time(commit.commit_time) - time.time()) < 60
    assert isinstance(relation, Relation)
    assert (relation.schema, relation.name, relation.replica_identity) == ("public", "t", "d")
    assert [(c.name, c.type_oid, c.type_modifier, c.in_key) for c in relation.columns] == [
        ("id", 23, -1, True),
        ("v", 25, -1, False),
    ]
    assert events(sent) == [
        Event("insert", "public.t", {"id": b"1", "v": b"x"}),
        Event("insert", "public.t", {"id": b"2", "v": None}),
        Event("insert", "public.t", {"id": b"3", "v": b""}),
        Event("insert", "public.t", {"id": b"-4", "v": strange.encode()}),
    ]
    forms = {type(value) for each in rows if isinstance(each, Insert) for value in each.new if value is not None}
    assert forms == {Binary if binary else bytes}


def test_updates_and_deletes_by_key(source: Source) -> None:
    """Under the default identity the old key is sent just where it changed, and for a delete."""
    recorder, conn = source
    conn.execute("create table t (id int primary key, v text)")
    conn.execute("insert into t values (1, 'a')")
    conn.execute("update t set v = 'b'")
    conn.execute("update t set id = 2")
    conn.execute("delete from t")
    assert events(recorder.messages())[1:] == [
        Event("update", "public.t", {"id": b"1", "v": b"b"}),
        Event("update", "public.t", {"id": b"2", "v": b"b"}, {"id": b"1", "v": None}, old_is_key=True),
        Event("delete", "public.t", None, {"id": b"2", "v": None}, old_is_key=True),
    ]


def test_updates_and_deletes_by_whole_row(source: Source) -> None:
    """Under REPLICA IDENTITY FULL the whole old row is sent, its NULLs too, and the relation says so."""
    recorder, conn = source
    conn.execute("create table t (id int primary key, v text)")
    conn.execute("alter table t replica identity full")
    conn.execute("insert into t values (1, null)")
    conn.execute("update t set v = 'b'")
    conn.execute("delete from t")
    sent = recorder.messages()
    assert [each.replica_identity for each in sent if isinstance(each, Relation)] == ["f"]
    assert events(sent)[1:] == [
        Event("update", "public.t", {"id": b"1", "v": b"b"}, {"id": b"1", "v": None}),
        Event("delete", "public.t", None, {"id": b"1", "v": b"b"}),
    ]


def test_an_index_as_identity(source: Source) -> None:
    """REPLICA IDENTITY USING INDEX makes that index's columns the key."""
    recorder, conn = source
    conn.execute("create table t (id int primary key, u text not null, v text)")
    conn.execute("create unique index by_u on t (u)")
    conn.execute("alter table t replica identity using index by_u")
    conn.execute("insert into t values (1, 'a', 'x')")
    conn.execute("delete from t")
    sent = recorder.messages()
    (relation,) = (each for each in sent if isinstance(each, Relation))
    assert relation.replica_identity == "i"
    assert [(column.name, column.in_key) for column in relation.columns] == [("id", False), ("u", True), ("v", False)]
    assert events(sent)[1] == Event("delete", "public.t", None, {"id": None, "u": b"a", "v": None}, old_is_key=True)


def test_unchanged_toast_by_key(source: Source) -> None:
    """A TOASTed value that an update left alone is not sent, and is not taken for NULL; a changed one is sent."""
    recorder, conn = source
    conn.execute("create table t (id int primary key, v text, big text)")
    conn.execute("alter table t alter big set storage external")
    conn.execute("insert into t values (1, 'a', %s)", [big("x").decode()])
    conn.execute("update t set v = 'b'")
    conn.execute("update t set id = 2")
    conn.execute("update t set big = %s", [big("y").decode()])
    conn.execute("update t set big = null")
    assert events(recorder.messages()) == [
        Event("insert", "public.t", {"id": b"1", "v": b"a", "big": big("x")}),
        Event("update", "public.t", {"id": b"1", "v": b"b", "big": UNCHANGED}),
        Event(
            "update",
            "public.t",
            {"id": b"2", "v": b"b", "big": UNCHANGED},
            {"id": b"1", "v": None, "big": None},
            old_is_key=True,
        ),
        Event("update", "public.t", {"id": b"2", "v": b"b", "big": big("y")}),
        Event("update", "public.t", {"id": b"2", "v": b"b", "big": None}),
    ]


def test_unchanged_toast_by_whole_row(source: Source) -> None:
    """Under REPLICA IDENTITY FULL the value that is not sent again stands in the old row."""
    recorder, conn = source
    conn.execute("create table t (v text, big text)")
    conn.execute("alter table t replica identity full, alter big set storage external")
    conn.execute("insert into t values ('a', %s)", [big("x").decode()])
    conn.execute("update t set v = 'b'")
    conn.execute("delete from t")
    assert events(recorder.messages())[1:] == [
        Event("update", "public.t", {"v": b"b", "big": UNCHANGED}, {"v": b"a", "big": big("x")}),
        Event("delete", "public.t", None, {"v": b"b", "big": big("x")}),
    ]


def test_a_toasted_key(source: Source) -> None:
    """A key kept outside of its row is sent as the old key even where it did not change."""
    recorder, conn = source
    conn.execute("create table t (k text primary key, v text)")
    conn.execute("alter table t set (toast_tuple_target = 128), alter k set storage external")
    key = "k" * 2000
    conn.execute("insert into t values (%s, 'a')", [key])
    conn.execute("update t set v = 'b'")
    (update,) = events(recorder.messages())[1:]
    assert update.new == {"k": UNCHANGED, "v": b"b"}
    assert (update.old, update.old_is_key) == ({"k": key.encode(), "v": None}, True)


def test_columns_that_do_not_travel(source: Source) -> None:
    """Generated and dropped columns are not in the stream; identities are."""
    recorder, conn = source
    conn.execute(
        "create table t (gone int, id int generated always as identity primary key, v int, "
        "twice int generated always as (v * 2) stored)"
    )
    conn.execute("alter table t drop gone")
    conn.execute("insert into t (v) values (21)")
    assert events(recorder.messages()) == [Event("insert", "public.t", {"id": b"1", "v": b"21"})]


def test_a_table_without_columns(source: Source) -> None:
    """Rows without any value arrive as such."""
    recorder, conn = source
    conn.execute("create table t ()")
    conn.execute("alter table t replica identity full")
    conn.execute("insert into t default values")
    conn.execute("delete from t")
    assert events(recorder.messages()) == [Event("insert", "public.t", {}), Event("delete", "public.t", None, {})]


def test_hostile_names(source: Source) -> None:
    """Schemas, tables and columns may be called anything that fits into 63 bytes."""
    recorder, conn = source
    schema, table, column = 'S "%s" $1', "ü" * 31 + "x", "select\n';--"
    name = sql.Identifier(schema, table)
    conn.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
    conn.execute(sql.SQL("create table {} ({} int primary key)").format(name, sql.Identifier(column)))
    conn.execute(sql.SQL("insert into {} values (1)").format(name))
    assert events(recorder.messages()) == [Event("insert", f"{schema}.{table}", {column: b"1"})]


# --- truncate --------------------------------------------------------------------------------------


def test_truncate_of_several_tables(source: Source) -> None:
    """One TRUNCATE is one message for all of its tables, those that CASCADE reached too, with its options."""
    recorder, conn = source
    conn.execute("create table a (id int primary key); create table b (id int primary key); create table alone ()")
    conn.execute("create table c (id int references a); create table d (id int)")
    conn.execute("truncate a, b restart identity cascade")
    conn.execute("truncate d, b")
    conn.execute("truncate alone restart identity")
    conn.execute("truncate a cascade")
    assert events(recorder.messages()) == [
        Event("truncate cascade restart identity", "public.a, public.b, public.c"),
        Event("truncate", "public.b, public.d"),
        Event("truncate restart identity", "public.alone"),
        Event("truncate cascade", "public.a, public.c"),
    ]


# --- beside rows -----------------------------------------------------------------------------------


def test_logical_messages(source: Source) -> None:
    """A transactional message stands inside its transaction, another outside of any, and survives a rollback."""
    recorder, conn = source
    conn.execute("create table t (id int primary key)")
    with conn.transaction():
        conn.execute("select pg_logical_emit_message(true, 'in %s', %s)", [b"a\0b"])
        conn.execute("insert into t values (1)")
    with conn.transaction(force_rollback=True):
        conn.execute("select pg_logical_emit_message(true, 'never', '')")
        conn.execute("select pg_logical_emit_message(false, 'ü', '')")
    conn.execute("insert into t values (2)")  # its commit flushes what came before
    sent = [each for each in recorder.messages() if not isinstance(each, Relation)]
    assert [type(each) for each in sent] == [
        *(Begin, LogicalMessage, Insert, Commit),
        LogicalMessage,
        *(Begin, Insert, Commit),
    ]
    inside, outside = (each for each in sent if isinstance(each, LogicalMessage))
    assert (inside.transactional, inside.prefix, inside.content) == (True, "in %s", b"a\0b")
    assert (outside.transactional, outside.prefix, outside.content) == (False, "ü", b"")
    commit = sent[3]
    assert isinstance(commit, Commit)
    assert inside.lsn < commit.end_lsn <= outside.lsn


def test_origin(source: Source) -> None:
    """A transaction that was itself replicated to the source names where it came from; a native one does not."""
    recorder, conn = source
    conn.execute("create table t (id int primary key)")
    name = f"far '{secrets.token_hex(4)}"
    conn.execute("select pg_replication_origin_create(%s)", [name])
    conn.execute("select pg_replication_origin_session_setup(%s)", [name])
    with conn.transaction():
        conn.execute("select pg_replication_origin_xact_setup('0/ABCDEF', now())")
        conn.execute("insert into t values (1)")
    conn.execute("select pg_replication_origin_session_reset()")
    conn.execute("insert into t values (2)")
    sent = recorder.messages()
    kinds = [type(each) for each in sent]
    assert kinds == [Begin, Origin, Relation, Insert, Commit, Begin, Insert, Commit]
    assert sent[1] == Origin(0xABCDEF, name)


def test_types_of_the_user(source: Source) -> None:
    """Types that are not built in are announced by name before the table that uses them, a domain by its base."""
    recorder, conn = source
    conn.execute("""create schema "s ""x"; create type "s ""x"."Mood %s" as enum ('a', 'b')""")
    conn.execute("create type pair as (x int, y text); create domain small as int check (value < 10)")
    conn.execute("""create table t (m "s ""x"."Mood %s", p pair, ms "s ""x"."Mood %s"[], n small)""")
    conn.execute("alter table t replica identity full")
    conn.execute("insert into t values ('a', (1, 'z'), '{b,a}', 7)")
    sent = recorder.messages()
    assert [type(each) for each in sent] == [Begin, TypeName, TypeName, TypeName, Relation, Insert, Commit]
    assert [(each.schema, each.name) for each in sent if isinstance(each, TypeName)] == [
        ('s "x', "Mood %s"),
        ("public", "pair"),
        ('s "x', "_Mood %s"),
    ]
    named = [each.type_oid for each in sent if isinstance(each, TypeName)]
    (relation,) = (each for each in sent if isinstance(each, Relation))
    assert [column.type_oid for column in relation.columns][:3] == named
    (insert,) = (each for each in sent if isinstance(each, Insert))
    if not recorder.binary:
        assert insert.new == (b"a", b"(1,z)", b"{b,a}", b"7")
    else:
        # an enum's binary form is its label; the others' depend on this server's own OIDs
        assert insert.new[0] == Binary(b"a")
        assert all(isinstance(value, Binary) for value in insert.new)


def test_partitions(source: Source) -> None:
    """Rows are named by the leaf that holds them; one that moves is a delete there and an insert here."""
    recorder, conn = source
    conn.execute("create table p (id int primary key, v text) partition by range (id)")
    conn.execute("create table low partition of p for values from (0) to (10)")
    conn.execute("create table high (v text, id int not null)")
    conn.execute("alter table p attach partition high for values from (10) to (20)")
    conn.execute("insert into p values (1, 'a'), (11, 'b')")
    conn.execute("update p set id = 12 where id = 1")
    conn.execute("truncate low")
    conn.execute("truncate p")
    assert events(recorder.messages()) == [
        Event("insert", "public.low", {"id": b"1", "v": b"a"}),
        Event("insert", "public.high", {"v": b"b", "id": b"11"}),
        Event("delete", "public.low", None, {"id": b"1", "v": None}, old_is_key=True),
        Event("insert", "public.high", {"v": b"a", "id": b"12"}),
        Event("truncate", "public.low"),
        Event("truncate", "public.high, public.low"),
    ]


# --- transactions ----------------------------------------------------------------------------------


def test_rolled_back_savepoints(source: Source) -> None:
    """What was rolled back, to a savepoint or as a whole, does not arrive; the rest of its transaction does."""
    recorder, conn = source
    conn.execute("create table t (id int primary key)")
    with conn.transaction():
        conn.execute("insert into t values (1)")
        with conn.transaction(force_rollback=True):
            conn.execute("insert into t values (2)")
        with conn.transaction():
            conn.execute("insert into t values (3)")
    with conn.transaction(force_rollback=True):
        conn.execute("insert into t values (4)")
    sent = recorder.messages()
    assert events(sent) == [Event("insert", "public.t", {"id": b"1"}), Event("insert", "public.t", {"id": b"3"})]
    assert len(only(sent, Begin)) == len(only(sent, Commit)) == 1


def test_two_phase_commit(source: Source) -> None:
    """A prepared transaction arrives when it is committed, as an ordinary one; one rolled back never does."""
    recorder, conn = source
    conn.execute("create table t (id int primary key)")
    for number, gid in enumerate(("kept", "dropped"), start=1):
        conn.execute("begin")
        conn.execute("insert into t values (%s)", [number])
        conn.execute(sql.SQL("prepare transaction {}").format(sql.Literal(f"{gid} {recorder.slot}")))
    conn.execute("insert into t values (3)")
    assert [each.new for each in events(recorder.messages())] == [{"id": b"3"}]
    conn.execute(sql.SQL("rollback prepared {}").format(sql.Literal(f"dropped {recorder.slot}")))
    conn.execute(sql.SQL("commit prepared {}").format(sql.Literal(f"kept {recorder.slot}")))
    sent = recorder.messages()
    assert [type(each) for each in sent if not isinstance(each, Relation)] == [Begin, Insert, Commit]
    assert [each.new for each in events(sent)] == [{"id": b"1"}]


def test_interleaved_transactions_arrive_in_commit_order(source: Source) -> None:
    """Each transaction arrives whole, ordered by its commit; the end of one may be the start of the next's commit."""
    recorder, conn = source
    conn.execute("create table t (id int primary key)")
    with connect(recorder.conninfo) as other:
        for number in range(0, 40, 4):
            conn.execute("begin")
            other.execute("begin")
            conn.execute("insert into t values (%s)", [number])
            other.execute("insert into t values (%s)", [number + 1])
            conn.execute("insert into t values (%s)", [number + 2])
            other.execute("insert into t values (%s)", [number + 3])
            other.execute("commit")
            conn.execute("commit")
    sent = recorder.messages()
    order = [1, 3, 0, 2]
    expected = [str(start + each).encode() for start in range(0, 40, 4) for each in order]
    assert [each.new and each.new["id"] for each in events(sent)] == expected
    begins = [each for each in sent if isinstance(each, Begin)]
    commits = [each for each in sent if isinstance(each, Commit)]
    assert [each.final_lsn for each in begins] == [each.commit_lsn for each in commits]
    assert all(one.end_lsn <= two.commit_lsn for one, two in pairwise(commits))
    assert any(one.end_lsn == two.commit_lsn for one, two in pairwise(commits))
