"""Whether twice the backlog takes twice the time."""

from __future__ import annotations

from collections.abc import Sequence

from bench import drain
from bench.drainers import Drainer
from bench.results import Conditions, Scaling
from bench.servers import Servers
from bench.work import Backlog

FACTORS = (1, 2, 4)


def measure(
    servers: Servers, contenders: Sequence[Drainer], scale: float, rounds: int, conditions: Conditions
) -> Scaling:
    """The drain, with one, two and four times the backlog."""
    drains = {
        factor: drain.measure(servers, contenders, Backlog.scaled(scale * factor), rounds, conditions)
        for factor in FACTORS
    }
    return Scaling(conditions, drains)
