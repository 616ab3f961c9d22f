"""``pglockstep doctor``: what both ends lack, with the exact fix of each fault. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from pglockstep.cli import options
from pglockstep.cli.each import print_json
from pglockstep.cli.main import run_async
from pglockstep.cli.options import Settings
from pglockstep.config.sections import LinkConfig
from pglockstep.doctor.examination import examine
from pglockstep.doctor.scripts import scripts
from pglockstep.errors import EXIT_DIFFERS, EXIT_OK, one_line
from pglockstep.findings import Finding, counted
from pglockstep.observe import logs
from pglockstep.observe.state import StateDirectory


@click.command("doctor", short_help="What do both ends lack? Each finding with its exact fix.")
@options.links
@click.option("--sql", is_flag=True, help="Print the smallest roles and grants that are enough, as SQL.")
@options.common
@options.as_json
def command(links: tuple[str, ...], sql: bool, as_json: bool, **common: Any) -> int:
    """Examine both ends, and the state directory here, and tell everything that would keep the link from starting or
    going on, everything that would be lost or surprise, and what becomes of what; each with its exact fix. Changes
    nothing on either end, nor here.

    Exits 1 if there is an error among the findings. With --sql it prints what a superuser pastes into psql on
    each end, so that roles without any other right are enough. No password is in it.
    """
    settings = Settings(**common)
    logs.configure(settings.verbose, daemon=False)
    config = settings.load()
    chosen = settings.links(config, links)
    if sql:
        return run_async(lambda: _print_scripts(chosen, as_json=as_json))
    state = StateDirectory(config.state_dir)
    return run_async(lambda: _print_findings(chosen, state, as_json=as_json))


async def _print_findings(links: Sequence[LinkConfig], state: StateDirectory, *, as_json: bool) -> int:
    every = await asyncio.gather(*(examine(link, state) for link in links))
    found = {link.name: findings for link, findings in zip(links, every, strict=True)}
    ok = not any(each.severity == "error" for findings in found.values() for each in findings)
    if as_json:
        documents = [_document(name, each) for name, findings in found.items() for each in findings]
        print_json({"ok": ok, "findings": documents})
    else:
        for name, findings in found.items():
            click.echo("\n".join(_sentences(name, findings)))
    return EXIT_OK if ok else EXIT_DIFFERS


def _document(link: str, found: Finding) -> dict[str, object]:
    return {
        "link": link,
        "side": found.side,
        "severity": found.severity,
        "code": found.code,
        "message": one_line(found.message),
        "fix": found.fix,
        "where": found.where,
        "otherwise": found.otherwise,
    }


def _sentences(link: str, findings: Sequence[Finding]) -> list[str]:
    nouns = {"error": "error", "warning": "warning", "info": "note"}
    counts = {severity: sum(each.severity == severity for each in findings) for severity in nouns}
    told = ", ".join(counted(count, nouns[severity]) for severity, count in counts.items() if count)
    lines = [
        f"{link}: {'it cannot work like this' if counts['error'] else 'it can work'}: {told or 'nothing to tell'}"
    ]
    for each in findings:
        lines += ["", f"{each.severity.upper():8}{each.side}: {one_line(each.message)} [{each.code}]"]
        if each.where:
            lines.append(f"        fix, {each.where}:")
            lines += [f"            {line}" for line in each.fix.splitlines()]
        else:
            lines.append(f"        fix: {each.fix}")
        if each.otherwise:
            lines.append(f"        {each.otherwise}")
    return lines


async def _print_scripts(links: Sequence[LinkConfig], *, as_json: bool) -> int:
    made = {link.name: await scripts(link) for link in links}
    if as_json:
        documents = [{"name": name, **{each.side: each.text for each in both}} for name, both in made.items()]
        print_json({"links": documents})
    else:
        for both in made.values():
            click.echo("\n".join(each.text for each in both), nl=False)
    return EXIT_OK if all(each.complete for both in made.values() for each in both) else EXIT_DIFFERS
