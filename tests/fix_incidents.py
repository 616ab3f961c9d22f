"""What the tests of incidents share: incidents of a link between two ends that are gone for ever, and other processes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from pglockstep.observe.incident import Decision, Incident, Loss, Verb
from pglockstep.observe.incidents import Incidents
from pglockstep.observe.state import StateDirectory
from pglockstep.postgres.connect import fingerprint

#: Ends that nobody answers at, and their link.
NOWHERE = ("--source", "host=/nowhere dbname=a", "--target", "host=/nowhere dbname=b")
KEY = fingerprint(NOWHERE[1], NOWHERE[3])

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def an_incident(**fields: Any) -> Incident:
    """A wipe of 22 users and 3 jobs on the source, or another one."""
    wipe = Incident(
        link="default",
        side="source",
        kind="delete",
        message='a transaction deletes 22 of the 22 rows of public."User"',
        tables=(Loss("public", "User", 22, 22, keys=("id=1", "id=2")), Loss("app", "jobs", None, 3)),
        opened_at=NOON,
        happened_at=NOON - timedelta(seconds=0.25),
        detected_after_seconds=0.25,
        xid=731,
        lsn="0/16B3748",
        who="app",
        application="psql",
    )
    return msgspec.structs.replace(wipe, **fields)


def a_decision(verb: Verb, rows: int | None = None, *, remember: bool = False) -> Decision:
    """Decided by Ada, just after noon."""
    return Decision(verb, "ada@desk", NOON + timedelta(minutes=1), rows, remember)


def state_in(directory: Path) -> StateDirectory:
    """A state directory, made if need be."""
    state = StateDirectory(directory)
    state.create()
    return state


_HEAD = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from fix_incidents import KEY, a_decision, an_incident
from pglockstep.errors import LockstepError
from pglockstep.observe.incidents import Incidents
from pglockstep.observe.state import StateDirectory
state = StateDirectory(Path(sys.argv[1]))
store = Incidents(state)
print("ready", flush=True)
sys.stdin.readline()
"""


class Other:
    """Another process with the store of a state directory; it runs `script` once it is told to `go`."""

    def __init__(self, directory: Path, script: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HEAD + script, str(directory)],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def said(self) -> list[str]:
        """All that it says until it ends, which has to be well."""
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, output
        return output.splitlines()

    def kill(self) -> list[str]:
        """kill -9; what it had said until then, in whole lines: a print with more than one argument is more than one write."""
        self.process.kill()
        assert self.process.stdout is not None
        # not by communicate, which passes over what a former `line` has read ahead
        output = self.process.stdout.read()
        with self.process:
            self.process.wait(60)
        return output.split("\n")[:-1]


def at_once(directory: Path, script: str, processes: int) -> list[str]:
    """What so many processes say that run the same script at the same time."""
    others = [Other(directory, script) for _ in range(processes)]
    for each in others:
        each.go()
    return [line for each in others for line in each.said()]


def reopened(directory: Path) -> Incidents:
    """The store, as a process that comes later finds it."""
    return Incidents(StateDirectory(directory))
