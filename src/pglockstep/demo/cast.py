"""Who plays in the demo's story: a shop, its customers, the daemon, and whoever types the commands.

Promises: every command is the real one, in a process of its own, and a command that fails ends the story. What a customer
took back is known, so that what the guard puts back can be counted to the row.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg

from pglockstep.errors import EXIT_DIFFERS, EXIT_OK, LockstepError

#: What belongs to every order.
ITEMS = 2
#: Between two purchases, in seconds.
_PAUSE = 0.004
#: For whatever has to happen in the story, in seconds: far longer than it takes.
PATIENCE = 60.0

SHOP = """
CREATE TYPE state AS ENUM ('new', 'paid', 'sent');
CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, since date);
CREATE TABLE "Order" (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer bigint NOT NULL REFERENCES customer,
    state state NOT NULL DEFAULT 'new', total numeric(10, 2) NOT NULL CHECK (total >= 0), details jsonb
);
CREATE TABLE item (
    "order" bigint REFERENCES "Order" ON DELETE CASCADE, number int, product text NOT NULL, PRIMARY KEY ("order", number)
);
CREATE TABLE visit (at timestamptz, page text);  -- no key at all
CREATE VIEW revenue AS SELECT customer, sum(total) AS total FROM "Order" WHERE state <> 'new' GROUP BY customer;
INSERT INTO customer (name, since) SELECT 'customer ' || n, date '2020-01-01' + n FROM generate_series(1, 2000) AS n;
INSERT INTO "Order" (customer, state, total, details)
    SELECT 1 + n % 2000, 'paid', n % 500, jsonb_build_object('n', n) FROM generate_series(1, 10000) AS n;
INSERT INTO item SELECT id, number, 'product ' || (id + number) % 70 FROM "Order", generate_series(1, 2) AS number;
"""

Side = Literal["source", "target"]


def bug(message: str) -> LockstepError:
    """What the story tells is not so."""
    return LockstepError(f"the demo is not true: {message}", hint="please report this with the output above")


@dataclass
class Purchases:
    """What customers did in a while: how many purchases, and which orders they cancelled (by their ids)."""

    made: int = 0
    cancelled: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Cast:
    """Everybody, between the two `ends` (connection strings); the commands keep their state in `state`."""

    ends: Mapping[Side, str]
    state: Path
    environ: Mapping[str, str]
    #: of the purchases, each of which sends or cancels the order of that id
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # --- the shop ---------------------------------------------------------------------------------

    def on(self, side: Side) -> psycopg.Connection[Any]:
        """A new autocommit connection to an end."""
        return psycopg.connect(self.ends[side], autocommit=True)

    def orders(self, side: Side) -> set[int]:
        """The ids of the orders that an end holds; raises if one of them lacks its items there."""
        with self.on(side) as conn:
            found = conn.execute(
                'SELECT id, (SELECT count(*) FROM item WHERE "order" = o.id) FROM "Order" AS o'
            ).fetchall()
        if any(items != ITEMS for _, items in found):
            raise bug(f"an order lacks its items on the {side}")
        return {row[0] for row in found}

    @contextmanager
    def customers(self) -> Iterator[Purchases]:
        """Customers who buy, pay, cancel and leave traces until the block ends."""
        stop = threading.Event()
        failures: list[Exception] = []
        purchases = Purchases()

        def buy() -> None:
            try:
                with self.on("source") as conn:
                    while not stop.wait(_PAUSE):
                        _buy(conn, next(self.numbers), purchases)
            except psycopg.Error as error:
                failures.append(error)

        shop = threading.Thread(target=buy, name="customers")
        shop.start()
        try:
            yield purchases
        finally:
            stop.set()
            shop.join()
        if failures:
            raise failures[0]

    def seen_after(self, number: int) -> float:
        """Seconds from the commit of a lone insert on the source until the target shows it."""
        name = f"newcomer {number} {time.monotonic_ns()}"
        with self.on("source") as source, self.on("target") as target:
            source.execute("INSERT INTO customer (name) VALUES (%s)", [name])
            committed = time.perf_counter()
            while target.execute("SELECT FROM customer WHERE name = %s", [name]).rowcount != 1:
                if time.perf_counter() - committed > PATIENCE:
                    raise bug("an insert did not reach the target")
            return time.perf_counter() - committed

    # --- the daemon -------------------------------------------------------------------------------

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """``pglockstep run``, ready: it has passed a barrier."""
        path = self.state / "run.log"
        with path.open("ab") as log:
            daemon = subprocess.Popen(self._command("run"), env=self._environment(), stdout=log, stderr=log)
        try:
            while not self._streams():
                if daemon.poll() is not None:
                    raise LockstepError(f"the daemon ended: {path.read_text()[-400:]}")
            yield daemon
        finally:
            if daemon.poll() is None:
                daemon.terminate()
                daemon.wait(PATIENCE)

    def _streams(self) -> bool:
        """Whether a daemon is alive and follows; one that is just beginning has not come so far."""
        link = self.link("status", codes=(EXIT_OK, EXIT_DIFFERS))
        return bool(link["daemon_alive"]) and link["state"] == "streaming"

    # --- whoever types ----------------------------------------------------------------------------

    def type(self, *arguments: str, codes: Collection[int] = (EXIT_OK,)) -> str:
        """What a command prints; one that exits otherwise than with one of `codes` ends the story."""
        done = subprocess.run(
            self._command(*arguments),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        if done.returncode not in codes:
            raise LockstepError(f"pglockstep {arguments[0]} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def link(self, command: str, codes: Collection[int] = (EXIT_OK,)) -> dict[str, Any]:
        """What a command says of the link, from its JSON."""
        found = json.loads(self.type(command, "--json", codes=codes))["links"][0]
        assert isinstance(found, dict)
        return found

    def incident(self, side: Side, *states: str) -> dict[str, Any]:
        """The newest incident, once it is one of this side's and in one of these states."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = json.loads(self.type("incidents", "list", "--json"))["incidents"]
            if found and found[-1]["side"] == side and found[-1]["state"] in states:
                assert isinstance(found[-1], dict)
                return found[-1]
        raise bug(f"no incident on the {side} was {' or '.join(states)} within {PATIENCE:g} s")

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pglockstep", *arguments]

    def _environment(self) -> dict[str, str]:
        ours = {
            key: value for key, value in self.environ.items() if not key.startswith(("PG", "PGLOCKSTEP_"))
        }
        return ours | {
            "PGLOCKSTEP_SOURCE": self.ends["source"],
            "PGLOCKSTEP_TARGET": self.ends["target"],
            "PGLOCKSTEP_STATE_DIR": str(self.state),
        }


def _buy(conn: psycopg.Connection[Any], number: int, purchases: Purchases) -> None:
    """One purchase; an older order is sent, and now and then one is cancelled."""
    purchases.made += 1
    with conn.transaction():
        conn.execute(
            'WITH bought AS (INSERT INTO "Order" (customer, total) VALUES (1 + %s %% 2000, %s) RETURNING id) '
            "INSERT INTO item SELECT id, number, 'product ' || id %% 70 FROM bought, generate_series(1, 2) AS number",
            [number, number % 90],
        )
        conn.execute("UPDATE \"Order\" SET state = 'sent' WHERE id = %s", [number])
        conn.execute("INSERT INTO visit VALUES (now(), '/order')")
    if number % 5 == 0:
        if conn.execute('DELETE FROM "Order" WHERE id = %s', [number]).rowcount:
            purchases.cancelled.add(number)
        conn.execute("DELETE FROM visit WHERE ctid = (SELECT min(ctid) FROM visit)")
