"""The compiled twins do what their sources say: on bytes that real servers sent, and on any others."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from struct import pack
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from encode_pgoutput import messages
from fix_doctor import Patient
from fix_recorder import Recorder
from fix_servers import Cli, MakeDatabase, Pair, Servers, connect, majors
from pglockstep import compiled
from pglockstep.apply import batch, encoding, net
from pglockstep.errors import ProtocolViolation
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal import frames, pgoutput
from pglockstep.wal.encode import encode
from pglockstep.wal.messages import Insert, Message, Relation, Row, Update
from test_apply_net import histories

FULL = 4 << 20
TABLES: dict[QualifiedName, Table] = {}


def interpreted(module: str) -> ModuleType:
    """The same module once more, from its source."""
    name = f"interpreted_{module.rpartition('.')[2]}"
    spec = spec_from_file_location(name, compiled.source(module))
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


sources = {module: interpreted(module) for module in compiled.MODULES}
batch_source = sources["pglockstep.apply.batch"]
encoding_source = sources["pglockstep.apply.encoding"]
frames_source = sources["pglockstep.wal.frames"]
net_source = sources["pglockstep.apply.net"]
pgoutput_source = sources["pglockstep.wal.pgoutput"]


def outcome(function: Callable[..., Any], *arguments: object) -> object:
    """What a call comes to: its result, or the violation that it raises; any other error is one."""
    try:
        return function(*arguments)
    except ProtocolViolation as error:
        return error.message, error.hint


def same_messages(payloads: Sequence[bytes]) -> None:
    """Both decoders make the same of each, types of rows and of values included."""
    for payload in payloads:
        ours, theirs = outcome(pgoutput.decode, payload), outcome(pgoutput_source.decode, payload)
        assert repr(ours) == repr(theirs)
        assert ours == theirs
        for field in ("new", "old"):
            row = getattr(ours, field, None)
            assert type(row) is type(getattr(theirs, field, None))
            if row is not None:
                assert list(map(type, row)) == list(map(type, getattr(theirs, field)))


# --- the decoder -----------------------------------------------------------------------------------


@given(messages)
def test_every_message(message: Message) -> None:
    """Any message of the protocol decodes to the same."""
    same_messages([encode(message)])


@given(messages, st.data())
def test_mangled_messages(message: Message, data: st.DataObject) -> None:
    """Cut short, with bytes put in or exchanged, or with more behind: the same message, or the same refusal."""
    whole = encode(message)
    at = data.draw(st.integers(0, len(whole)))
    other = data.draw(st.binary(max_size=6))
    same_messages(
        [
            whole[:at],
            whole + other,
            whole[:at] + other + whole[at + len(other) :],
            whole[:at] + other + whole[at:],
        ]
    )


@given(
    st.binary(max_size=60)
    | st.builds(bytes.__add__, st.sampled_from([b"I", b"U", b"D", b"R", b"T"]), st.binary(max_size=60))
)
@example(b"")
@example(b"I\0\0\0\1N\0\1t\xff\xff\xff\xff")
@example(b"I\0\0\0\1N\0\1t\x80\0\0\0")
@example(b"I\0\0\0\1N\0\1t\x7f\xff\xff\xffx")
@example(b"I\xff\xff\xff\xffN\xff\xff")
@example(b"D\xff\xff\xff\xffK\0\1n")
def test_any_bytes(data: bytes) -> None:
    """Whatever a source sends, both say the same of it."""
    same_messages([data])


DONE = """
create table t (id int primary key, v text, w numeric(9, 2), b bytea);
create table whole (a int, v text);
alter table whole replica identity full;
create table big (id int primary key, n int, v text);
alter table big alter v set storage external;
create type mood as enum ('sad', 'happy');
create table moods (m mood primary key);
begin;
insert into t select i, 'value ' || i, i / 7.0, decode('00ff0a5c', 'hex') from generate_series(1, 300) i;
update t set v = null where id % 3 = 0;
update t set id = id + 1000 where id % 5 = 0;
delete from t where id % 7 = 0;
insert into whole values (1, 'a'), (1, 'a'), (null, null);
commit;
update whole set v = E'tab\\t line\\n back\\\\slash' where a = 1;
delete from whole where a is null;
insert into big values (1, 1, repeat('x', 9000)), (2, 2, '');
update big set n = n + 1;
insert into moods values ('happy');
select pg_logical_emit_message(true, 'note', 'inside');
select pg_logical_emit_message(false, 'note', '');
truncate t, whole;
"""


def recorded(servers: Servers, make_database: MakeDatabase, major: int, *, binary: bool) -> list[bytes]:
    """What a real server sends for all of that."""
    conninfo = make_database(servers.source(major))
    with Recorder(conninfo, binary=binary) as recorder, connect(conninfo) as conn:
        for statement in DONE.split(";\n"):
            if statement:
                conn.execute(statement)
        return recorder.payloads()


@pytest.mark.parametrize("major", majors)
@pytest.mark.parametrize("binary", [False, True])
def test_recorded_bytes(servers: Servers, make_database: MakeDatabase, major: int, binary: bool) -> None:
    """What every installed server really sends, and each of it cut short anywhere, is the same to both."""
    payloads = recorded(servers, make_database, major, binary=binary)
    assert len({payload[:1] for payload in payloads}) >= 8
    same_messages(payloads)
    shortest = {payload[:1]: payload for payload in sorted(payloads, key=len, reverse=True)}
    same_messages([payload[:end] for payload in shortest.values() for end in range(len(payload))])


# --- frames, batches, nets and texts ---------------------------------------------------------------


@given(
    st.lists(
        st.binary(max_size=40)
        | st.builds(bytes.__add__, st.sampled_from([b"w", b"k"]), st.binary(max_size=40))
    )
)
def test_frames(found: list[bytes]) -> None:
    """Payloads and other frames come apart alike."""
    assert frames.payloads(found) == frames_source.payloads(found)


def fed(module: Any, payloads: Sequence[bytes]) -> list[object]:
    """What a builder makes of payloads, in plain values; the violation where there is one."""
    made = module.BatchBuilder("link", Lsn(100), TABLES.__getitem__)
    told: list[object] = []
    at = 0
    try:
        while (at := made.feed(payloads, at)) < len(payloads):
            told.append((at, made.full))
            if made.full <= 1:
                relation = pgoutput.decode(payloads[at])
                assert isinstance(relation, Relation)
                columns = tuple(Column(each.name, "text", each.type_oid) for each in relation.columns)
                made.describe(relation, Table(1, QualifiedName(relation.schema, relation.name), columns))
                at += 1
            while made.full:
                told.append(plain(made.seal()))
    except ProtocolViolation as error:
        told.append(error.message)
    told.append((made.position, made.in_transaction, made.ready, made.size))
    while made.ready:
        told.append(plain(made.seal()))
    return told


def plain(sealed: Any) -> list[object]:
    """A batch in plain values."""
    steps = [
        [(oid, run.changes) for oid, run in step.items()] if isinstance(step, dict) else step
        for step in sealed.steps
    ]
    return [steps, sealed.size, sealed.transactions, sealed.commit, sealed.carry]


@pytest.mark.parametrize("major", majors)
def test_recorded_batches(servers: Servers, make_database: MakeDatabase, major: int) -> None:
    """A recorded stream becomes the same batches, and the same after any of its messages is lost."""
    payloads = recorded(servers, make_database, major, binary=False)
    whole = fed(batch, payloads)
    assert whole == fed(batch_source, payloads)
    assert len(whole) > 3
    for lost in range(0, len(payloads), 17):
        some = payloads[:lost] + payloads[lost + 1 :]
        assert fed(batch, some) == fed(batch_source, some)


def test_large_batches() -> None:
    """Where batches are full, and feeding stops, both do it at the same message."""
    insert = encode(Insert(1, (b"." * (FULL // 3),)))
    payloads = [
        b"R\0\0\0\1public\0t\0d\0\1\1v\0\0\0\0\x19\xff\xff\xff\xff",
        pack("!cQqI", b"B", 100, 0, 1),
        *[insert] * 9,
        pack("!cBQQq", b"C", 0, 100, 110, 0),
    ]
    assert fed(batch, payloads) == fed(batch_source, payloads)
    assert any(isinstance(each, tuple) and each[1] == 2 for each in fed(batch, payloads))


@given(histories() | histories(composite=True))
def test_nets(history: tuple[dict[Row, Row], list[Any], dict[Row, Row]]) -> None:
    """A run comes to the same."""
    _, changes, _ = history
    for key in ([0], [0, 1], []):
        assert net_of(net, changes, key) == net_of(net_source, changes, key)


@given(
    st.lists(
        st.builds(Insert, st.just(1), st.just((b"1", b"a")))
        | st.builds(Update, st.just(1), st.just((b"1", b"b")))
    )
)
def test_nets_of_nonsense(changes: list[Any]) -> None:
    """What makes no sense is irregular to both."""
    assert net_of(net, changes, [0]) == net_of(net_source, changes, [0])


def net_of(module: Any, changes: Sequence[Any], key: Sequence[int]) -> object:
    """The net in plain values, or that there is none."""
    try:
        made = module.net(changes, key)
    except module.Irregular:
        return "irregular"
    return made.deleted, made.removed, made.updated, made.moved, made.inserted


@given(
    st.integers(0, 3).flatmap(
        lambda width: st.lists(
            st.tuples(*[st.none() | st.text("ab\\\t\n\rN").map(str.encode)] * width), min_size=1
        )
    )
)
def test_texts(rows: list[Row]) -> None:
    """COPY's text is the same."""
    assert encoding.copy_text(rows) == encoding_source.copy_text(rows)


