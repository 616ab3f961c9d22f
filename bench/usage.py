"""What work costs: CPU seconds of processes and of whole servers, and the memory of processes at its peak.

Read from Linux's /proc; elsewhere nothing is measured and nothing is claimed. CPU is exact to the kernel's tick: a
process's own, that of its living descendants, and that of those which it has waited for. Memory is sampled: resident
pages without the servers' shared buffers, summed over the contender's processes.
"""

from __future__ import annotations

import os
import re
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

_PROC = Path("/proc")
_SAMPLE_EVERY = 0.05
_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_RESIDENT = re.compile(rb"^Rss(?:Anon|File):\s+(\d+) kB", re.MULTILINE)


class Usage(msgspec.Struct, frozen=True):
    """User and system seconds and bytes; None is what could not be measured here.

    `own_cpu` is of the contender's processes outside the servers. `peak_memory` is of the processes that do the
    contender's work, wherever they are: its own, or its worker inside the target server.
    """

    own_cpu: float | None = None
    source_cpu: float | None = None
    target_cpu: float | None = None
    peak_memory: int | None = None

    @property
    def total_cpu(self) -> float | None:
        """All of it, the servers' included."""
        parts = (self.own_cpu, self.source_cpu, self.target_cpu)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


class Meter:
    """Measures from :meth:`start` to :meth:`stop`.

    `own` tells the contender's processes, as they come. A `worker` is known by its title, a regular expression, among
    the target's children.
    """

    def __init__(
        self, source: int, target: int, own: Callable[[], list[int]], worker: str | None = None
    ) -> None:
        self._source = source
        self._target = target
        self._own = own
        self._worker = re.compile(worker.encode()) if worker else None
        self._peak = 0
        self._before = (0.0, 0.0, 0.0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def start(self) -> None:
        """Begin."""
        if _PROC.is_dir():
            self._before = (_tree_cpu(self._source), _tree_cpu(self._target), _reaped_cpu())
            self._thread.start()

    def stop(self) -> Usage:
        """End. Nobody but the contender may have had processes in the meantime."""
        if not self._thread.ident:
            return Usage()
        self._ended.set()
        self._thread.join()
        self._sample()
        source, target, reaped = self._before
        return Usage(
            own_cpu=round(_reaped_cpu() + sum(map(_tree_cpu, self._own())) - reaped, 2),
            source_cpu=round(_tree_cpu(self._source) - source, 2),
            target_cpu=round(_tree_cpu(self._target) - target, 2),
            peak_memory=self._peak or None,
        )

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_EVERY):
            self._sample()

    def _sample(self) -> None:
        pids = [each for pid in self._own() for each in _tree(pid)]
        if self._worker:
            pids += [pid for pid in _children(self._target) if self._worker.search(_title(pid))]
        self._peak = max(self._peak, sum(map(_resident, pids)))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for child in _children(pid):
        yield from _tree(child)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in _listed(_PROC / str(pid) / "task"):
        found += [int(word) for word in _read(_PROC / str(pid) / "task" / task / "children").split()]
    return found


def _tree_cpu(pid: int) -> float:
    return sum(map(_cpu, _tree(pid)))


def _cpu(pid: int) -> float:
    """Seconds of one process and of the descendants that it has waited for."""
    # the name in parentheses may hold spaces and parentheses itself
    fields = _read(_PROC / str(pid) / "stat").rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) / _TICK


def _reaped_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _resident(pid: int) -> int:
    return 1024 * sum(map(int, _RESIDENT.findall(_read(_PROC / str(pid) / "status"))))


def _title(pid: int) -> bytes:
    return _read(_PROC / str(pid) / "cmdline")


def _read(path: Path) -> bytes:
    """A file of /proc; empty if its process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _listed(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
