"""Faults for the doctor: prepared on real servers, found by the real command, mended by its own words."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fix_servers import INSTALLED, Cli, Pair, connect
from pglockstep.demo.servers import SUPERUSER, ThrowawayServer

#: An ordinary role of a name that has to be quoted, on either end.
ROLE = 'doc "Tor'


def as_role(conninfo: str, role: str = ROLE) -> str:
    """The same database, reached by another role."""
    return make_conninfo("", **(conninfo_to_dict(conninfo) | {"user": role}))


def psql(conninfo: str, script: str) -> None:
    """Paste `script` into psql, as a superuser."""
    newest = INSTALLED[max(INSTALLED)]
    done = subprocess.run(
        [newest.program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", as_role(conninfo, SUPERUSER)],
        input=script,
        env={"PATH": os.defpath, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"


@dataclass
class Patient:
    """One link under examination: its two ends as the configuration has them, and that configuration's other keys."""

    cli: Cli
    pair: Pair
    source: str = ""
    target: str = ""
    keys: list[str] = field(default_factory=lambda: ['lock_timeout = "200ms"'])

    def __post_init__(self) -> None:
        self.source, self.target = self.source or self.pair.source, self.target or self.pair.target

    def configure(self) -> None:
        """Write the configuration to where the command finds it."""
        lines = ["[links.main]", f"source = {json.dumps(self.source)}", f"target = {json.dumps(self.target)}"]
        (self.cli.directory / "pglockstep.toml").write_text("\n".join([*lines, *self.keys]) + "\n")

    def findings(self) -> list[dict[str, Any]]:
        """What ``pglockstep doctor --json`` finds; its exit code and `ok` must agree with that."""
        self.configure()
        done = self.cli("doctor", "--json")
        assert done.stdout, done.stderr
        document = json.loads(done.stdout)
        errors = [each for each in document["findings"] if each["severity"] == "error"]
        assert document["ok"] == (not errors)
        assert done.returncode == (1 if errors else 0), done.stderr
        for each in document["findings"]:
            assert each["side"] in ("source", "target", "here")
            assert each["message"], each
            assert each["fix"], each
            assert "\n" not in each["message"]
        found: list[dict[str, Any]] = document["findings"]
        return found

    def find(self, code: str) -> list[dict[str, Any]]:
        """The findings of that code."""
        return [each for each in self.findings() if each["code"] == code]

    def mend(self, finding: dict[str, Any]) -> None:
        """Paste the fix, as it stands, into what it says."""
        where, fix = finding["where"], finding["fix"]
        if where.startswith("on the source"):
            psql(self.pair.source, fix)
        elif where.startswith("on the target"):
            psql(self.pair.target, fix)
        elif where.startswith("on that server"):
            psql(self.server(finding["side"]).conninfo(), fix)
        else:
            assert where.startswith("in the configuration"), finding
            key = fix.partition(" = ")[0]
            self.keys = [*(line for line in self.keys if not line.startswith(f"{key} =")), fix]

    def server(self, side: str) -> ThrowawayServer:
        """The server of one end."""
        return self.pair.source_server if side == "source" else self.pair.target_server


@dataclass(frozen=True)
class Fault:
    """What is wrong: SQL run by a superuser on either end beforehand, and who connects.

    `undo` brings back what the fix, or the fault, left on a shared server.
    """

    code: str
    side: str
    severity: str = "error"
    on_source: str = ""
    on_target: str = ""
    source_as: str = SUPERUSER
    target_as: str = SUPERUSER
    keys: tuple[str, ...] = ()
    says: str = ""
    majors: tuple[int, int] | None = None
    repair: Callable[[Patient], None] | None = None
    undo: tuple[str, str] = ("", "")
    label: str = ""

    def __str__(self) -> str:
        return f"{self.label or self.code}-{self.side}"


def run(conninfo: str, statements: str) -> None:
    """Run `statements` one by one, so that each commits for itself."""
    with connect(conninfo) as conn:
        for statement in filter(None, map(str.strip, statements.split(";\n"))):
            conn.execute(statement.encode())
