"""What is in a link's way just now, told as its state."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pglockstep.errors import Side
from pglockstep.link.standing import Standing
from pglockstep.link.states import Event

#: What may be in the way: an end, or the room for the journal.
Part: TypeAlias = Side | Literal["journal"]


class Hindrances:
    """What is in the way, by the part that it concerns; at first neither end has begun."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._down: dict[Part, str] = {"source": "", "target": ""}

    def add(self, part: Part, message: str) -> None:
        """Something is in the way of that part."""
        self._down[part] = message
        self._tell()

    def remove(self, part: Part) -> bool:
        """Nothing is in the way of that part any more; true if nothing is at all."""
        self._down.pop(part, None)
        if not self._down:
            self._standing.move(Event.STREAM_STARTED)
            return True
        self._tell()
        return False

    def of(self, part: Part) -> str:
        """What is in the way of that part; empty if nothing is, or if it is not known."""
        return self._down.get(part, "")

    def _tell(self) -> None:
        self._standing.move(Event.END_LOST, "; ".join(filter(None, self._down.values())))
