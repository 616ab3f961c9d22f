"""Connections to either end, with every session setting pinned that could change what a value looks like.

libpq gets the user's connection string untouched: URIs, keywords, services, ``.pgpass``, TLS and ``PG*``
variables behave as its users expect. All connections are in autocommit and use PostgreSQL's own ``$1``
placeholders, so that a ``%`` in a name is just a character. A failure becomes an error of that end, with
a hint and without a password.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from pglockstep.config.sections import LinkConfig
from pglockstep.errors import (
    EndError,
    Side,
    SourceBusy,
    SourceError,
    SourceUnreachable,
    TargetBusy,
    TargetError,
    TargetUnreachable,
    one_line,
)
from pglockstep.findings import HERE, Finding
from pglockstep.postgres import lsn
from pglockstep.postgres.names import quote_if_needed

#: The oldest server whose pgoutput can carry our barrier messages.
OLDEST_MAJOR = 14

# Text forms must not depend on a role's or database's own settings (both ends would disagree), names must
# come back qualified, and no time-out of the server's may end our own bookkeeping half way.
_PINNED = """
SET datestyle = 'ISO, YMD';
SET intervalstyle = 'postgres';
SET timezone = 'UTC';
SET extra_float_digits = 3;
SET bytea_output = 'hex';
SET lc_monetary = 'C';
SET xmloption = 'content';
SET search_path = '';
SET row_security = off;
SET array_nulls = on;
SET standard_conforming_strings = on;
SET transform_null_equals = off;
SET quote_all_identifiers = off;
SET check_function_bodies = off;
SET default_transaction_isolation = 'read committed';
SET default_transaction_read_only = off;
SET default_transaction_deferrable = off;
SET client_min_messages = 'warning';
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET idle_session_timeout = 0;
"""

#: How often a session's settings are tried to be made ours.
_PINNING_ATTEMPTS = 5

#: What a server says while it cannot answer *yet* or *right now*, though nothing is wrong with the request.
_PASSING_STATES = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.QueryCanceled,
    psycopg.errors.DiskFull,
    psycopg.errors.OutOfMemory,
    psycopg.errors.TooManyConnections,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.ObjectInUse,
    psycopg.errors.CannotConnectNow,
)


class End(msgspec.Struct, frozen=True):
    """One end of a link: where it is and how patient to be with it. Timeouts are in seconds."""

    side: Side
    link: str
    conninfo: str
    connect_timeout: float = 10.0
    lock_timeout: float = 5.0
    silence_timeout: float = 30.0

    def __repr__(self) -> str:
        return f"End({self.side}, {describe(self.conninfo)})"


def ends(link: LinkConfig) -> tuple[End, End]:
    """The source and the target of a configured link."""

    def end(side: Side, conninfo: str) -> End:
        return End(
            side=side,
            link=link.name,
            conninfo=conninfo,
            connect_timeout=link.connect_timeout,
            lock_timeout=link.lock_timeout,
            silence_timeout=link.silence_timeout,
        )

    return end("source", link.source), end("target", link.target)


def describe(conninfo: str) -> str:
    """A connection string as it may be shown: where and who, never a secret."""
    shown = ("service", "host", "hostaddr", "port", "dbname", "user")
    given = conninfo_to_dict(conninfo)
    return make_conninfo("", **{key: given[key] for key in shown if given.get(key)}) or "libpq's defaults"


def fingerprint(source: str, target: str) -> str:
    """A short stable name for a pair of connection strings, without their secrets."""
    return hashlib.sha256(f"{describe(source)}\n{describe(target)}".encode()).hexdigest()[:16]


class _Listener(AsyncConnection[TupleRow]):
    """A connection that remembers when it last had an answer."""

    answered_at = 0.0

    async def wait(self, *args: Any, **options: Any) -> Any:
        """As psycopg's own."""
        try:
            return await super().wait(*args, **options)
        finally:
            self.answered_at = time.monotonic()


