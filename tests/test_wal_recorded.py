"""What every installed server really sends, recorded at test time, decodes to what was done there."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from struct import unpack
from typing import LiteralString, NamedTuple

import pytest
from psycopg import sql

from fix_recorder import Recorder
from fix_servers import Servers, connect, drop_database, majors
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

# --- in words -------------------------------------------------------------------------------------


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
        column.name: _plain(value, column.type_oid)
        for column, value in zip(relation.columns, row, strict=True)
    }


def _plain(value: Value, type_oid: int) -> Value:
    """A value as text, whichever form it came in; of binary ones just int4 and those like text are known."""
    if not isinstance(value, Binary):
        return value
    return str(unpack("!i", value)[0]).encode() if type_oid == 23 else bytes(value)


def only(messages: Sequence[Message], *kinds: type[Message]) -> list[Message]:
    """The messages of these kinds."""
    return [message for message in messages if isinstance(message, kinds)]


class Source:
    """A database that is recorded twice, with values in either form."""

    def __init__(self, conninfo: str) -> None:
        self.conninfo = conninfo
        self.conn = connect(conninfo)
        self.conn.execute("set lock_timeout = '10s'")
        self._text, self._binary = Recorder(conninfo), Recorder(conninfo, binary=True)

    def sent(self, *, readable: bool = True) -> list[Message]:
        """The messages since the last call, with values as text; in binary form they have to say the same.

        `readable`: whether the tests can read the binary form of every type there is.
        """
        messages, others = self._text.messages(), self._binary.messages()
        assert [type(each) for each in others] == [type(each) for each in messages]
        assert not readable or events(others) == events(messages)
        assert _forms(messages) <= {bytes}
        assert _forms(others) <= {Binary}
        return messages

    def execute(self, query: LiteralString | sql.Composed, *parameters: object) -> None:
        self.conn.execute(query, parameters or None)

    def clean(self) -> None:
        """Drop everything, and forget what was recorded."""
        found = self.conn.execute(
            "select nspname from pg_namespace where nspname !~ '^(pg_|information_schema)'"
        )
        for (schema,) in found.fetchall():
            self.conn.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))
        self.conn.execute("create schema public")
        self._text.payloads()
        self._binary.payloads()

    def close(self) -> None:
        with self.conn, self._text, self._binary:
            pass


def _forms(messages: Sequence[Message]) -> set[type]:
    """The classes of the values in the rows; of old rows too."""
    rows = [
        row
        for message in messages
        for row in (getattr(message, "new", None), getattr(message, "old", None))
        if row is not None
    ]
    return {type(value) for row in rows for value in row if isinstance(value, bytes)}


@pytest.fixture(scope="module", params=majors)
def database(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Source]:
    """A recorded database on each installed version."""
    server, name = servers.source(request.param), f"recorded_{secrets.token_hex(4)}"
    with connect(server.conninfo()) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        source = Source(server.conninfo(name))
        yield source
        source.close()
    finally:
        drop_database(server, name)


@pytest.fixture
def source(database: Source) -> Iterator[Source]:
    """The same, empty."""
    yield database
    database.clean()


def big(letter: str) -> bytes:
    """A value that PostgreSQL keeps outside of its row, in a column of external storage."""
    return letter.encode() * 5000


# --- rows ------------------------------------------------------------------------------------------


def test_a_transaction_and_its_rows(source: Source) -> None:
    """BEGIN and COMMIT frame the rows and agree; NULL and any text arrive as what they are."""
    source.execute("create table t (id int primary key, v text)")
    strange = "ü'\"\\%s $1\n\t\U0001f418"
    with source.conn.transaction():
        source.execute("insert into t values (1, 'x'), (2, null), (3, ''), (-4, %s)", strange)
        row = source.conn.execute("select pg_current_xact_id()::text::int8").fetchone()
    assert row is not None

    sent = source.sent()
    begin, relation, *_, commit = sent
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


def test_updates_and_deletes_by_key(source: Source) -> None:
    """Under the default identity the old key is sent just where it changed, and for a delete."""
    source.execute("create table t (id int primary key, v text)")
    source.execute("insert into t values (1, 'a')")
    source.execute("update t set v = 'b'")
    source.execute("update t set id = 2")
    source.execute("delete from t")
    assert events(source.sent())[1:] == [
        Event("update", "public.t", {"id": b"1", "v": b"b"}),
        Event("update", "public.t", {"id": b"2", "v": b"b"}, {"id": b"1", "v": None}, old_is_key=True),
        Event("delete", "public.t", None, {"id": b"2", "v": None}, old_is_key=True),
    ]


def test_updates_and_deletes_by_whole_row(source: Source) -> None:
    """Under REPLICA IDENTITY FULL the whole old row is sent, its NULLs too, and the relation says so."""
    source.execute("create table t (id int primary key, v text)")
    source.execute("alter table t replica identity full")
    source.execute("insert into t values (1, null)")
    source.execute("update t set v = 'b'")
    source.execute("delete from t")
    sent = source.sent()
    assert [each.replica_identity for each in sent if isinstance(each, Relation)] == ["f"]
    assert events(sent)[1:] == [
        Event("update", "public.t", {"id": b"1", "v": b"b"}, {"id": b"1", "v": None}),
        Event("delete", "public.t", None, {"id": b"1", "v": b"b"}),
    ]


def test_an_index_as_identity(source: Source) -> None:
    """REPLICA IDENTITY USING INDEX makes that index's columns the key."""
    source.execute("create table t (id int primary key, u text not null, v text)")
    source.execute("create unique index by_u on t (u)")
    source.execute("alter table t replica identity using index by_u")
    source.execute("insert into t values (1, 'a', 'x')")
    source.execute("delete from t")
    sent = source.sent()
    (relation,) = (each for each in sent if isinstance(each, Relation))
    assert relation.replica_identity == "i"
    assert [(column.name, column.in_key) for column in relation.columns] == [
        ("id", False),
        ("u", True),
        ("v", False),
    ]
    assert events(sent)[1] == Event(
        "delete", "public.t", None, {"id": None, "u": b"a", "v": None}, old_is_key=True
    )


