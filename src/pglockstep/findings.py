"""What an examination finds: one fault, or one thing to know, with its exact fix.

One judgement serves two readers. ``pglockstep doctor`` reports every finding; a command that needs what is
missing raises the first serious one as an error. So both say the same, in the same words. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from pglockstep.errors import LockstepError, Side, SourceLacks, TargetLacks, one_line

Severity = Literal["error", "warning", "info"]
#: Where something is to be found: at an end, or on the machine that stands between them.
Place = Side | Literal["here"]

#: Where a command for a shell belongs.
HERE = "on this machine"

#: Lines of a fix that a one-line hint can take.
_HINTED = 3


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of one end, or of the machine between them.

    An *error* keeps the link from starting or going on; with a *warning* something will be lost, or will
    surprise; an *info* asks for nothing. `fix` can be pasted as it is, `where` says into what (if it is
    empty, `fix` is a sentence), `otherwise` is another way out, in words.
    """

    side: Place
    severity: Severity
    code: str
    message: str
    fix: str
    where: str = ""
    otherwise: str = ""
    raises: type[LockstepError] | None = None

    @property
    def hint(self) -> str:
        """Fix and other way out on one line."""
        lines = self.fix.replace("\n-- ", " ").splitlines()
        shown = " ".join(lines[:_HINTED])
        if len(lines) > _HINTED:
            shown += f" (and {len(lines) - _HINTED} more; pglockstep doctor has them all)"
        # a command to type goes without saying where
        text = f"{self.where}: {shown}" if self.where not in ("", HERE) else shown
        if self.otherwise:
            joint = "" if text.endswith(";") else "," if self.otherwise.startswith("or ") else ";"
            text += f"{joint} {self.otherwise}"
        return text

    def error(self) -> LockstepError:
        """The finding as the error that a command ends with."""
        kind = self.raises or (SourceLacks if self.side == "source" else TargetLacks)
        error = kind(self.message, hint=self.hint)
        error.finding = self
        return error


def demand(found: Iterable[Finding]) -> None:
    """Raise the first finding that is an error."""
    for each in found:
        if each.severity == "error":
            raise each.error()


def told(error: LockstepError, side: Place, code: str = "") -> Finding:
    """An error as a finding: its own, or one made of its words."""
    if error.finding is not None:
        return error.finding
    return Finding(
        side=getattr(error, "side", side),
        severity="error",
        code=code or ("busy" if error.transient else "refused"),
        message=error.message,
        fix=one_line(error.hint) or "see that server's log",
        raises=type(error),
    )


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first few of `names`, and how many more there are."""
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def counted(count: int, noun: str) -> str:
    """A number and what it counts: ``1 table``, ``3 tables``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
