"""Judging the source beyond what keeps it from being decoded: what does not follow, what could stop the stream. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from psycopg import sql

from pglockstep.doctor.readings import Held, LargeObjects, Place, Waiting
from pglockstep.findings import Finding, counted, listed
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.names import QualifiedName, quote_if_needed
from pglockstep.postgres.privileges import Facts, replica_grant
from pglockstep.units import Duration, human_bytes

_error = partial(Finding, side="source", severity="error")
_warning = partial(Finding, side="source", severity="warning")
_info = partial(Finding, side="source", severity="info")

#: Names that a message shows.
_SHOWN = 20


def not_streamed(tables: Sequence[Table], held: Sequence[Held], large_objects: int) -> Iterator[Finding]:
    """What logical decoding does not carry, and how each is carried, or is not."""
    if unlogged := [table.name for table in tables if table.unlogged]:
        yield _warning(
            code="unlogged",
            message=f"unlogged tables are copied once and compared, but their changes are in no WAL and do not "
            f"follow: {listed(unlogged, _SHOWN)}",
            fix="\n".join(f"ALTER TABLE {name} SET LOGGED;" for name in unlogged),
            where="on the source",
            otherwise="or leave them out with `exclude`",
        )
    if large_objects:
        yield _warning(
            code="large_objects",
            message=f"{counted(large_objects, 'large object')} of the source: copied once, but no change of them is ever "
            "decoded, and none follows",
            fix="keep what changes in columns of type bytea; what stays as it is needs nothing",
        )
    if views := [each.qualified for each in held if each.kind == "materialized view"]:
        yield _info(
            code="materialized_views",
            message=f"materialised views are filled by the first copy; afterwards a refresh on the source does not "
            f"follow: {listed(views, _SHOWN)}",
            fix="\n".join(f"REFRESH MATERIALIZED VIEW {name};" for name in views),
            where="on the target, as often as it shall be fresh",
        )
    if foreign := [each.qualified for each in held if each.kind == "foreign table"]:
        yield _info(
            code="foreign_tables",
            message=f"foreign tables are made on the target, but have no rows of their own: there they read "
            f"through the target's foreign servers: {listed(foreign, _SHOWN)}",
            fix="nothing to do, if the target may reach those servers (user mappings with passwords are yours to check)",
        )


def unreadable_findings(
    role: str, unreadable: Sequence[QualifiedName], large_objects: LargeObjects
) -> Iterator[Finding]:
    """What a copy has to read beside tables, and our role may not."""
    role = quote_if_needed(role)
    if unreadable:
        yield _error(
            code="not_readable",
            message=f"role {role} may not read {listed(unreadable)} on the source",
            fix="\n".join(f"GRANT SELECT ON {name} TO {role};" for name in unreadable),
            where="on the source",
        )
    if large_objects.unreadable:
        oids = large_objects.unreadable
        yield _error(
            code="large_objects_not_readable",
            message=f"role {role} may not read {counted(len(oids), 'large object')} on the source",
            fix=f"GRANT SELECT ON LARGE OBJECT {', '.join(map(str, oids))} TO {role};",
            where="on the source, as a superuser",
        )


def waiting_findings(waiting: Sequence[Waiting], database: str, patience: float) -> Iterator[Finding]:
    """Transactions that a slot, which the first copy has to make, would wait for longer than `patience` seconds.

    `database` is the source's: a prepared transaction can be ended in its own alone.
    """
    for each in waiting:
        age = f"{each.seconds:.0f} s"
        if each.pid is None:
            gid = sql.Literal(each.gid).as_string()
            its_own = quote_if_needed(each.database)
            # a name that would end psql's line is left to the reader
            far = each.database != database and its_own.isprintable()
            there = f"\\connect {its_own}\n" if far else ""
            yield _error(
                code="prepared_transaction",
                message=f"prepared transaction {gid} in database {its_own} of the source has been open for {age}: the first "
                f"copy has to wait for it, and gives up after {patience:.0f} s",
                fix=f"{there}ROLLBACK PREPARED {gid};",
                where="on the source",
                otherwise=f"or COMMIT PREPARED {gid};",
            )
        else:
            who = f" ({each.application})" if each.application else ""
            yield _warning(
                code="open_transaction",
                message=f"pid {each.pid}{who} of the source has had a transaction open for {age}: the first copy has to wait for "
                f"it, and gives up after {patience:.0f} s",
                fix=f"SELECT pg_terminate_backend({each.pid});",
                where="on the source",
                otherwise="or let it end",
            )


def restore_findings(found: Facts) -> Iterator[Finding]:
    """A role that may not act as a replica: rows are not put back where anything of an application's would fire."""
    fix, where = replica_grant(found, "source")
    yield _info(
        code="no_replica_role",
        message=f"role {quote_if_needed(found.role)} on the source may not set session_replication_role: after a wipe, rows are "
        "not put back into tables that have a trigger or a foreign key (`incidents restore` refuses)",
        fix=fix,
        where=where,
    )


def retention_findings(place: Place) -> Iterator[Finding]:
    """When the source stops keeping WAL for a link whose daemon does not run."""
    if place.idle_slot_timeout:
        yield _warning(
            code="idle_slot_timeout",
            message=f"the source drops a slot that nobody used for {Duration(place.idle_slot_timeout)} "
            "(idle_replication_slot_timeout): a link that rests for longer has to be copied anew",
            fix="ALTER SYSTEM SET idle_replication_slot_timeout = 0;\nSELECT pg_reload_conf();",
            where="on the source, as a superuser",
        )
    if place.slot_limit is None:
        return
    yield _info(
        code="slot_limit",
        message=f"the source keeps at most {human_bytes(place.slot_limit)} of WAL for a link (max_slot_wal_keep_size): one that "
        "falls further behind has to be copied anew",
        fix="nothing to do, if that is more than the source writes while the daemon rests",
    )


def unpublished_findings(tables: Sequence[Table], published: Collection[QualifiedName]) -> Iterator[Finding]:
    """Tables that a running link does not carry, because they were made after its first copy."""
    missing = [table.name for table in tables if not table.unlogged and table.name not in published]
    if missing:
        yield _warning(
            code="not_published",
            message=f"tables that were made after the first copy do not follow: {listed(missing, _SHOWN)}",
            fix="copy anew: pglockstep teardown, empty the target, pglockstep once",
            otherwise="or leave them out with `exclude`",
        )
