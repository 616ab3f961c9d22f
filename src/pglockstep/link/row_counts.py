"""How many rows each table held, as the next process is told: written down beside the state, and read from there."""

from __future__ import annotations

from collections.abc import Iterable

from pglockstep.guard.counts import TableCount
from pglockstep.guard.window import Passed
from pglockstep.observe.state import StateDirectory, TableRows
from pglockstep.units import Lsn


def remembered(state: StateDirectory, key: str) -> list[TableCount]:
    """What was written down of a link's tables; nothing if nothing was."""
    known = state.load_rows(key)
    if known is None:
        return []
    lsn, tables = known
    return [
        TableCount(
            name=name,
            rows=each.rows,
            lsn=lsn if each.lsn is None else each.lsn,
            exact=each.exact,
            filled_since=each.filled_since,
            lost=each.lost,
            lost_at=each.lost_at,
            passed=tuple(Passed(*one) for one in each.passed),
        )
        for name, each in tables.items()
    ]


def position(state: StateDirectory, key: str) -> Lsn | None:
    """Up to where the link's tables had been judged when that was written down; None if it was not."""
    known = state.load_rows(key)
    return None if known is None else known[0]


def save(state: StateDirectory, key: str, position: Lsn, counts: Iterable[TableCount]) -> None:
    """Write down what is known of a link's tables as of `position`. Raises what the file raises."""
    rows = {
        each.name: TableRows(
            rows=each.rows,
            filled_since=each.filled_since,
            lost=each.lost,
            lost_at=each.lost_at,
            lsn=int(each.lsn) if each.lsn != position else None,
            exact=each.exact,
            passed=tuple((one.at, one.came, one.went) for one in each.passed),
        )
        for each in counts
    }
    state.save_rows(key, position, rows)
