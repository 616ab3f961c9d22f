"""The daemon with the target away: it goes on receiving, the source may forget, and the target levels when it is back."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fix_copy import refused
from fix_servers import Cli, Connection, Pair, connect, wait_until
from fix_workload import SCHEMA
from pglockstep.units import Lsn
from test_run import daemon, ends_identical

pytestmark = pytest.mark.unguarded


def confirmed(source: Connection) -> int:
    """How far the source was told that everything is durable, in bytes of WAL behind its end."""
    row = source.execute(
        "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database()"
    )
    found = row.fetchone()
    assert found is not None
    return int(found[0])


def test_receives_while_the_target_is_away(pair: Pair, cli: Cli) -> None:
    """The target stopped for long: the source is told to forget, the daemon may die and start, and nothing is lost."""
    source = pair.on_source()
    source.execute(SCHEMA.encode())
    source.execute("CREATE TABLE big (id serial PRIMARY KEY, v text)")
    ends = ("--source", pair.source, "--target", pair.target)
    fill = "INSERT INTO big (v) SELECT md5(n::text) FROM generate_series(1, 1000) AS n"
    with daemon(cli, pair) as running:
        pair.target_server.stop("fast")
        for _ in range(20):
            source.execute(fill)
        wait_until(lambda: confirmed(source) < 100_000, 20, "the source to be told")
        assert running.status()["state"] == "waiting"
        running.kill()
    for _ in range(10):
        source.execute(fill)
    second = cli.start("run", *ends)
    wait_until(lambda: confirmed(source) < 100_000, 30, "the source to be told by another daemon")
    found = json.loads(cli("status", *ends, "--json").stdout)["links"][0]
    assert (found["state"], found["daemon_alive"]) == ("waiting", True)
    assert found["lag_seconds"] > 0
    pair.target_server.start()
    target = pair.on_target()
    wait_until(lambda: target.execute("SELECT FROM big").rowcount == 30_000, 40, "the target to level")
    assert cli("check", *ends).returncode == 0
    second.terminate()
    assert second.wait(20) == 0
    ends_identical(cli, pair)


def test_without_a_journal_a_target_that_is_away_is_refused(pair: Pair, cli: Cli) -> None:
    """Nothing is known of the link yet: the daemon ends at once with 5."""
    pair.target_server.stop("fast")
    try:
        done = cli("run", "--source", pair.source, "--target", pair.target)
        assert done.returncode == 5, done.stderr
    finally:
        pair.target_server.start()


def test_once_uses_what_a_daemon_received(pair: Pair, cli: Cli) -> None:
    """What only the journal has, because the target was away, is applied by `once` too; elsewhere it is a gap, told as one."""
    source = pair.on_source()
    source.execute("CREATE TABLE big (id serial PRIMARY KEY, v text)")
    with daemon(cli, pair) as running:
        pair.target_server.stop("fast")
        for _ in range(20):
            source.execute("INSERT INTO big (v) SELECT md5(n::text) FROM generate_series(1, 1000) AS n")
        wait_until(lambda: confirmed(source) < 100_000, 20, "the source to be told")
        running.kill()
    pair.target_server.start()
    elsewhere = cli(
        "once",
        "--source",
        pair.source,
        "--target",
        pair.target,
        "--state-dir",
        str(cli.directory / "elsewhere"),
    )
    assert elsewhere.returncode == 4, elsewhere.stderr
    assert "no journal here" in elsewhere.stderr
    ends_identical(cli, pair)


def test_what_is_not_for_us_is_confirmed_and_known_again(pair: Pair, cli: Cli) -> None:
    """With the target away the slot follows a busy server's other databases; after a kill the link goes on from there."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with daemon(cli, pair) as running:
        pair.target_server.stop("fast")
        source.execute("INSERT INTO t VALUES (1)")
        with connect(pair.source_server.conninfo()) as other:
            other.execute("SELECT pg_logical_emit_message(true, 'noise', repeat('x', 1000000))")
            # outside of any transaction, and in our own database
            source.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000))")
        wait_until(lambda: confirmed(source) < 100_000, 20, "the source to be told")
        running.kill()
    pair.target_server.start()
    ends_identical(cli, pair)
    assert pair.on_target().execute("SELECT FROM t").rowcount == 1


