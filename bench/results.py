"""What was measured, on what, and its statistics: plain values, kept as JSON so that a report can be made again."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.usage import Usage
from pglockstep import __version__


class Conditions(msgspec.Struct, frozen=True):
    """Where and how a part was measured; nothing that tells one machine of a kind from another."""

    command: str
    measured_at: datetime
    pglockstep: str
    postgresql: str
    python: str
    cores: int
    processor: str
    memory_bytes: int
    settings: dict[str, str]

    @classmethod
    def here(cls, command: str, postgresql: str, settings: dict[str, str]) -> Conditions:
        """Of this machine, now."""
        return cls(
            command=command,
            measured_at=datetime.now(UTC).replace(microsecond=0),
            pglockstep=" ".join(filter(None, [__version__, _commit() if shutil.which("git") else ""])),
            postgresql=postgresql,
            python=platform.python_version(),
            cores=os.cpu_count() or 0,
            processor=_processor(),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            settings=settings,
        )


class Sample(msgspec.Struct, frozen=True):
    """One round of one contender. `failure` tells why it did not end, `wrong` in what its result differs."""

    contender: str
    seconds: float | None = None
    usage: Usage = Usage()
    failure: str = ""
    wrong: str = ""
    #: Of a first copy that goes on to other work: when the copy itself was complete.
    copied_after: float | None = None

    @property
    def counts(self) -> bool:
        """Whether the work was done, and done right."""
        return self.seconds is not None and not self.failure and not self.wrong


class Contest(msgspec.Struct, frozen=True):
    """The same work, done in turns. `absent` are those who were asked for and lack something here."""

    titles: dict[str, str]
    samples: list[Sample]
    absent: dict[str, str]

    def of(self, contender: str) -> list[Sample]:
        """The rounds of one that count: none, if any of them was wrong or failed."""
        all_of_it = [sample for sample in self.samples if sample.contender == contender]
        return all_of_it if all(sample.counts for sample in all_of_it) else []

    def seconds(self, contender: str) -> Spread | None:
        """How long it took."""
        return Spread.of(sample.seconds for sample in self.of(contender))

    def complaint(self, contender: str) -> str:
        """What was wrong with it, in the first round that was."""
        for sample in self.samples:
            if sample.contender == contender and not sample.counts:
                return f"wrong: {sample.wrong}" if sample.wrong else f"failed: {sample.failure}"
        return ""


class Drain(msgspec.Struct, frozen=True):
    """A backlog, drained."""

    conditions: Conditions
    changes: int
    transactions: int
    wal_bytes: int
    contest: Contest


class Copy(msgspec.Struct, frozen=True):
    """A database, copied for the first time."""

    conditions: Conditions
    database_bytes: int
    pgbench_scale: int
    rows: int
    contest: Contest


class Compare(msgspec.Struct, frozen=True):
    """Two databases that hold the same, compared; `database_bytes` and `rows` are of one of them."""

    conditions: Conditions
    database_bytes: int
    rows: int
    contest: Contest


class Block(msgspec.Struct, frozen=True):
    """Lone inserts, one after another: milliseconds until visible, from sending and from the commit's return."""

    contender: str
    per_second: int
    from_sending: list[float]
    from_commit: list[float]


class Latency(msgspec.Struct, frozen=True):
    """Lone inserts, followed."""

    conditions: Conditions
    titles: dict[str, str]
    blocks: list[Block]
    failures: dict[str, str]

    def pooled(self, contender: str, per_second: int, *, from_sending: bool) -> list[float]:
        """Every block's milliseconds together, sorted."""
        return sorted(
            figure
            for block in self.blocks
            if (block.contender, block.per_second) == (contender, per_second)
            for figure in (block.from_sending if from_sending else block.from_commit)
        )


class Scaling(msgspec.Struct, frozen=True):
    """The same drain with more and more to do."""

    conditions: Conditions
    drains: dict[int, Drain]


class DecodeRound(msgspec.Struct, frozen=True):
    """One round of one form: changes a second of CPU time, decoded, and made ready to be copied."""

    form: str
    decoded: float
    prepared: float


class Decode(msgspec.Struct, frozen=True):
    """A recorded stream, decoded."""

    conditions: Conditions
    changes: int
    stream_bytes: int
    rounds: list[DecodeRound]


class Results(msgspec.Struct):
    """The parts measured so far, each under its own conditions."""

    drain: Drain | None = None
    copy: Copy | None = None
    compare: Compare | None = None
    latency: Latency | None = None
    scaling: Scaling | None = None
    decode: Decode | None = None


class Spread(msgspec.Struct, frozen=True):
    """A few figures of the same thing."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, figures: Iterable[float | None]) -> Spread | None:
        """None if there are none, or not all are known."""
        given = list(figures)
        known = [figure for figure in given if figure is not None]
        if not known or len(known) < len(given):
            return None
        return cls(statistics.median(known), min(known), max(known), len(known))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest figure that is not below `share` of all; `ordered` is sorted and not empty."""
    # in whole numbers: 0.99 * 100 is a little more than 99
    rank = -(-len(ordered) * round(share * 1000) // 1000)
    return ordered[max(0, rank - 1)]


def load(path: Path) -> Results:
    """What was kept, or nothing yet."""
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else Results()


def save(path: Path, results: Results) -> None:
    """Keep it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def _processor() -> str:
    """The processor's kind, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Which state of the code was measured, if this is a checkout; a report being written is no change of it."""
    told = [
        subprocess.run(
            ["git", "-C", Path(__file__).parent.parent, *words], capture_output=True, text=True, check=False
        ).stdout.strip()
        for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "src", "bench"])
    ]
    return told[0] + ("-dirty" if told[1] else "")
