"""``pglockstep init``: a first configuration file, with every key in it."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from pglockstep.cli import options
from pglockstep.cli.options import Settings
from pglockstep.config import places
from pglockstep.config.docs import first_file
from pglockstep.errors import EXIT_OK, ConfigError, UsageProblem

_DEFAULT = Path("pglockstep.toml")
_LINK = "main"


@click.command("init", short_help="Write a first configuration file.")
@options.common
@options.yes
def command(yes: bool, **common: Any) -> int:
    """Write pglockstep.toml, or the file named with -c: one link, and every key with its meaning and default.

    Both connection strings are taken from --source and --target, or asked for. The file can be read by its owner
    alone, as it may hold passwords; ~/.pgpass or a service file is a better place for them.
    """
    settings = Settings(**common)
    path = settings.config or _DEFAULT
    if path.exists() and not yes:
        if not sys.stdin.isatty():
            raise UsageProblem(
                f"{path} is there already", hint="add --yes to overwrite it, or name another file with -c"
            )
        click.confirm(f"{path} is there already. Overwrite it?", abort=True, err=True)
    source = _end("source", "Where is the source, the database to copy from?", settings.source)
    target = _end("target", "Where is the target, an empty database?", settings.target)
    # a string that libpq cannot read stops here, and not at the next command
    places.from_ends(source, target, os.environ, settings.state_dir)
    state_dir = settings.state_dir and settings.state_dir.absolute()
    _write(path, first_file(_LINK, source, target, state_dir))
    named = "" if path == _DEFAULT else f" -c {shlex.quote(str(path))}"
    click.echo(f"wrote {path}: one link, {_LINK}, and every key with its default")
    click.echo(f"next: pglockstep doctor{named}")
    return EXIT_OK


def _end(side: str, question: str, given: str | None) -> str:
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise UsageProblem(
            f"the {side} is not given, and there is no terminal to ask on",
            hint="add --source CONNINFO --target CONNINFO, for example postgresql://app@localhost/app",
        )
    answer: str = click.prompt(f"{question} (for example postgresql://app@localhost/app)", err=True)
    return answer


def _write(path: Path, text: str) -> None:
    """Write the file whole or not at all, for its owner's eyes only."""
    name = ""
    try:
        # mkstemp gives mode 0600
        descriptor, name = tempfile.mkstemp(prefix=".pglockstep-", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except OSError as error:
        if name:
            with suppress(OSError):
                os.unlink(name)
        raise ConfigError(
            f"cannot write {path}: {error.strerror}", hint="name a file in a directory of yours with -c"
        ) from None
