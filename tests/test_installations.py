"""PostgreSQL is found where it really is, once, and the right clients are chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pglockstep.errors import EXIT_CONFIG, ConfigError
from pglockstep.postgres.installations import (
    EMBEDDED,
    EMBEDDED_PACKAGE,
    Installation,
    clients_for,
    installations,
)

CLIENTS = ("pg_dump", "pg_restore")


def install(
    bindir: Path, version: str, programs: tuple[str, ...] = CLIENTS, brand: str = "PostgreSQL"
) -> Path:
    """Programs that answer `--version` as PostgreSQL's do."""
    bindir.mkdir(parents=True)
    for name in programs:
        program = bindir / name
        program.write_text(f'#!/bin/sh\necho "{name} ({brand}) {version}"\n')
        program.chmod(0o755)
    return bindir


def path(*directories: Path | str) -> dict[str, str]:
    return {"PATH": os.pathsep.join(map(str, directories))}


def found_below(root: Path, *directories: Path | str) -> list[tuple[str, Path]]:
    """What is found on a PATH of `directories`, without the machine's own installations."""
    return [
        (one.version, one.bindir.relative_to(root))
        for one in installations(path(*directories))
        if one.bindir.is_relative_to(root)
    ]


def test_sorted_by_version_not_by_spelling(tmp_path: Path) -> None:
    """Versions are ordered as numbers, and a beta comes before the release that it becomes."""
    for version in ("97.10", "97.9 (Debian 97.9-0+deb1)", "98beta2", "98.0", "9.6.24"):
        install(tmp_path / version.split()[0], version)
    found = found_below(tmp_path, *tmp_path.iterdir())
    assert [version for version, _ in found] == ["9.6.24", "97.9", "97.10", "98beta2", "98.0"]


def test_links_are_followed_and_each_installation_is_listed_once(tmp_path: Path) -> None:
    """A linked directory and linked programs lead to the one real place, however often it is named."""
    real = install(tmp_path / "real", "97.1")
    (tmp_path / "linked").symlink_to(real)
    (tmp_path / "bin").mkdir()
    for name in CLIENTS:
        (tmp_path / "bin" / name).symlink_to(real / name)
    found = found_below(tmp_path, tmp_path / "bin", tmp_path / "linked", real, real)
    assert found == [("97.1", Path("real"))]


def test_wrappers_are_not_installations(tmp_path: Path) -> None:
    """Debian's /usr/bin/pg_dump is a link to `pg_wrapper`, which only chooses an installation."""
    wrapper = install(tmp_path / "share", "97.1", ("pg_wrapper",)) / "pg_wrapper"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pg_dump").symlink_to(wrapper)
    assert found_below(tmp_path, tmp_path / "bin") == []


def test_what_does_not_answer_as_postgresql_is_left_out(tmp_path: Path) -> None:
    """Programs of that name that fail, are another product's or cannot run are no installation."""
    install(tmp_path / "foreign", "97.1", brand="OtherSQL")
    (install(tmp_path / "broken", "97.1") / "pg_dump").write_text("#!/nonexistent\n")
    for name in CLIENTS:
        (install(tmp_path / f"plain-{name}", "97.1", (name,)) / name).chmod(0o644)
    assert found_below(tmp_path, *tmp_path.iterdir()) == []


def test_relative_and_missing_directories_of_path_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty or relative entry would run whatever lies in the current directory."""
    install(tmp_path / "here", "97.1")
    monkeypatch.chdir(tmp_path / "here")
    assert found_below(tmp_path, "", ".", "../here", tmp_path / "missing") == []
    assert installations({}) == installations(path())


def test_a_server_without_clients_is_listed_by_its_own_version(tmp_path: Path) -> None:
    """`postgres` alone is an installation too, and says what it lacks."""
    bindir = install(tmp_path / "server", "97.3", ("postgres",))
    (server,) = [one for one in installations(path(bindir)) if one.bindir == bindir]
    assert server == Installation(version="97.3", major=97, bindir=bindir)
    assert server.has("postgres")
    assert not server.has("pg_dump")
    assert server.program("pg_dump") == bindir / "pg_dump"


def test_clients_are_the_nearest_not_older_with_the_newest_fixes(tmp_path: Path) -> None:
    """The smallest sufficient major, its newest minor, and both pg_dump and pg_restore present."""
    for version in ("95.9", "96.2", "96.11", "98.1"):
        install(tmp_path / version, version)
    install(tmp_path / "half", "96.12", ("pg_dump",))
    environ = path(*tmp_path.iterdir())
    assert clients_for(96, environ).version == "96.11"
    assert clients_for(97, environ).version == "98.1"


def test_no_clients_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    """The error names what was found and what to install, and has the exit code promised for it."""
    bindir = install(tmp_path / "97", "97.1")
    with pytest.raises(ConfigError, match=r"version 98 or newer; found: .*97\.1 in ") as caught:
        clients_for(98, path(bindir))
    assert str(bindir) in caught.value.message
    assert caught.value.hint == "apt install postgresql-client-98"
    assert caught.value.exit_code == EXIT_CONFIG


def test_the_hint_offers_the_wheel_only_for_versions_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`pip install 'pglockstep[embedded]'` is named where it helps: not for a newer server."""
    monkeypatch.setattr("pglockstep.postgres.installations.installations", lambda _: [])
    newest = max(EMBEDDED)
    with pytest.raises(ConfigError, match="found: none") as caught:
        clients_for(newest, {})
    assert caught.value.hint == (
        f"apt install postgresql-client-{newest}, or pip install 'pglockstep[embedded]'"
    )
    with pytest.raises(ConfigError) as caught:
        clients_for(newest + 1, {})
    assert "embedded" not in caught.value.hint


def test_the_embedded_wheel_is_found_without_importing_it() -> None:
    """Importing the package has effects on the machine; looking for PostgreSQL must have none."""
    if find_spec(EMBEDDED_PACKAGE) is None:
        pytest.skip("the extra `embedded` is not installed")
    script = (
        "import sys; from pglockstep.postgres.installations import *;"
        "print(*(one.major for one in installations({}) if EMBEDDED_PACKAGE in one.bindir.parts));"
        "print(EMBEDDED_PACKAGE in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    assert answer.stdout.splitlines() == [" ".join(map(str, EMBEDDED)), "False"]
