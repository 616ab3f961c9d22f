"""The target's session, spoken to without ceremony: pipelines of prepared statements, scripts, COPY.

Most of the time that a statement takes through a driver is the driver's own; here a row costs one call of libpq
to send and one to see its result. The connection stays psycopg's, for everything else and between the calls.
Nothing here decides anything: what goes wrong is raised as psycopg's error, and the transaction is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import count

import msgspec
import psycopg
from psycopg import AsyncConnection, pq, waiting
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

from pglockstep.postgres import copy_data
from pglockstep.postgres.connect import hang_up
from pglockstep.threads import in_thread

Query = tuple[bytes, Sequence[bytes | None]]

#: Prepared statements that are kept, and how many go when there are more.
_KEPT = 1000
_FORGOTTEN_AT_ONCE = 200
#: Bytes of a COPY handed to libpq at once: it keeps what the socket does not take.
_CHUNK = 1 << 18

#: Names of prepared statements: never twice, as a connection may see several sessions one after the other.
_numbers = count(1)


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a statement came to: the rows that it touched or returned, its command tag, its first value."""

    rows: int
    tag: bytes
    value: bytes | None


class Session:
    """Statements to the target over a connection of psycopg's that nobody else uses meanwhile."""

    def __init__(self, conn: AsyncConnection[TupleRow]) -> None:
        self._conn = conn
        self._pgconn = conn.pgconn
        self._prepared: dict[bytes, bytes] = {}

    async def run(self, queries: Sequence[Query]) -> list[Outcome]:
        """Run single statements with values as text, all in one exchange; the first that fails ends it.

        Raises psycopg's error of that one; the statements behind it were not run.
        """
        if not queries:
            return []
        await self._forget_some()
        pgconn = self._pgconn
        pgconn.enter_pipeline_mode()
        prepared_now: list[bytes] = []
        own: list[bool] = []
        try:
            for query, values in queries:
                name = self._prepared.get(query)
                if name is None:
                    name = self._prepared[query] = b"pglockstep_%d" % next(_numbers)
                    prepared_now.append(query)
                    pgconn.send_prepare(name, query)
                    own.append(False)
                pgconn.send_query_prepared(name, values)
                own.append(True)
            pgconn.pipeline_sync()
            results = await self._conn.wait(_until_synced(pgconn))
        except BaseException:
            # whether they are there is not known any more
            for query in prepared_now:
                self._prepared.pop(query, None)
            raise
        finally:
            # a session that was interrupted in between is not used again
            with suppress(psycopg.Error):
                pgconn.exit_pipeline_mode()
        failed = next((each for each in results if each.status == pq.ExecStatus.FATAL_ERROR), None)
        if failed is not None:
            for query in prepared_now:
                self._prepared.pop(query, None)
            raise psycopg.errors.error_from_result(failed)
        return [_outcome(each) for each, counts in zip(results, own, strict=True) if counts]

    async def script(self, script: bytes, data: Sequence[bytes] = ()) -> list[Outcome]:
        """Run several statements in one exchange, without values; each COPY … FROM STDIN among them takes one of `data`.

        Raises psycopg's error of the first that fails; the statements behind it were not run.
        """
        self._pgconn.send_query(script)
        results: list[pq.abc.PGresult] = []
        supply = iter(data)
        while (result := await self._conn.wait(_next_result(self._pgconn))) is not None:
            if result.status == pq.ExecStatus.COPY_IN:
                await self._copy_in(next(supply))
            else:
                results.append(result)
        failed = next((each for each in results if each.status == pq.ExecStatus.FATAL_ERROR), None)
        if failed is not None:
            raise psycopg.errors.error_from_result(failed)
        return [_outcome(each) for each in results]

    async def _copy_in(self, data: bytes) -> None:
        """Give a COPY its data; much of it in a thread, so that the target gets it whatever else there is to do here."""
        if len(data) > _CHUNK and copy_data.beside():
            done = await in_thread(
                lambda: copy_data.put(self._pgconn, data, _CHUNK), hurry=lambda: hang_up(self._conn)
            )
            if not done:
                # raises why
                self._pgconn.consume_input()
        else:
            await self._conn.wait(_given(self._pgconn, memoryview(data)))
        self._pgconn.put_copy_end()

    async def _forget_some(self) -> None:
        if len(self._prepared) < _KEPT:
            return
        old = list(self._prepared)[:_FORGOTTEN_AT_ONCE]
        await self.script(b"; ".join(b"DEALLOCATE " + self._prepared.pop(query) for query in old))


def _outcome(result: pq.abc.PGresult) -> Outcome:
    value = result.get_value(0, 0) if result.ntuples and result.nfields else None
    return Outcome(result.command_tuples or 0, result.command_status or b"", value)


def _until_synced(pgconn: pq.abc.PGconn) -> PQGen[list[pq.abc.PGresult]]:
    """Send what is queued and gather a result for each command, until the server has answered all of them."""
    results: list[pq.abc.PGresult] = []
    while True:
        ready = yield waiting.Wait.RW if pgconn.flush() else waiting.Wait.R
        if not ready & waiting.Ready.R:
            continue
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                # the end of one command's results
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            results.append(result)


def _next_result(pgconn: pq.abc.PGconn) -> PQGen[pq.abc.PGresult | None]:
    """Send what is to be sent; then the next result of a script, None behind the last."""
    while pgconn.flush():
        if (yield waiting.Wait.RW) & waiting.Ready.R:
            pgconn.consume_input()
    while pgconn.is_busy():
        yield waiting.Wait.R
        pgconn.consume_input()
    return pgconn.get_result()


def _given(pgconn: pq.abc.PGconn, data: memoryview) -> PQGen[None]:
    for start in range(0, len(data), _CHUNK):
        pgconn.put_copy_data(data[start : start + _CHUNK])
        while pgconn.flush():
            # a server that refuses what it was sent so far says so while we write
            if (yield waiting.Wait.RW) & waiting.Ready.R:
                pgconn.consume_input()
