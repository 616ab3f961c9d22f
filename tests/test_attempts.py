"""An end may be away for days and be tried several times a second: what is left of an attempt is nothing."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from fix_servers import Pair
from pglockstep.errors import TargetError
from pglockstep.postgres.connect import End, connect


@pytest.fixture(autouse=True)
def _no_cycles_are_looked_for() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "settings", [{"dbname": "nobody's"}, {"host": "/nowhere"}, {"host": "/nowhere,/nowhere/else"}]
)
def test_a_connection_that_failed(pair: Pair, settings: dict[str, str]) -> None:
    """The error says what was wrong; once it has been dealt with, neither it nor libpq's part of it is in memory."""

    async def attempt() -> weakref.ref[BaseException]:
        try:
            await connect(End("target", "shop", make_conninfo(pair.target, **settings)), "test")
        except TargetError as error:
            cause = error.__cause__
            assert isinstance(cause, psycopg.OperationalError)
            assert cause.pgconn is not None
            # of one that is finished the driver may keep no more than a likeness
            assert getattr(cause.pgconn, "pgconn_ptr", None) is None
            return weakref.ref(error)
        raise AssertionError("connected")

    assert asyncio.run(attempt())() is None
