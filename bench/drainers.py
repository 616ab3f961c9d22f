"""Those who can drain a backlog: PostgreSQL's own subscription, a bare receiver as the floor, and pglockstep.

Each prepares its starting point before the backlog is made, and is made ready for each round without being timed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psycopg
from psycopg import Connection, sql

from bench import work
from bench.processes import ContenderFailed, Process, pglockstep_environment, run
from bench.servers import connect, create_database, drop_database
from bench.stage import PUBLICATION, Stage
from pglockstep.postgres.installations import Installation


class Turn(Protocol):
    """One contender, ready to start on one fresh starting point."""

    def start(self) -> None:
        """From here on it is timed."""

    def done(self) -> bool:
        """Whether all of the backlog is there. Asked every 20 ms."""

    def demand_alive(self) -> None:
        """Raise `ContenderFailed` if it will never be done. Asked every second."""

    def pids(self) -> list[int]:
        """Its processes outside the servers."""

    def wrong(self) -> str:
        """In what the result is wrong, once it is done; empty if in nothing."""


class Drainer(Protocol):
    """A contender.

    `worker` is how the title of its process inside the target server reads, if it has one there; `preload` is the
    library that both servers must load at their start for it.
    """

    name: str
    title: str
    worker: str | None
    preload: str

    def missing(self, installation: Installation) -> str:
        """What it lacks on this machine; empty if nothing."""

    def prepare(self, stage: Stage) -> None:
        """Note the starting point. The source is filled, and the backlog not yet made."""

    def ready(self, stage: Stage) -> AbstractContextManager[Turn]:
        """Everything for one round but the start; taken away again afterwards."""


class Arrival:
    """A target watched for the last row of the backlog."""

    def __init__(self, stage: Stage, target: str) -> None:
        self.stage = stage
        self.target = target
        self.reader: Connection[tuple[Any, ...]] = connect(target)

    def done(self) -> bool:
        """Whether the last row is visible."""
        return work.arrived(self.reader)

    def demand_alive(self) -> None:
        """By default nothing is known."""

    def pids(self) -> list[int]:
        """By default all of it is inside the servers."""
        return []

    def wrong(self) -> str:
        """Compare the target with the source."""
        return self.stage.wrong(self.target)


class Native:
    """PostgreSQL's own subscription, as CREATE SUBSCRIPTION makes it by default."""

    name = "native"
    title = "PostgreSQL's own subscription"
    worker: str | None = r"logical replication .*worker"
    preload = ""

    def missing(self, installation: Installation) -> str:
        """Always there."""
        return ""

    def prepare(self, stage: Stage) -> None:
        """The stage's own starting point serves."""

    @contextmanager
    def ready(self, stage: Stage) -> Iterator[NativeTurn]:
        """A disabled subscription over a slot of its own."""
        stage.drop_slot("bench_native")
        stage.copy_slot("bench_native")
        with stage.target("drain_native") as target:
            turn = NativeTurn(stage, target)
            turn.subscribe()
            try:
                yield turn
            finally:
                turn.unsubscribe()
                stage.drop_slot("bench_native")


class NativeTurn(Arrival):
    """One round of the subscription."""

    def subscribe(self) -> None:
        """Make it, disabled."""
        stops = ", disable_on_error = true" if self.stage.servers.installation.major >= 15 else ""
        self.reader.execute(
            sql.SQL(
                "CREATE SUBSCRIPTION bench_native CONNECTION {} PUBLICATION {} WITH "
                "(create_slot = false, slot_name = 'bench_native', copy_data = false, enabled = false"
                + stops
                + ")"
            ).format(sql.Literal(self.stage.source), sql.Identifier(PUBLICATION))
        )

    def start(self) -> None:
        """Enable it."""
        self.reader.execute("ALTER SUBSCRIPTION bench_native ENABLE")

    def demand_alive(self) -> None:
        """It disables itself when a change is refused."""
        row = self.reader.execute("SELECT subenabled FROM pg_subscription WHERE subname = 'bench_native'")
        if row.fetchone() != (True,):
            raise ContenderFailed(f"the subscription gave up: {self.stage.servers.target.log_tail(3)}")

    def unsubscribe(self) -> None:
        """Take it away, and leave the slot to the stage."""
        with suppress(psycopg.errors.UndefinedObject):
            self.reader.execute("ALTER SUBSCRIPTION bench_native DISABLE")
            self.reader.execute("ALTER SUBSCRIPTION bench_native SET (slot_name = NONE)")
            self.reader.execute("DROP SUBSCRIPTION bench_native")
        self.reader.close()


class Floor:
    """`pg_recvlogical` into /dev/null: decoding and sending alone. Nobody who applies can be faster."""

    name = "floor"
    title = "the floor: pg_recvlogical into /dev/null"
    worker: str | None = None
    preload = ""

    def missing(self, installation: Installation) -> str:
        """Comes with every server."""
        if installation.has("pg_recvlogical"):
            return ""
        return f"this machine has no pg_recvlogical of PostgreSQL {installation.major}"

    def prepare(self, stage: Stage) -> None:
        """The stage's own starting point serves."""

    @contextmanager
    def ready(self, stage: Stage) -> Iterator[FloorTurn]:
        """A slot of its own."""
        stage.drop_slot("bench_floor")
        stage.copy_slot("bench_floor")
        turn = FloorTurn(stage)
        try:
            yield turn
        finally:
            turn.stop()
            stage.drop_slot("bench_floor")


