"""``pglockstep check``: are the ends identical?"""

from __future__ import annotations

from typing import Any

import click

from pglockstep.cli import options
from pglockstep.cli.each import for_each
from pglockstep.cli.options import Settings
from pglockstep.cli.verdicts import document, exit_code, sentences
from pglockstep.link import level


@click.command("check", short_help="Are the ends identical? Changes nothing.")
@options.links
@options.common
@options.as_json
def command(links: tuple[str, ...], as_json: bool, **common: Any) -> int:
    """Tell whether both ends are identical: schema, every row of every table, sequences, large objects.
    Changes nothing.

    Beside a live daemon it compares at a barrier that the daemon has passed; without one it compares the ends
    as they are, and what has not been applied yet is a difference.
    """
    return for_each(Settings(**common), links, level.check, document, sentences, exit_code, as_json=as_json)
