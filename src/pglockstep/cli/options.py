"""The options that every command takes, and the configuration that they lead to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from pglockstep.config import places
from pglockstep.config.reader import Wrong
from pglockstep.config.sections import Config, LinkConfig
from pglockstep.config.unbuilt import refuse_unbuilt
from pglockstep.config.values import parse_table_name
from pglockstep.errors import ConfigError, UsageProblem
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import ByteSize

F = TypeVar("F", bound=Callable[..., Any])


class Settings(msgspec.Struct, frozen=True):
    """What the common options said."""

    config: Path | None
    source: str | None
    target: str | None
    state_dir: Path | None
    verbose: int

    def load(self) -> Config:
        """The configuration: two connection strings, or a file."""
        if (self.source is None) != (self.target is None):
            missing = "--target" if self.target is None else "--source"
            raise UsageProblem(
                "one end alone is no link", hint=f"give {missing} as well, or name both in a file with -c"
            )
        if self.source is not None and self.target is not None:
            if self.config is not None:
                raise UsageProblem(
                    "--source and --target describe a link, and so does the file named with -c",
                    hint="leave one of the two out",
                )
            return places.from_ends(self.source, self.target, os.environ, self.state_dir)
        path = places.find(os.environ, self.config)
        if path is None:
            raise ConfigError(
                "there is no configuration",
                hint="give --source and --target, or write a first file: pglockstep init",
            )
        found = places.load(path, os.environ)
        return found if self.state_dir is None else msgspec.structs.replace(found, state_dir=self.state_dir)

    def links(self, config: Config, names: Sequence[str]) -> list[LinkConfig]:
        """The links of those names, or all; raises for a name that is not configured."""
        for name in names:
            if name not in config.links:
                raise UsageProblem(
                    f"there is no link {name!r}", hint=f"configured are: {', '.join(sorted(config.links))}"
                )
        chosen = [config.links[name] for name in (dict.fromkeys(names) or sorted(config.links))]
        for link in chosen:
            refuse_unbuilt(link)
        return chosen


def common(command: F) -> F:
    """Add the common options to a command; it gets them as keywords, to make `Settings` of."""
    for option in reversed(
        (
            click.option(
                "-c",
                "--config",
                type=click.Path(path_type=Path),
                envvar="PGLOCKSTEP_CONFIG",
                help="Configuration file.",
            ),
            click.option(
                "--source",
                envvar="PGLOCKSTEP_SOURCE",
                metavar="CONNINFO",
                help="The source, instead of a file.",
            ),
            click.option(
                "--target",
                envvar="PGLOCKSTEP_TARGET",
                metavar="CONNINFO",
                help="The target, instead of a file.",
            ),
            click.option(
                "--state-dir",
                type=click.Path(path_type=Path),
                envvar="PGLOCKSTEP_STATE_DIR",
                help="Where state is kept.",
            ),
            click.option(
                "-v",
                "--verbose",
                count=True,
                envvar="PGLOCKSTEP_VERBOSE",
                help="Say more; twice: tracebacks too.",
            ),
        )
    ):
        command = option(command)
    return command


def as_json(command: F) -> F:
    """Add ``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, envvar="PGLOCKSTEP_JSON", help="One JSON document on stdout."
    )(command)


def yes(command: F) -> F:
    """Add ``--yes``."""
    return click.option("--yes", is_flag=True, envvar="PGLOCKSTEP_YES", help="Do it without asking.")(command)


def links(command: F) -> F:
    """Add the names of links."""
    return click.argument("links", nargs=-1, metavar="[LINK]...")(command)


def tables(command: F) -> F:
    """Add ``--table``, which may be given several times."""
    return click.option(
        "--table",
        "tables",
        multiple=True,
        metavar="TABLE",
        help="Only this table, written as in SQL: public.orders, 'public.\"Orders\"'. May be repeated.",
    )(command)


def where(command: F) -> F:
    """Add ``--where``."""
    return click.option(
        "--where",
        default="",
        metavar="SQL",
        help="Only rows of which this condition is true on the end in question.",
    )(command)


def size(text: str, where: str = "") -> int:
    """A number of bytes as it was typed; raises `UsageProblem`, which begins with `where`."""
    try:
        return ByteSize.parse(text)
    except ValueError as error:
        raise UsageProblem(f"{where}{error}", hint="for instance 10MB") from None


def table(text: str, where: str = "") -> QualifiedName:
    """A table as it was typed, in SQL's own spelling; raises `UsageProblem`, which begins with `where`."""
    try:
        return QualifiedName(*parse_table_name(text))
    except Wrong as error:
        raise UsageProblem(f"{where}{error}", hint=error.hint) from None
