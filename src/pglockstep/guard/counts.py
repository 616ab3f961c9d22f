"""How many rows each table holds, carried along with the stream. Pure.

A count is exact as of an LSN: a transaction whose commit record starts before it is in the count already. One that turned out
wrong is unknown, until the table is counted anew; nothing is judged by a guess.
"""

from __future__ import annotations

import msgspec

from pglockstep.guard.policy import UNLIMITED, Rulebook, Rules
from pglockstep.guard.window import STEPS, Passed, Window
from pglockstep.postgres.names import QualifiedName

#: A table that has held rows for so long, in microseconds, is not emptied, however few they are.
DAY = 86_400_000_000


class TableCount(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a table: `rows` as of `lsn`; if it is not `exact` it held so many once, None if nobody ever knew.

    `filled_since`: since when it has held any, by the source's clock; None if it holds none. `lost`: how many were lost
    within the last window, so that losses go on adding up where they were; `lost_at`: when that was so, by the
    source's clock; None if that is not known. `passed`: what came and went, so that a queue is known for one.
    """

    name: QualifiedName
    rows: int | None
    lsn: int
    exact: bool = True
    filled_since: int | None = None
    lost: int = 0
    lost_at: int | None = None
    passed: tuple[Passed, ...] = ()


class Account:
    """One table: its rules, its count, its window, and how much it may lose without a closer look.

    `lsn`: earlier transactions are in the count. `rows` is -1 while it is unknown, and `once` what it was last; `fresh`: it was
    counted, and nothing has changed it since. `above`: what it is a partition of; `sharing`: what of that has a floor, which all
    partitions share.
    """

    __slots__ = (
        "_owed",
        "_owed_at",
        "above",
        "filled_since",
        "free_changes",
        "free_deletes",
        "fresh",
        "lsn",
        "name",
        "once",
        "rows",
        "rules",
        "sharing",
        "step",
        "width",
        "window",
    )

    def __init__(
        self,
        name: QualifiedName,
        rules: Rules,
        above: tuple[QualifiedName, ...] = (),
        sharing: tuple[QualifiedName, ...] = (),
    ) -> None:
        self.name = name
        self.rules = rules
        self.above = above
        self.sharing = sharing
        self.lsn = 0
        self.rows = -1
        self.once: int | None = None
        self.fresh = False
        self.filled_since: int | None = None
        self.window = Window(rules.window, 0)
        self.width = self.window.width
        # rows lost within a window that was followed before the count began anew
        self._owed = 0
        self._owed_at: int | None = None
        #: the step of the clock for which the next two were reckoned
        self.step = -1
        #: so many deletes, and so many changes of rows, break no rule whatever they are
        self.free_deletes = 0
        self.free_changes = 0

    @property
    def unjudged(self) -> bool:
        """Whether rows may come and go as they like."""
        return not (self.rules.judge or self.rules.floor or self.sharing)

    def reckon(self, step: int) -> None:
        """Work out what passes without a closer look."""
        self.step = step
        if self.unjudged:
            self.free_deletes = self.free_changes = UNLIMITED
        elif self.rows < 0:
            # so many are no share of a table on which shares are judged
            self.free_changes = self.rules.may_turn(self.rules.min_table_rows)
            self.free_deletes = 0
        else:
            rules, rows = self.rules, self.rows
            if self._owed:
                if self._owed_at is not None and step - self._owed_at // self.width > STEPS + 1:
                    # that was another window
                    self.window = Window(rules.window, rows)
                else:
                    self.window.note(step, rows + self._owed, rows, 0)
                self._owed = 0
            # the last row never goes without a look: the table may have been filled for a day
            least = max(self.least(step), rules.floor, 1)
            # of what is shared with others a single table cannot tell how much is left
            free = 0 if self.sharing else min(rules.may_lose(rows), rows - least)
            self.free_deletes = max(0, free)
            self.free_changes = rules.may_turn(rows)

    def least(self, step: int) -> int:
        """How many rows are to be left of those that stood before the window."""
        stood = self.window.stood(step)
        return stood - max(self.rules.may_lose(stood), self.window.swing(step))

    def note(self, came: int, went: int, after: int, lsn: int, time: int) -> None:
        """A transaction that passed, committed at `time`, brought and took rows; so many are there `after` it."""
        before = self.rows
        if after < 0:
            self.forget()
            return
        self.rows = after
        self.fresh = False
        self.window.note(self.step, before, after, lsn, came, went)
        if not after:
            self.filled_since = None
        elif not before:
            self.filled_since = time
        if after < before:
            # a share of fewer rows is smaller, by no more than the rows that went
            self.free_deletes -= before - after
            self.free_changes -= before - after
        elif before < self.rules.min_table_rows:
            # a fraction may be judged from now on
            self.reckon(self.step)

    def forget(self) -> None:
        """The count is not to be relied on any more; losses go on adding up once there is another."""
        if self.rows >= 0:
            self._owed, self._owed_at = self._lost(), self._lost_at()
            self.once = self.rows
        self.rows = -1
        self.fresh = False
        self.step = -1

    def _lost(self) -> int:
        """The rows lost within the window so far."""
        return max(self._owed, self.window.stood(self.step) - self.rows) if self.step >= 0 else self._owed

    def _lost_at(self) -> int | None:
        """When that was so."""
        return self.step * self.width if self.step >= 0 else self._owed_at

    def remembered(self, position: int) -> TableCount:
        """What is to be remembered as of `position`."""
        known = self.rows >= 0
        return TableCount(
            name=self.name,
            rows=self.rows if known else self.once,
            lsn=max(self.lsn, position),
            exact=known,
            filled_since=self.filled_since,
            lost=self._lost() if known else self._owed,
            lost_at=self._lost_at() if known else self._owed_at,
            passed=self.window.passed(),
        )

    def seed(self, count: TableCount) -> None:
        """Begin with this count."""
        self.lsn = count.lsn
        self.fresh = False
        self._owed, self._owed_at = count.lost, count.lost_at
        self.filled_since = count.filled_since
        self.step = -1
        self.once = count.rows
        self.rows = -1 if count.rows is None or not count.exact else count.rows
        self.window = Window(self.rules.window, max(0, self.rows) + count.lost, count.passed)
        if not self.rows:
            self.filled_since = None


class Counts:
    """The accounts of all tables. `position`: the end of the last transaction that is in them."""

    def __init__(self, rules: Rulebook) -> None:
        self.rules = rules
        self.accounts: dict[QualifiedName, Account] = {}
        self.position = 0

    def account(self, name: QualifiedName) -> Account:
        """The account of a table; one that was never counted is opened as unknown."""
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = self._opened(name)
        return account

    def _opened(self, name: QualifiedName) -> Account:
        return Account(name, self.rules.of(name), self.rules.above(name), self.rules.sharing(name))

    def rules_changed(self) -> None:
        """What is a partition of what has changed: go by the rules of now, with what was counted so far."""
        for name, account in self.accounts.items():
            opened = self._opened(name)
            if (opened.rules, opened.above, opened.sharing) != (
                account.rules,
                account.above,
                account.sharing,
            ):
                opened.seed(account.remembered(self.position))
                self.accounts[name] = opened

    def rows(self, name: QualifiedName) -> int | None:
        """How many rows a table holds; None while that is unknown."""
        account = self.accounts.get(name)
        return account.rows if account is not None and account.rows >= 0 else None

    def stood(self, name: QualifiedName) -> int | None:
        """How many rows a table held when that was known last; None if it never was."""
        account = self.accounts.get(name)
        if account is None:
            return None
        return account.rows if account.rows >= 0 else account.once

    def seed(self, name: QualifiedName, rows: int, lsn: int, time: int) -> None:
        """The table holds `rows` as of `lsn`, counted at `time`, by the source's clock.

        If it was known to hold rows before, it has held them since then; and losses that had added up still do.
        """
        account = self.account(name)
        account.forget()
        known = account.remembered(self.position)
        since = time if known.filled_since is None else known.filled_since
        account.seed(msgspec.structs.replace(known, rows=rows, lsn=lsn, exact=True, filled_since=since))
        account.fresh = True

    def lost_lately(self, name: QualifiedName, time: int) -> int:
        """How many rows the table has lost within the window before `time`, by the source's clock, as far as is known."""
        account = self.account(name)
        known = account.remembered(self.position)
        if known.lost_at is not None and time - known.lost_at > (STEPS + 1) * account.width:
            return 0
        return known.lost

    def swing(self, name: QualifiedName, time: int) -> int:
        """By how many rows the table may change by chance within the window before `time`, by the source's clock."""
        account = self.account(name)
        return account.window.swing(time // account.width)

    def add_lost(self, name: QualifiedName, rows: int, time: int) -> None:
        """So many rows went at `time` beside the stream: they add up with those that it takes."""
        if rows:
            known = self.account(name).remembered(self.position)
            lately = self.lost_lately(name, time)
            self.account(name).seed(msgspec.structs.replace(known, lost=lately + rows, lost_at=time))

    def recall(self, count: TableCount, position: int) -> None:
        """Begin with what was remembered of a table, on a stream that goes on at `position`.

        What was committed between the two is not in the count: it is unknown then.
        """
        known = count if count.lsn >= position else msgspec.structs.replace(count, exact=False)
        self.account(count.name).seed(known)

    def remember(self) -> list[TableCount]:
        """What is to be remembered, sorted by schema, then name."""
        return [account.remembered(self.position) for _, account in sorted(self.accounts.items())]

    def drop(self, name: QualifiedName) -> None:
        """The table is gone."""
        self.accounts.pop(name, None)
