"""Carrying out sets in the target's session: staging tables, COPY and joins, in one exchange under a savepoint.

Whatever goes wrong leaves the transaction as it was before: rows that a set did not find, unique values that
change hands inside of it, or anything else that the target refuses in sets and may take row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from pglockstep.apply.session import Session
from pglockstep.apply.sets import Step
from pglockstep.postgres.connect import End, is_gone, translated

#: How many staging tables a session keeps.
_KEPT = 64


class Staging:
    """The sets of one session. Whoever uses it says when the transaction has ended."""

    def __init__(self, end: End, session: Session) -> None:
        self._end = end
        self._session = session
        self._tables: dict[str, None] = {}
        self._used: set[str] = set()
        self._savepoint = False

    async def carry_out(self, steps: Sequence[Step], begin: Sequence[bytes]) -> bool:
        """Run `begin`, then `steps`; false if they had to be undone, `begin` excepted.

        Raises the target's errors where it is gone or cannot go on right now.
        """
        script = [*begin]
        if self._savepoint:
            script.append(b"RELEASE SAVEPOINT pglockstep")
        script.append(b"SAVEPOINT pglockstep")
        before = dict(self._tables)
        expected: dict[int, int] = {}
        for step in steps:
            script += self._ready(step)
            script.append(step.copy)
            if step.then:
                script.append(step.then)
            expected[len(script) - 1] = step.rows
        self._savepoint = True
        try:
            outcomes = await self._session.script(b";\n".join(script), [step.data for step in steps])
        except psycopg.Error as error:
            known = translated(self._end, error)
            if is_gone(error) or known.transient:
                raise known from error
        else:
            if all(outcomes[index].rows == rows for index, rows in expected.items()):
                return True
        try:
            await self._session.script(b"ROLLBACK TO SAVEPOINT pglockstep")
        except psycopg.Error as error:
            raise translated(self._end, error) from error
        self._tables = before
        return False

    def ended(self) -> None:
        """The transaction has been committed: staging tables are empty again."""
        self._used.clear()
        self._savepoint = False

    def _ready(self, step: Step) -> list[bytes]:
        """What makes the step's staging table, or empties it if this transaction has used it already."""
        if step.stage is None:
            return []
        name = step.stage.name
        again = name in self._used
        self._used.add(name)
        if name in self._tables:
            # the longest unused goes first
            self._tables[name] = self._tables.pop(name)
            return [_on(b"TRUNCATE", name)] if again else []
        # one that was forgotten and put back by a rollback is still there
        statements = [_on(b"DROP TABLE IF EXISTS", name), step.stage.create]
        self._tables[name] = None
        oldest = next(iter(self._tables))
        if len(self._tables) > _KEPT and oldest not in self._used:
            del self._tables[oldest]
            statements.append(_on(b"DROP TABLE IF EXISTS", oldest))
        return statements


def _on(verb: bytes, stage: str) -> bytes:
    return verb + b" " + sql.Identifier("pg_temp", stage).as_bytes()
