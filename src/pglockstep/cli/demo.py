"""``pglockstep demo``: see it work, without a server of your own."""

from __future__ import annotations

import os

import click

from pglockstep.demo.story import Story
from pglockstep.errors import EXIT_OK


@click.command("demo", short_help="See it work: two throwaway servers and a live workload.")
def command() -> int:
    """Start two throwaway PostgreSQL servers, keep one level with the other under a live workload, crash the
    daemon on the way, prove that both ends are identical, and clean up. Takes about half a minute.
    """
    Story(click.echo, dict(os.environ)).tell()
    return EXIT_OK
