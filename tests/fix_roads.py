"""The two roads by which changes reach a target, each walked with the real command.

*Alone*: beside a live daemon, which takes the changes as they come. *In a crowd*: written several times over while
no daemon runs, so that the next one finds many changes of every table, and several of every key, at once. Behind
each road `check` must say identical, and both ends' rows must be the same text to a comparison of our own.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fix_servers import Cli, Connection, Pair, connect, wait_until
from test_apply_mirror import contents
from test_run import Daemon, daemon

Write = Callable[[Connection], None]


def walk_both_roads(cli: Cli, pair: Pair, write: Write, *, rounds: int = 3) -> None:
    """Copy, then `write` to the source beside a daemon, then `rounds` times without one, and start one again."""
    with daemon(cli, pair) as running:
        with connect(pair.source) as source:
            write(source)
        still_following(running)
        demand_identical(cli, pair)
        same_rows(pair, "beside a daemon")
    with connect(pair.source) as source:
        for _ in range(rounds):
            write(source)
    with daemon(cli, pair) as running:
        still_following(running)
        demand_identical(cli, pair)
    same_rows(pair, "after a backlog")


def still_following(running: Daemon) -> None:
    """Wait until the daemon has applied all that is written by now; one that ended instead fails with what it said."""
    lag = wait_until(lambda: _level_or_ended(running), 60, "the daemon to be level")
    assert lag != "ended", running.process.stdout.read()[-2000:] if running.process.stdout else ""


def _level_or_ended(running: Daemon) -> str:
    if running.process.poll() is not None:
        return "ended"
    return "level" if running.status()["lag_bytes"] == 0 else ""


def demand_identical(cli: Cli, pair: Pair, command: str = "check") -> dict[str, Any]:
    """``check``, or ``once``, says that the ends are identical; if not, the test fails with what differs."""
    done = cli(command, "--source", pair.source, "--target", pair.target, "--json")
    assert done.returncode == 0, differing(done)
    link = json.loads(done.stdout)["links"][0]
    assert isinstance(link, dict)
    assert link["verdict"] == "identical"
    return link


def differing(done: subprocess.CompletedProcess[str]) -> str:
    """What a person needs of a verdict or an error."""
    if not done.stdout:
        return done.stderr
    link = json.loads(done.stdout)["links"][0]
    tables = [each for each in link["tables"] if each["verdict"] != "identical"]
    rest = {key: link[key] for key in ("verdict", "schema_differences", "sequences_behind")}
    return f"{tables} {rest} {done.stderr}"


def same_rows(pair: Pair, when: str) -> None:
    """Both ends' tables hold the same rows, compared as text, without any help of the command's."""
    there, here = contents(pair.superuser_on_source()), contents(pair.superuser_on_target())
    assert there.keys() == here.keys(), when
    wrong = {
        name: (sorted(set(there[name]) - set(here[name]))[:3], sorted(set(here[name]) - set(there[name]))[:3])
        for name in there
        if there[name] != here[name]
    }
    assert not wrong, f"{when}: {wrong}"


def each_alone(conn: Connection, statements: Iterable[str]) -> None:
    """Execute each statement as a transaction of its own."""
    for statement in statements:
        conn.execute(statement.encode())


def together(conn: Connection, statements: Sequence[str]) -> None:
    """Execute all statements as one transaction."""
    with conn.transaction():
        each_alone(conn, statements)
