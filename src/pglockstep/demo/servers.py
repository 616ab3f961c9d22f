"""PostgreSQL servers to throw away: for the demo, and for the tests.

Promises: a server lives in a directory of its own, listens on this machine only, and asks for a
password on TCP, so that nobody else on the machine can enter it; it ends when the Python process that
started it ends, however that one ends. Never reads the caller's PG* settings for the server, never
runs a server as root, never reuses a directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import random
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo

from pglockstep.errors import LockstepError
from pglockstep.postgres.installations import Installation, installations

StopMode = Literal["smart", "fast", "immediate"]

SUPERUSER = "postgres"
SECONDS_TO_START = 30.0
SECONDS_TO_STOP = 60.0
#: Below the ranges from which systems take ports for outgoing connections: nothing takes ours while
#: the server is down, so a restarted server keeps its address.
PORTS = range(20000, 32000)
PORT_ATTEMPTS = 10
#: A Unix socket's whole path must stay below 104 bytes on macOS, 108 on Linux.
SOCKET_PATH_BYTES = 100

SETTINGS = {
    "listen_addresses": "127.0.0.1,::1",
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_prepared_transactions": "10",
    "max_connections": "100",
    "shared_buffers": "64MB",
    # Files in the server's own directory: a killed server leaves nothing behind, and containers with
    # a small /dev/shm do.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] ",
}

#: All that a server's processes see of the environment.
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}

_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
# The postmaster starts when told to, not before: by then its watchdog stands. If we die first, both
# read the end of their pipes instead, and neither stays.
_POSTMASTER = 'read -r _ && exec "$@" </dev/null'
_WATCHDOG = 'read -r _ || kill -QUIT "$1"'


class ServerUser(msgspec.Struct, frozen=True):
    """Whom servers run as: PostgreSQL refuses root. `None` is ourselves."""

    uid: int | None = None
    gid: int | None = None

    def run(self, args: Sequence[str | Path]) -> tuple[int, str]:
        """Run a program to its end: its exit code, and all that it wrote."""
        process = self.start(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=Path("/"))
        output, _ = process.communicate()
        return process.returncode, output.decode(errors="replace")

    def start(
        self, args: Sequence[str | Path], *, stdout: int, stderr: int, cwd: Path
    ) -> subprocess.Popen[bytes]:
        """Start a program as this user, out of reach of our terminal's signals, its stdin a pipe."""
        return subprocess.Popen(
            args,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            start_new_session=True,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
        )

    def owns(self, path: Path) -> None:
        """Give `path` to this user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


class ThrowawayServer:
    """One PostgreSQL server in a directory that goes when it goes.

    Without `base` the directory is a new one among the system's temporary files. Unless `durable`,
    commits do not wait for the disk: they survive a killed server, not a machine that loses power.
    `local` connections are trusted (the socket's directory is closed to others); TCP connections need
    a password, and :meth:`conninfo` knows the superuser's.
    """

    def __init__(
        self,
        installation: Installation,
        base: Path | None = None,
        name: str = "server",
        settings: Mapping[str, str] | None = None,
        *,
        durable: bool = False,
    ) -> None:
        self.name = name
        self.user = server_user()
        self.installation = reachable(installation, self.user)
        self.major = installation.major
        self.port = 0
        self.password = secrets.token_hex(16)
        if base is None:
            self.directory = Path(tempfile.mkdtemp(prefix=f"pglockstep-{name}-")).resolve()
        else:
            self.directory = base.resolve() / name
            self.directory.mkdir(mode=0o700)
        self.user.owns(self.directory)
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.socket_dir = self.directory
        if len(os.fsencode(self.socket_dir / f".s.PGSQL.{PORTS.stop}.lock")) > SOCKET_PATH_BYTES:
            self.socket_dir = Path(tempfile.mkdtemp(prefix="pgl-", dir="/tmp"))
            self.user.owns(self.socket_dir)
        self._settings = (
            SETTINGS
            | {"unix_socket_directories": str(self.socket_dir)}
            | ({} if durable else {"fsync": "off"})
            | dict(settings or {})
        )
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while the server is up."""
        return self._postmaster.pid if self._postmaster else None

    def conninfo(self, dbname: str = "postgres", user: str = SUPERUSER, **extra: str | int) -> str:
        """A connection string for libpq: by the Unix socket, or as `extra` says (`host="localhost"`)."""
        chosen = {"host": str(self.socket_dir), "port": str(self.port), "dbname": dbname, "user": user}
        chosen |= {key: str(value) for key, value in extra.items()}
        if user == SUPERUSER and not chosen["host"].startswith("/"):
            chosen.setdefault("password", self.password)
        return make_conninfo(**chosen)

    def start(self) -> None:
        """Start the server and return once it answers; its port stays the same from then on."""
        if self._postmaster:
            raise LockstepError(f"the server {self.name} is already running")
        if not self.data.exists():
            self._initialise()
        known = self.port
        for port in [known] if known else random.sample(PORTS, PORT_ATTEMPTS):
            if self._launch(port):
                return
        self.port = known
        raise LockstepError(f"the server {self.name} finds its port taken: {self.log_tail()}")

    def stop(self, mode: StopMode = "fast", timeout: float = SECONDS_TO_STOP) -> None:
        """Stop the server and wait until every process of it has ended."""
        if self._postmaster is None:
            return
        self._postmaster.send_signal(_SIGNALS[mode])
        try:
            self._reap(timeout)
        except subprocess.TimeoutExpired:
            tail = self.log_tail()
            self.kill()
            raise LockstepError(
                f"the server {self.name} did not stop ({mode}) within {timeout:g} s: {tail}"
            ) from None

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start again, at the same address."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Crash: kill the postmaster outright, and wait until its children have noticed and ended."""
        if self._postmaster is None:
            return
        self._postmaster.kill()
        try:
            self._reap(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            raise LockstepError(f"processes of the server {self.name} outlive its postmaster") from None

    def close(self) -> None:
        """Stop the server if it runs, and remove its directory."""
        try:
            self.stop("immediate")
        finally:
            shutil.rmtree(self.directory)
            if self.socket_dir != self.directory:
                shutil.rmtree(self.socket_dir)

    def log_tail(self, lines: int = 8) -> str:
        """The last lines that the server has written to its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _initialise(self) -> None:
        password = self.directory / "password"
        password.write_text(self.password)
        self.user.owns(password)
        output = ""
        try:
            for locale in ("C.UTF-8", "C"):
                code, said = self.user.run(
                    [
                        self.installation.program("initdb"),
                        *("-D", self.data, "-U", SUPERUSER, f"--pwfile={password}"),
                        *("--encoding=UTF8", f"--locale={locale}", "--no-sync"),
                        *("--auth-local=trust", "--auth-host=scram-sha-256"),
                    ]
                )
                if code == 0:
                    break
                output += said
            else:
                raise LockstepError(
                    f"initdb {self.installation.version} failed in {self.directory}: {output}",
                    hint="the directory and all above it must be open to the server's user",
                )
        finally:
            password.unlink()
        with (self.data / "postgresql.conf").open("a") as conf:
            for key, value in self._settings.items():
                quoted = value.replace("\\", "\\\\").replace("'", "''")
                conf.write(f"{key} = '{quoted}'\n")

    def _launch(self, port: int) -> bool:
        """Start the postmaster on `port` and wait until it answers; False if someone has that port."""
        self.port = port
        postgres = self.installation.program("postgres")
        with self.log.open("ab") as log:
            begin = log.tell()
            self._postmaster = self.user.start(
                ["/bin/sh", "-c", _POSTMASTER, "sh", postgres, "-D", self.data, "-p", str(port)],
                # Every process of the server inherits this pipe: its end is the end of them all.
                stdout=subprocess.PIPE,
                stderr=log.fileno(),
                cwd=self.directory,
            )
            self._watchdog = self.user.start(
                ["/bin/sh", "-c", _WATCHDOG, "sh", str(self._postmaster.pid)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.directory,
            )
        assert self._postmaster.stdin is not None
        self._postmaster.stdin.write(b"\n")
        self._postmaster.stdin.flush()
        up = self._answers(self._postmaster)
        # With one of its two addresses taken PostgreSQL starts all the same, on the other one alone.
        taken = b"Address already in use" in self.log.read_bytes()[begin:]
        if up and not taken:
            return True
        self.stop("immediate")
        if not taken:
            raise LockstepError(f"the server {self.name} did not start: {self.log_tail()}")
        return False

    def _answers(self, postmaster: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + SECONDS_TO_START
        while postmaster.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.conninfo(connect_timeout=5)).close()
                return True
            time.sleep(0.05)
        return False

    def _reap(self, timeout: float) -> None:
        if self._postmaster is None or self._watchdog is None:
            return
        self._postmaster.communicate(timeout=timeout)
        self._watchdog.communicate(b"\n")
        self._postmaster = self._watchdog = None


def find_servers(environ: Mapping[str, str]) -> list[Installation]:
    """The installations that a :class:`ThrowawayServer` can be made of, oldest first."""
    return [
        one
        for one in installations(environ)
        if all(one.has(program) for program in ("postgres", "initdb", "pg_ctl"))
    ]


def server_user() -> ServerUser:
    """Ourselves; or, since PostgreSQL refuses root, the user `postgres` or else `nobody`."""
    if os.geteuid() != 0:
        return ServerUser()
    for name in (SUPERUSER, "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return ServerUser(entry.pw_uid, entry.pw_gid)
    raise LockstepError("this machine has neither a user postgres nor a user nobody to run a server as")


def reachable(installation: Installation, user: ServerUser) -> Installation:
    """`installation` if `user` can run it, else a copy that it can run, made once and kept.

    A virtual environment below root's home is closed to the user that the server runs as.
    """
    if _runs(installation, user):
        return installation
    prefix = installation.bindir.parent
    cache = _own_directory(Path(tempfile.gettempdir()).resolve() / f"pglockstep-postgres-{os.geteuid()}")
    key = hashlib.sha256(os.fsencode(prefix)).hexdigest()[:16]
    kept = cache / f"{installation.version}-{key}"
    copy = msgspec.structs.replace(installation, bindir=kept / prefix.parent.name / prefix.name / "bin")
    stale = kept.exists()
    if _runs(copy, user):
        return copy
    if stale:
        # What once ran and no longer does was thinned out by a cleaner of temporary files.
        shutil.rmtree(kept)
    making = Path(tempfile.mkdtemp(dir=cache))
    try:
        # A wheel keeps its shared libraries in PACKAGE.libs beside PACKAGE, found by a relative path.
        libraries = prefix.parent.with_name(prefix.parent.name + ".libs")
        for part in (prefix, libraries):
            if part.is_dir():
                shutil.copytree(part, making / part.relative_to(prefix.parent.parent), symlinks=True)
        _open_to_all(making)
        # Of two who copy at once the first one wins, and its copy serves both.
        with contextlib.suppress(OSError):
            making.rename(kept)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    if not _runs(copy, user):
        raise LockstepError(f"PostgreSQL {installation.version} in {installation.bindir} does not run")
    return copy


def _runs(installation: Installation, user: ServerUser) -> bool:
    try:
        # initdb needs the client libraries, postgres does not.
        return all(
            user.run([installation.program(name), "--version"])[0] == 0 for name in ("postgres", "initdb")
        )
    except OSError:
        return False


def _own_directory(path: Path) -> Path:
    """`path` as a directory that nobody but us can put programs into."""
    path.mkdir(mode=0o755, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise LockstepError(
            f"{path} belongs to someone else or is open to others, and would be run from",
            hint=f"look at it, then remove it: rm -r {path}",
        )
    return path


def _open_to_all(tree: Path) -> None:
    """Let everyone read and run what is in `tree`, whatever umask it was installed with."""
    for directory, _, files in os.walk(tree):
        os.chmod(directory, 0o755)  # noqa: S103  read and entered by the server's user
        for path in (Path(directory, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
