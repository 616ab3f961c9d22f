"""Every way in which pglockstep can fail, as one tree.

An error carries what its reader needs and nothing else: one sentence that names the thing, one hint
with the exact next step, the exit code promised to scripts, and whether trying again can help.

::

    LockstepError                       exit  retry
    ├── UsageProblem                       2  no
    ├── ConfigError                        3  no     what the user wrote, or what this machine lacks
    │   ├── NotBuiltYet                    3  no     a promised mode that this version does not have
    │   ├── JournalUnusable                3  no     the journal cannot be read or written
    │   └── JournalDamaged                 3  no     the journal is not as it was written
    ├── EndError                                     one of the two ends
    │   ├── SourceError                    4
    │   │   ├── SourceUnreachable          4  yes
    │   │   ├── SourceBusy                 4  yes    locked, too many connections: a state that passes
    │   │   ├── ProtocolViolation          4  no     bytes that are not pgoutput
    │   │   └── SourceLacks                4  no     a setting, a privilege, a free slot, the slot itself
    │   └── TargetError                    5
    │       ├── TargetUnreachable          5  yes
    │       ├── TargetBusy                 5  yes    locked, full, read-only: a state that passes
    │       ├── TargetLacks                5  no
    │       ├── TargetNotEmpty             5  no
    │       └── ApplyRefused               5  no     a change that the target will not take
    │           └── RowsDiffer             5  no     because the target does not hold what it is about
    ├── IdentityChanged                    6  no     another server answers where the known one was
    ├── IncidentOpen                       6  no     the guard stopped something, and it is not settled yet
    ├── LookAgain                             yes    the target may not be as we left it: what is applied stops for a look
    ├── TooMuchLost                        6  no     levelling would take more from the target than the rules allow
    ├── DecisionRefused                    1  no     a decision that came too late, or could not be carried out
    ├── NotInJournal                       1  no     what was asked for was not received, or is not kept any more
    ├── Inconclusive                       7  no
    └── LinkHeld                           8  no     another process does this link's work

The docstring of a class is its default message. With several links the most serious exit code wins,
in the order of :data:`EXIT_PRECEDENCE`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from pglockstep.findings import Finding

Side = Literal["source", "target"]

EXIT_OK = 0
EXIT_DIFFERS = 1
EXIT_USAGE = 2
EXIT_CONFIG = 3
EXIT_SOURCE = 4
EXIT_TARGET = 5
EXIT_INCIDENT = 6
EXIT_INCONCLUSIVE = 7
EXIT_LINK_HELD = 8
EXIT_BUG = 70
EXIT_INTERRUPTED = 130

EXIT_CODES: dict[int, str] = {
    EXIT_OK: "ok, or in sync",
    EXIT_DIFFERS: "the ends differ, or a link is unhealthy",
    EXIT_USAGE: "wrong usage of the command",
    EXIT_CONFIG: "the configuration, or this machine, lacks something",
    EXIT_SOURCE: "the source is unreachable or lacks something",
    EXIT_TARGET: "the target is unreachable or lacks something, or is not empty and not ours",
    EXIT_INCIDENT: "an incident is open, a decision is needed",
    EXIT_INCONCLUSIVE: "inconclusive: nothing was proven either way",
    EXIT_LINK_HELD: "another process holds the link",
    EXIT_BUG: "a bug in pglockstep",
    EXIT_INTERRUPTED: "interrupted",
}

EXIT_PRECEDENCE = (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    EXIT_CONFIG,
    EXIT_INCIDENT,
    EXIT_SOURCE,
    EXIT_TARGET,
    EXIT_LINK_HELD,
    EXIT_DIFFERS,
    EXIT_INCONCLUSIVE,
    EXIT_OK,
)


def worst(codes: Iterable[int]) -> int:
    """The exit code that stands for several links' codes."""
    return min(codes, key=EXIT_PRECEDENCE.index, default=EXIT_OK)


class LockstepError(Exception):
    """Something went wrong."""

    exit_code: ClassVar[int] = EXIT_BUG
    #: Whether the same attempt, made again a little later, can succeed by itself.
    transient: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, hint: str = "") -> None:
        self.message = one_line(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.hint = one_line(hint)
        #: The finding that was raised as this error, if it was one.
        self.finding: Finding | None = None
        super().__init__(self.message)


class UsageProblem(LockstepError):
    """The command was called wrongly."""

    exit_code = EXIT_USAGE


class ConfigError(LockstepError):
    """The configuration is wrong."""

    exit_code = EXIT_CONFIG


class NotBuiltYet(ConfigError):
    """This version does not have that mode yet."""


class JournalUnusable(ConfigError):
    """The journal cannot be read or written."""


class JournalDamaged(ConfigError):
    """The journal is not as it was written."""


class EndError(LockstepError):
    """One of the two ends cannot do its part."""

    side: ClassVar[Side]


class SourceError(EndError):
    """The source cannot do its part."""

    exit_code = EXIT_SOURCE
    side = "source"


class SourceUnreachable(SourceError):
    """The source cannot be reached."""

    transient = True


class SourceBusy(SourceError):
    """The source cannot answer right now."""

    transient = True


class ProtocolViolation(SourceError):
    """The source sent something that is not pgoutput."""


class SourceLacks(SourceError):
    """The source lacks something that the link needs."""


class TargetError(EndError):
    """The target cannot do its part."""

    exit_code = EXIT_TARGET
    side = "target"


class TargetUnreachable(TargetError):
    """The target cannot be reached."""

    transient = True


class TargetBusy(TargetError):
    """The target cannot take changes right now."""

    transient = True


class TargetLacks(TargetError):
    """The target lacks something that the link needs."""


class TargetNotEmpty(TargetError):
    """The target holds tables that are not ours."""


class ApplyRefused(TargetError):
    """The target refused a change of the source."""


class RowsDiffer(ApplyRefused):
    """The target does not hold what a change of the source is about: somebody else has changed `table`."""

    def __init__(self, message: str, table: tuple[str, str], *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.table = table


class IdentityChanged(LockstepError):
    """Another database answers where the known one was."""

    exit_code = EXIT_INCIDENT


class IncidentOpen(LockstepError):
    """An incident is open, a decision is needed."""

    exit_code = EXIT_INCIDENT


class DecisionRefused(LockstepError):
    """The decision came too late, or could not be carried out."""

    exit_code = EXIT_DIFFERS


class LookAgain(LockstepError):
    """The target has to be looked at before anything more is applied there."""

    transient = True


class TooMuchLost(LockstepError):
    """Bringing the target level would take more rows from it than the rules allow: nothing was changed."""

    exit_code = EXIT_INCIDENT


class NotInJournal(LockstepError):
    """The journal does not have that."""

    exit_code = EXIT_DIFFERS


class Inconclusive(LockstepError):
    """Nothing was proven either way."""

    exit_code = EXIT_INCONCLUSIVE


class LinkHeld(LockstepError):
    """Another process holds this link."""

    exit_code = EXIT_LINK_HELD


def one_line(text: str) -> str:
    """`text` on a single line, as errors are promised to be, without control characters that a terminal would obey."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a group of tasks failed with: an expected one before a bug's. Pure."""
    found = leaves(group)
    return next((each for each in found if isinstance(each, LockstepError)), found[0])


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors themselves in a group of groups, in their order. Pure."""
    return [
        leaf
        for each in group.exceptions
        for leaf in (leaves(each) if isinstance(each, BaseExceptionGroup) else [each])
    ]
