"""``pglockstep journal``: beside a daemon, without one, and with neither end to be reached."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fix_copy import refused
from fix_journal import behind_a_gap, segments_of, written, written_at_once
from fix_servers import Cli, Connection, Pair, wait_until
from fix_workload import SCHEMA, workload
from pglockstep.observe.state import LinkStatus, StateDirectory
from pglockstep.postgres.connect import fingerprint
from pglockstep.units import Lsn
from test_run import Daemon, daemon

pytestmark = pytest.mark.unguarded

#: Ends that nobody answers at.
NOWHERE = ("--source", "host=/nowhere dbname=a", "--target", "host=/nowhere dbname=b")


def told(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    """The link object that a command printed as JSON."""
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads(done.stdout)["links"][0]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def kept(cli: Cli) -> Path:
    """The folder of a journal that a daemon left behind, of a link between two ends that are gone for ever."""
    state = StateDirectory(cli.directory / "state")
    state.create()
    key = fingerprint(NOWHERE[1], NOWHERE[3])
    state.save(key, "default", LinkStatus(link_id="0123456789ab", state="streaming"))
    return state.journal("0123456789ab")


# --- info ------------------------------------------------------------------------------------------


def test_info_without_any_server(cli: Cli, kept: Path) -> None:
    """What there is, from the files alone; no command writes to them, and info is what is meant where none is named."""
    written(kept, 300)
    before = {each: each.read_bytes() for each in segments_of(kept)}
    found = told(cli("journal", "--json", *NOWHERE))
    assert (found["first_lsn"], found["last_lsn"], found["transactions"]) == ("0/64", "0/7594", 300)
    assert found["bytes"] == sum(map(len, before.values()))
    assert [each["path"] for each in found["segments"]] == list(map(str, before))
    assert sum(each["transactions"] for each in found["segments"]) == 300
    assert found["segments"][1]["first_lsn"] == found["segments"][0]["last_lsn"]
    assert found["last_at"] == "2000-01-01T00:00:00.000300Z"
    assert 0 <= found["disk_used_percent"] <= 100
    said = cli("journal", "info", "default", *NOWHERE)
    assert f"{len(before)} segments" in said.stdout
    assert "everything from 0/64 to 0/7594" in said.stdout
    told(cli("journal", "verify", "--json", *NOWHERE))
    told(cli("journal", "show", "--json", *NOWHERE))
    assert {each: each.read_bytes() for each in segments_of(kept)} == before


def test_no_journal(cli: Cli, kept: Path) -> None:
    """A link that has none, or whose journal is empty, is told in one line."""
    for name in ("info", "verify", "show"):
        message, hint = refused(cli("journal", name, *NOWHERE), 1)
        assert "no journal" in message
        assert "state_dir" in hint
    kept.mkdir(parents=True)
    assert told(cli("journal", "info", "--json", *NOWHERE))["segments"] == []
    assert told(cli("journal", "verify", "--json", *NOWHERE))["sound"]
    assert told(cli("journal", "show", "--json", *NOWHERE))["transactions"] == []
    assert "holds nothing yet" in refused(cli("journal", "show", "--lsn", "0/0", *NOWHERE), 1)[0]


# --- verify ----------------------------------------------------------------------------------------


def test_verify_lists_all_damage(cli: Cli, kept: Path) -> None:
    """A flipped byte in a head, in blocks, and a segment that is gone: all of it, with file and offset; exit 1."""
    written(kept, 700)
    files = list(segments_of(kept))
    assert len(files) > 6
    assert told(cli("journal", "verify", "--json", *NOWHERE))["damage"] == []

    def flip(file: Path, offset: int) -> None:
        content = bytearray(file.read_bytes())
        content[offset] ^= 1
        file.write_bytes(content)

    flip(files[0], 10)
    second = blocks_of(files[1])
    flip(files[1], second[1] + 20)
    flip(files[1], second[3] + 70)
    files[3].unlink()
    last = blocks_of(files[-1])
    flip(files[-1], last[1] + 5)
    done = cli("journal", "verify", "--json", *NOWHERE)
    damage = told(done, 1)["damage"]
    assert [(each["path"], each["offset"]) for each in damage] == [
        (str(files[0]), 0),
        (str(files[1]), second[1]),
        (str(files[1]), second[3]),
        (str(files[4]), 0),
        (str(files[-1]), last[1]),
    ]
    assert "segment 4, which came before it, is missing" in damage[3]["problem"]
    text = cli("journal", "verify", *NOWHERE)
    assert text.returncode == 1
    assert "damaged in 5 places" in text.stdout
    assert f"{files[1]} at byte {second[3]}: a block's checksum is wrong" in text.stdout
    assert f"{files[0]} is damaged" in told(cli("journal", "--json", *NOWHERE))["damage"]
    assert "journal verify lists all of it" in cli("journal", *NOWHERE).stdout


def blocks_of(file: Path) -> list[int]:
    """Where the blocks of a segment begin."""
    content = file.read_bytes()
    found = [at for at in range(len(content)) if content.startswith(b"PGLb", at)]
    assert len(found) > 2
    return found


def test_an_unfinished_end_and_a_gap_are_no_damage(cli: Cli, kept: Path) -> None:
    """Half a block at the end, and a run that began behind a gap: told, and exit 0."""
    written(kept, 50)
    behind_a_gap(kept, 90)
    last = list(segments_of(kept))[-1]
    with last.open("ab") as file:
        file.write(b"PGLb\x00")
    found = told(cli("journal", "verify", "--json", *NOWHERE))
    assert (found["sound"], found["unfinished_bytes"]) == (True, 5)
    assert [(each["after_lsn"], each["until_lsn"]) for each in found["gaps"]] == [("0/13EC", "0/2328")]
    text = cli("journal", "verify", *NOWHERE)
    assert "a gap before" in text.stdout
    assert "is unfinished (5 B)" in text.stdout
    assert "a gap" in cli("journal", *NOWHERE).stdout
    transactions = told(cli("journal", "show", "--json", *NOWHERE))["transactions"]
    assert [each["xid"] for each in transactions] == [*range(32, 51), 90]
    assert told(cli("journal", "show", "--lsn", "0/1000", "--json", *NOWHERE))["transactions"][0]["xid"] == 40


# --- show ------------------------------------------------------------------------------------------


def test_show_finds_transactions(cli: Cli, kept: Path) -> None:
    """The last ones, that of an xid, and that of an LSN, in it and before it, over all segments."""
    written(kept, 300, rows=2)

    def xids(*args: str) -> list[int]:
        return [
            each["xid"] for each in told(cli("journal", "show", "--json", *args, *NOWHERE))["transactions"]
        ]

    assert xids() == list(range(281, 301))
    assert xids("--last", "3") == [298, 299, 300]
    assert xids("--last", "500") == list(range(1, 301))
    for number in (1, 7, 150, 300):
        assert xids("--xid", str(number)) == [number]
        lsn = number * 100
        # the commit record stands from `number` * 100 up to, and without, where the next one starts
        for at in (lsn, lsn + 99):
            assert xids("--lsn", f"0/{at:X}") == [number]
    only = told(cli("journal", "show", "--xid", "7", "--json", *NOWHERE))["transactions"][0]
    assert (only["lsn"], only["end_lsn"], only["changes"]) == ("0/2BC", "0/320", 2)
    assert only["committed_at"] == "2000-01-01T00:00:00.000007Z"
    assert only["tables"] == [
        {"schema": "public", "table": "t1", "inserts": 2, "updates": 0, "deletes": 0, "truncates": 0}
    ]
    assert only["rows"] is None


def test_what_the_journal_does_not_have(cli: Cli, kept: Path) -> None:
    """An xid that never was, an LSN before the beginning and one behind the end: exit 1, one line and a hint."""
    written(kept, 30)
    message, hint = refused(cli("journal", "show", "--xid", "31", *NOWHERE), 1)
    assert message.endswith("no transaction 31 is in the journal")
    assert "journal info" in hint
    assert "begins at 0/64 only" in refused(cli("journal", "show", "--lsn", "0/63", *NOWHERE), 1)[0]
    assert "the journal ends at 0/C1C" in refused(cli("journal", "show", "--lsn", "0/C1C", *NOWHERE), 1)[0]
    assert refused(cli("journal", "show", "--lsn", "x", *NOWHERE), 2)
    assert refused(cli("journal", "show", "--lsn", "0/1", "--xid", "1", *NOWHERE), 2)


def test_a_huge_transaction_in_little_memory(cli: Cli, kept: Path) -> None:
    """300 MB in one transaction over many segments: counted, and its first rows shown, by a process of little memory."""
    written_at_once(kept, rows=300_000, size=1000)
    script = (
        "import sys; from pathlib import Path; from pglockstep.cli.main import main\n"
        "try: main()\n"
        # of this program alone: what getrusage tells began before it was loaded
        "finally: print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "journal", "show", "--rows", "--limit", "5", "--json", *NOWHERE],
        env=cli._environment(None),
        capture_output=True,
        text=True,
        check=False,
    )
    (large,) = told(done)["transactions"]
    assert (large["changes"], len(large["rows"])) == (300_000, 5)
    assert int(done.stderr.split()[-1]) < 200 << 10


# --- beside a real daemon --------------------------------------------------------------------------


@pytest.fixture
def tables(pair: Pair) -> Connection:
    """A source with a table that has a key, one that has none, and one whose names need quoting."""
    source = pair.on_source()
    source.execute(
        "CREATE TABLE keyed (id int PRIMARY KEY, secret text); CREATE TABLE keyless (a int, b text);"
        'CREATE TABLE "Odd Names" ("The Id" int, x text, y text, PRIMARY KEY (x, "The Id"))'
    )
    return source


def test_show_tells_what_happened(pair: Pair, cli: Cli, tables: Connection) -> None:
    """Counts by table; with --rows the keys, the whole old row where there is none, and no other value."""
    ends = ("--source", pair.source, "--target", pair.target)
    with daemon(cli, pair) as running:
        with tables.transaction():
            tables.execute("INSERT INTO keyed SELECT n, 'hush' FROM generate_series(1, 5) AS n")
            tables.execute("UPDATE keyed SET secret = 'hush hush' WHERE id < 3")
            tables.execute("UPDATE keyed SET id = 70 WHERE id = 5")
            tables.execute("DELETE FROM keyed WHERE id = 4")
            tables.execute("INSERT INTO keyless VALUES (1, NULL), (2, E'it''s\\n\\x1b[31m')")
            tables.execute("UPDATE keyless SET a = 3 WHERE a = 2")
            tables.execute("""INSERT INTO "Odd Names" VALUES (1, 'ü', 'hush')""")
            (xid,) = tables.execute(
                "SELECT pg_current_xact_id()::text::bigint % (1::bigint << 32)"
            ).fetchone() or (0,)
        tables.execute("TRUNCATE keyed, keyless")
        wait_until(lambda: running.status()["lag_bytes"] == 0, 20, "the target to be level")
        shown = told(cli("journal", "show", "--xid", str(xid), "--json", *ends))["transactions"]
        assert [
            (each["table"], each["inserts"], each["updates"], each["deletes"]) for each in shown[0]["tables"]
        ] == [
            ("Odd Names", 1, 0, 0),
            ("keyed", 5, 3, 1),
            ("keyless", 2, 1, 0),
        ]
        text = cli("journal", "show", *ends).stdout
        assert f"xid {xid} " in text
        assert 'public."Odd Names" 1 insert; public.keyed 1 delete, 5 inserts, 3 updates' in text
        assert "hush" not in text + json.dumps(shown)
        rows = told(cli("journal", "show", "--xid", str(xid), "--rows", "--json", *ends))["transactions"][0][
            "rows"
        ]
        assert [(each["op"], each["key"], each["new_key"]) for each in rows[5:]] == [
            ("update", {"id": "1"}, None),
            ("update", {"id": "2"}, None),
            ("update", {"id": "5"}, {"id": "70"}),
            ("delete", {"id": "4"}, None),
            ("insert", {"a": "1", "b": None}, None),
            ("insert", {"a": "2", "b": "it's\n\x1b[31m"}, None),
            ("update", {"a": "2", "b": "it's\n\x1b[31m"}, None),
            ("insert", {"The Id": "1", "x": "ü"}, None),
        ]
        text = cli("journal", "show", "--xid", str(xid), "--rows", "--limit", "7", *ends).stdout
        assert "\x1b" not in text
        assert "update public.keyed id='1'" in text
        assert "… and 6 more" in text
        assert "hush" not in text
        last = told(cli("journal", "show", "--last", "2", "--rows", "--json", *ends))["transactions"][-1]
        truncated = [(each["op"], each["table"]) for each in last["rows"]]
        assert truncated == [("truncate", "keyed"), ("truncate", "keyless")]
        applied = running.status()["applied_lsn"]
        assert refused(cli("journal", "show", "--lsn", applied, *ends), 1)


def test_beside_a_busy_daemon(pair: Pair, cli: Cli) -> None:
    """While it is being written, and with segments begun and dropped: never damage, never a transaction in pieces."""
    pair.on_source().execute(SCHEMA.encode())
    (cli.directory / "pglockstep.toml").write_text(
        f"[links.main]\nsource = {json.dumps(pair.source)}\ntarget = {json.dumps(pair.target)}\n"
        '[links.main.journal]\nsegment_size = "1MB"\nkeep_size = "2MB"\n'
    )
    process = cli.start("run")
    wait_until(lambda: cli("journal", "info").returncode == 0, 30, "a journal")
    big = "INSERT INTO ballast SELECT md5(n::text) || md5((-n)::text) FROM generate_series(1, 30000) AS n"
    source = pair.on_source()
    source.execute("CREATE TABLE ballast (v text)")
    with workload(pair.source):
        for _ in range(6):
            source.execute(big.encode())
            check = told(cli("journal", "verify", "--json"))
            assert check["sound"]
            shown = told(cli("journal", "show", "--last", "50", "--json"))["transactions"]
            ends = [Lsn.parse(each["end_lsn"]) for each in shown]
            assert 0 < len(ends) <= 50
            assert ends == sorted(ends)
            assert all(Lsn.parse(each["lsn"]) < Lsn.parse(each["end_lsn"]) for each in shown)
            assert told(cli("journal", "--json"))["transactions"] > 0
    process.terminate()
    assert process.wait(20) == 0
    assert told(cli("journal", "verify", "--json"))["segments"] >= 1


def test_damage_is_no_crash(pair: Pair, cli: Cli) -> None:
    """A daemon that finds its journal damaged ends with 3 and names the place; verify beside it names the same."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    running = Daemon(cli, pair)
    pair.target_server.stop("fast")
    try:
        for number in range(5):
            source.execute("INSERT INTO t VALUES (%s, repeat('x', 100))", [number])
        ends = ("--source", pair.source, "--target", pair.target)
        wait_until(
            lambda: told(cli("journal", "--json", *ends))["transactions"] >= 5, 20, "the journal to have it"
        )
        running.process.terminate()
        assert running.process.wait(20) == 0
        (file,) = (cli.directory / "state" / "journal").glob("*/*.journal")
        # a block that holds something: an empty one is shorter than that
        place = next(at for at, end in pairwise(blocks_of(file)) if end - at > 80)
        content = bytearray(file.read_bytes())
        content[place + 70] ^= 1
        file.write_bytes(content)
    finally:
        pair.target_server.start()
    done = cli("run", *ends)
    assert done.returncode == 3
    assert f"{file} is damaged at byte {place}" in done.stderr
    assert f"mv {file.parent} {file.parent}.damaged, then start again" in done.stderr
    (damage,) = told(cli("journal", "verify", "--json", *ends), 1)["damage"]
    assert (damage["path"], damage["offset"]) == (str(file), place)
