"""The work that every contender is given: what the source holds, what is done to it, and whether it arrived.

The proof that two databases are the same is this module's own, so that no contender is its own judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, LiteralString

import msgspec
from psycopg import Connection, sql

from bench.processes import run
from bench.servers import Servers, connect

PGBENCH_SCALE = 10
PGBENCH_CLIENTS = 4
#: Of a drain and of a first copy.
TABLES = ("item", "marker", "pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history")

_ITEM = b"""
CREATE TABLE item (
    id bigint PRIMARY KEY, name text NOT NULL, stock int NOT NULL, price numeric(12, 2), added_at timestamptz
);
CREATE TABLE marker (id bigint PRIMARY KEY);
"""

_FILL_ITEM = """
INSERT INTO item
SELECT n, 'item number ' || n || ' ' || md5(n::text), n %% 1000, (n %% 100000) / 100.0,
       timestamptz '2025-01-01 00:00+00' + n * interval '1 second'
FROM generate_series(1, %s) AS n
"""

_FIVE = b"""
CREATE TABLE five (id bigint PRIMARY KEY, stock int, name text, added_at timestamptz, price numeric(12, 2))
"""

# each column has its own rhythm of NULLs, so that all their combinations come up
_FILL_FIVE = """
INSERT INTO five
SELECT n, CASE WHEN n %% 7 <> 0 THEN n %% 1000 END,
       CASE WHEN n %% 11 <> 0 THEN 'item number ' || n || ' ' || md5(n::text) END,
       CASE WHEN n %% 13 <> 0 THEN timestamptz '2025-01-01 00:00+00' + n * interval '1.001 seconds' END,
       CASE WHEN n %% 17 <> 0 THEN (n %% 100000) / 100.0 END