async def connect(
    end: End, purpose: str, *, replication: bool = False, **settings: str
) -> AsyncConnection[TupleRow]:
    """Open a connection in autocommit, with the session pinned and `settings` set on top.

    `purpose` shows in ``pg_stat_activity``. Raises the end's *unreachable* error, with a hint for each reason.
    """
    try:
        conn = await _Listener.connect(
            end.conninfo,
            autocommit=True,
            cursor_factory=AsyncRawCursor,
            **_parameters(end, purpose, replication=replication),
        )
    except psycopg.Error as error:
        said = one_line(str(error)).removeprefix("connection failed: ")
        # an end may be away for days, and be tried several times a second: nothing of an attempt stays. The driver's error is in
        # a cycle with its frames, which are looked for seldom, and holds what libpq had for the connection
        if error.pgconn is not None:
            error.pgconn.finish()
        raise refusal(end, said).error() from error.with_traceback(None)
    conn.prepared_max = 1000
    lsn.register(conn)
    with answered(end, conn), translate(end):
        try:
            major = conn.info.server_version // 10000
            if major < OLDEST_MAJOR:
                raise too_old(end, major).error()
            pinned = _PINNED + f"SET lock_timeout = '{round(end.lock_timeout * 1000)}ms';"
            if major >= 17:
                pinned += "SET transaction_timeout = 0;"
            await _pin(conn, end, pinned.encode())
            for name, value in settings.items():
                if replication:
                    continue
                await conn.execute("SELECT pg_catalog.set_config($1, $2, false)", [name, value])
        except BaseException:
            await conn.close()
            raise
    return conn


async def _pin(conn: AsyncConnection[TupleRow], end: End, settings: bytes) -> None:
    """Make the session's settings ours; a statement_timeout of its role's or database's may end even that, for a moment."""
    for attempts_left in reversed(range(_PINNING_ATTEMPTS)):
        try:
            await conn.execute(settings, prepare=False)
            # one that ran out just before takes effect here
            await _let_it_miss_us(conn, end)
        except psycopg.errors.QueryCanceled:
            if not attempts_left:
                raise
        else:
            return


async def _let_it_miss_us(conn: AsyncConnection[TupleRow], end: End) -> None:
    """Have the server end our session soon after we are gone, and with it every lock; as far as its system can."""
    probe = max(1, round(end.silence_timeout / 6))
    wanted = {
        "tcp_keepalives_idle": str(probe * 2),
        "tcp_keepalives_interval": str(probe),
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": f"{round(end.silence_timeout * 1000)}ms",
        "client_connection_check_interval": "2s",
    }
    statements = [f"SET {name} = '{value}'" for name, value in wanted.items()]
    not_there = (psycopg.errors.InvalidParameterValue, psycopg.errors.FeatureNotSupported)
    try:
        await conn.execute("; ".join(statements).encode(), prepare=False)
    except not_there:
        for each in statements:
            with suppress(*not_there):
                await conn.execute(each.encode())


def hang_up(conn: AsyncConnection[Any]) -> None:
    """End a session without a word to its server: whoever waits for an answer hears that there will be none.

    Who is cancelled instead first asks the server to be let off, and waits for that.
    """
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.pgconn.socket)) as ours:
        ours.shutdown(socket.SHUT_RDWR)


@contextmanager
def answered(end: End, *sessions: AsyncConnection[Any]) -> Iterator[None]:
    """Whatever is asked inside is answered within `silence_timeout`; or we hang up on `sessions`: the end is *unreachable*."""
    silent = False
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def look() -> None:
        nonlocal silent
        heard = [each.answered_at for each in sessions if isinstance(each, _Listener)]
        left = max(began, *heard) + end.silence_timeout - time.monotonic()
        silent = left <= 0
        if not silent:
            timers[:] = [loop.call_later(left, look)]
            return
        for each in sessions:
            hang_up(each)

    look()
    try:
        yield
    except EndError as error:
        if not silent:
            raise
        raise fell_silent(end) from error
    finally:
        for timer in timers:
            timer.cancel()


def fell_silent(end: End) -> EndError:
    """What to raise for an end that was not heard from for `silence_timeout`. Pure."""
    kind = SourceUnreachable if end.side == "source" else TargetUnreachable
    return kind(
        f"the {end.side} has been silent for {end.silence_timeout:.0f} s",
        hint=f"is {describe(end.conninfo)} alive, and the network to it up? the link reconnects by itself",
    )


def _parameters(end: End, purpose: str, *, replication: bool) -> dict[str, Any]:
    given = conninfo_to_dict(end.conninfo)
    # a half-open connection must be noticed within silence_timeout, on either side of it
    probe = max(1, round(end.silence_timeout / 6))
    defaults = {
        "connect_timeout": max(2, round(end.connect_timeout)),
        "keepalives": 1,
        "keepalives_idle": probe * 2,
        "keepalives_interval": probe,
        "keepalives_count": 3,
        "tcp_user_timeout": round(end.silence_timeout * 1000),
    }
    chosen: dict[str, Any] = {key: value for key, value in defaults.items() if key not in given}
    chosen["application_name"] = f"pglockstep {purpose} {end.link}"[:63]
    chosen["client_encoding"] = "UTF8"
    if replication:
        chosen["replication"] = "database"
    return chosen


