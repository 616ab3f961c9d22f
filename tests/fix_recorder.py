"""What a real source streams, kept at test time."""

from __future__ import annotations

import asyncio
import secrets
from typing import Self

from psycopg import sql
from psycopg.rows import TupleRow

from pglockstep.postgres.connect import End
from pglockstep.postgres.connect import connect as connect_end
from pglockstep.wal.messages import Message
from pglockstep.wal.pgoutput import decode

_READ = (
    "SELECT data FROM pg_catalog.pg_logical_slot_get_binary_changes($1::text::name, NULL, NULL, "
    "'proto_version', '1', 'publication_names', $1::text, 'messages', 'true', 'binary', $2)"
)


class Recorder:
    """Keeps what happens in a database from now on, and gives it out as the server would stream it."""

    def __init__(self, conninfo: str, *, binary: bool = False) -> None:
        self.binary = binary
        self.slot = f"recorder_{secrets.token_hex(4)}"
        self._runner = asyncio.Runner()
        # a session of ours: what values look like depends on its settings
        self._conn = self._runner.run(connect_end(End("source", "recorder", conninfo), "stream"))
        self._execute(
            sql.SQL("create publication {} for all tables").format(sql.Identifier(self.slot)).as_bytes()
        )
        self._execute("select pg_create_logical_replication_slot($1, 'pgoutput')", self.slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._execute("select pg_drop_replication_slot($1)", self.slot)
            self._execute(sql.SQL("drop publication {}").format(sql.Identifier(self.slot)).as_bytes())
        finally:
            self._runner.run(self._conn.close())
            self._runner.close()

    def payloads(self) -> list[bytes]:
        """What the server has to send since the last call."""
        return [row[0] for row in self._execute(_READ, self.slot, str(self.binary).lower())]

    def messages(self) -> list[Message]:
        """The same, decoded."""
        return [decode(payload) for payload in self.payloads()]

    def _execute(self, query: str | bytes, *parameters: str) -> list[TupleRow]:
        async def execute() -> list[TupleRow]:
            cursor = await self._conn.execute(query, parameters)
            return await cursor.fetchall() if cursor.description else []

        return self._runner.run(execute())