# --- which of both runs ----------------------------------------------------------------------------


def twin(module: str) -> Path:
    """Where the compiled twin of a module is, if there is one."""
    return compiled.source(module).with_suffix(EXTENSION_SUFFIXES[0])


def test_the_twins_are_there_and_of_today() -> None:
    """With a C compiler at hand these tests compare two things, and none of an older source. `make test` sees to it."""
    types = {
        path.with_suffix(".py") for path in compiled.source(compiled.MODULES[0]).parents[1].rglob("*.pxd")
    }
    assert types == set(map(compiled.source, compiled.MODULES))
    if shutil.which("cc") is None or os.environ.get(compiled.INTERPRETED):
        return
    assert compiled.is_compiled()
    for module in compiled.MODULES:
        source = compiled.source(module)
        newest = max(each.stat().st_mtime for each in (source, source.with_suffix(".pxd")))
        assert twin(module).stat().st_mtime >= newest, f"{module} has changed since it was compiled"


def test_the_sources_can_be_chosen(cli: Cli) -> None:
    """One variable of the environment has everything interpreted."""
    assert cli("--version", env={compiled.INTERPRETED: "1"}).stdout.endswith("(interpreted)\n")


def test_the_doctor_says_so(cli: Cli, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted is a note of the doctor's, and no fault."""
    monkeypatch.setenv(compiled.INTERPRETED, "1")
    (found,) = Patient(cli, pair).find("interpreted")
    assert found["severity"] == "info"
    monkeypatch.setenv(compiled.INTERPRETED, "")
    assert bool(Patient(cli, pair).find("interpreted")) is not all(
        twin(each).exists() for each in compiled.MODULES
    )
