"""The contenders' processes: started with a clean environment, heard when they fail, never left behind."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pglockstep import compiled

SECONDS_TO_STOP = 30.0
Argv = list[str | Path]


class ContenderFailed(Exception):
    """A contender did not do the work; the message says how it ended."""


class Process:
    """One process, ended when its context ends. What it says is kept, and told if it fails.

    `codes` are the exit codes that are no failure.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        *,
        stdin: IO[bytes] | None = None,
        piped: bool = False,
        codes: Collection[int] = (0,),
    ) -> None:
        self._name = Path(argv[0]).name
        self._codes = codes
        self._written = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        self._popen = subprocess.Popen(
            argv,
            env=environment(env or {}),
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else self._written,
            stderr=self._said,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def output(self) -> IO[bytes]:
        """What a piped process writes. Whoever hands it to the next process closes it here."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    def alive(self) -> bool:
        """Whether it still runs; raises `ContenderFailed` if it ended badly."""
        code = self._popen.poll()
        if code is not None and code not in self._codes:
            raise ContenderFailed(f"{self._name} ended with {code}: {self.tail()}")
        return code is None

    def demand_alive(self) -> None:
        """Raise `ContenderFailed` unless it runs."""
        if not self.alive():
            raise ContenderFailed(f"{self._name} ended by itself: {self.tail()}")

    def wait(self, seconds: float) -> None:
        """Wait until it ends, but not for longer."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)

    def written(self) -> str:
        """What it has written to its standard output, unless that is piped."""
        return _text(self._written)

    def tail(self, lines: int = 3) -> str:
        """The last that it has said, on one line: its complaints, if there are any, come last."""
        said = [line for text in (self.written(), _text(self._said)) for line in text.strip().splitlines()]
        return " | ".join(said[-lines:])

    def stop(self) -> None:
        """Ask it to end, and see to it that it does."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self._popen.wait()
        if self._popen.stdout:
            self._popen.stdout.close()
        self._said.close()
        self._written.close()


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours, without the settings for PostgreSQL or for pglockstep of whoever measures."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "PGLOCKSTEP_"))}
    return ours | dict(extra)


def run(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
    """Run to the end; raises `ContenderFailed` with what it said."""
    done = subprocess.run(
        argv,
        env=environment(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        tail = " | ".join(done.stdout.decode(errors="replace").strip().splitlines()[-3:])
        raise ContenderFailed(f"{Path(argv[0]).name} ended with {done.returncode}: {tail}")


def pglockstep_environment(
    source: str, target: str, state: Path, *, interpreted: bool = False
) -> dict[str, str]:
    """One link, and nothing else of whoever measures; `interpreted` leaves the compiled hot path aside."""
    link = {
        "PGLOCKSTEP_SOURCE": source,
        "PGLOCKSTEP_TARGET": target,
        "PGLOCKSTEP_STATE_DIR": str(state),
    }
    return link | ({compiled.INTERPRETED: "1"} if interpreted else {})


def _text(file: IO[bytes]) -> str:
    """All of a file that a process may still be writing to."""
    # not by seek: the process shares the file's position
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