def test_a_damaged_journal_that_nobody_needs(pair: Pair, cli: Cli) -> None:
    """A flipped byte is refused with 3; where the target has everything the hint says how to go on, and that works."""
    source = pair.on_source()
    source.execute("CREATE TABLE big (id serial PRIMARY KEY, v text)")
    with daemon(cli, pair):
        for _ in range(5):
            source.execute("INSERT INTO big (v) SELECT md5(n::text) FROM generate_series(1, 100) AS n")
    ends_identical(cli, pair)
    (segment,) = (cli.directory).glob("**/*.journal")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    ends = ("--source", pair.source, "--target", pair.target)
    message, hint = refused(cli("once", *ends), 3)
    assert f"{segment} is damaged at byte" in message
    move = re.search("mv (\\S+) (\\S+),", hint)
    assert move is not None, hint
    Path(move[1]).rename(move[2])
    ends_identical(cli, pair)


def test_status_tells_of_the_journal(pair: Pair, cli: Cli) -> None:
    """From where up to where, how much, how full the disk is: beside a daemon and without one; nothing before there is one."""
    source = pair.on_source()
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    ends = ("--source", pair.source, "--target", pair.target)
    assert json.loads(cli("status", *ends, "--json").stdout)["links"][0]["journal"] is None
    with daemon(cli, pair) as running:
        source.execute("INSERT INTO t SELECT generate_series(1, 1000)")
        wait_until(lambda: running.status()["lag_bytes"] == 0, 20, "the target to be level")

        def level() -> dict[str, Any] | None:
            """How it stands once that was written down, which is done every second."""
            now: dict[str, Any] = running.status()
            written = now["journal"]["last_lsn"]
            return now if now["journal"]["first_lsn"] != written == now["received_lsn"] else None

        found = wait_until(level, 20, "the journal to be told of")
        assert found is not None
        journal = found["journal"]
        assert Lsn.parse(journal["first_lsn"]) < Lsn.parse(journal["last_lsn"])
        assert 0 < journal["bytes"] < 100_000
        assert 0 < journal["disk_used_percent"] <= 100
        assert "  journal  " in cli("status", *ends).stdout
    after = json.loads(cli("status", *ends, "--json").stdout)["links"][0]["journal"]
    assert (after["first_lsn"], after["error"]) == (journal["first_lsn"], None)
    assert Lsn.parse(after["last_lsn"]) >= Lsn.parse(journal["last_lsn"])
    assert f"from {after['first_lsn']} to {after['last_lsn']}" in cli("status", *ends).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_the_reason(pair: Pair, cli: Cli) -> None:
    """No room for the journal: the link waits, says why with exit 1, and goes on by itself once there is room."""
    folder = cli.directory / "state"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    source = pair.on_source()
    source.execute("CREATE TABLE t (id serial PRIMARY KEY, v text)")
    try:
        with daemon(cli, pair) as running:
            # what the target has would make room
            pair.target_server.stop("fast")
            (folder / "ballast").write_bytes(b"x" * 2_500_000)
            noise = "INSERT INTO t (v) SELECT md5(random()::text) FROM generate_series(1, 30000)"
            source.execute(noise.encode())
            ballast = folder / "ballast"

            def told() -> bool:
                # to be written down the reason needs a few pages itself, which are less than a block
                os.truncate(ballast, ballast.stat().st_size - (8 << 10))
                return "no room for the journal" in running.status()["reason"]

            wait_until(told, 30, "the reason")
            found = running.status()
            assert found["state"] == "waiting"
            assert found["journal"]["disk_used_percent"] >= 90
            done = cli("status", "--source", pair.source, "--target", pair.target)
            assert done.returncode == 1
            assert "no room for the journal" in done.stdout
            ballast.unlink()
            wait_until(lambda: "no room" not in running.status()["reason"], 30, "the room to be seen")
            pair.target_server.start()
            wait_until(lambda: running.status()["state"] == "streaming", 30, "the link to go on")
            assert running.status()["reason"] == ""
            target = pair.on_target()
            wait_until(lambda: target.execute("SELECT FROM t").rowcount == 30_000, 30, "the rows")
        ends_identical(cli, pair)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        if pair.target_server.pid is None:
            pair.target_server.start()
