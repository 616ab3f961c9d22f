"""``python -m bench``: measure all or one part, keep the figures, write the report."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from bench import compare, decode, drain, first_copy, latency, report, scaling, servers
from bench.copiers import copiers
from bench.drainers import Native, Pglockstep
from bench.results import Conditions, Results, load, save
from bench.work import Backlog, FirstCopy, Twins
from pglockstep.errors import LockstepError

F = TypeVar("F", bound=Callable[..., object])
PARTS = ("drain", "decode", "copy", "compare", "latency", "scaling")
#: How often each takes its turn, unless told; what takes seconds is done more often.
_ROUNDS = {"compare": 5}
_ROUNDS_ELSE = 3
_NAMES = [one.name for ones in (drain.drainers(), copiers(), compare.comparers()) for one in ones]


@click.command(help=__doc__)
@click.argument("part", type=click.Choice(["all", *PARTS, "report"]), default="all")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help=f"How often each takes its turn; default: {_ROUNDS_ELSE}, and {_ROUNDS['compare']} in compare.",
)
@click.option(
    "--scale", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Times the work."
)
@click.option("--major", type=int, help="PostgreSQL's major version; default: the newest here.")
@click.option("--only", metavar="NAME,…", help=f"Some contenders only: {', '.join(dict.fromkeys(_NAMES))}.")
@click.option("--interpreted", is_flag=True, help="Of drain only: pglockstep without its compiled hot path.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="build/bench",
    show_default=True,
    help="Where benchmarks.json, .md and .svg are kept; other parts measured before stay in them.",
)
def main(
    part: str,
    rounds: int | None,
    scale: float,
    major: int | None,
    only: str | None,
    interpreted: bool,
    out: Path,
) -> None:
    """Measure, keep, report."""
    if interpreted and part != "drain":
        raise click.UsageError("--interpreted is an option of drain")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    kept = out / "benchmarks.json"
    results = load(kept)
    if part != "report":
        names = set(_NAMES) if only is None else {name.strip() for name in only.split(",")}
        if unknown := names - set(_NAMES):
            raise click.UsageError(f"there is no contender {', '.join(sorted(unknown))}; --help lists them")
        for each in PARTS if part == "all" else (part,):
            often = rounds or _ROUNDS.get(each, _ROUNDS_ELSE)
            measure(each, results, names, often, scale, major, interpreted=interpreted)
            save(kept, results)
    report.write(out, results)
    click.echo(f"{out / 'benchmarks.md'}")


def measure(
    part: str,
    results: Results,
    names: set[str],
    rounds: int,
    scale: float,
    major: int | None,
    *,
    interpreted: bool = False,
) -> None:
    """One part, on servers of its own."""
    installation = servers.choose(major)
    drainers = [one for one in drain.drainers(interpreted=interpreted) if one.name in names]
    preload = ""
    if part == "drain":
        preload = ",".join(filter(None, (one.preload for one in drainers if not one.missing(installation))))
    command = _command(part, names, rounds, scale, installation.major) + " --interpreted" * interpreted
    conditions = Conditions.here(command, installation.version, servers.settings(preload))
    with servers.running(installation, preload) as pair:
        match part:
            case "drain":
                results.drain = drain.measure(pair, drainers, Backlog.scaled(scale), rounds, conditions)
            case "decode":
                results.decode = decode.measure(pair, scale, rounds, conditions)
            case "copy":
                chosen = [one for one in copiers() if one.name in names]
                results.copy = first_copy.measure(pair, chosen, FirstCopy.scaled(scale), rounds, conditions)
            case "compare":
                able = [one for one in compare.comparers() if one.name in names]
                results.compare = compare.measure(pair, able, Twins.scaled(scale), rounds, conditions)
            case "latency":
                inserts = max(50, round(500 * scale))
                results.latency = latency.measure(pair, names, inserts, rounds, conditions)
            case "scaling":
                both = [one for one in drainers if one.name in (Native.name, Pglockstep.name)]
                results.scaling = scaling.measure(pair, both, scale, rounds, conditions)


def _command(part: str, names: set[str], rounds: int, scale: float, major: int) -> str:
    words = ["python -m bench", part, f"--major {major}", f"--rounds {rounds}", f"--scale {scale:g}"]
    if names != set(_NAMES):
        words.append(f"--only {','.join(name for name in dict.fromkeys(_NAMES) if name in names)}")
    return " ".join(words)


def _end(*_: object) -> None:
    sys.exit(130)


if __name__ == "__main__":
    try:
        main()
    except LockstepError as error:
        sys.exit(error.message + (f"\nHINT: {error.hint}" if error.hint else ""))
