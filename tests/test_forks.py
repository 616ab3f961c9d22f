"""A forked command is the command: it says the same as one for which Python was started, and ends the same."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fix_forks import ForkServer
from fix_servers import Cli, usual_environment, wait_until
from pglockstep.cli.main import COMMANDS
from pglockstep.errors import EXIT_CONFIG, EXIT_INTERRUPTED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux alone")

_PR_GET_CHILD_SUBREAPER = 37


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """One of our own, which `--unforked` leaves alone."""
    made = ForkServer(usual_environment())
    yield made
    made.close()


@pytest.fixture
def ways(cli: Cli, server: ForkServer) -> tuple[Cli, Cli]:
    """The command forked, and the command for which Python is started, in one directory."""
    return replace(cli, forks=server, _started=cli._started), replace(cli, forks=None, _started=cli._started)


def both(
    ways: tuple[Cli, Cli], *args: str, env: dict[str, str] | None = None, forks: int = 1
) -> subprocess.CompletedProcess[str]:
    """What the command came to in either way, which has to be the same; `forks` of the two were forked."""
    server = ways[0].forks
    assert server is not None
    before = server.forked
    forked, started = (way(*args, env=env) for way in ways)
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        started.returncode,
        started.stdout,
        started.stderr,
    )
    assert server.forked - before == forks
    return forked


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_the_same(ways: tuple[Cli, Cli], command: str) -> None:
    """Its help; and what it says with no configuration, with one that is wrong, and to an option that it has not."""
    assert "Usage: pglockstep" in both(ways, command, "--help").stdout
    assert both(ways, command, "--nonsense").returncode == 2
    if command not in ("demo", "init"):
        both(ways, command)
        (ways[0].directory / "pglockstep.toml").write_text("[links.main]\nsource = 1\n")
        both(ways, command)


def test_the_group_says_the_same(ways: tuple[Cli, Cli]) -> None:
    """The version, the help, no command at all, an unknown one, and a file that is not there."""
    assert both(ways, "--version").stdout
    assert both(ways, "--help").returncode == 0
    assert both(ways).returncode == 2
    assert "nonsense" in both(ways, "nonsense").stderr
    assert both(ways, "check", "-c", "nowhere \udcff.toml").returncode == EXIT_CONFIG


def test_the_environment_is_the_one_that_was_given(ways: tuple[Cli, Cli], tmp_path: Path) -> None:
    """A variable that commands look up is there in both ways, and not in the next command."""
    (tmp_path / "named.toml").write_text("[links.main]\nsource = 1\n")
    named = {"PGLOCKSTEP_CONFIG": str(tmp_path / "named.toml")}
    assert "named.toml" in both(ways, "status", env=named).stderr
    assert "named.toml" not in both(ways, "status").stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PGLOCKSTEP_INTERPRETED": "1"},
        {"PGLOCKSTEP_FAILPOINT": "journal.write"},
        {"COLUMNS": "50"},
        {"NO_COLOR": "1"},
        {"LC_ALL": "C"},
        {"TZ": "Asia/Kathmandu"},
        {"PYTHONHASHSEED": "5"},
    ],
    ids="".join,
)
def test_what_is_read_at_the_start_starts_python(ways: tuple[Cli, Cli], environment: dict[str, str]) -> None:
    """A command with another one of the variables that Python, a library or we read just once is not forked."""
    both(ways, "--version", env=environment, forks=0)
    both(ways, "guard", "--help", env=environment, forks=0)


def test_a_terminal_starts_python(server: ForkServer) -> None:
    """A command that is given a terminal is not forked; with files that are none it would be."""
    ours, theirs = os.openpty()
    read, write = os.pipe()
    try:
        assert server.can(usual_environment(), [read, write, write])
        assert not server.can(usual_environment(), [read, theirs, write])
    finally:
        for each in (ours, theirs, read, write):
            os.close(each)


# --- the process -----------------------------------------------------------------------------------


class Waiting:
    """A command that reads its configuration, and gets to read no more of it until it is told."""

    def __init__(self, way: Cli, number: int) -> None:
        path = way.directory / f"config-{number}"
        os.mkfifo(path)
        self.process = way.start("status", "-c", path)
        self._path = path

        def reads() -> int | None:
            try:
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return None

        self._end: int = wait_until(reads, what="the command to read its configuration") or 0
        self.proc = Path(f"/proc/{self.process.pid}")
        wait_until(lambda: len(list((self.proc / "fd").iterdir())) == 4, what="the file to be open")
        # a signal that comes just before it waits would be seen only behind that
        wait_until(
            lambda: "S (sleeping)" in (self.proc / "status").read_text(), what="the command to wait for more"
        )

    def goes_on(self) -> None:
        """Let it read a line that is wrong."""
        os.write(self._end, b"[links.main]\nsource = 1\n")
        os.close(self._end)

    def close(self) -> None:
        """It has ended, or will."""
        os.close(self._end)

    def ends(self) -> tuple[int, str]:
        """Its exit code and what it said but for the name of its file."""
        said, _ = self.process.communicate(timeout=60)
        assert not self.proc.exists()
        return self.process.returncode, said.replace(str(self._path), "FILE")


def seen(waiting: Waiting) -> dict[str, object]:
    """What the system tells of a process, as far as that must be the same in both ways."""
    status = dict(line.split(":\t", 1) for line in (waiting.proc / "status").read_text().splitlines())
    known = "PPid Uid Gid Groups Umask Threads SigPnd ShdPnd SigBlk SigIgn SigCgt CapEff NoNewPrivs State"
    fields = (waiting.proc / "stat").read_text().rpartition(")")[2].split()
    files = {each.name: os.readlink(each).partition(":")[0] for each in (waiting.proc / "fd").iterdir()}
    flags = {
        name: (waiting.proc / "fdinfo" / name).read_text().split("flags:")[1].split()[0] for name in "012"
    }
    return {
        **{name: status[name] for name in known.split()},
        "group, session, terminal": fields[2:5],
        "priority, nice": fields[15:17],
        "directory": os.readlink(waiting.proc / "cwd"),
        "files": {name: end for name, end in files.items() if name != "3"},
        "flags": flags,
        "limits": (waiting.proc / "limits").read_text(),
        "oom": (waiting.proc / "oom_score_adj").read_text(),
    }


def test_the_same_process(ways: tuple[Cli, Cli]) -> None:
    """A child of ours, alone with its three files, its signals, its directory and its limits, as if it had been started."""
    forked, started = (Waiting(way, number) for number, way in enumerate(ways))
    assert seen(forked) == seen(started)
    assert seen(forked)["PPid"] == str(os.getpid())
    for each in (forked, started):
        each.goes_on()
    assert forked.ends() == started.ends()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGINT, EXIT_INTERRUPTED),
        (signal.SIGABRT, -signal.SIGABRT),
    ],
)
@pytest.mark.parametrize(
    "by", [subprocess.Popen.send_signal, lambda process, sent: os.kill(process.pid, sent)]
)
def test_signals_end_it_the_same(
    ways: tuple[Cli, Cli],
    sent: signal.Signals,
    code: int,
    by: Callable[[subprocess.Popen[str], signal.Signals], None],
) -> None:
    """Killed, terminated or interrupted, by the handle or by the pid: the same exit code, and the same last words."""
    ends = []
    for number, way in enumerate(ways):
        waiting = Waiting(way, number)
        assert waiting.process.poll() is None
        by(waiting.process, sent)
        ends.append(waiting.ends())
        waiting.close()
    assert ends[0] == ends[1]
    assert ends[0][0] == code


def test_stopped_and_continued(ways: tuple[Cli, Cli]) -> None:
    """SIGSTOP stops it, whoever waits waits no longer than he said, and after SIGCONT it goes on as ever."""
    ends = []
    for number, way in enumerate(ways):
        waiting = Waiting(way, number)
        waiting.process.send_signal(signal.SIGSTOP)
        wait_until(lambda at=waiting: "T (stopped)" in (at.proc / "status").read_text(), what="the stop")  # type: ignore[misc]
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.process.wait(0.1)
        waiting.process.send_signal(signal.SIGCONT)
        waiting.goes_on()
        ends.append(waiting.ends())
    assert ends[0] == ends[1]
    assert ends[0][0] == EXIT_CONFIG


def test_a_command_that_takes_too_long(ways: tuple[Cli, Cli]) -> None:
    """It is killed, and whoever called it is told."""
    os.mkfifo(ways[0].directory / "silent")
    for way in ways:
        with pytest.raises(subprocess.TimeoutExpired):
            way("status", "-c", "silent", timeout=1)


def test_many_at_once(ways: tuple[Cli, Cli]) -> None:
    """Threads that start commands at the same time each get their own's answer."""
    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(lambda number: ways[0]("status", "-c", f"no-{number}").stderr, range(24)))
    assert [f"no-{number}" in text for number, text in enumerate(said)] == [True] * 24


def test_orphans_are_no_children_of_ours(ways: tuple[Cli, Cli]) -> None:
    """Once a command is forked, a process that loses its parent goes where it would have gone."""
    assert ways[0]("--version").returncode == 0
    adopts = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(adopts), 0, 0, 0) == 0
    assert adopts.value == 0


def test_a_fork_server_that_was_killed(cli: Cli) -> None:
    """What was forked lives on, and whoever wants another is told."""
    server = ForkServer(usual_environment())
    way = replace(cli, forks=server, _started=cli._started)
    waiting = Waiting(way, 0)
    assert server._process is not None
    server._process.kill()
    server._process.wait()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the fork server has ended with -9"):
            way("--version")
    waiting.goes_on()
    assert waiting.ends()[0] == EXIT_CONFIG
    server.close()
