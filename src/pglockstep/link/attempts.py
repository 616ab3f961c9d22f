"""Whether what failed is tried again, and when. Pure."""

from __future__ import annotations

from pglockstep.errors import ApplyRefused, LinkHeld, LockstepError, RowsDiffer, SourceError, TargetError

#: How often a refused change is repeated before a person is needed, and the pauses between attempts, in seconds.
_CAREFUL_ATTEMPTS = 3
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0


def worth_another_try(error: LockstepError, tries: int) -> bool:
    """Whether a link that had been running goes on by itself after its `tries`-th failure in a row. Pure."""
    if error.transient or isinstance(error, LinkHeld):
        # held: by our own session that its server has not missed yet, or by a `once` that took its turn
        return True
    # a refused change may have been refused for what passes: it is repeated with care, a few times
    return type(error) in (ApplyRefused, RowsDiffer, SourceError, TargetError) and tries <= _CAREFUL_ATTEMPTS


def pause(tries: int, chance: float) -> float:
    """Seconds to wait after the `tries`-th failure in a row; `chance` in [0, 1) spreads many links apart. Pure."""
    return float(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries - 1, 10)) * (0.5 + chance / 2))