def too_old(end: End, major: int) -> Finding:
    """What to say of a server of a `major` version that we cannot use. Pure."""
    return Finding(
        side=end.side,
        severity="error",
        code="too_old",
        message=f"the {end.side} is PostgreSQL {major}; pglockstep needs {OLDEST_MAJOR} or newer",
        fix=f"upgrade {describe(end.conninfo)}, or copy it once with pg_dump and pg_restore",
    )


def refusal(end: End, said: str) -> Finding:
    """Why an attempt to connect to `end` failed, going by what libpq or the server said. Pure."""
    ours = f"`{end.side}` of link {end.link!r}"
    raises = SourceUnreachable if end.side == "source" else TargetUnreachable
    code, fix, where, otherwise = (
        "unreachable",
        f"pg_isready -d {shlex.quote(describe(end.conninfo))}",
        HERE,
        f"is that server running and reachable from here? check {ours}",
    )
    if "password" in said or "authentication" in said:
        code, where, otherwise = "wrong_password", "", ""
        fix = f"correct the password or role in {ours}, ~/.pgpass or pg_hba.conf"
    elif found := re.search('database "(.+)" does not exist', said):
        code, fix, where, otherwise = "unknown_database", f"correct the database in {ours}", "", ""
        if end.side == "target":
            where, fix = "on that server", f"CREATE DATABASE {quote_if_needed(found[1])};"
            otherwise = f"or correct {ours}"
    elif found := re.search('role "(.+)" does not exist', said):
        code, where = "unknown_role", "on that server, as a superuser"
        fix, otherwise = f"CREATE ROLE {quote_if_needed(found[1])} LOGIN;", f"or correct {ours}"
    elif found := re.search('no pg_hba.conf entry for host "(.+?)", user "(.+)", database "(.+?)"', said):
        code, where = "not_admitted", "into pg_hba.conf of that server"
        address, user, database = found[1], found[2], found[3]
        width = 128 if ":" in address else 32
        fix = f"host {_hba(database)} {_hba(user)} {address}/{width} scram-sha-256"
        otherwise = "then SELECT pg_reload_conf() there"
    elif "pg_hba.conf" in said:
        code, where, otherwise = "not_admitted", "", ""
        fix = "add a line for this role, database and address to that server's pg_hba.conf, then reload it"
    elif "does not exist" in said:
        code, where, otherwise = "unknown_name", "", ""
        fix = f"create it on that server, or correct {ours}"
    return Finding(
        side=end.side,
        severity="error",
        code=code,
        message=f"cannot connect to the {end.side} ({describe(end.conninfo)}): {said}",
        fix=fix,
        where=where,
        otherwise=otherwise,
        raises=raises,
    )


def _hba(name: str) -> str:
    return name if re.fullmatch("[a-z0-9_]+", name) else '"' + name.replace('"', '""') + '"'


@contextmanager
def translate(end: End) -> Iterator[None]:
    """Turn psycopg's errors raised inside into errors of that end: gone, busy, or lacking something."""
    try:
        yield
    except psycopg.Error as error:
        raise translated(end, error) from error


def translated(end: End, error: psycopg.Error) -> EndError:
    """The error of ours for an error of psycopg's on one end."""
    said = one_line(str(error)) or type(error).__name__
    kinds = (
        (SourceUnreachable, SourceBusy, SourceError)
        if end.side == "source"
        else (TargetUnreachable, TargetBusy, TargetError)
    )
    if is_gone(error):
        return kinds[0](
            f"the {end.side} went away: {said}",
            hint=f"is {describe(end.conninfo)} running? nothing is lost; the link goes on where it stopped",
        )
    if isinstance(error, _PASSING_STATES):
        return kinds[1](
            f"the {end.side} cannot go on right now: {said}", hint=f"see pg_stat_activity on the {end.side}"
        )
    return kinds[2](f"the {end.side} refused: {said}", hint=_hint_of(error, end))


def _hint_of(error: psycopg.Error, end: End) -> str:
    if error.diag.message_hint:
        return error.diag.message_hint
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return f"grant it to the role that link {end.link!r} uses on the {end.side}"
    return f"look at the {end.side}'s own log for what led to it"


def is_gone(error: psycopg.Error) -> bool:
    """Whether the connection is lost, rather than a statement refused."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state.startswith("08") or state in ("57P01", "57P02", "57P03", "57P05", "25P03", "25P04")
