"""Stopping for one moment is exact: whoever looks then sees just what was committed before it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fix_servers import Cli, Pair, wait_until
from pglockstep.apply.applier import Applier
from pglockstep.apply.batch import BatchBuilder
from pglockstep.errors import Inconclusive
from pglockstep.link.matching import taken
from pglockstep.link.outlet import Outlet
from pglockstep.observe.requests import MomentWanted, Requests
from pglockstep.observe.state import StateDirectory
from pglockstep.postgres.catalog import Table
from pglockstep.postgres.connect import End, connect, fingerprint
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import LAST_LSN, Lsn
from test_repair import linked
from test_run import daemon

NOWHERE = End("target", "test", "")


def no_table(name: QualifiedName) -> Table:
    raise AssertionError(name)


def at_rest() -> Outlet:
    """One that has applied all there is."""
    builder = BatchBuilder("test", Lsn(0), no_table)
    applier = SimpleNamespace(builder=builder, in_transaction=False, progress=Lsn(0))
    journal = SimpleNamespace(in_transaction=False, position=LAST_LSN)
    nobody: Any = None
    reader = SimpleNamespace(level=True)
    return Outlet(NOWHERE, cast(Any, journal), cast(Any, reader), cast(Any, applier), nobody, nobody)


def test_the_end_of_one_moment_is_not_the_end_of_another() -> None:
    """A check's and a verification's at once: each has nothing applied for as long as it looks."""

    async def looking() -> None:
        outlet = at_rest()
        builder = outlet.applier.builder

        async def one(lsn: Lsn, seconds: float) -> None:
            async def moment() -> Lsn:
                return lsn

            async def look() -> None:
                await asyncio.sleep(seconds)
                assert builder.cut == lsn

            await outlet.cut(Lsn(1), moment, look)

        async with asyncio.TaskGroup() as group:
            group.create_task(one(Lsn(40), 0.1))
            group.create_task(one(Lsn(50), 0.3))
        assert builder.cut == 0

    asyncio.run(looking())


def test_a_transaction_that_is_about_to_begin_is_under_way(pair: Pair) -> None:
    """A TRUNCATE has its BEGIN sent by itself: nobody may take the target for at rest while that is on its way."""

    async def beginning() -> None:
        end = End("target", "test", pair.target)
        async with await connect(end, "test") as conn:
            applier = Applier(end, conn, "test", Lsn(0))
            begun = asyncio.create_task(applier._begin())
            await asyncio.sleep(0)
            assert not begun.done()
            assert applier.in_transaction
            await begun

    asyncio.run(beginning())


@pytest.mark.superusers
def test_a_source_without_a_free_slot_allows_of_no_moment(pair: Pair, tmp_path: Path) -> None:
    """That is no failure of whoever compares: its table is inconclusive, and says why."""
    link = linked(pair, tmp_path)
    record: Any = SimpleNamespace(id="test", slot="test")
    filling = pair.on_source()
    free = "current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)"
    filling.execute(
        f"SELECT pg_create_logical_replication_slot('full_' || n, 'pgoutput', true) FROM generate_series(1, {free}) AS n".encode()
    )

    async def looking() -> None:
        async with AsyncExitStack() as kept:
            with pytest.raises(Inconclusive, match="no free replication slot"):
                await taken(link, record, at_rest(), kept)

    asyncio.run(looking())


@pytest.mark.unguarded
def test_a_command_that_was_killed_is_not_in_the_way_of_others(pair: Pair, cli: Cli) -> None:
    """It cannot let go of its moment; whoever wants one after it has it all the same, as long as a command waits."""
    pair.on_source().execute("CREATE TABLE t (id int PRIMARY KEY)")
    with daemon(cli, pair):
        requests = Requests(StateDirectory(cli.directory / "state"))
        key = fingerprint(pair.source, pair.target)
        wanted = [
            requests.ask_for_moment(key, MomentWanted(by="nobody", at=datetime.now(UTC))) for _ in range(2)
        ]

        def answered(number: int) -> bool:
            found = requests.moment(wanted[number].id)
            return found is not None and bool(found.source)

        wait_until(lambda: answered(0), 15, "the first to be answered")
        print("the first has a moment")
        wait_until(lambda: answered(1), 15, "the second to be answered")
