"""Those who can copy a database for the first time: pglockstep, PostgreSQL's dump and restore, and pgcopydb.

Each is a list of steps, one after another; a step is one command, or several in a pipe.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psycopg import Connection

from bench.processes import Argv, Process, pglockstep_environment, run
from bench.servers import Servers, installed
from pglockstep.postgres.installations import Installation

JOBS = "2"


class Copier:
    """A contender that does it with commands. `scratch` is an empty directory of this round's."""

    name: str
    title: str

    def missing(self, installation: Installation) -> str:
        """What it lacks on this machine; empty if nothing."""
        return ""

    def steps(self, servers: Servers, source: str, target: str, scratch: Path) -> list[list[Argv]]:
        """What is run."""
        raise NotImplementedError

    def environment(self, servers: Servers, source: str, target: str, scratch: Path) -> dict[str, str]:
        """In which environment: by default with the servers' own programs first on the PATH."""
        return {"PATH": f"{servers.installation.bindir}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}

    def copied(self, reader: Connection[tuple[Any, ...]]) -> bool:
        """Whether the copy is complete, seen on the target, of one that goes on to other work afterwards."""
        return False

    def clean(self, servers: Servers, source: str, target: str, scratch: Path) -> None:
        """Take away what it left on the source."""


class DumpPipe(Copier):
    """`pg_dump` in the custom format, straight into `pg_restore`."""

    def __init__(self, name: str, title: str, options: Sequence[str]) -> None:
        self.name = name
        self.title = title
        self._options = options

    def steps(self, servers: Servers, source: str, target: str, scratch: Path) -> list[list[Argv]]:
        """One pipe."""
        return [
            [
                [servers.program("pg_dump"), *self._options, "-d", source],
                [servers.program("pg_restore"), "--exit-on-error", "-d", target],
            ]
        ]


class DumpDirectory(Copier):
    """`pg_dump` into a directory, then `pg_restore` from it, each with two jobs."""

    name = "dump-directory"
    title = f"pg_dump -Fd -j{JOBS}, then pg_restore -j{JOBS}"

    def steps(self, servers: Servers, source: str, target: str, scratch: Path) -> list[list[Argv]]:
        """One after the other."""
        where = scratch / "dump"
        return [
            [[servers.program("pg_dump"), "-Fd", "-j", JOBS, "-f", where, "-d", source]],
            [[servers.program("pg_restore"), "--exit-on-error", "-j", JOBS, "-d", target, where]],
        ]


class Pgcopydb(Copier):
    """`pgcopydb clone`, if this machine's knows the servers' version."""

    name = "pgcopydb"
    title = f"pgcopydb clone, {JOBS} table jobs, {JOBS} index jobs"

    def missing(self, installation: Installation) -> str:
        """It says itself which versions it works with."""
        if not installed("pgcopydb"):
            return "pgcopydb is not installed"
        told = subprocess.run(["pgcopydb", "--version"], capture_output=True, text=True, check=False)
        versions = re.search(r"compatible with Postgres (.*)", told.stdout)
        if versions and str(installation.major) in re.findall(r"\d+", versions[1]):
            return ""
        return f"this machine's pgcopydb does not know PostgreSQL {installation.major}"

    def steps(self, servers: Servers, source: str, target: str, scratch: Path) -> list[list[Argv]]:
        """One command."""
        return [
            [
                [
                    *("pgcopydb", "clone", "--source", source, "--target", target),
                    *("--table-jobs", JOBS, "--index-jobs", JOBS, "--dir", scratch / "pgcopydb"),
                ]
            ]
        ]


class PglockstepOnce(Copier):
    """`pglockstep once` onto an empty target: copies, streams what was written meanwhile, verifies every row."""

    name = "pglockstep"
    title = "pglockstep once, which verifies afterwards"

    def steps(self, servers: Servers, source: str, target: str, scratch: Path) -> list[list[Argv]]:
        """One command."""
        return [[[sys.executable, "-m", "pglockstep", "once"]]]

    def environment(self, servers: Servers, source: str, target: str, scratch: Path) -> dict[str, str]:
        """The link is in the environment."""
        return pglockstep_environment(source, target, scratch / "state")

    def copied(self, reader: Connection[tuple[Any, ...]]) -> bool:
        """The link's phase becomes *streaming* in the commit that completes the copy."""
        if reader.execute("SELECT to_regclass('pglockstep.link')").fetchone() == (None,):
            return False
        return reader.execute("SELECT FROM pglockstep.link WHERE phase = 'streaming'").rowcount == 1

    def clean(self, servers: Servers, source: str, target: str, scratch: Path) -> None:
        """Its slot and publication."""
        run(
            [sys.executable, "-m", "pglockstep", "teardown", "--yes"],
            self.environment(servers, source, target, scratch),
        )


class Job:
    """One copy under way."""

    def __init__(self, steps: list[list[Argv]], env: dict[str, str]) -> None:
        self._steps = list(steps)
        self._env = env
        self._processes: list[Process] = []

    def start(self) -> None:
        """The next step."""
        for process in self._processes:
            process.stop()
        self._processes = []
        *feeders, last = self._steps.pop(0)
        for argv in feeders:
            before = self._processes[-1].output() if self._processes else None
            self._processes.append(Process(argv, self._env, stdin=before, piped=True))
        before = self._processes[-1].output() if self._processes else None
        self._processes.append(Process(last, self._env, stdin=before))
        for process in self._processes[:-1]:
            # the reader's end alone must keep it open, or the writer outlives a reader that fails
            process.output().close()

    def pids(self) -> list[int]:
        """Those at work now."""
        return [process.pid for process in self._processes]

    def done(self) -> bool:
        """Whether the last step has ended well; goes on to the next one. Raises `ContenderFailed`."""
        if any(process.alive() for process in reversed(self._processes)):
            return False
        if self._steps:
            self.start()
            return False
        return True

    def stop(self) -> None:
        """End what still runs."""
        for process in self._processes:
            process.stop()


def copiers() -> list[Copier]:
    """All of them, in the order of the report."""
    return [
        DumpPipe("dump-pipe", "pg_dump -Fc | pg_restore", ["-Fc"]),
        DumpPipe("dump-pipe-plain", "pg_dump -Fc -Z0 | pg_restore (uncompressed)", ["-Fc", "-Z0"]),
        DumpDirectory(),
        Pgcopydb(),
        PglockstepOnce(),
    ]
