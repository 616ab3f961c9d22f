"""``pglockstep teardown``: nothing of ours remains, nothing of theirs is touched."""

from __future__ import annotations

import os
import re
import subprocess

from fix_servers import Cli, Pair, on_all_pairs
from fix_workload import SCHEMA
from pglockstep.postgres.installations import clients_for


def dump(conninfo: str, major: int) -> str:
    """What pg_dump makes of a database, schema and rows, without its random token."""
    program = clients_for(major, os.environ).program("pg_dump")
    done = subprocess.run([program, "-d", conninfo], capture_output=True, text=True, check=True, timeout=60)
    return re.sub(r"^\\(un)?restrict .*$", "", done.stdout, flags=re.MULTILINE)


@on_all_pairs
def test_leaves_both_ends_as_they_were(pair: Pair, cli: Cli) -> None:
    """pg_dump of the source before and after is the same, and so is the target's but for our schema."""
    source = pair.on_source()
    source.execute(SCHEMA.encode())
    source.execute("CREATE TABLE nothing (v text); ALTER TABLE nothing REPLICA IDENTITY NOTHING")
    source.execute("CREATE TABLE already (v text); ALTER TABLE already REPLICA IDENTITY FULL")
    source.execute("CREATE PUBLICATION theirs FOR TABLE already")
    before = dump(pair.source, pair.source_server.major)
    ends = ("--source", pair.source, "--target", pair.target)
    assert cli("once", *ends).returncode == 0
    assert dump(pair.source, pair.source_server.major) != before
    assert cli("teardown", *ends).returncode == 2
    done = cli("teardown", "--yes", *ends)
    assert done.returncode == 0, done.stderr
    assert dump(pair.source, pair.source_server.major) == before
    query = "SELECT count(*) FROM pg_replication_slots WHERE slot_name ~ 'pglockstep'"
    assert source.execute(query.encode()).fetchone() == (0,)
    target = pair.on_target()
    assert target.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'pglockstep'").fetchone() == (0,)
    assert target.execute("SELECT count(*) FROM account").fetchone() == (200,)
    assert cli("check", *ends).returncode == 0
    assert "nothing of ours" in cli("teardown", "--yes", *ends).stdout


def test_sets_back_only_what_is_still_ours(pair: Pair, cli: Cli) -> None:
    """A table dropped, or given a key by its owner meanwhile, is left as its owner made it."""
    source = pair.on_source()
    source.execute("CREATE TABLE a (v int); CREATE TABLE b (v int NOT NULL); CREATE TABLE c (v int)")
    ends = ("--source", pair.source, "--target", pair.target)
    assert cli("once", *ends).returncode == 0
    source.execute("DROP TABLE a; ALTER TABLE b ADD PRIMARY KEY (v); ALTER TABLE b REPLICA IDENTITY DEFAULT")
    assert cli("teardown", "--yes", *ends).returncode == 0
    rows = source.execute(
        "SELECT relname, relreplident::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384 ORDER BY 1"
    )
    assert rows.fetchall() == [("b", "d"), ("c", "d")]


def test_a_stopped_end_removes_nothing_by_halves(pair: Pair, cli: Cli) -> None:
    """With one end away teardown says which, and does the whole of it when that end is back."""
    pair.on_source().execute("CREATE TABLE t (v int)")
    ends = ("--source", pair.source, "--target", pair.target)
    assert cli("once", *ends).returncode == 0
    pair.source_server.stop()
    try:
        assert cli("teardown", "--yes", *ends).returncode == 4
    finally:
        pair.source_server.start()
    assert pair.on_target().execute("SELECT count(*) FROM pglockstep.link").fetchone() == (1,)
    assert cli("teardown", "--yes", *ends).returncode == 0
    rows = pair.on_source().execute("SELECT relreplident::text FROM pg_class WHERE relname = 't'")
    assert rows.fetchone() == ("d",)
