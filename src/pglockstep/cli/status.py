"""``pglockstep status``: every link at a glance."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from pglockstep.cli import options
from pglockstep.cli.each import for_each
from pglockstep.cli.options import Settings
from pglockstep.errors import EXIT_DIFFERS, EXIT_OK
from pglockstep.findings import listed
from pglockstep.link.link import Link
from pglockstep.link.overview import EndOverview, JournalOverview, LinkOverview, overview
from pglockstep.units import human_bytes


@click.command("status", short_help="Every link at a glance.")
@options.links
@click.option("--watch", is_flag=True, help="Show it again every second until interrupted.")
@options.common
@options.as_json
def command(links: tuple[str, ...], as_json: bool, watch: bool, **common: Any) -> int:
    """Show how each link stands: its daemon, both ends, how far behind, when it was last verified.

    Exits 1 if an end does not answer, an incident is open or a link waits for somebody.
    """
    settings = Settings(**common)

    def show() -> int:
        return for_each(settings, links, _overview, _document, _sentences, _exit_code, as_json=as_json)

    while watch:
        if not as_json:
            click.clear()
        show()
        time.sleep(1)
    return show()


async def _overview(link: Link) -> LinkOverview:
    return await overview(link.config, link.state)


def _exit_code(found: LinkOverview) -> int:
    return EXIT_OK if found.healthy else EXIT_DIFFERS


def _document(found: LinkOverview) -> dict[str, object]:
    return msgspec.structs.asdict(found)


def _sentences(found: LinkOverview) -> list[str]:
    """How a link stands, in sentences; what is read from disk is told as "was"."""
    tense = "is" if found.daemon_alive else "was"
    alive = "its daemon is alive" if found.daemon_alive else "no daemon is running"
    lines = [f"{found.name}: {tense} {found.state.replace('_', ' ')}; {alive}"]
    if found.reason:
        lines.append(f"  why      {found.reason}")
    lines.append(f"  guard    {_guard(found)}")
    if found.detached:
        lines.append(f"  apart    {listed(found.detached)}: not followed any more, until pglockstep resync")
    lines.append(f"  source   {_end(found.source)}")
    lines.append(f"  target   {_end(found.target)}")
    if found.applied_lsn:
        behind = (
            "" if found.lag_bytes is None else f", {human_bytes(found.lag_bytes)} of WAL behind the source"
        )
        lines.append(f"  applied  up to {found.applied_lsn}{behind}")
    if found.source.slot_warning:
        lines.append(f"  slot     {found.source.slot_warning}")
    elif found.source.slot_retained_wal_bytes is not None:
        lines.append(
            f"  slot     the source keeps {human_bytes(found.source.slot_retained_wal_bytes)} of WAL for this link"
        )
    if found.journal is not None:
        lines.append(f"  journal  {_journal(found.journal)}")
    if found.last_verified.at:
        lines.append(
            f"  verified {found.last_verified.verdict} at {found.last_verified.at:%Y-%m-%d %H:%M:%S} UTC"
        )
    else:
        lines.append("  verified never; pglockstep check does it")
    return lines


def _guard(found: LinkOverview) -> str:
    if found.open_incidents:
        return f"{found.guard}; pglockstep incidents tells of {'it' if found.open_incidents == 1 else 'them'}"
    return (
        found.guard if found.daemon_alive else f"{found.guard}: it judges whatever run and once would apply"
    )


def _journal(found: JournalOverview) -> str:
    if found.error:
        return found.error
    disk = "" if found.disk_used_percent is None else f" on a disk that is {found.disk_used_percent} % full"
    if found.first_lsn is None:
        return f"nothing yet{disk}"
    return f"{human_bytes(found.bytes)}{disk}, from {found.first_lsn} to {found.last_lsn}"


def _end(end: EndOverview) -> str:
    if not end.reachable:
        return f"does not answer: {end.error}"
    version = end.server_version or 0
    text = f"PostgreSQL {version // 10000}.{version % 10000} ({end.where})"
    return f"{text}; {end.error}" if end.error else text
