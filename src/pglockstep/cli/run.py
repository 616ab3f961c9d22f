"""``pglockstep run``: the daemon, in the foreground."""

from __future__ import annotations

import logging
from typing import Any

import click

from pglockstep import __version__, daemon
from pglockstep.cli import options
from pglockstep.cli.copying import watcher
from pglockstep.cli.main import run_async, say
from pglockstep.cli.options import Settings
from pglockstep.config.unbuilt import not_built_yet
from pglockstep.errors import LockstepError
from pglockstep.link.link import Link
from pglockstep.observe import logs
from pglockstep.observe.state import StateDirectory

log = logging.getLogger("pglockstep.daemon")


@click.command("run", short_help="The daemon, in the foreground.")
@options.links
@options.common
def command(links: tuple[str, ...], **common: Any) -> int:
    """Keep each target level with its source until stopped; logs to stderr.

    The first time it copies everything. It ends by itself only when it cannot go on without a person, and
    says why. SIGTERM and Ctrl-C stop it between commits; the next start goes on from there.
    """
    settings = Settings(**common)
    logs.configure(settings.verbose, daemon=True)
    config = settings.load()
    chosen = settings.links(config, links)
    state = StateDirectory(config.state_dir)
    state.create()
    for part in not_built_yet(config):
        log.warning(
            "%s is configured, but this version does not have that part yet", part, extra={"action": "config"}
        )
    log.info("pglockstep %s, %d link(s)", __version__, len(chosen), extra={"action": "start"})

    def ended(link: Link, error: LockstepError) -> None:
        say(f"{link.config.name}: {error.message}", error.hint)

    code = run_async(
        lambda: daemon.run([Link(link, state, watcher(link.name, live=False)) for link in chosen], ended),
        daemon=True,
    )
    log.info("stopped", extra={"action": "stop"})
    return code
