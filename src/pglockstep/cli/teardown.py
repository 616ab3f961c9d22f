"""``pglockstep teardown``: everything of ours off both ends."""

from __future__ import annotations

from typing import Any

import click

from pglockstep.cli import options
from pglockstep.cli.each import for_each
from pglockstep.cli.options import Settings
from pglockstep.cli.person import confirm
from pglockstep.errors import EXIT_OK
from pglockstep.link.link import Link
from pglockstep.link.teardown import Removed, teardown


@click.command("teardown", short_help="Everything of ours off both ends.")
@options.links
@options.common
@options.yes
def command(links: tuple[str, ...], yes: bool, **common: Any) -> int:
    """Remove slot, publication and our schema, and set replica identities back, on both ends.

    Your tables and rows stay as they are on both ends. Afterwards the target is an ordinary database that no
    longer follows.
    """
    settings = Settings(**common)
    names = [link.name for link in settings.links(settings.load(), links)]
    chosen = ", ".join(names)
    confirm(f"Remove everything of pglockstep from both ends of {chosen}?", f"teardown of {chosen}", yes=yes)
    return for_each(settings, links, _teardown, _document, _sentences, lambda _: EXIT_OK, as_json=False)


async def _teardown(link: Link) -> Removed:
    return await teardown(link.config, link.state)


def _document(removed: Removed) -> dict[str, object]:
    """Never printed: teardown has no ``--json``."""
    return {"name": removed.name}


def _sentences(removed: Removed) -> list[str]:
    if removed.slot is None:
        return [f"{removed.name}: there was nothing of ours to remove"]
    back = (
        f", {removed.identities_set_back} replica identities set back" if removed.identities_set_back else ""
    )
    what = "" if removed.polled else f"slot and publication {removed.slot} and "
    done = [f"{removed.name}: removed {what}schema pglockstep{back}"]
    if removed.half_made:
        done.append(
            f"{removed.name}: the tables of a half-made copy remain on the target; they are incomplete"
        )
    return done
