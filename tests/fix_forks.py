"""Commands without Python's start: each is forked from a process that has imported all of them already.

A whole test run starts the command thousands of times, and most of what a short one costs is that Python starts and
imports: 0.15 s of processor time each. Here one process for each test worker does that once and is forked for each
command. What comes out is a process like any other: with a pid of its own, a child of who started it, to be waited for,
stopped and killed; with the directory, the environment, the arguments and the three files that it was given, and no
other file; with Python's own signal handlers, its own random numbers, and the whole way out at its end.

What it cannot have is what Python reads before it runs anything: a command whose environment differs in that from the
fork server's, or that has a terminal, is started in the ordinary way. So are all that are told so: those whose memory or
command line is looked at (`@pytest.mark.unforked`), and with ``--unforked`` all there are. What forked commands have in
common, and ordinary ones have not, is the order in which Python's sets of texts are walked through, and the umask and
limits that their fork server was started with.

How a fork becomes the child of somebody else: the server forks twice and the process in between ends; for that moment,
and no longer, the test worker takes its descendants' orphans (`PR_SET_CHILD_SUBREAPER`). Linux has that; elsewhere all
commands are started in the ordinary way.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

#: What commands read of their environment when they need it, beside libpq's; all else may be read at the start.
_READ_LATE = frozenset({"HOME", "PATH", "XDG_STATE_HOME", "PYTEST_CURRENT_TEST"})
_READ_AT_START = frozenset({"PGLOCKSTEP_FAILPOINT", "PGLOCKSTEP_INTERPRETED"})

#: What commands import while they run.
_LATE = ("rich.console", "rich.progress", "setproctitle", "traceback")

_PR_SET_CHILD_SUBREAPER = 36


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in environment.items()
        if key in _READ_AT_START or not (key in _READ_LATE or key.startswith("PG"))
    }


# --- in the test worker ----------------------------------------------------------------------------


class ForkServer:
    """Starts when the first command does, with the `environment` that commands have as a rule. Close it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        #: how many processes it has made
        self.forked = 0

    def close(self) -> None:
        """End the server; what was forked from it lives on."""
        if self._process is not None:
            self._ours.close()
            self._process.wait(60)

    def can(self, environment: Mapping[str, str], files: Sequence[int]) -> bool:
        """Whether a command with these would be the same, were it forked."""
        same = _read_at_start(environment) == _read_at_start(self._environment)
        return sys.platform == "linux" and same and not any(map(os.isatty, files))

    def fork(
        self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str], files: Sequence[int]
    ) -> int:
        """The pid of a new child of ours; `files` are its stdin, stdout and stderr."""
        asked = json.dumps([list(arguments), str(directory.absolute()), dict(environment)]).encode()
        with self._lock:
            process = self._process = self._process or self._started()
            _adopt_orphans(True)
            try:
                socket.send_fds(self._ours, [len(asked).to_bytes(8, "big")], files)
                self._ours.sendall(asked)
                pid = self._ours.recv(8, socket.MSG_WAITALL)
            except ConnectionError:
                pid = b""
            finally:
                _adopt_orphans(False)
            if not pid:
                raise RuntimeError(f"the fork server has ended with {process.wait(60)}")
            self.forked += 1
            return int.from_bytes(pid, "big")

    def _started(self) -> subprocess.Popen[bytes]:
        self._ours, theirs = socket.socketpair()
        with theirs:
            return subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )


class Forked(subprocess.Popen[str]):
    """``python -m pglockstep ARGUMENTS``, forked where that makes no difference, and started where it would."""

    def __init__(
        self,
        server: ForkServer,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        **files: Any,
    ) -> None:
        self._server, self._given = server, (arguments, cwd, env)
        command = [sys.executable, "-m", "pglockstep", *arguments]
        super().__init__(command, cwd=cwd, env=env, text=True, **files)

    def _execute_child(self, *prepared: Any) -> None:
        # of the ends of pipes each is -1 where there is none: the child has ours
        stdin, _, _, stdout, _, stderr = ends = prepared[10:16]
        files = [ours if given == -1 else given for ours, given in enumerate((stdin, stdout, stderr))]
        if not self._server.can(self._given[2], files):
            super()._execute_child(*prepared)  # type: ignore[misc]
            return
        self.pid = self._server.fork(*self._given, files)
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]


def _adopt_orphans(yes: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


# --- in the fork server ----------------------------------------------------------------------------


def _import_all() -> None:
    from pglockstep.cli.main import COMMANDS

    for name in [f"pglockstep.cli.{command}" for command in COMMANDS] + list(_LATE):
        import_module(name)


def _serve(asked: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]]:
    """Fork for each command that is asked for. Returns in the children alone, with what each was given."""
    while True:
        size, files, _, _ = socket.recv_fds(asked, 8, 3)
        if not size:
            sys.exit()
        given = json.loads(asked.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        told, tell = os.pipe()
        gate, opened = os.pipe()
        between = os.fork()
        if not between:
            pid = os.fork()
            if not pid:
                # it begins as the child of the one who asked
                os.close(opened)
                os.read(gate, 1)
                return (*given, files)
            os.write(tell, pid.to_bytes(8, "big"))
            os._exit(0)
        os.waitpid(between, 0)
        asked.sendall(os.read(told, 8))
        for each in (told, tell, gate, opened, *files):
            os.close(each)


def _become(arguments: list[str], directory: str, environment: dict[str, str], files: list[int]) -> None:
    """Make this process what Python makes of itself at its start."""
    for number, file in enumerate(files):
        os.dup2(file, number, inheritable=True)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["-m", *arguments]
    sys.path.insert(0, directory)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        was = getattr(sys, name)
        unbuffered = isinstance(was.buffer, io.RawIOBase)
        new = io.TextIOWrapper(
            os.fdopen(number, "wb" if number else "rb", 0 if unbuffered else -1, closefd=False),
            encoding=was.encoding,
            errors=was.errors,
            newline="\n",
            line_buffering=was.line_buffering,
            write_through=was.write_through,
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


if __name__ == "__main__":
    # Ctrl-C is meant for commands
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    del sys.path[0]
    gc.disable()
    _import_all()
    gc.freeze()
    gc.enable()
    server = socket.socket(fileno=int(sys.argv[1]))
    command = _serve(server)
    server.detach()
    _become(*command)
    runpy.run_module("pglockstep", run_name="__main__", alter_sys=True)