class FloorTurn:
    """One round of receiving."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._process: Process | None = None

    def start(self) -> None:
        """Receive up to the backlog's end."""
        self._process = Process(
            [
                *(self._stage.servers.program("pg_recvlogical"), "-d", self._stage.source),
                *("--slot", "bench_floor", "--start", "-f", "/dev/null", "--no-loop"),
                *("--endpos", self._stage.end_lsn),
                *("-o", "proto_version=1", "-o", f"publication_names={PUBLICATION}"),
            ]
        )

    def done(self) -> bool:
        """Whether it has ended."""
        return self._process is not None and not self._process.alive()

    def demand_alive(self) -> None:
        """That is told by its end."""

    def pids(self) -> list[int]:
        """The receiver."""
        return [self._process.pid] if self._process else []

    def wrong(self) -> str:
        """It applies nothing, so nothing can be wrong."""
        return ""

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._process.stop()


class Pglockstep:
    """The daemon, from the start of its process; `interpreted` is without the compiled hot path."""

    name = "pglockstep"
    worker: str | None = None
    preload = ""
    _target = "drain_pglockstep"
    _base = "drain_pglockstep_base"

    def __init__(self, *, interpreted: bool = False) -> None:
        self.title = "pglockstep run, interpreted" if interpreted else "pglockstep run"
        self._interpreted = interpreted
        self._slots: list[str] = []
        self._state = Path()

    def missing(self, installation: Installation) -> str:
        """It is what this is about."""
        return ""

    def prepare(self, stage: Stage) -> None:
        """Make a link with `pglockstep once`; set aside its slot and its target."""
        server = stage.servers.target
        for name in (self._target, self._base):
            drop_database(server, name)
        target = create_database(server, self._target)
        stage.after.callback(drop_database, server, self._base)
        self._state = Path(stage.after.enter_context(tempfile.TemporaryDirectory(prefix="bench-state-")))
        environment = self._environment(stage, target, self._state / "base")
        run([sys.executable, "-m", "pglockstep", "once"], environment)
        # the guard is at work as it is by default, so what the backlog deletes has to be announced
        announced = ["--table", "public.item", "--rows", str(max(1, stage.backlog.deletes)), "--for", "1d"]
        run([sys.executable, "-m", "pglockstep", "guard", "allow", *announced], environment)
        stage.freeze(self._target)
        with connect(server.conninfo()) as conn:
            conn.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                    sql.Identifier(self._target), sql.Identifier(self._base)
                )
            )
        with connect(stage.source) as conn:
            found = conn.execute(
                r"SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'pglockstep\_%'"
            )
            self._slots = [name for (name,) in found.fetchall()]
        for number, slot in enumerate(self._slots):
            stage.copy_slot(f"spare_{number}", slot)

    @contextmanager
    def ready(self, stage: Stage) -> Iterator[PglockstepTurn]:
        """The link as it was: its slot under its own name again, its target as a copy.

        Its state is a new one. By that of before the guard would know that the target is another database than it was, and
        heal it: then the backlog would come as rows that are read from the source, and not as a stream.
        """
        state = self._state / "round"
        shutil.rmtree(state, ignore_errors=True)
        for number, slot in enumerate(self._slots):
            stage.drop_slot(slot)
            stage.copy_slot(slot, f"spare_{number}")
        with stage.target(self._target, self._base) as target:
            # the guard is at work as it is by default, so what the backlog deletes has to be announced
            announced = [
                "--table",
                "public.item",
                "--rows",
                str(max(1, stage.backlog.deletes)),
                "--for",
                "1d",
            ]
            environment = self._environment(stage, target, state)
            run([sys.executable, "-m", "pglockstep", "guard", "allow", *announced], environment)
            turn = PglockstepTurn(stage, target, environment)
            try:
                yield turn
            finally:
                turn.stop()

    def _environment(self, stage: Stage, target: str, state: Path) -> dict[str, str]:
        return pglockstep_environment(stage.source, target, state, interpreted=self._interpreted)


class PglockstepTurn(Arrival):
    """One round of the daemon."""

    def __init__(self, stage: Stage, target: str, environment: dict[str, str]) -> None:
        super().__init__(stage, target)
        self._environment = environment
        self._process: Process | None = None

    def start(self) -> None:
        """Start the process."""
        self._process = Process([sys.executable, "-m", "pglockstep", "run"], self._environment)

    def demand_alive(self) -> None:
        """The daemon ends when it cannot go on."""
        if self._process:
            self._process.demand_alive()

    def pids(self) -> list[int]:
        """The daemon."""
        return [self._process.pid] if self._process else []

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._process.stop()
        self.reader.close()
