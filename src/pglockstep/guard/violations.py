"""A closer look at what a transaction did to one table: which rules it breaks. Pure.

A table has at most one violation by loss of rows, of the most serious kind, with all reasons in its sentence; and one by
updates. Rules that need the number of rows say `Uncounted` where it is unknown, or was shown to be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import msgspec

from pglockstep.guard.counts import DAY, Account
from pglockstep.guard.evidence import Evidence, Suspicion
from pglockstep.guard.transaction import Transaction
from pglockstep.observe.incident import Kind, Loss
from pglockstep.postgres.names import quote_if_needed
from pglockstep.units import Duration


class Uncounted(Exception):
    """The number of rows of a table is not known."""


class Violation(msgspec.Struct, frozen=True):
    """A rule that is broken, and how: `sentence` says it of "a transaction (xid 740)" or so, which it begins with.

    `net`: by how many rows the table shrinks. `since_lsn`: where the losses began, if this is not the only transaction.
    """

    kind: Kind
    loss: Loss
    net: int
    sentence: str
    since_lsn: int = 0


def rows_after(account: Account, evidence: Evidence) -> int:
    """How many rows the table holds after the transaction. Raises `Uncounted`."""
    if account.rows < 0:
        raise Uncounted
    grown = evidence.inserted - evidence.deleted
    after = grown if evidence.truncated else account.rows + grown
    if after < 0 and not account.fresh:
        raise Uncounted
    # of a target that does not hold what the source deletes no count makes sense
    return max(0, after)


def truncation(
    account: Account,
    evidence: Evidence,
    transaction: Transaction,
    *,
    complete: bool = True,
    short: str | None = None,
) -> Violation | None:
    """The rule that a TRUNCATE breaks; as long as not all is known, which it does in any case. Raises `Uncounted`.

    `short`: what is wrong with what would be left in all partitions that the table is one of.
    """
    rules, before = account.rules, account.rows
    after = rows_after(account, evidence)
    if not before:
        # what it emptied the transaction itself had filled
        return None
    below = complete and after < rules.floor and after < before
    held = rules.judge and rules.truncate == "hold"
    if not held and not below and not short:
        return None
    reasons = [f"it held {_rows(before)}"] if held else []
    if below:
        reasons.append(_below(account, after))
    if short:
        reasons.append(short)
    loss = Loss(account.name.schema, account.name.name, before, before)
    sentence = f"{_one(transaction)} truncates {account.name}: {' and '.join(reasons)}"
    return Violation("truncate" if held else "floor", loss, max(0, before - after), sentence)


def deletion(
    account: Account, evidence: Evidence, transaction: Transaction, step: int, short: str | None = None
) -> Violation | None:
    """The rule that the loss of rows breaks, in this transaction or together with others; `short` as in `truncation`.

    Raises `Uncounted`.
    """
    rules, name, before = account.rules, account.name, account.rows
    after = rows_after(account, evidence)
    most = rules.may_lose(before)
    reasons = []
    lost = None
    if evidence.deleted > most:
        lost = evidence.lost()
        if lost.rows > before and not account.fresh:
            raise Uncounted
        if lost.rows > most:
            reasons.append(_more(account, before, lost.rows))
    days = _days_filled(account, transaction)
    if rules.judge and before and not after and days:
        reasons.append(f"it has held rows for {'a day' if days == 1 else f'{days} days'}")
    below = after < min(rules.floor, before)
    if below:
        reasons.append(_below(account, after))
    if short:
        reasons.append(short)
    net = max(0, before - after)
    stood = account.window.stood(step)
    drained = after < before and after < account.least(step)
    kind: Kind = "floor" if below or short else "delete"
    if reasons:
        lost = lost or evidence.lost()
        loss = Loss(name.schema, name.name, before, lost.rows, keys=lost.keys)
        sentence = (
            f"{_one(transaction)} deletes {lost.rows} of {_rows(before)} of {name}: {' and '.join(reasons)}"
        )
        return Violation(kind, loss, net, sentence)
    if not drained:
        return None
    lost = evidence.lost()
    loss = Loss(name.schema, name.name, stood, stood - after, keys=lost.keys)
    sentence = (
        f"transactions within {Duration(rules.window)}, the last one xid {transaction.xid}, "
        f"delete {stood - after} of {_rows(stood)} of {name}: {_more(account, stood, stood - after)}"
    )
    return Violation(kind, loss, stood - after, sentence, account.window.losing_since(step))


def suspected(account: Account, evidence: Evidence) -> list[Suspicion]:
    """The columns that the transaction may have turned, in too many rows, into one value. Raises `Uncounted`."""
    if not account.rules.judge or evidence.truncated:
        return []
    # a row that is deleted and inserted again is changed as well
    touched = evidence.updated + min(evidence.inserted, evidence.deleted)
    least = account.rules.may_turn(account.rules.min_table_rows if account.rows < 0 else account.rows)
    if touched <= least:
        return []
    if account.rows < 0:
        raise Uncounted
    # one row alone has no value the same as another's
    return [each for each in evidence.suspicions(least) if each.value is None or each.rows > 1]


def update(
    account: Account, evidence: Evidence, transaction: Transaction, found: Sequence[tuple[Suspicion, int]]
) -> Violation | None:
    """The rule that updates break; `found` has what is suspected, and in how many rows it has come true."""
    most = account.rules.may_turn(account.rows)
    true = [(each, rows) for each, rows in found if rows > (most if each.value is None else max(most, 1))]
    if not true:
        return None
    worst, rows = max(true, key=lambda each: each[1])
    columns = [evidence.shape.columns[each.column] for each, _ in true]
    named = ", ".join(map(quote_if_needed, columns))
    what = "NULL" if all(each.value is None for each, _ in true) else "one same value"
    loss = Loss(account.name.schema, account.name.name, account.rows, rows, tuple(columns), worst.shown)
    sentence = (
        f"{_one(transaction)} turns {named} into {what} in {rows} of {_rows(account.rows)} of {account.name}: "
        f"more than {_percent(account.rules.max_update_fraction)}"
    )
    return Violation("update", loss, 0, sentence)


def _one(transaction: Transaction) -> str:
    return f"a transaction (xid {transaction.xid})"


def _rows(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _more(account: Account, before: int, lost: int) -> str:
    rules = account.rules
    if lost > rules.max_delete_rows:
        return f"more than {_rows(rules.max_delete_rows)}"
    return f"more than {_percent(rules.max_delete_fraction)}"


def _below(account: Account, after: int) -> str:
    return f"{_rows(after)} would be left, below its floor of {account.rules.floor}"


def _percent(share: Fraction) -> str:
    return f"{float(share * 100):g} %"


def _days_filled(account: Account, transaction: Transaction) -> int:
    since = account.filled_since
    return 0 if since is None else max(0, transaction.commit_time - since) // DAY
