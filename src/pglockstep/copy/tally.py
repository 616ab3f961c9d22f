"""How far a copy is: a plain value for whoever shows it, and the counting that leads to it. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import msgspec

Phase = Literal["schema", "rows", "changes since", "keys and the rest", "statistics"]


class CopyProgress(msgspec.Struct, frozen=True):
    """How far a copy is. `size_done` of `size` are bytes as the source's tables measure, `sent` as they travelled."""

    phase: Phase
    tables: int = 0
    tables_done: int = 0
    size: int = 0
    size_done: int = 0
    rows: int = 0
    sent: int = 0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """How much of the rows has arrived, from 0 to 1."""
        return min(1.0, self.size_done / self.size) if self.size else float(self.tables_done >= self.tables)

    @property
    def rate(self) -> float:
        """Bytes sent a second."""
        return self.sent / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rows will still take at this rate; None while nobody can know."""
        return self.seconds * (1 / self.share - 1) if self.share > 0.01 and self.seconds > 1 else None


class Tally:
    """Counts; `now` is the value to show. Tables that an earlier attempt brought over count as done."""

    def __init__(
        self, report: Callable[[CopyProgress], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report = report
        self._clock = clock
        self._began = clock()
        self._phase: Phase = "schema"
        self._under_way = 0
        self.tables = 0
        self.tables_done = 0
        self.size = 0
        self.size_done = 0
        self.rows = 0
        self.sent = 0

    def enter(self, phase: Phase) -> None:
        """The next phase begins."""
        self._phase = phase
        self.report()

    def moved(self, count: int) -> None:
        """So many bytes of rows that have not landed yet."""
        self._under_way += count
        self.sent += count

    def landed(self, sent: int, size: int, rows: int) -> None:
        """A unit that measures `size` has landed, for which `sent` bytes travelled."""
        self._under_way -= sent
        self.size_done += size
        self.rows += rows

    @property
    def now(self) -> CopyProgress:
        """How far it is."""
        return CopyProgress(
            phase=self._phase,
            tables=self.tables,
            tables_done=self.tables_done,
            size=self.size,
            size_done=min(self.size, self.size_done + self._under_way),
            rows=self.rows,
            sent=self.sent,
            seconds=self._clock() - self._began,
        )

    def report(self) -> None:
        """Tell how far it is."""
        self._report(self.now)
