"""What a server and our role on it allow, and whether that is enough for a link.

Reading the facts is one query; judging them is pure, so that each demand can be tested by itself. Nothing
here changes anything on either end.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import class_row

from pglockstep.errors import ConfigError, SourceLacks, TargetLacks
from pglockstep.postgres.catalog import Table, statement
from pglockstep.postgres.names import quote_if_needed


class Facts(msgspec.Struct, frozen=True):
    """One end as it is. `version` is PostgreSQL's number, such as 150018."""

    version: int
    system_identifier: str
    database_oid: int
    database: str
    encoding: str
    role: str
    superuser: bool
    replication: bool
    bypass_row_security: bool
    in_recovery: bool
    wal_level: str
    max_slots: int
    used_slots: int
    max_senders: int
    used_senders: int
    can_create: bool

    @property
    def major(self) -> int:
        """The major version, such as 15."""
        return self.version // 10000

    @property
    def identity(self) -> str:
        """What pins this database: its cluster's system identifier and its OID."""
        return f"{self.system_identifier}/{self.database_oid}"


async def facts(conn: AsyncConnection) -> Facts:
    """The facts of the database behind `conn`, seen by its role."""
    async with conn.cursor(row_factory=class_row(Facts)) as cursor:
        await cursor.execute(statement("facts"))
        found = await cursor.fetchone()
    assert found is not None
    return found


def demand_source(found: Facts, *, needs_slot: bool) -> None:
    """Raise `SourceLacks` with the exact fix unless the source can be decoded; `needs_slot` for a first copy."""
    if found.in_recovery:
        raise SourceLacks(
            "the source is a standby; its primary must be the source",
            hint="point `source` at the primary",
        )
    if found.wal_level != "logical":
        raise SourceLacks(
            f"the source has wal_level = {found.wal_level}; logical decoding needs wal_level = logical",
            hint="on the source: ALTER SYSTEM SET wal_level = 'logical'; then restart that server",
        )
    if not (found.superuser or found.replication):
        raise SourceLacks(
            f"role {quote_if_needed(found.role)} on the source may not use replication",
            hint=f"on the source, as a superuser: ALTER ROLE {quote_if_needed(found.role)} REPLICATION;",
        )
    if not needs_slot:
        return
    if found.used_slots >= found.max_slots:
        raise SourceLacks(
            f"the source has no free replication slot: {found.used_slots} of {found.max_slots} are in use",
            hint="drop one that nobody needs (SELECT slot_name, active FROM pg_replication_slots), or raise "
            "max_replication_slots and restart that server",
        )
    if found.used_senders >= found.max_senders:
        raise SourceLacks(
            f"the source has no free WAL sender: {found.used_senders} of {found.max_senders} are in use",
            hint="raise max_wal_senders on the source and restart that server",
        )
    if not found.can_create:
        raise SourceLacks(
            f"role {quote_if_needed(found.role)} may not create a publication in the source database",
            hint=f"on the source: GRANT CREATE ON DATABASE {quote_if_needed(found.database)} "
            f"TO {quote_if_needed(found.role)};",
        )


def demand_tables(found: Facts, tables: Sequence[Table]) -> None:
    """Raise `SourceLacks` unless our role may read, publish and see every row of these tables."""
    if found.superuser:
        return
    role = quote_if_needed(found.role)
    if foreign := [table for table in tables if not table.owned]:
        raise SourceLacks(
            f"role {role} does not own {_listed(foreign)} on the source; only an owner can publish a table",
            hint=f"on the source: GRANT <owner of the table> TO {role}; or leave the table out with `exclude`",
        )
    if unreadable := [table for table in tables if not table.readable]:
        raise SourceLacks(
            f"role {role} may not read {_listed(unreadable)} on the source",
            hint=f"on the source: GRANT SELECT ON {unreadable[0].name} TO {role};",
        )
    if not found.bypass_row_security and (hidden := [table for table in tables if table.forced_row_security]):
        raise SourceLacks(
            f"row security could hide rows of {_listed(hidden)} from role {role}; the copy would be short",
            hint=f"on the source, as a superuser: ALTER ROLE {role} BYPASSRLS;",
        )


def demand_target(found: Facts, *, needs_copy: bool) -> None:
    """Raise `TargetLacks` with the exact fix unless the target can be written."""
    if found.in_recovery:
        raise TargetLacks(
            "the target is a standby, or still recovering; it takes no writes",
            hint="point `target` at a primary",
        )
    if needs_copy and not found.can_create:
        raise TargetLacks(
            f"role {quote_if_needed(found.role)} may not create schemas in the target database",
            hint=f"on the target: GRANT CREATE ON DATABASE {quote_if_needed(found.database)} "
            f"TO {quote_if_needed(found.role)};",
        )


def demand_encodings(source: Facts, target: Facts) -> None:
    """Raise `TargetLacks` where text cannot be carried without guessing at its encoding."""
    if source.encoding != target.encoding and "SQL_ASCII" in (source.encoding, target.encoding):
        raise TargetLacks(
            f"the source is encoded in {source.encoding}, the target in {target.encoding}; "
            "bytes of SQL_ASCII belong to no known encoding and cannot be converted",
            hint=f"create the target database with ENCODING '{source.encoding}' TEMPLATE template0",
        )


async def demand_distinct(source: AsyncConnection, target: AsyncConnection) -> None:
    """Raise `ConfigError` if both connections lead to one and the same database.

    Names, addresses and even system identifiers can mislead (aliases, proxies, file-level clones), so one
    end takes an advisory lock that nobody else can know of, and the other is asked for it.
    """
    key = secrets.randbits(63)
    await source.execute("SELECT pg_catalog.pg_advisory_lock($1)", [key])
    try:
        cursor = await target.execute("SELECT pg_catalog.pg_try_advisory_lock($1)", [key])
        row = await cursor.fetchone()
        taken = row is not None and bool(row[0])
        if taken:
            await target.execute("SELECT pg_catalog.pg_advisory_unlock($1)", [key])
    finally:
        await source.execute("SELECT pg_catalog.pg_advisory_unlock($1)", [key])
    if not taken:
        raise ConfigError(
            "the source and the target are the same database",
            hint="point `source` and `target` at two different databases; nothing was changed",
        )


async def can_act_as_replica(conn: AsyncConnection) -> bool:
    """Whether our role may set ``session_replication_role``, which keeps triggers and foreign keys quiet."""
    try:
        async with conn.transaction(force_rollback=True):
            await conn.execute("SET LOCAL session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def replica_grant(found: Facts) -> str:
    """The statement that lets the target's role act as a replica, or what to do where there is none."""
    role = quote_if_needed(found.role)
    if found.major >= 15:
        return f"on the target, as a superuser: GRANT SET ON PARAMETER session_replication_role TO {role};"
    return "use a superuser on the target (PostgreSQL 15 and newer can grant just this one setting)"


def _listed(tables: Iterable[Table]) -> str:
    names = [str(table.name) for table in tables]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
