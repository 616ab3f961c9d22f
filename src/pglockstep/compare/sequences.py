"""Which of a target's sequences would hand out numbers that the source has handed out already. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pglockstep.postgres.sequences import SequenceState, read

__all__ = ["SequenceBehind", "SequenceState", "behind", "read"]


class SequenceBehind(msgspec.Struct, frozen=True):
    """A sequence that must move on the target; `target_next` is None where it is missing there."""

    schema: str
    name: str
    source_next: int
    target_next: int | None


def behind(source: Sequence[SequenceState], target: Sequence[SequenceState]) -> list[SequenceBehind]:
    """The source's sequences that are missing on the target, or have not come as far there.

    "Far" is in the direction in which the source's counts. A target that is ahead is as it should be.
    """
    there = {(each.schema, each.name): each.next_value for each in target}
    found: list[SequenceBehind] = []
    for each in source:
        target_next = there.get((each.schema, each.name))
        if target_next is None or (each.next_value - target_next) * each.increment > 0:
            found.append(SequenceBehind(each.schema, each.name, each.next_value, target_next))
    return found
