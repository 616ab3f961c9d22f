"""pglogical, the extension that PostgreSQL's own subscription came from, as a contender that drains.

Its slots have a plugin of their own, and its progress is a replication origin, which belongs to the server and not
to the database: both are set back to the starting point for every round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import sql

from bench.contest import wait
from bench.drainers import Arrival
from bench.processes import ContenderFailed
from bench.servers import connect, create_database, drop_database, offers
from bench.stage import BASE, Stage
from bench.work import TABLES
from pglockstep.postgres.installations import Installation

_TARGET = "drain_pglogical"
_BASE = "drain_pglogical_base"
_SPARE = "bench_spare_pglogical"
_KEYLESS = "pgbench_history"


class Pglogical:
    """A pglogical subscription with its default settings."""

    name = "pglogical"
    title = "pglogical"
    worker: str | None = r"pglogical apply"
    preload = "pglogical"

    def __init__(self) -> None:
        self._slot = ""
        self._progress: str | None = None

    def missing(self, installation: Installation) -> str:
        """An extension that somebody has to have installed."""
        if offers(installation, "pglogical"):
            return ""
        return f"this machine has no pglogical for PostgreSQL {installation.major}"

    def prepare(self, stage: Stage) -> None:
        """Make both nodes and the subscription, then disable it; set aside slot, progress and target."""
        with connect(stage.source) as conn:
            conn.execute("CREATE EXTENSION pglogical")
            conn.execute("SELECT pglogical.create_node('source', %s)", [stage.source])
            for table in TABLES:
                chosen = "default_insert_only" if table == _KEYLESS else "default"
                conn.execute(
                    "SELECT pglogical.replication_set_add_table(%s, %s::regclass)",
                    [chosen, f"public.{table}"],
                )
        server = stage.servers.target
        stage.after.callback(drop_database, server, _BASE)
        target = create_database(server, _TARGET, BASE)
        with connect(target) as conn:
            conn.execute("CREATE EXTENSION pglogical")
            conn.execute("SELECT pglogical.create_node('target', %s)", [target])
            conn.execute(
                "SELECT pglogical.create_subscription('bench', %s, synchronize_structure := false, "
                "synchronize_data := false)",
                [stage.source],
            )
            status = "SELECT status FROM pglogical.show_subscription_status('bench')"
            wait(lambda: conn.execute(status).fetchone() == ("replicating",), lambda: None, 60)
            conn.execute("SELECT pglogical.alter_subscription_disable('bench', immediate := true)")
            row = conn.execute(
                "SELECT sub_slot_name, pg_replication_origin_progress(sub_slot_name, true)::text "
                "FROM pglogical.subscription"
            ).fetchone()
            assert row is not None
            self._slot, self._progress = row
        with connect(stage.source) as conn:
            idle = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND NOT active"
            wait(lambda: conn.execute(idle, [self._slot]).rowcount == 1, lambda: None, 60)
        stage.copy_slot(_SPARE, self._slot)
        # closed to pglogical's own workers, which look into every open database, as a template must be
        with connect(server.conninfo()) as conn:
            closed = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(_TARGET))
            conn.execute(closed)
            conn.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [_TARGET]
            )
            conn.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                    sql.Identifier(_TARGET), sql.Identifier(_BASE)
                )
            )

    @contextmanager
    def ready(self, stage: Stage) -> Iterator[PglogicalTurn]:
        """The subscription as it was, disabled."""
        stage.drop_slot(self._slot)
        stage.copy_slot(self._slot, _SPARE)
        with connect(stage.servers.target.conninfo()) as conn:
            conn.execute(
                "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = %s",
                [self._slot],
            )
            conn.execute("SELECT pg_replication_origin_create(%s)", [self._slot])
            if self._progress is not None:
                conn.execute("SELECT pg_replication_origin_advance(%s, %s)", [self._slot, self._progress])
        with stage.target(_TARGET, _BASE) as target:
            turn = PglogicalTurn(stage, target)
            try:
                turn.wait_managed()
                yield turn
            finally:
                turn.stop()


class PglogicalTurn(Arrival):
    """One round of the subscription."""

    def wait_managed(self) -> None:
        """Wait for the worker that looks after this database: its start is not what is measured."""
        # this changes nothing, but wakes the supervisor
        self.reader.execute("SELECT pglogical.alter_subscription_disable('bench')")
        managed = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'pglogical manager%'"
        wait(lambda: self.reader.execute(managed).rowcount == 1, lambda: None, 30)

    def start(self) -> None:
        """Enable it."""
        self.reader.execute("SELECT pglogical.alter_subscription_enable('bench', immediate := true)")

    def demand_alive(self) -> None:
        """It is down when a change is refused."""
        row = self.reader.execute("SELECT status FROM pglogical.show_subscription_status('bench')").fetchone()
        if row == ("disabled",):
            raise ContenderFailed(f"the subscription gave up: {self.stage.servers.target.log_tail(3)}")

    def stop(self) -> None:
        """Disable it."""
        self.reader.execute("SELECT pglogical.alter_subscription_disable('bench', immediate := true)")
        self.reader.close()
