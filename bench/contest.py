"""Taking turns: every contender does the same work once a round, and the next round starts with another one.

A contender that fails or is wrong is noted as such and stops nobody.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import psycopg

from bench.processes import ContenderFailed
from bench.results import Contest, Sample
from pglockstep.errors import LockstepError


class Entrant:
    """Someone who does the work: `play` does it once and tells how it went."""

    def __init__(self, name: str, title: str, play: Callable[[], Sample]) -> None:
        self.name = name
        self.title = title
        self.play = play


def hold(entrants: Sequence[Entrant], rounds: int, absent: dict[str, str]) -> Contest:
    """Let everyone play `rounds` times, alternating."""
    samples: list[Sample] = []
    for number in range(rounds):
        # who follows whom changes, so that nobody always profits from the same forerunner
        turn = number % max(1, len(entrants))
        for entrant in (*entrants[turn:], *entrants[:turn]):
            try:
                sample = entrant.play()
            except (ContenderFailed, TimeoutError, psycopg.Error, LockstepError) as error:
                sample = Sample(entrant.name, failure=one_line(error))
            samples.append(sample)
            say(f"  round {number + 1}: {entrant.title}: {outcome(sample)}")
    return Contest({entrant.name: entrant.title for entrant in entrants}, samples, absent)


def outcome(sample: Sample) -> str:
    """How a round went, for whoever watches."""
    if sample.failure:
        return f"failed: {sample.failure}"
    told = f"{sample.seconds:.2f} s" if sample.seconds is not None else "?"
    if sample.copied_after is not None:
        told += f" (copied after {sample.copied_after:.2f} s)"
    if (cpu := sample.usage.total_cpu) is not None:
        told += f", {cpu:.1f} s CPU"
    return f"{told}, WRONG: {sample.wrong}" if sample.wrong else told


def wait(done: Callable[[], bool], check: Callable[[], None], patience: float, every: float = 0.02) -> None:
    """Wait until `done`; `check` may give up once a second, and `patience` is in seconds."""
    begin = asked = time.monotonic()
    while not done():
        now = time.monotonic()
        if now - begin > patience:
            raise TimeoutError(f"gave up after {patience:.0f} s")
        if now - asked > 1:
            check()
            asked = now
        time.sleep(every)


def one_line(error: BaseException) -> str:
    """An error's text on one line, its kind in front."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def say(line: str) -> None:
    """To whoever watches."""
    print(line, file=sys.stderr, flush=True)
