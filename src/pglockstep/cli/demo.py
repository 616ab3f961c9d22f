"""``pglockstep demo``: see it work, without a server of your own."""

from __future__ import annotations

import os

import click

from pglockstep.demo.story import Story
from pglockstep.errors import EXIT_OK


@click.command("demo", short_help="See it work: two throwaway servers, a crash and two wipes.")
def command() -> int:
    """Start two throwaway PostgreSQL servers and keep one level with the other under a live workload.

    On the way the daemon is killed, a DELETE without WHERE is held and put back, and a target that was wiped heals by
    itself. Every claim is checked while it is told. Takes about half a minute, and cleans up.
    """
    Story(click.echo, dict(os.environ)).tell()
    return EXIT_OK
