"""Whether rows may be made what another end has, if that takes some away: the rules, for a repair. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from pglockstep.guard.policy import Rules
from pglockstep.observe.incident import Kind
from pglockstep.postgres.names import quote_if_needed

Texts = Sequence[str | None]


class Turned:
    """Counts in how many rows a column becomes NULL, or one same value."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._counts: list[Counter[str | None]] = [Counter() for _ in columns]
        self.noted = 0

    def note(self, before: Texts, after: Texts) -> None:
        """A row says `before` now, and is to say `after`."""
        self.noted += 1
        for counts, old, new in zip(self._counts, before, after, strict=True):
            if old != new:
                # what is long is seldom the same; and it is only counted
                counts[new if new is None else f"{len(new)} {new[:200]}"] += 1

    def worst(self) -> tuple[str, int, bool]:
        """The column, the number of rows, and whether they become NULL; no rows if nothing was noted."""
        found = [
            (rows, name, value is None)
            for name, counts in zip(self._columns, self._counts, strict=True)
            for value, rows in counts.most_common(1)
        ]
        rows, name, is_null = max(found, default=(0, "", False))
        return name, rows, is_null


class TooMuch(msgspec.Struct, frozen=True):
    """What a rule says against it: `rows` would be gone or turned."""

    kind: Kind
    rows: int
    sentence: str


def too_much(
    rules: Rules, held: int, gone: int, come: int, turned: Turned, *, changed: int = 0
) -> Iterable[TooMuch]:
    """What the rules of a table say that holds so many rows, if some are `gone`, others `come`, and columns are `turned`.

    If more are `changed` than were noted, the rest is taken to be like them.
    """
    left = held - gone + come
    if gone and left < min(rules.floor, held):
        yield TooMuch("floor", gone, f"{left} of its rows would be left, below its floor of {rules.floor}")
    elif gone > rules.may_lose(held) or (rules.judge and held and not left):
        yield TooMuch("delete", gone, f"{gone} of its {held} rows would be gone")
    name, rows, is_null = turned.worst()
    if turned.noted:
        rows = max(rows, -(-rows * changed // turned.noted))
    if rows > (rules.may_turn(held) if is_null else max(rules.may_turn(held), 1)):
        what = "NULL" if is_null else "one same value"
        yield TooMuch(
            "update", rows, f"{quote_if_needed(name)} would become {what} in {rows} of its {held} rows"
        )
