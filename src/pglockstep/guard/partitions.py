"""Floors that the partitions of a table share: together they may hold no fewer rows, whichever of them loses some. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pglockstep.findings import counted
from pglockstep.guard.counts import Counts
from pglockstep.guard.policy import Rulebook
from pglockstep.postgres.names import QualifiedName


class Shortage(msgspec.Struct, frozen=True):
    """Why tables may not lose what they do. `uncounted` are those whose rows have to be known before that can be told."""

    reasons: Mapping[QualifiedName, str] = {}
    uncounted: tuple[QualifiedName, ...] = ()


def shortage(counts: Counts, after: Mapping[QualifiedName, int]) -> Shortage:
    """What speaks against these tables holding so many rows `after` what is to be judged; the others are as they are."""
    losing = [name for name, rows in after.items() if rows < counts.account(name).rows]
    reasons: dict[QualifiedName, str] = {}
    uncounted: set[QualifiedName] = set()
    for root in sorted({root for name in losing for root in counts.account(name).sharing}):
        partitions = counts.rules.shared[root]
        stood = {name: counts.account(name).rows for name in partitions}
        if unknown := [name for name, rows in stood.items() if rows < 0]:
            uncounted.update(unknown)
            continue
        reason = below(
            counts.rules, root, stood, stood | {name: after[name] for name in after if name in stood}
        )
        if reason is not None:
            reasons |= {name: reason for name in losing if name in stood and name not in reasons}
    return Shortage(reasons, tuple(sorted(uncounted)))


def below(
    rules: Rulebook,
    root: QualifiedName,
    stood: Mapping[QualifiedName, int],
    now: Mapping[QualifiedName, int],
) -> str | None:
    """What is wrong with all partitions of `root` holding so many rows now; None if they may."""
    floor, rows = rules.floor(root), sum(now.values())
    if rows >= min(floor, sum(stood.values())):
        return None
    return f"all of {root} would hold {counted(rows, 'row')}, below its floor of {floor}"
