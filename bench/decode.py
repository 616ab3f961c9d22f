"""What decoding costs: changes a second on one core, compiled and interpreted, on bytes that a real server sent.

Nothing is received and nothing applied. Each round is a process of its own, and CPU time is what counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct

import msgspec

from bench.contest import say
from bench.results import Conditions, Decode, DecodeRound
from bench.servers import Servers, connect
from bench.stage import PUBLICATION, Stage, built
from bench.work import Backlog
from pglockstep import compiled
from pglockstep.apply.batch import BatchBuilder
from pglockstep.apply.sets import TableSets
from pglockstep.postgres.catalog import Column, Table
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.messages import Relation
from pglockstep.wal.pgoutput import decode

#: How much of the standard backlog is recorded: more says the same.
SHARE = 0.1

_length = Struct("!I")
_PEEK = """
SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes(
    'bench_recording', NULL, NULL, 'proto_version', '1', 'publication_names', %s
)
"""


def measure(servers: Servers, scale: float, rounds: int, conditions: Conditions) -> Decode:
    """Record once, then let both forms take turns."""
    backlog = Backlog.scaled(scale * SHARE)
    say(f"decode: {backlog.changes} changes, {rounds} rounds")
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as directory:
        file = Path(directory, "recording")
        with built(servers, backlog, []) as stage:
            file.write_bytes(b"".join(_length.pack(len(each)) + each for each in recorded(stage)))
        done = [
            _round(file, form) for _ in range(rounds) for form in ("compiled", "interpreted") if _has(form)
        ]
        return Decode(conditions, backlog.changes, file.stat().st_size, done)


def recorded(stage: Stage) -> Iterator[bytes]:
    """The backlog's messages, as the server would stream them."""
    stage.copy_slot("bench_recording")
    try:
        with connect(stage.source) as conn, conn.cursor(binary=True) as cursor:
            for (payload,) in cursor.stream(_PEEK, [PUBLICATION]):
                yield payload
    finally:
        stage.drop_slot("bench_recording")


def _has(form: str) -> bool:
    if form == "compiled" and not compiled.is_compiled():
        say("compiled: absent; there was no C compiler when pglockstep was installed")
        return False
    return True


def _round(file: Path, form: str) -> DecodeRound:
    environment = dict(os.environ) | {compiled.INTERPRETED: "1" if form == "interpreted" else ""}
    done = subprocess.run(
        [sys.executable, "-m", "bench.decode", str(file)], env=environment, stdout=subprocess.PIPE, check=True
    )
    found = msgspec.json.decode(done.stdout, type=DecodeRound)
    say(f"  {form}: decoded {found.decoded:,.0f}/s, as far as COPY's text {found.prepared:,.0f}/s")
    return found


def play(file: Path) -> DecodeRound:
    """One round, in this process, in the form that it runs."""
    data = file.read_bytes()
    payloads: list[bytes] = []
    at = 0
    while at < len(data):
        (length,) = _length.unpack_from(data, at)
        payloads.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    changes = sum(payload[:1] in (b"I", b"U", b"D") for payload in payloads)
    for payload in payloads[:1000]:
        decode(payload)
    begun = time.process_time()
    for payload in payloads:
        decode(payload)
    decoded = time.process_time()
    _prepare(payloads)
    prepared = time.process_time()
    return DecodeRound(compiled.form(), changes / (decoded - begun), changes / (prepared - decoded))


def _unknown(name: QualifiedName) -> Table:
    raise AssertionError(f"{name} was not described")


def _prepare(payloads: Sequence[bytes]) -> None:
    """Decode, batch, and work out what the batches come to, up to the text that would be copied."""
    builder = BatchBuilder("bench", Lsn(0), _unknown)
    sets: dict[int, TableSets] = {}
    at = 0
    while (at := builder.feed(payloads, at)) < len(payloads) or builder.ready:
        if at < len(payloads) and not builder.full:
            relation = decode(payloads[at])
            assert isinstance(relation, Relation)
            if not builder.knows(relation.relation_id):
                builder.describe(relation, _table(relation))
            at += 1
            continue
        for step in builder.seal().steps:
            assert isinstance(step, dict)
            for oid, run in step.items():
                sets.setdefault(oid, TableSets(run.writer, oid)).of(run)


def _table(relation: Relation) -> Table:
    """A target's table that is like the source's."""
    columns = tuple(
        Column(each.name, "text", each.type_oid, type_modifier=each.type_modifier)
        for each in relation.columns
    )
    return Table(relation.relation_id, QualifiedName(relation.schema, relation.name), columns)


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(play(Path(sys.argv[1]))).decode())
