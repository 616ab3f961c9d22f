"""Those who can tell whether two databases hold the same: the plain queries as the floor, and `pglockstep check`.

Each is one or several commands, all started at once. It has to say of every table whether it is the same on both ends,
so that nobody is fast by not looking.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from bench.processes import Argv, ContenderFailed
from bench.servers import Servers
from bench.work import Twins
from pglockstep.errors import EXIT_DIFFERS
from pglockstep.postgres.installations import Installation


class Comparer(Protocol):
    """A contender. `differs` is the exit code of a command of its that has found a difference."""

    name: str
    title: str
    differs: int

    def missing(self, installation: Installation) -> str:
        """What it lacks on this machine; empty if nothing."""

    def commands(self, servers: Servers, source: str, target: str, scratch: Path) -> list[Argv]:
        """What is run; `scratch` is an empty directory."""

    def same(self, written: Sequence[str]) -> dict[str, bool]:
        """By table, from what each command has written. Raises `ContenderFailed` if that tells nothing."""


class Plain:
    """One psql at each end that counts every table's rows and adds up their hashes, one table after another.

    Nobody who looks at every value does with less, but it can tell only that a table differs, and not where.
    """

    name = "plain"
    title = "the floor: count and sum of row hashes, by psql"
    differs = 0

    def missing(self, installation: Installation) -> str:
        """Comes with every server."""
        return (
            "" if installation.has("psql") else f"this machine has no psql of PostgreSQL {installation.major}"
        )

    def commands(self, servers: Servers, source: str, target: str, scratch: Path) -> list[Argv]:
        """One for each end."""
        # names of ours, that need no quotes
        queries = [
            f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t"  # noqa: S608
            for table in Twins.KEYS
        ]
        asked = [word for query in queries for word in ("-c", query)]
        psql = servers.program("psql")
        return [
            [psql, *["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"], *asked, "-d", end]
            for end in (source, target)
        ]

    def same(self, written: Sequence[str]) -> dict[str, bool]:
        """A line for each table."""
        source, target = (text.split() for text in written)
        if not len(source) == len(target) == len(Twins.KEYS):
            raise ContenderFailed(f"psql told of {len(source)} and {len(target)} of {len(Twins.KEYS)} tables")
        return {table: source[at] == target[at] for at, table in enumerate(Twins.KEYS)}


class PglockstepCheck:
    """`pglockstep check`, which compares the schema and the sequences, too."""

    name = "pglockstep"
    title = "pglockstep check"
    differs = EXIT_DIFFERS

    def missing(self, installation: Installation) -> str:
        """It is what this is about."""
        return ""

    def commands(self, servers: Servers, source: str, target: str, scratch: Path) -> list[Argv]:
        """One command."""
        ends = ["--source", source, "--target", target]
        return [
            [sys.executable, "-m", "pglockstep", "check", *ends, "--state-dir", scratch / "state", "--json"]
        ]

    def same(self, written: Sequence[str]) -> dict[str, bool]:
        """Its JSON document has every table's verdict."""
        try:
            (link,) = msgspec.json.decode(written[0], type=_Document).links
        except (msgspec.MsgspecError, ValueError) as error:
            raise ContenderFailed(f"pglockstep check wrote what is no verdict: {written[0][:200]}") from error
        found = {table.table: table.verdict == "identical" for table in link.tables}
        if all(found.values()) != (link.verdict == "identical"):
            raise ContenderFailed(f"pglockstep check says {link.verdict}, and of its tables something else")
        return found


class _Table(msgspec.Struct):
    table: str
    verdict: str


class _Link(msgspec.Struct):
    verdict: str
    tables: list[_Table]


class _Document(msgspec.Struct):
    links: list[_Link]
