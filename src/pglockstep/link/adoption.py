"""Following a source anew that is not the one it was: slot and publication, every table level, and all in one commit.

What was received from the former one means nothing in the new one's WAL: the journal, the counts and the positions of last
images begin anew. The caller holds the link's lock and applies nothing meanwhile. A kill at any moment is gone on from by
calling again: until the target has committed it belongs to the former source, and what was made on the new one is made anew.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from types import MappingProxyType

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from pglockstep import failpoints
from pglockstep.copy import snapshot
from pglockstep.copy import source as ours
from pglockstep.copy.ends import Ends
from pglockstep.errors import TooMuchLost
from pglockstep.findings import counted
from pglockstep.guard import heal as engine
from pglockstep.guard import questions, source_tables
from pglockstep.guard.heal import Healed
from pglockstep.guard.partitions import below
from pglockstep.link.link import Link
from pglockstep.postgres import catalog
from pglockstep.postgres.connect import translate
from pglockstep.postgres.names import QualifiedName
from pglockstep.progress import detached
from pglockstep.progress import source_tables as followed
from pglockstep.progress import target as progress
from pglockstep.progress.target import LinkRecord

log = logging.getLogger(__name__)

#: How many rows a table of the target's holds, and how many of these may go.
Allowed = Mapping[QualifiedName, int]


async def catch_up(link: Link, both: Ends, record: LinkRecord) -> None:
    """Apply what the journal has of the former source: nobody else has it any more. Raises `IncidentOpen` as a stream would."""
    assert record.progress is not None
    journal = await link.open_journal(record)
    try:
        extent = await journal.extent()
        if extent is None or extent[1] <= record.progress or extent[0] > record.progress:
            return
        log.info("applying what was received up to %s", extent[1], extra=link.about("adopt.catch_up"))
        applying = link.outlet(both.target_conn, both.target, both.target_facts, journal)
        async with applying as outlet:
            await outlet.run(until=extent[1])
    finally:
        await link.carrier.aclose()
        await journal.close()


async def follow_anew(
    link: Link, both: Ends, record: LinkRecord, may_go: Allowed | None, told: Allowed = MappingProxyType({})
) -> Healed:
    """Follow the source from now on, whatever it was before, and make every table of the target level with it.

    `may_go`: how many rows each table may lose by that; None: what its rules allow. `told`: so many of them a person knows of,
    beyond which no floor is gone below that partitions share. Raises `TooMuchLost` beyond that, and then the target is as it
    was; else the ends' errors.
    """
    await _clear(both, record)
    async with snapshot.first(both, record, link.selection, polls=link.polls) as (moment, tables):
        failpoints.reach("adopt.slot")
        carried = {each.name for each in tables}
        with translate(both.source):
            now = await source_tables.read(both.source_conn)
        # neither means anything from here on, and what is lost of them is found out anew
        link.state.drop_journal(record.id)
        link.state.save_rows(link.key, moment.lsn, {})
        target = both.target_conn
        with translate(both.target):
            async with target.transaction():
                await link.learn(target)
                stood = {name: await questions.count(target, name) for name in await _here(link, target)}
                await progress.follow_anew(target, record.id, both.source_facts.identity, moment.lsn)
                remembered = await engine.remember(target)
                wish = engine.Wish(
                    left_out=frozenset(now.keys() - carried),
                    mode=None,
                    moment=moment if link.polls else None,
                )
                healed = await engine.heal(both.source, both.target, target, remembered, wish)
                await _drop(target, stood.keys() - carried, stood, may_go, link)
                left = dict.fromkeys(stood, 0)
                for name in sorted(stood.keys() & carried):
                    left[name] = await questions.count(target, name)
                    _demand_harmless(link, name, stood[name], left[name], may_go)
                for root, reason in short_of_shared_floors(link, stood, left, told).items():
                    raise TooMuchLost(
                        f"{reason}: the source does not have them",
                        hint=f"look at {root} on the source: is something deleting there? then decide again",
                    )
                await followed.note(target, {name: now[name] for name in carried if name in now})
                await detached.attach(target, carried)
                failpoints.reach("adopt.commit")
    failpoints.reach("adopt.committed")
    link.gate.start_over(moment.lsn)
    return healed


async def _clear(both: Ends, record: LinkRecord) -> None:
    """Take away what is left on the source of an earlier attempt, or came with an older copy."""
    await ours.end_work(both.source_conn, both.source, record.id)
    await ours.drop_slot(both.source_conn, both.source, record.slot)
    await ours.drop_publication(both.source_conn, both.source, record.publication)


async def _here(link: Link, conn: AsyncConnection[TupleRow]) -> list[QualifiedName]:
    """The target's tables that the link carries."""
    return [each.name for each in await catalog.tables(conn) if link.selection.carries(*each.name)]


async def _drop(
    conn: AsyncConnection[TupleRow],
    names: Collection[QualifiedName],
    stood: Mapping[QualifiedName, int],
    may_go: Allowed | None,
    link: Link,
) -> None:
    """Drop tables that the source does not have; nothing that hangs on them goes along."""
    for name in sorted(names):
        _demand_harmless(link, name, stood[name], 0, may_go)
    if names:
        listed = sql.SQL(", ").join(name.sql() for name in sorted(names))
        await conn.execute(sql.SQL("DROP TABLE {}").format(listed))


def _demand_harmless(link: Link, name: QualifiedName, stood: int, now: int, may_go: Allowed | None) -> None:
    rules = link.rules.of(name)
    lost = stood - now
    allowed = rules.may_lose(stood) if may_go is None else may_go.get(name, 0)
    if lost > max(allowed, 0) or (may_go is None and lost > 0 and now < min(rules.floor, stood)):
        raise TooMuchLost(
            f"table {name} would hold {counted(now, 'row')} on the target where {stood} stood: the source does not have them",
            hint=f"look at {name} on the source: is something deleting there? then decide again",
        )


def short_of_shared_floors(
    link: Link, stood: Mapping[QualifiedName, int], left: Mapping[QualifiedName, int], told: Allowed
) -> dict[QualifiedName, str]:
    """The tables of which too little would be `left` in all their partitions, by more than was `told`; and what is wrong."""
    found = {}
    for root, partitions in link.rules.shared.items():
        before = {name: max(0, stood.get(name, 0) - told.get(name, 0)) for name in partitions}
        reason = below(link.rules, root, before, {name: left.get(name, 0) for name in partitions})
        if reason is not None:
            found[root] = reason
    return found
