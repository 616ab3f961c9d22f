"""What a server and our role on it allow, and whether that is enough for a link.

Reading the facts is one query; judging them is pure: each judgement gives findings, which a command that
needs what is missing raises (`findings.demand`) and ``doctor`` reports. Nothing here changes anything.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import class_row

from pglockstep.errors import ConfigError, Side, TargetBusy
from pglockstep.findings import Finding, listed
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
    can_stage: bool

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


def _source_fault(
    code: str, message: str, fix: str, where: str = "on the source", otherwise: str = ""
) -> Finding:
    return Finding(
        side="source",
        severity="error",
        code=code,
        message=message,
        fix=fix,
        where=where,
        otherwise=otherwise,
    )


def source_findings(found: Facts, *, needs_slot: bool, polls: bool = False) -> Iterator[Finding]:
    """What keeps the source from being decoded; `needs_slot` for a first copy. Nothing if it is polled: a standby will do."""
    if polls:
        return
    role, database = quote_if_needed(found.role), quote_if_needed(found.database)

    if found.in_recovery:
        yield _source_fault(
            "standby",
            "the source is a standby; its primary must be the source",
            "point `source` at the primary",
            "",
        )
        return
    if found.wal_level != "logical":
        yield _source_fault(
            "wal_level",
            f"the source has wal_level = {found.wal_level}; logical decoding needs wal_level = logical",
            "ALTER SYSTEM SET wal_level = 'logical';\n-- then restart that server",
            "on the source, as a superuser",
        )
    if not (found.superuser or found.replication):
        yield _source_fault(
            "no_replication",
            f"role {role} on the source may not use replication",
            f"ALTER ROLE {role} REPLICATION;",
            "on the source, as a superuser",
        )
    if not needs_slot:
        return
    if found.used_slots >= found.max_slots:
        yield _source_fault(
            "no_free_slot",
            f"the source has no free replication slot: {found.used_slots} of {found.max_slots} are in use",
            f"ALTER SYSTEM SET max_replication_slots = {found.max_slots + 10};\n-- then restart that server",
            "on the source, as a superuser",
            "or drop one that nobody needs (SELECT slot_name, active FROM pg_replication_slots)",
        )
    if found.used_senders >= found.max_senders:
        yield _source_fault(
            "no_free_sender",
            f"the source has no free WAL sender: {found.used_senders} of {found.max_senders} are in use",
            f"ALTER SYSTEM SET max_wal_senders = {found.max_senders + 10};\n-- then restart that server",
            "on the source, as a superuser",
        )
    if not found.can_create:
        yield _source_fault(
            "no_create",
            f"role {role} may not create a publication in the source database",
            f"GRANT CREATE ON DATABASE {database} TO {role};",
        )


def table_findings(found: Facts, tables: Sequence[Table], *, polls: bool = False) -> Iterator[Finding]:
    """What keeps our role from publishing, reading and seeing every row of these tables; none is published where it `polls`."""
    if found.superuser:
        return
    role = quote_if_needed(found.role)

    if not polls and (foreign := [table for table in tables if not table.owned]):
        yield _source_fault(
            "not_owner",
            f"role {role} does not own {_listed(foreign)} on the source; only an owner can publish a table",
            "\n".join(dict.fromkeys(_ownership(table, role) for table in foreign)),
            where="on the source, as a superuser",
            otherwise="or leave the table out with `exclude`",
        )
    if hidden := [table for table in tables if not table.reachable]:
        schemas = dict.fromkeys(quote_if_needed(table.name.schema) for table in hidden)
        yield _source_fault(
            "no_usage",
            f"role {role} may not look into schema {listed(schemas)} on the source",
            "\n".join(f"GRANT USAGE ON SCHEMA {schema} TO {role};" for schema in schemas),
        )
    if unreadable := [table for table in tables if (table.owned or polls) and not table.readable]:
        yield _source_fault(
            "not_readable",
            f"role {role} may not read {_listed(unreadable)} on the source",
            "\n".join(f"GRANT SELECT ON {table.name} TO {role};" for table in unreadable),
        )
    if not found.bypass_row_security and (
        hidden := [
            table
            for table in tables
            if table.forced_row_security or (polls and table.row_security and not table.owned)
        ]
    ):
        yield _source_fault(
            "hidden_rows",
            f"row security could hide rows of {_listed(hidden)} from role {role}; the copy would be short",
            f"ALTER ROLE {role} BYPASSRLS;",
            "on the source, as a superuser",
        )


def hidden_row_findings(target: Facts, tables: Sequence[Table]) -> Iterator[Finding]:
    """What would keep our role on the target from writing these tables, whose policies bind their owner as well."""
    forced = [table for table in tables if table.forced_row_security]
    if forced and not (target.superuser or target.bypass_row_security):
        role = quote_if_needed(target.role)
        yield Finding(
            side="target",
            severity="error",
            code="hidden_rows",
            message=f"row security is forced for {_listed(forced)}: on the target it would hide rows from role {role}, or "
            "refuse them",
            fix=f"ALTER ROLE {role} BYPASSRLS;",
            where="on the target, as a superuser",
            otherwise="or leave the table out with `exclude`",
        )


def _ownership(table: Table, role: str) -> str:
    if table.owner_is_superuser:
        # membership in a superuser would make ours one too
        return f"ALTER TABLE {table.name} OWNER TO {role};"
    return f"GRANT {quote_if_needed(table.owner)} TO {role};"


def target_findings(found: Facts, *, needs_copy: bool) -> Iterator[Finding]:
    """What keeps the target from being written."""
    role, database = quote_if_needed(found.role), quote_if_needed(found.database)
    if found.in_recovery:
        yield Finding(
            side="target",
            severity="error",
            code="standby",
            message="the target is a standby, or still recovering; it takes no writes",
            fix="point `target` at a primary",
            raises=TargetBusy,
        )
        return
    if needs_copy and not found.can_create:
        yield Finding(
            side="target",
            severity="error",
            code="no_create",
            message=f"role {role} may not create schemas in the target database",
            fix=f"GRANT CREATE ON DATABASE {database} TO {role};",
            where="on the target",
        )
    if not found.can_stage:
        yield Finding(
            side="target",
            severity="error",
            code="no_temp",
            message=f"role {role} may not create temporary tables in the target database, where changes are staged",
            fix=f"GRANT TEMPORARY ON DATABASE {database} TO {role};",
            where="on the target",
        )


def encoding_findings(source: Facts, target: Facts) -> Iterator[Finding]:
    """What keeps text from being carried without guessing at its encoding."""
    if source.encoding != target.encoding and "SQL_ASCII" in (source.encoding, target.encoding):
        yield Finding(
            side="target",
            severity="error",
            code="encoding",
            message=f"the source is encoded in {source.encoding}, the target in {target.encoding}; "
            "bytes of SQL_ASCII belong to no known encoding and cannot be converted",
            fix=f"create the target database with ENCODING '{source.encoding}' TEMPLATE template0",
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
        raise Finding(
            side="target",
            severity="error",
            code="same_database",
            message="the source and the target are the same database",
            fix="point `source` and `target` at two different databases; nothing was changed",
            raises=ConfigError,
        ).error()


async def can_act_as_replica(conn: AsyncConnection) -> bool:
    """Whether our role may set ``session_replication_role``, which keeps triggers and foreign keys quiet."""
    try:
        async with conn.transaction(force_rollback=True):
            await conn.execute("SET LOCAL session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def replica_grant(found: Facts, side: Side = "target") -> tuple[str, str]:
    """What lets our role on an end act as a replica, and where to paste it; a sentence where there is no such GRANT."""
    if found.major >= 15:
        role = quote_if_needed(found.role)
        return (
            f"GRANT SET ON PARAMETER session_replication_role TO {role};",
            f"on the {side}, as a superuser",
        )
    return f"use a superuser on the {side} (PostgreSQL 15 and newer can grant just this one setting)", ""


def _listed(tables: Iterable[Table]) -> str:
    return listed(table.name for table in tables)