FROM generate_series(1, %s) AS n
"""


class Backlog(msgspec.Struct, frozen=True):
    """How much is done to the source, one kind after another; statements are one transaction each."""

    inserts: int
    updates: int
    transactions: int
    deletes: int

    @classmethod
    def scaled(cls, scale: float) -> Backlog:
        """The standard backlog times `scale`."""
        return cls(
            inserts=round(1_000_000 * scale),
            updates=round(500_000 * scale),
            transactions=PGBENCH_CLIENTS * round(80_000 * scale / PGBENCH_CLIENTS),
            deletes=round(300_000 * scale),
        )

    @property
    def changes(self) -> int:
        """Rows changed in all: each of pgbench's transactions makes three updates and an insert."""
        return self.inserts + self.updates + 4 * self.transactions + self.deletes + 1

    def prepare(self, servers: Servers, database: str) -> None:
        """What is there before the backlog: pgbench's tables, filled, and ours, empty."""
        run(
            [
                *(servers.program("pgbench"), "--initialize", "--quiet"),
                *("--scale", str(PGBENCH_SCALE), servers.source.conninfo(database)),
            ]
        )
        with connect(servers.source.conninfo(database)) as conn:
            conn.execute(_ITEM)

    def make(self, servers: Servers, database: str) -> tuple[str, int]:
        """Do it. Returns the LSN where it ends, and the bytes of WAL that it has written."""
        with connect(servers.source.conninfo(database)) as conn:
            before = conn.execute("SELECT pg_current_wal_lsn()").fetchone()
            conn.execute(_FILL_ITEM, [self.inserts])
            conn.execute(
                "UPDATE item SET stock = stock + 1, added_at = added_at + interval '1 day' WHERE id <= %s",
                [self.updates],
            )
            run(
                [
                    *(servers.program("pgbench"), "--no-vacuum", "--client", str(PGBENCH_CLIENTS)),
                    *("--jobs", "2", "--transactions", str(self.transactions // PGBENCH_CLIENTS)),
                    servers.source.conninfo(database),
                ]
            )
            conn.execute("DELETE FROM item WHERE id > %s", [self.inserts - self.deletes])
            conn.execute("INSERT INTO marker VALUES (1)")
            assert before is not None
            row = conn.execute(
                "SELECT pg_current_wal_lsn()::text, (pg_current_wal_lsn() - %s::pg_lsn)::bigint", before
            ).fetchone()
            assert row is not None
            return row[0], row[1]


class FirstCopy(msgspec.Struct, frozen=True):
    """What a first copy has to carry."""

    pgbench_scale: int
    rows: int

    @classmethod
    def scaled(cls, scale: float) -> FirstCopy:
        """The standard database times `scale`."""
        return cls(pgbench_scale=max(1, round(30 * scale)), rows=round(1_000_000 * scale))

    def prepare(self, servers: Servers, database: str) -> int:
        """Fill the source; returns the database's size in bytes."""
        run(
            [
                *(servers.program("pgbench"), "--initialize", "--quiet", "--foreign-keys"),
                *("--scale", str(self.pgbench_scale), servers.source.conninfo(database)),
            ]
        )
        with connect(servers.source.conninfo(database)) as conn:
            conn.execute(_ITEM)
            conn.execute(_FILL_ITEM, [self.rows])
            conn.execute("CREATE INDEX ON item (name); CREATE INDEX ON item (added_at)")
            conn.execute("VACUUM (FREEZE, ANALYZE)")
            row = conn.execute("SELECT pg_database_size(current_database())").fetchone()
            assert row is not None
            return int(row[0])


class Twins(msgspec.Struct, frozen=True):
    """Two databases that hold the same: what a comparison has to go through."""

    pgbench_scale: int
    rows: int

    #: Each with its primary key. pgbench's history has none, and not everyone can compare a table without.
    KEYS: ClassVar[dict[str, str]] = {
        "five": "id",
        "pgbench_accounts": "aid",
        "pgbench_branches": "bid",
        "pgbench_tellers": "tid",
    }

    #: What becomes of the target for the one time that everyone has to find something, and how it is undone.
    DAMAGE: ClassVar[dict[str, tuple[LiteralString, LiteralString]]] = {
        "five": (
            "UPDATE five SET name = '' WHERE id = 11",
            "UPDATE five SET name = NULL WHERE id = 11",
        ),
        "pgbench_accounts": (
            "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 77777",
            "UPDATE pgbench_accounts SET abalance = abalance - 1 WHERE aid = 77777",
        ),
    }

    @classmethod
    def scaled(cls, scale: float) -> Twins:
        """The standard databases times `scale`; there is a row to damage in the smallest, too."""
        return cls(pgbench_scale=max(1, round(30 * scale)), rows=max(11, round(1_000_000 * scale)))

    @property
    def all_rows(self) -> int:
        """Of one end: pgbench has 100,000 accounts, 10 tellers and a branch for each of its scale."""
        return self.rows + 100_011 * self.pgbench_scale

    def prepare(self, servers: Servers, database: str) -> int:
        """Fill both ends by the same statements; returns the size of one in bytes."""
        for server in (servers.source, servers.target):
            run(
                [
                    *(servers.program("pgbench"), "--initialize", "--quiet"),
                    *("--scale", str(self.pgbench_scale), server.conninfo(database)),
                ]
            )
            with connect(server.conninfo(database)) as conn:
                conn.execute("DROP TABLE pgbench_history")
                conn.execute(_FIVE)
                conn.execute(_FILL_FIVE, [self.rows])
                conn.execute("VACUUM (FREEZE, ANALYZE)")
                row = conn.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])

    def damage(self, target: str) -> None:
        """Make the target another one."""
        with connect(target) as conn:
            for harm, _ in self.DAMAGE.values():
                conn.execute(harm)

    def mend(self, target: str) -> None:
        """Make it what it was, dead rows aside."""
        with connect(target) as conn:
            for _, remedy in self.DAMAGE.values():
                conn.execute(remedy)
            conn.execute("VACUUM (FREEZE, ANALYZE)")


def arrived(conn: Connection[tuple[Any, ...]]) -> bool:
    """Whether the backlog's last row is visible."""
    return conn.execute("SELECT FROM marker WHERE id = 1", prepare=True).rowcount == 1


def fingerprints(conninfo: str, tables: Sequence[str] = TABLES) -> dict[str, tuple[int, str]]:
    """Of each table the number of rows and the sum of their 64-bit hashes."""
    found: dict[str, tuple[int, str]] = {}
    with connect(conninfo) as conn:
        for table in tables:
            row = conn.execute(
                sql.SQL(
                    "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM {} t"
                ).format(sql.Identifier("public", table))
            ).fetchone()
            assert row is not None
            found[table] = row[0], row[1]
    return found


def differences(source: dict[str, tuple[int, str]], target: dict[str, tuple[int, str]]) -> str:
    """What differs, told in a line; empty if nothing does."""
    return ", ".join(
        f"{table}: {target[table][0]} rows instead of {rows}"
        if target[table][0] != rows
        else f"{table}: content"
        for table, (rows, _) in source.items()
        if target[table] != source[table]
    )
