"""Judging a connection: who really answers, and who could listen. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from pglockstep.doctor.readings import Place, Wire
from pglockstep.findings import Finding
from pglockstep.postgres.connect import End


def connection_findings(end: End, wire: Wire, place: Place) -> Iterator[Finding]:
    """What is wrong with the way to `end`."""
    ours = f"`{end.side}` of link {end.link!r}"
    if wire.told_pid != place.backend_pid:
        # a pooler hands out a cancel key of its own, and has no choice: one session of it has many servers
        real = f"host={place.address} port={place.port}" if place.address else "the server's own address"
        yield Finding(
            side=end.side,
            severity="warning",
            code="pooler",
            message=f"a connection pooler answers for the {end.side}: settings and locks of ours could end up in another's "
            "session, and ours be without them",
            fix=f"in {ours}, name the server itself: {real}",
            otherwise="or have the pooler give whole sessions (pool_mode = session in PgBouncer)",
        )
    if not (wire.encrypted or place.gss_encrypted or wire.is_local):
        fix = f"add sslmode=require to {ours} (sslmode=verify-full also proves who answers)"
        if not place.offers_tls:
            fix = f"give that server a certificate and ssl = on, reload it, then {fix}"
        yield Finding(
            side=end.side,
            severity="warning",
            code="no_tls",
            message=f"the connection to the {end.side} ({wire.address}) is not encrypted: whoever is on the way can read "
            "every row and the traffic of the login",
            fix=fix,
        )


def replication_refused(end: End, said: str) -> Finding:
    """A replication connection that fails where an ordinary one works."""
    return Finding(
        side="source",
        severity="error",
        code="no_replication_connection",
        message=f"the source takes our ordinary connection but no replication connection: {said}",
        fix=f"point `source` of link {end.link!r} at the server itself, not at a pooler, and let its pg_hba.conf admit "
        "this role to this database",
    )
