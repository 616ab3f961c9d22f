"""``pglockstep once``: bring the target level, verify, exit."""

from __future__ import annotations

from typing import Any

import click

from pglockstep.cli import options
from pglockstep.cli.copying import LiveLine, watcher
from pglockstep.cli.each import for_each
from pglockstep.cli.options import Settings
from pglockstep.cli.verdicts import document, exit_code, sentences
from pglockstep.link import level
from pglockstep.link.level import OnceResult
from pglockstep.link.link import Link


@click.command("once", short_help="Bring the target level, verify, exit.")
@options.links
@options.common
@options.as_json
def command(links: tuple[str, ...], as_json: bool, **common: Any) -> int:
    """Bring the target level with the source as of now, verify that both are identical, exit.

    The first time it copies everything; from then on it streams what has happened since. Beside a live daemon
    it waits until the daemon has applied all that is committed now.
    """
    return for_each(
        Settings(**common),
        links,
        _once,
        _document,
        _sentences,
        lambda each: exit_code(each.check),
        as_json=as_json,
    )


async def _once(link: Link) -> OnceResult:
    shown = watcher(link.config.name, live=True)
    link.on_copy = shown
    try:
        return await level.once(link)
    finally:
        if isinstance(shown, LiveLine):
            shown.close()


def _document(result: OnceResult) -> dict[str, object]:
    return {
        **document(result.check),
        "copied_rows": result.copied_rows,
        "applied_transactions": result.applied_transactions,
        "applied_changes": result.applied_changes,
        "lsn": str(result.lsn),
    }


def _sentences(result: OnceResult) -> list[str]:
    did = (
        f"{result.check.name}: copied {result.copied_rows} rows, "
        f"applied {result.applied_changes} changes in {result.applied_transactions} transactions, "
        f"complete as of {result.lsn}"
    )
    return [did, *sentences(result.check)]
