"""How far a first copy is, shown while it runs: a live line on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pglockstep.copy.tally import CopyProgress
from pglockstep.units import human_bytes

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

#: How often a plain line is written, in seconds.
_EVERY = 5.0


def watcher(link: str, *, live: bool) -> Callable[[CopyProgress], None]:
    """What is told of a link's copy; `live` allows for a line that moves, where stderr is a terminal."""
    return LiveLine(link) if live and sys.stderr.isatty() else PlainLines(link)


def sentence(how_far: CopyProgress) -> str:
    """How far it is, in a line. Pure."""
    said = f"{how_far.phase}: {how_far.tables_done} of {how_far.tables} tables"
    if how_far.phase != "rows":
        return said
    said += f", {how_far.share:.0%} of {human_bytes(how_far.size)}, {human_bytes(round(how_far.rate))}/s"
    if how_far.tables_done >= how_far.tables:
        return f"{said}, building indexes"
    left = how_far.seconds_left
    return said if left is None else f"{said}, about {left:.0f} s left"


class PlainLines:
    """A log line every few seconds, and none for a copy that is over before that."""

    def __init__(self, link: str) -> None:
        self._link = link
        self._said_at = time.monotonic()

    def __call__(self, how_far: CopyProgress) -> None:
        if time.monotonic() - self._said_at >= _EVERY:
            self._said_at = time.monotonic()
            log.info("%s", sentence(how_far), extra={"action": "copy.progress", "link": self._link})


class LiveLine:
    """A bar that fills; it is gone when the rows are there."""

    def __init__(self, link: str) -> None:
        self._link = link
        self._shown: Progress | None = None

    def __call__(self, how_far: CopyProgress) -> None:
        if how_far.phase == "statistics":
            self.close()
            return
        if self._shown is None:
            self._shown = self._open()
        self._shown.update(self._shown.task_ids[0], completed=how_far.share, said=sentence(how_far))

    def _open(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}", markup=False),
        )
        shown = Progress(*columns, console=console, transient=True)
        shown.add_task(self._link, total=1.0, said="")
        shown.start()
        return shown

    def close(self) -> None:
        """Take the line off the terminal; safe to repeat."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None
