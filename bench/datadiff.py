"""data-diff, which compares tables by checksums of key ranges and looks closer where they differ.

It gets an environment of its own, made by pip when it is first asked for and kept among the user's caches: what it
needs is nothing that pglockstep should meet. All tables are compared by one process through its Python interface, which
is kinder to it than its command: that compares one table, and takes a second to start.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from psycopg.conninfo import conninfo_to_dict

from bench.contest import one_line, say
from bench.processes import Argv, ContenderFailed, run
from bench.servers import Servers, connect
from bench.work import Twins
from pglockstep.postgres.installations import Installation

VERSION = "0.11.2"
#: Its own requirements, held where newer releases of them no longer go with it; psycopg2 without a compiler.
_PACKAGES = (f"data-diff=={VERSION}", "psycopg2-binary<3", "dbt-core<1.9", "pydantic<2")
_JOB = Path(__file__).with_name("datadiff_job.py")


class DataDiff:
    """data-diff with so many threads at each end, that splits what it compares into so many ranges at a time."""

    differs = 1

    def __init__(self, name: str, words: str, threads: int, factor: int) -> None:
        self.name = name
        numbered = "1 thread" if threads == 1 else f"{threads} threads"
        self.title = f"data-diff {VERSION}, {words} ({numbered}, factor {factor})"
        self._threads = threads
        self._factor = factor

    def missing(self, installation: Installation) -> str:
        """Asks pip for it, once."""
        return "" if _python() else "not installed, and pip could not install it"

    def commands(self, servers: Servers, source: str, target: str, scratch: Path) -> list[Argv]:
        """One command, which is told everything as JSON."""
        python = _python()
        assert python is not None
        job = {
            "ends": [_end(source), _end(target)],
            "tables": [[table, key, _columns(source, table, key)] for table, key in Twins.KEYS.items()],
            "threads": self._threads,
            "factor": self._factor,
        }
        # isolated, or it would find this package's modules beside its script
        return [[python, "-I", _JOB, msgspec.json.encode(job).decode()]]

    def same(self, written: Sequence[str]) -> dict[str, bool]:
        """It writes how many differences each table has."""
        try:
            counts = msgspec.json.decode(written[0], type=dict[str, int])
        except msgspec.MsgspecError as error:
            raise ContenderFailed(f"data-diff wrote what is no result: {written[0][:200]}") from error
        return {table: count == 0 for table, count in counts.items()}


def contenders() -> list[DataDiff]:
    """As its command is by default, and as it was fastest on two cores.

    Tried were 1, 2 and 4 threads with factors from 2 to 128. The time goes into the servers' hashing of every row, which
    threads do not shorten where both cores are busy; fewer ranges are a little faster.
    """
    return [
        DataDiff("data-diff", "by default", 1, 32),
        DataDiff("data-diff-tuned", "at its best", 1, 4),
    ]


@functools.cache
def _python() -> Path | None:
    """The interpreter of an environment that has data-diff; None if there can be none."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has a relative path ignored.
    home = caches if caches.is_absolute() else Path.home() / ".cache"
    where = home / "pglockstep-bench" / f"data-diff-{VERSION}"
    python, complete = where / "bin" / "python", where / "complete"
    wanted = "\n".join(_PACKAGES)
    try:
        if not complete.exists() or complete.read_text() != wanted:
            say(f"installing data-diff {VERSION} into an environment of its own")
            run([sys.executable, "-m", "venv", "--clear", where])
            run([python, "-m", "pip", "install", "--quiet", *_PACKAGES])
            complete.write_text(wanted)
        run([python, "-I", "-c", "import data_diff, psycopg2"])
    except (ContenderFailed, OSError) as error:
        say(f"data-diff cannot be had: {one_line(error)}")
        return None
    return python


def _end(conninfo: str) -> dict[str, str]:
    """A server as data-diff is told of it. It insists on a password, needed or not."""
    known = conninfo_to_dict(conninfo)
    told = {key: str(known[key]) for key in ("host", "port", "user")}
    return {"driver": "postgresql", **told, "database": str(known["dbname"]), "password": ""}


def _columns(conninfo: str, table: str, key: str) -> list[str]:
    """All columns but the key."""
    with connect(conninfo) as conn:
        found = conn.execute(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
            "AND NOT attisdropped AND attname <> %s ORDER BY attnum",
            [table, key],
        )
        return [name for (name,) in found]
