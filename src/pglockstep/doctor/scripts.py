"""Reading from both ends what their roles and grants depend on. Changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from pglockstep.config.sections import LinkConfig
from pglockstep.copy.selection import Selection
from pglockstep.copy.source import owned_sequences
from pglockstep.doctor import grants, readings
from pglockstep.doctor.grants import OUR_ROLE, Script, SourceNeeds, TargetNeeds
from pglockstep.doctor.readings import Available, Extension, NamedRole, Owned, Role, Thing
from pglockstep.errors import EndError
from pglockstep.postgres import catalog, privileges
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, connect, describe, ends, translate
from pglockstep.postgres.privileges import Facts


class _Source:
    """What of the source decides on the target's part."""

    facts: Facts | None = None
    role = ""
    tables: tuple[Table, ...] = ()
    extensions: tuple[Extension, ...] = ()
    named: tuple[NamedRole, ...] = ()
    things: tuple[Thing, ...] = ()
    wrappers: tuple[str, ...] = ()


async def scripts(link: LinkConfig) -> list[Script]:
    """The source's part, then the target's; an end that cannot be read has what is known of it."""
    source, target = ends(link)
    known = _Source()
    polls = link.mode == "poll"
    return [await _source(source, Selection.of(link), known, polls=polls), await _target(target, known)]


async def _source(end: End, selection: Selection, known: _Source, *, polls: bool) -> Script:
    try:
        async with _reading(end) as (conn, facts):
            role, exists = await _role(conn, facts)
            owned = await readings.rows(conn, Owned, "owned")
            every = await catalog.tables(conn)
            known.facts, known.role = facts, role
            known.tables = tuple(table for table in every if selection.carries(*table.name))
            known.extensions = tuple(await readings.rows(conn, Extension, "extensions"))
            known.named = tuple(await readings.rows(conn, NamedRole, "named_roles"))
            known.things = tuple(await readings.rows(conn, Thing, "superuser_only"))
            known.wrappers = tuple(await readings.names(conn, "wrappers"))
            needs = SourceNeeds(
                role=role,
                exists=exists,
                major=facts.major,
                database=facts.database,
                owned=[
                    each for each in owned if each.kind in "SL" or selection.carries(each.schema, each.name)
                ],
                tables=known.tables,
                closed=await readings.names(conn, "closed"),
                polls=polls,
                sequences=[
                    sequence for sequence, table in await owned_sequences(conn) if selection.carries(*table)
                ],
            )
    except EndError as error:
        return _unknown(end, error, polls=polls)
    return Script("source", grants.source_script(needs, describe(end.conninfo)))


async def _target(end: End, known: _Source) -> Script:
    try:
        async with _reading(end) as (conn, facts):
            role, exists = await _role(conn, facts)
            present = {each.name for each in await readings.rows(conn, Extension, "extensions")}
            available = {
                each.name: each.by_anyone for each in await readings.rows(conn, Available, "available")
            }
            roles = {each.name for each in await readings.rows(conn, Role, "roles", facts.major)}
            missing = [each for each in known.extensions if each.name not in present]
            needs = TargetNeeds(
                role=role,
                # the source's part, pasted first, makes it
                exists=exists or (_one_server(known.facts, facts) and known.role == role),
                major=facts.major,
                database=facts.database,
                extensions=[each for each in missing if not available.get(each.name, False)],
                uninstalled=[each.name for each in missing if each.name not in available],
                roles={each.name for each in known.named if each.by_policy} - roles,
                wrappers=known.wrappers,
                things=known.things,
                tables=known.tables,
            )
    except EndError as error:
        return _unknown(end, error)
    text = grants.target_script(needs, describe(end.conninfo))
    return Script("target", text, complete=known.facts is not None)


@asynccontextmanager
async def _reading(end: End) -> AsyncIterator[tuple[AsyncConnection[TupleRow], Facts]]:
    conn = await connect(end, "doctor")
    try:
        with translate(end):
            yield conn, await privileges.facts(conn)
    finally:
        await conn.close()


async def _role(conn: AsyncConnection[TupleRow], facts: Facts) -> tuple[str, bool]:
    """The role that the link is to use, and whether it is there."""
    if not facts.superuser:
        return facts.role, True
    cursor = await conn.execute(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)", [OUR_ROLE]
    )
    return OUR_ROLE, await cursor.fetchone() == (True,)


def _one_server(source: Facts | None, target: Facts) -> bool:
    return source is not None and source.system_identifier == target.system_identifier


def _unknown(end: End, error: EndError, *, polls: bool = False) -> Script:
    role = str(conninfo_to_dict(end.conninfo).get("user") or OUR_ROLE)
    text = grants.unknown_script(end.side, role, error.message, decodes=end.side == "source" and not polls)
    return Script(end.side, text, complete=False)
