"""What a drain is played on: one source with one backlog, and the same starting point for everyone, as often as needed.

A starting point is a slot from before the backlog and a target database from before the backlog. Both are kept
aside and copied for every round, so that the backlog is made only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from psycopg import sql

from bench import work
from bench.processes import Process
from bench.servers import Servers, connect, create_database, drop_database, drop_slot
from bench.work import Backlog

SOURCE = "drain_source"
BASE = "drain_base"
PUBLICATION = "bench"
_START = "bench_start"


class Stage:
    """The source before and after its backlog."""

    def __init__(self, servers: Servers, backlog: Backlog) -> None:
        self.servers = servers
        self.backlog = backlog
        self.source = servers.source.conninfo(SOURCE)
        self.end_lsn = ""
        self.wal_bytes = 0
        #: What a contender's preparation leaves, and how it is taken away.
        self.after = ExitStack()
        self._truth: dict[str, tuple[int, str]] = {}

    def build(self, preparations: Sequence[Callable[[Stage], None]]) -> None:
        """Fill the source, let every contender prepare its starting point, then make the backlog."""
        create_database(self.servers.source, SOURCE)
        self.backlog.prepare(self.servers, SOURCE)
        with connect(self.source) as conn:
            tables = sql.SQL(", ").join(map(sql.Identifier, work.TABLES))
            conn.execute(
                sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(sql.Identifier(PUBLICATION), tables)
            )
            conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [_START])
        self._base()
        for prepare in preparations:
            prepare(self)
        self.end_lsn, self.wal_bytes = self.backlog.make(self.servers, SOURCE)
        self._truth = work.fingerprints(self.source)

    def remove(self) -> None:
        """Everything, on both ends."""
        self.after.close()
        drop_database(self.servers.target, BASE)
        drop_database(self.servers.source, SOURCE)

    def _base(self) -> None:
        """A copy of the source on the target, made by PostgreSQL's own tools."""
        target = create_database(self.servers.target, BASE)
        dump: list[str | Path] = [
            self.servers.program("pg_dump"),
            "-Fc",
            "-Z0",
            "--no-publications",
            "-d",
            self.source,
        ]
        with Process(dump, piped=True) as dumping:
            restore: list[str | Path] = [self.servers.program("pg_restore"), "-d", target]
            with Process(restore, stdin=dumping.output()) as restoring:
                while restoring.alive():
                    restoring.wait(0.2)
        self.freeze(BASE)

    def freeze(self, database: str) -> None:
        """Bring a starting point into the same physical state, whoever made it."""
        with connect(self.servers.target.conninfo(database)) as conn:
            conn.execute("VACUUM (FREEZE, ANALYZE)")

    def copy_slot(self, name: str, origin: str = _START) -> None:
        """Another slot that stands where `origin` stands."""
        with connect(self.source) as conn:
            conn.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [origin, name])

    def drop_slot(self, name: str) -> None:
        """Drop a slot, if it is there."""
        with connect(self.source) as conn:
            drop_slot(conn, name)

    @contextmanager
    def target(self, name: str, template: str = BASE) -> Iterator[str]:
        """A fresh target database for one round."""
        drop_database(self.servers.target, name)
        try:
            yield create_database(self.servers.target, name, template)
        finally:
            drop_database(self.servers.target, name)

    def wrong(self, target: str) -> str:
        """In what the target differs from the source; empty if in nothing."""
        return work.differences(self._truth, work.fingerprints(target))


@contextmanager
def built(
    servers: Servers, backlog: Backlog, preparations: Sequence[Callable[[Stage], None]]
) -> Iterator[Stage]:
    """A stage with its backlog made, removed afterwards."""
    stage = Stage(servers, backlog)
    try:
        stage.build(preparations)
        yield stage
    finally:
        stage.remove()
