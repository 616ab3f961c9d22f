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

from fix_mirror import contents
from fix_servers import Cli, Connection, Pair, connect
from test_run import Daemon, daemon

Write = Callable[[Connection], None]


#: Text forms that hide nothing, whatever an end's database sets for its sessions.
_PLAIN = (
    "SET datestyle = ISO; SET intervalstyle = postgres; SET timezone = UTC; SET extra_float_digits = 3; "
    "SET bytea_output = hex; SET lc_monetary = 'C'; SET quote_all_identifiers = off; SET search_path = ''"
)


def walk_both_roads(
    cli: Cli, pair: Pair, write: Write, write_many: Write | None = None, *, rounds: int = 3
) -> None:
    """Copy, then `write` to the source beside a daemon, then without one, and start one again.

    Without a daemon it is `write_many` that writes, or else `write`, `rounds` times.
    """
    with daemon(cli, pair) as running:
        with connect(pair.source) as source:
            write(source)
        still_following(cli, pair, running)
        same_rows(pair, "beside a daemon")
    with connect(pair.source) as source:
        for _ in range(1 if write_many else rounds):
            (write_many or write)(source)
    with daemon(cli, pair) as running:
        still_following(cli, pair, running)
    same_rows(pair, "after a backlog")


def still_following(cli: Cli, pair: Pair, running: Daemon) -> None:
    """Beside the daemon both ends are identical; one that ended instead fails the test with what it said."""
    done = cli("check", "--source", pair.source, "--target", pair.target, "--json")
    if running.process.poll() is not None:
        raise AssertionError(running.process.stdout.read()[-2000:] if running.process.stdout else "")
    assert done.returncode == 0, differing(done)


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
    links = json.loads(done.stdout)["links"] if done.stdout else []
    if not links:
        return done.stderr
    link = links[0]
    tables = [each for each in link["tables"] if each["verdict"] != "identical"]
    rest = {key: link[key] for key in ("verdict", "schema_differences", "sequences_behind")}
    return f"{tables} {rest} {done.stderr}"


def same_rows(pair: Pair, when: str) -> None:
    """Both ends' tables hold the same rows, compared as text, without any help of the command's."""
    source, target = pair.superuser_on_source(), pair.superuser_on_target()
    for conn in (source, target):
        conn.execute(_PLAIN.encode())
    there, here = contents(source), contents(target)
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