def test_unchanged_toast_by_key(source: Source) -> None:
    """A TOASTed value that an update left alone is not sent and not taken for NULL; a changed one is."""
    source.execute("create table t (id int primary key, v text, big text)")
    source.execute("alter table t alter big set storage external")
    source.execute("insert into t values (1, 'a', %s)", big("x").decode())
    source.execute("update t set v = 'b'")
    source.execute("update t set id = 2")
    source.execute("update t set big = %s", big("y").decode())
    source.execute("update t set big = null")
    assert events(source.sent()) == [
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
    source.execute("create table t (v text, big text)")
    source.execute("alter table t replica identity full, alter big set storage external")
    source.execute("insert into t values ('a', %s)", big("x").decode())
    source.execute("update t set v = 'b'")
    source.execute("delete from t")
    assert events(source.sent())[1:] == [
        Event("update", "public.t", {"v": b"b", "big": UNCHANGED}, {"v": b"a", "big": big("x")}),
        Event("delete", "public.t", None, {"v": b"b", "big": big("x")}),
    ]


def test_a_toasted_key(source: Source) -> None:
    """A key kept outside of its row is sent as the old key even where it did not change."""
    source.execute("create table t (k text primary key, v text)")
    source.execute("alter table t set (toast_tuple_target = 128), alter k set storage external")
    key = "k" * 2500
    source.execute("insert into t values (%s, 'a')", key)
    source.execute("update t set v = 'b'")
    (update,) = events(source.sent())[1:]
    assert update.new == {"k": UNCHANGED, "v": b"b"}
    assert (update.old, update.old_is_key) == ({"k": key.encode(), "v": None}, True)


def test_columns_that_do_not_travel(source: Source) -> None:
    """Generated and dropped columns are not in the stream; identities are."""
    source.execute(
        "create table t (gone int, id int generated always as identity primary key, v int, "
        "twice int generated always as (v * 2) stored)"
    )
    source.execute("alter table t drop gone")
    source.execute("insert into t (v) values (21)")
    assert events(source.sent()) == [Event("insert", "public.t", {"id": b"1", "v": b"21"})]


def test_a_table_without_columns(source: Source) -> None:
    """Rows without any value arrive as such."""
    source.execute("create table t ()")
    source.execute("alter table t replica identity full")
    source.execute("insert into t default values")
    source.execute("delete from t")
    assert events(source.sent()) == [Event("insert", "public.t", {}), Event("delete", "public.t", None, {})]


def test_hostile_names(source: Source) -> None:
    """Schemas, tables and columns may be called anything that fits into 63 bytes."""
    schema, table, column = 'S "%s" $1', "ü" * 31 + "x", "select\n';--"
    name = sql.Identifier(schema, table)
    source.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
    source.execute(sql.SQL("create table {} ({} int primary key)").format(name, sql.Identifier(column)))
    source.execute(sql.SQL("insert into {} values (1)").format(name))
    assert events(source.sent()) == [Event("insert", f"{schema}.{table}", {column: b"1"})]


# --- truncate --------------------------------------------------------------------------------------


def test_truncate_of_several_tables(source: Source) -> None:
    """One TRUNCATE is one message for all of its tables, those that CASCADE reached too, with its options."""
    source.execute(
        "create table a (id int primary key); create table b (id int primary key); create table alone ()"
    )
    source.execute("create table c (id int references a); create table d (id int)")
    source.execute("truncate a, b restart identity cascade")
    source.execute("truncate d, b")
    source.execute("truncate alone restart identity")
    source.execute("truncate a cascade")
    assert events(source.sent()) == [
        Event("truncate cascade restart identity", "public.a, public.b, public.c"),
        Event("truncate", "public.b, public.d"),
        Event("truncate restart identity", "public.alone"),
        Event("truncate cascade", "public.a, public.c"),
    ]


# --- beside rows -----------------------------------------------------------------------------------


def test_logical_messages(source: Source) -> None:
    """A transactional message stands inside its transaction, another outside of any, rolled back or not."""
    source.execute("create table t (id int primary key)")
    with source.conn.transaction():
        source.execute("select pg_logical_emit_message(true, 'in %%s', %s)", b"a\0b")
        source.execute("insert into t values (1)")
    with source.conn.transaction(force_rollback=True):
        source.execute("select pg_logical_emit_message(true, 'never', '')")
        source.execute("select pg_logical_emit_message(false, 'ü', '')")
    source.execute("insert into t values (2)")  # its commit flushes what came before
    sent = [each for each in source.sent() if not isinstance(each, Relation)]
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
    """A transaction that was itself replicated to the source names where it came from; no other does."""
    source.execute("create table t (id int primary key)")
    name = f"far '{secrets.token_hex(4)}"
    source.execute("select pg_replication_origin_create(%s)", name)
    source.execute("select pg_replication_origin_session_setup(%s)", name)
    with source.conn.transaction():
        source.execute("select pg_replication_origin_xact_setup('0/ABCDEF', now())")
        source.execute("insert into t values (1)")
    source.execute("select pg_replication_origin_session_reset()")
    source.execute("insert into t values (2)")
    sent = source.sent()
    kinds = [type(each) for each in sent]
    assert kinds == [Begin, Origin, Relation, Insert, Commit, Begin, Insert, Commit]
    assert sent[1] == Origin(0xABCDEF, name)


def test_types_of_the_user(source: Source) -> None:
    """Types that are not built in are announced by name before their table, a domain by its base's name."""
    source.execute("""create schema "s ""x"; create type "s ""x"."Mood %s" as enum ('a', 'b')""")
    source.execute("create type pair as (x int, y text); create domain small as int check (value < 10)")
    source.execute("""create table t (m "s ""x"."Mood %s", p pair, ms "s ""x"."Mood %s"[], n small)""")
    source.execute("alter table t replica identity full")
    source.execute("insert into t values ('a', (1, 'z'), '{b,a}', 7)")
    sent = source.sent(readable=False)
    assert [type(each) for each in sent] == [Begin, *[TypeName] * 4, Relation, Insert, Commit]
    assert [(each.schema, each.name) for each in sent if isinstance(each, TypeName)] == [
        ('s "x', "Mood %s"),
        ("public", "pair"),
        ('s "x', "_Mood %s"),
        ("pg_catalog", "int4"),
    ]
    named = [each.type_oid for each in sent if isinstance(each, TypeName)]
    (relation,) = (each for each in sent if isinstance(each, Relation))
    assert [column.type_oid for column in relation.columns] == named
    (insert,) = (each for each in sent if isinstance(each, Insert))
    assert insert.new == (b"a", b"(1,z)", b"{b,a}", b"7")


def test_partitions(source: Source) -> None:
    """Rows are named by the leaf that holds them; one that moves is a delete there and an insert here."""
    source.execute("create table p (id int primary key, v text) partition by range (id)")
    source.execute("create table low partition of p for values from (0) to (10)")
    source.execute("create table high (v text, id int not null)")
    source.execute("alter table p attach partition high for values from (10) to (20)")
    source.execute("insert into p values (1, 'a'), (11, 'b')")
    source.execute("update p set id = 12 where id = 1")
    source.execute("truncate low")
    source.execute("truncate p")
    assert events(source.sent()) == [
        Event("insert", "public.low", {"id": b"1", "v": b"a"}),
        Event("insert", "public.high", {"v": b"b", "id": b"11"}),
        Event("delete", "public.low", None, {"id": b"1", "v": None}, old_is_key=True),
        Event("insert", "public.high", {"v": b"a", "id": b"12"}),
        Event("truncate", "public.low"),
        Event("truncate", "public.high, public.low"),
    ]


# --- transactions ----------------------------------------------------------------------------------


def test_rolled_back_savepoints(source: Source) -> None:
    """What was rolled back, to a savepoint or as a whole, does not arrive; the rest does."""
    source.execute("create table t (id int primary key)")
    with source.conn.transaction():
        source.execute("insert into t values (1)")
        with source.conn.transaction(force_rollback=True):
            source.execute("insert into t values (2)")
        with source.conn.transaction():
            source.execute("insert into t values (3)")
    with source.conn.transaction(force_rollback=True):
        source.execute("insert into t values (4)")
    sent = source.sent()
    assert events(sent) == [
        Event("insert", "public.t", {"id": b"1"}),
        Event("insert", "public.t", {"id": b"3"}),
    ]
    assert len(only(sent, Begin)) == len(only(sent, Commit)) == 1


def test_two_phase_commit(source: Source) -> None:
    """A prepared transaction arrives when it is committed, as an ordinary one; one rolled back never does."""
    mark = secrets.token_hex(4)  # gids are known to the whole server
    source.execute("create table t (id int primary key)")
    for number, gid in enumerate(("kept", "dropped"), start=1):
        source.execute("begin")
        source.execute("insert into t values (%s)", number)
        source.execute(sql.SQL("prepare transaction {}").format(sql.Literal(f"{gid} {mark}")))
    source.execute("insert into t values (3)")
    assert [each.new for each in events(source.sent())] == [{"id": b"3"}]
    source.execute(sql.SQL("rollback prepared {}").format(sql.Literal(f"dropped {mark}")))
    source.execute(sql.SQL("commit prepared {}").format(sql.Literal(f"kept {mark}")))
    sent = source.sent()
    assert [type(each) for each in sent if not isinstance(each, Relation)] == [Begin, Insert, Commit]
    assert [each.new for each in events(sent)] == [{"id": b"1"}]


def test_interleaved_transactions_arrive_in_commit_order(source: Source) -> None:
    """Each transaction arrives whole, by its commit, which may start where the one before ended."""
    source.execute("create table t (id int primary key)")
    with connect(source.conninfo) as other:
        for number in range(0, 40, 4):
            source.execute("begin")
            other.execute("begin")
            source.execute("insert into t values (%s)", number)
            other.execute("insert into t values (%s)", [number + 1])
            source.execute("insert into t values (%s)", number + 2)
            other.execute("insert into t values (%s)", [number + 3])
            other.execute("commit")
            source.execute("commit")
    sent = source.sent()
    order = [1, 3, 0, 2]
    expected = [str(start + each).encode() for start in range(0, 40, 4) for each in order]
    assert [each.new and each.new["id"] for each in events(sent)] == expected
    begins = [each for each in sent if isinstance(each, Begin)]
    commits = [each for each in sent if isinstance(each, Commit)]
    assert [each.final_lsn for each in begins] == [each.commit_lsn for each in commits]
    assert all(one.end_lsn <= two.commit_lsn for one, two in pairwise(commits))
    assert any(one.end_lsn == two.commit_lsn for one, two in pairwise(commits))
