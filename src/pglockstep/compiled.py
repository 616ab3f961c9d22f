"""The compiled hot path: which modules it is, and whether this process runs them compiled or interpreted.

Each is one Python source; a C compiler, where there is one at install, makes a faster twin of it that does the same.
With ``PGLOCKSTEP_INTERPRETED=1`` in the environment the source is used although there is a twin.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

#: Beside the source of each stands a .pxd, with what a compiler is told of its types.
MODULES = (
    "pglockstep.apply.batch",
    "pglockstep.apply.encoding",
    "pglockstep.apply.net",
    "pglockstep.apply.runs",
    "pglockstep.journal.kinds",
    "pglockstep.wal.frames",
    "pglockstep.wal.pgoutput",
)

#: What there is in compiled form alone, for others to use where it is there.
COMPILED_ONLY = ("pglockstep.apply.wire", "pglockstep.postgres.libpq")

#: The environment variable that chooses the sources.
INTERPRETED = "PGLOCKSTEP_INTERPRETED"


def source(module: str) -> Path:
    """Where the Python source of one of `MODULES` is."""
    return Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")


def is_compiled() -> bool:
    """Whether this process runs all of `MODULES` compiled."""
    specs = [find_spec(module) for module in MODULES + COMPILED_ONLY]
    return all(spec is not None and not (spec.origin or "").endswith(".py") for spec in specs)


def form() -> str:
    """``compiled`` or ``interpreted``, for people."""
    return "compiled" if is_compiled() else "interpreted"


def interpret() -> None:
    """Use the sources from now on; for modules that are not imported yet."""
    sys.meta_path.insert(0, _Sources())


class _Sources(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_file_location(fullname, source(fullname)) if fullname in MODULES else None
