"""How many rows a table held about a window ago, against which its losses in the meantime are judged. Pure.

Time runs in steps, sixty to a window. What counts is the least that the table held in the ten steps before the window: rows
that came and went within it never counted, and a queue that swings from full to empty again and again was as good as empty.
A table that rows pass through also swings by chance, the more the more of them do; so much of a swing is no loss.
The memory is constant: one entry for each step in which rows came or went.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import isqrt

import msgspec

#: Steps in a window, and those before it of which the least counts.
STEPS = 60
LEAD = 10

#: How far chance takes the number of rows of a queue in a window: four standard deviations, whose square is the number of rows
#: that came and went. Only pairs of one that came and one that went are taken for a queue: a wipe makes no chance of its own.
_CHANCE = 4 * 4 * 2

#: A clock that goes back by more than this was set; by less, two commits were just not in the order of their times.
_DISORDER = 1_000_000


class Clock:
    """The source's clock as its commits carry it, in microseconds, which here never goes back.

    When it is set back, time goes on from where it was: nothing is counted twice, and nothing stands still until it has
    caught up.
    """

    __slots__ = ("_latest", "_shift")

    def __init__(self) -> None:
        self._latest: int | None = None
        self._shift = 0

    def tell(self, commit_time: int) -> int:
        """The time of a commit. Changes nothing: `advance` does."""
        if self._latest is None:
            return commit_time
        time = commit_time + self._shift
        return time if time > self._latest else self._latest

    def advance(self, commit_time: int) -> None:
        """Note that a commit of this time has passed."""
        time = commit_time + self._shift
        if self._latest is None or time > self._latest:
            self._latest = time
        elif time < self._latest - _DISORDER:
            self._shift = self._latest - commit_time


class _Entry:
    """A step in which rows came or went, how many of each, the least that there were from its beginning on, and the last.

    `lsn`: the first transaction that took more than it brought; 0 if none did.
    """

    __slots__ = ("came", "last", "low", "lsn", "step", "went")

    def __init__(self, step: int, low: int, last: int, lsn: int, came: int, went: int) -> None:
        self.step = step
        self.came = came
        self.went = went
        self.low = low
        self.last = last
        self.lsn = lsn


class Passed(msgspec.Struct, frozen=True):
    """So many rows came and went within a tenth of a window or so, from the time `at` on, in microseconds."""

    at: int
    came: int
    went: int


class Window:
    """The numbers of rows that one table held. `seconds` is the window, `rows` what it held until now.

    `passed`: what came and went before that.
    """

    __slots__ = ("_before", "_entries", "width")

    def __init__(self, seconds: float, rows: int, passed: Iterable[Passed] = ()) -> None:
        #: of a step, in microseconds
        self.width = max(1, round(seconds * 1_000_000 / STEPS))
        # what the table held before the first entry
        self._before = rows
        self._entries: deque[_Entry] = deque(
            _Entry(each.at // self.width, rows, rows, 0, each.came, each.went) for each in passed
        )

    def stood(self, step: int) -> int:
        """The rows that count as having stood before the window that ends in `step`. Drops what no later one needs."""
        entries = self._entries
        first, end = step - STEPS - LEAD, step - STEPS
        while entries and entries[0].step < first:
            self._before = entries.popleft().last
        least = self._before
        for entry in entries:
            if entry.step >= end:
                break
            least = min(least, entry.low)
        return least

    def losing_since(self, step: int) -> int:
        """Where the first transaction of the window that ends in `step` has its commit that took more than it brought.

        0 if none did.
        """
        return next((each.lsn for each in self._entries if each.step >= step - STEPS and each.lsn), 0)

    def lowest(self) -> int | None:
        """The fewest rows that there were within the window that ends with the last change; None if nothing was noted."""
        if not self._entries:
            return None
        first = self._entries[-1].step - STEPS
        return min(each.low for each in self._entries if each.step >= first)

    def swing(self, step: int) -> int:
        """By how many rows the number may change by chance within the window that ends in `step`."""
        came = went = 0
        for each in self._entries:
            if each.step >= step - STEPS:
                came += each.came
                went += each.went
        return isqrt(_CHANCE * min(came, went))

    def passed(self) -> tuple[Passed, ...]:
        """What came and went within the window that ends with the last change, in a few sums, each as of its beginning."""
        found: list[Passed] = []
        last = self._entries[-1].step if self._entries else 0
        for each in self._entries:
            if each.step < last - STEPS or not (each.came or each.went):
                continue
            if found and each.step < found[-1].at // self.width + LEAD:
                sums = found.pop()
                found.append(Passed(sums.at, sums.came + each.came, sums.went + each.went))
            else:
                found.append(Passed(each.step * self.width, each.came, each.went))
        return tuple(found)

    def note(self, step: int, before: int, after: int, lsn: int, came: int = 0, went: int = 0) -> None:
        """The transaction with its commit at `lsn` brought and took so many rows."""
        entry = self._entries[-1] if self._entries else None
        if entry is None or entry.step != step:
            first_lost = lsn if after < before else 0
            self._entries.append(_Entry(step, min(before, after), after, first_lost, came, went))
            return
        entry.came += came
        entry.went += went
        entry.last = after
        entry.low = min(entry.low, after)
        if after < before and not entry.lsn:
            entry.lsn = lsn

    def settle(self, rows: int) -> None:
        """Forget losses: no more than `rows` stood before."""
        self._before = min(self._before, rows)
        for entry in self._entries:
            # the least of a step needs no change: what was there before it bounds it
            entry.last = min(entry.last, rows)
            entry.lsn = 0
