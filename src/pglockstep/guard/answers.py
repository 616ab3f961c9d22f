"""What the judge answers. Plain values.

`Pass`: it may go to the target. `Trip`: it may not, and why. `Ask` and `Recount`: that cannot be told without the target;
nothing has been decided, and nothing noted.
"""

from __future__ import annotations

import msgspec

from pglockstep.guard.transaction import Shape
from pglockstep.observe.incident import Kind, Loss
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn
from pglockstep.wal.messages import Row, Value


class Used(msgspec.Struct, frozen=True):
    """So many rows were lost that would have been an incident without this allowance."""

    allowance: str
    rows: int


class Pass(msgspec.Struct, frozen=True):
    """It may go on; `used` has what it owes to allowances."""

    used: tuple[Used, ...] = ()


#: What nearly every transaction gets.
PASS = Pass()


class Trip(msgspec.Struct, frozen=True):
    """A rule tripped. `since_lsn`: where the losses began that only together were too many, if they were several."""

    kind: Kind
    losses: tuple[Loss, ...]
    message: str
    since_lsn: Lsn | None = None


class Question(msgspec.Struct, frozen=True):
    """In how many rows of the target's table would `column` become `value`, where it is something else?

    `keys` names the rows by the values of their key as the target has them before the transaction (`shape.key` has the
    positions of the columns). It is None for a transaction that went there in parts: then the answer is how many more rows
    hold the value inside of its open transaction than do outside of it, 0 if it is not more.

    More than `limit` rows are too many; the answer is what a person is told, so it is not to stop there.
    """

    shape: Shape
    column: int
    value: Value
    limit: int
    keys: tuple[Row, ...] | None

    @property
    def name(self) -> str:
        """The column's name."""
        return self.shape.columns[self.column]


class Ask(msgspec.Struct, frozen=True):
    """Answer these, in their order, to `Judge.answer`, before the transaction is committed on the target."""

    questions: tuple[Question, ...]


class Recount(msgspec.Struct, frozen=True):
    """Count these tables on the target once it has all that passed before, tell `Counts.seed`, and ask again."""

    tables: tuple[QualifiedName, ...]


Answer = Pass | Trip | Ask | Recount
