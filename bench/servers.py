"""The two throwaway servers that everything is measured on, and the databases on them.

Both ends have the same settings. A database and all that holds it (slots, sessions) goes with one call, so a
contender that fails leaves nothing to the next one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, sql

from pglockstep.demo import servers
from pglockstep.demo.servers import ThrowawayServer, find_servers
from pglockstep.errors import ConfigError
from pglockstep.postgres.installations import Installation, installations

#: What matters here and differs from the defaults of PostgreSQL or of a throwaway server, on both ends alike.
SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "wal_level": "logical",
    "max_worker_processes": "20",
    # a subscription that was just stopped may start again at once; the default would have it wait 5 s
    "wal_retrieve_retry_interval": "200ms",
}

#: Settings of a throwaway server that tell nothing about what was measured.
_ASIDE = {"listen_addresses", "log_line_prefix"}

#: The same text of every value, whoever asks.
_SESSION = "-c timezone=UTC -c datestyle=ISO -c extra_float_digits=3"


class Servers:
    """A source and a target of one version, and the programs that fit them."""

    def __init__(self, installation: Installation, source: ThrowawayServer, target: ThrowawayServer) -> None:
        self.installation = installation
        self.source = source
        self.target = target

    def settle(self) -> None:
        """Write out what is dirty on both ends, so that nobody pays for what came before."""
        for server in (self.source, self.target):
            with connect(server.conninfo()) as conn:
                conn.execute("CHECKPOINT")

    def program(self, name: str) -> Path:
        """A PostgreSQL client program that is not older than the servers."""
        able = [
            one
            for one in installations(dict(os.environ))
            if one.major >= self.installation.major and one.has(name)
        ]
        own = [one for one in able if one.bindir == self.installation.bindir]
        if not able:
            raise ConfigError(f"no {name} of version {self.installation.major} or newer was found")
        return (own or able)[0].program(name)


@contextmanager
def running(installation: Installation, preload: str = "") -> Iterator[Servers]:
    """Both servers, gone afterwards whatever happens; `preload` is a shared library that both load at start."""
    chosen = SETTINGS | ({"shared_preload_libraries": preload} if preload else {})
    with (
        ThrowawayServer(installation, name="source", settings=chosen, durable=True) as source,
        ThrowawayServer(installation, name="target", settings=chosen, durable=True) as target,
    ):
        yield Servers(installation, source, target)


def settings(preload: str) -> dict[str, str]:
    """Everything that both servers are told, as a report tells it."""
    told = servers.SETTINGS | SETTINGS | ({"shared_preload_libraries": preload} if preload else {})
    return {key: value for key, value in sorted(told.items()) if key not in _ASIDE}


def choose(major: int | None) -> Installation:
    """The newest installation, or the newest of one major version."""
    able = [one for one in find_servers(dict(os.environ)) if major in (None, one.major)]
    if not able:
        wanted = "PostgreSQL" if major is None else f"PostgreSQL {major}"
        raise ConfigError(f"no server of {wanted} was found on this machine")
    return able[-1]


def offers(installation: Installation, extension: str) -> bool:
    """Whether an installation has an extension, told without starting it."""
    prefix = installation.bindir.parent
    places = [prefix / "share", Path(f"/usr/share/postgresql/{installation.major}")]
    return any(next(place.rglob(f"{extension}.control"), None) for place in places if place.is_dir())


def installed(program: str) -> bool:
    """Whether a program that is not PostgreSQL's own is on the PATH."""
    return shutil.which(program) is not None


def connect(conninfo: str) -> Connection[tuple[Any, ...]]:
    """An autocommit connection with the settings pinned that change how a value is written."""
    return psycopg.connect(conninfo, autocommit=True, options=_SESSION)


def create_database(server: ThrowawayServer, name: str, template: str | None = None) -> str:
    """Make a database, or a copy of another one; returns its connection string."""
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    if template is not None:
        statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
    with connect(server.conninfo()) as conn:
        deadline = time.monotonic() + 60
        while True:
            try:
                conn.execute(statement)
            except psycopg.errors.ObjectInUse:
                # a worker of the server's own that looks into every database, and leaves again
                if time.monotonic() > deadline:
                    raise
                continue
            return server.conninfo(name)


def drop_database(server: ThrowawayServer, name: str) -> None:
    """Drop a database if it is there, with its slots and sessions."""
    with connect(server.conninfo()) as conn:
        slots = conn.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", [name])
        for (slot,) in slots.fetchall():
            drop_slot(conn, slot)
        if conn.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount == 0:
            return
        if conn.execute("SELECT FROM pg_stat_activity WHERE backend_type = 'pglogical supervisor'").rowcount:
            _set_aside(conn, server, name)
            return
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _set_aside(conn: Connection[tuple[Any, ...]], server: ThrowawayServer, name: str) -> None:
    """Empty and rename a database, where a drop would wait for ever: pglogical's supervisor never answers it."""
    aside = sql.Identifier(f"aside_{secrets.token_hex(6)}")
    with suppress(psycopg.OperationalError), connect(server.conninfo(name)) as inside:
        inside.execute("DROP EXTENSION IF EXISTS pglogical CASCADE")
        inside.execute("DROP SCHEMA public CASCADE")
    conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
    conn.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name])
    conn.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), aside))


def drop_slot(conn: Connection[tuple[Any, ...]], name: str) -> None:
    """Drop a slot if it is there, and end whoever still streams from it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        row = conn.execute(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", [name]
        ).fetchone()
        if row is None:
            return
        if row[0] is not None:
            conn.execute("SELECT pg_terminate_backend(%s, 1000)", [row[0]])
        try:
            conn.execute("SELECT pg_drop_replication_slot(%s)", [name])
        except psycopg.errors.ObjectInUse:
            time.sleep(0.05)
        except psycopg.errors.UndefinedObject:
            return
    raise TimeoutError(f"slot {name} stays in use")
