"""``pglockstep check``: are the ends identical?"""

from __future__ import annotations

from typing import Any

import click

from pglockstep.cli import options
from pglockstep.cli.each import for_each
from pglockstep.cli.options import Settings
from pglockstep.cli.verdicts import document, exit_code, sentences
from pglockstep.link import level
from pglockstep.link.level import Effort


@click.command("check", short_help="Are the ends identical? Changes nothing.")
@options.links
@click.option(
    "--fast",
    is_flag=True,
    help="Compare values by their types' own hashes: quicker, and 1.0 and 1.00 are the same then.",
)
@click.option(
    "--pace",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SHARE",
    help="Work for so much of the time, rest for the other.",
)
@click.option(
    "--max-lag",
    metavar="SIZE",
    help="Rest while the target is more WAL behind than this, such as 10MB.",
)
@options.common
@options.as_json
def command(
    links: tuple[str, ...], fast: bool, pace: float, max_lag: str | None, as_json: bool, **common: Any
) -> int:
    """Tell whether both ends are identical: schema, every row of every table, sequences, large objects.
    Changes nothing.

    Beside a live daemon it compares at a barrier that the daemon has passed; without one it compares the ends
    as they are, and what has not been applied yet is a difference.
    """
    effort = Effort(pace, None if max_lag is None else options.size(max_lag, "--max-lag "), fast)
    return for_each(
        Settings(**common),
        links,
        lambda link: level.check(link, effort),
        document,
        sentences,
        exit_code,
        as_json=as_json,
    )
