"""``pglockstep guard``: what may pass without an incident, announced beforehand or remembered from a decision."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from pglockstep.cli import options, person
from pglockstep.cli.each import print_json
from pglockstep.cli.evidence import time
from pglockstep.cli.group import Group
from pglockstep.cli.options import Settings
from pglockstep.config.sections import LinkConfig
from pglockstep.errors import EXIT_OK, UsageProblem
from pglockstep.link.link import Link
from pglockstep.observe import logs
from pglockstep.observe.incident import Allowance
from pglockstep.observe.incidents import Incidents
from pglockstep.observe.state import StateDirectory
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Duration

#: The longest time for which a purge can be announced: longer is no announcement, but a rule of the configuration.
_LONGEST = Duration.parse("30d")


@click.group("guard", cls=Group, short_help="Announce a purge before it happens.")
def command() -> None:
    """What may pass the guard without an incident.

    Without a command it is list.
    """


@command.command("list")
@options.links
@options.common
@options.as_json
def _list(links: tuple[str, ...], as_json: bool, **common: Any) -> int:
    """What may pass now: purges that were announced, and decisions that are remembered."""
    state, chosen = _opened(Settings(**common), links)
    store, now = Incidents(state), datetime.now(UTC)
    found = [(link.config.name, each) for link in chosen for each in store.allowances(link.key, now)]
    if as_json:
        _print_json(*found)
    elif not found:
        click.echo("nothing is allowed")
    else:
        for name, each in found:
            click.echo(f"{each.id:>3}  {name}  {_told(each)}")
    return EXIT_OK


@command.command("allow")
@options.links
@click.option(
    "--table", required=True, metavar="T", help='The table, as in SQL: public.orders, public."Orders".'
)
@click.option(
    "--rows",
    required=True,
    type=click.IntRange(1, 2**63 - 1),
    metavar="N",
    help="How many of its rows may go.",
)
@click.option(
    "--for",
    "how_long",
    required=True,
    metavar="DURATION",
    help="For how long from now: 30s, 10m, 2h, at most 30d.",
)
@options.common
@options.as_json
def _allow(links: tuple[str, ...], table: str, rows: int, how_long: str, as_json: bool, **common: Any) -> int:
    """Announce a purge: what is committed to this table within this time is no incident.

    Up to so many rows, all together, whatever takes them: DELETE, TRUNCATE, UPDATE or DROP. Of a partitioned table
    it is what all of its partitions lose.
    """
    name, duration = options.table(table, "--table: "), _duration(how_long)
    state, chosen = _opened(Settings(**common), links)
    if len(chosen) > 1:
        names = ", ".join(link.config.name for link in chosen)
        raise UsageProblem(
            "several links are configured, and a purge is announced for one of them",
            hint=f"name it: pglockstep guard allow LINK --table {table} …; configured are: {names}",
        )
    (link,) = chosen
    if not link.selection.carries(*name):
        raise UsageProblem(
            f"link {link.config.name} does not carry table {name}",
            hint="what a link does not carry is not judged; is it the right link, and the table rightly spelt?",
        )
    now = datetime.now(UTC)
    allowance = Incidents(state).allow(
        link.key,
        Allowance(
            schema=name.schema,
            table=name.name,
            rows=rows,
            until=now + timedelta(seconds=duration),
            by=person.name(),
            at=now,
        ),
    )
    if as_json:
        _print_json((link.config.name, allowance))
    else:
        click.echo(f"{link.config.name}: allowed, as number {allowance.id}: {_told(allowance)}")
    return EXIT_OK


@command.command("revoke")
@click.argument("id", metavar="ID")
@options.common
@options.as_json
def _revoke(id: str, as_json: bool, **common: Any) -> int:
    """Take back what was announced or remembered: from now on it is an incident again."""
    state, chosen = _opened(Settings(**common), ())
    names = {link.key: link.config.name for link in chosen}
    key, revoked = Incidents(state).revoke(names, id)
    if as_json:
        _print_json((names[key], revoked))
    else:
        click.echo(f"{names[key]}: revoked: {_told(revoked)}")
    return EXIT_OK


def _opened(settings: Settings, names: tuple[str, ...]) -> tuple[StateDirectory, list[Link]]:
    logs.configure(settings.verbose, daemon=False)
    config = settings.load()
    chosen: list[LinkConfig] = settings.links(config, names)
    state = StateDirectory(config.state_dir)
    state.create()
    return state, [Link(each, state) for each in chosen]


def _duration(text: str) -> Duration:
    try:
        found = Duration.parse(text)
    except ValueError as error:
        raise UsageProblem(f"--for: {error}", hint="for example: --for 10m") from None
    if not 1 <= found <= _LONGEST:
        raise UsageProblem(
            f"--for: {text!r} is not from 1s to {_LONGEST}",
            hint="what is to pass for good belongs in the guard's rules, or in a decision with --remember",
        )
    return found


def _told(allowed: Allowance) -> str:
    what = allowed.kind or "anything"
    used = f", {allowed.used} of them used" if allowed.used else ""
    until = "until it is revoked" if allowed.until is None else f"until {time(allowed.until)}"
    source = "" if allowed.incident is None else f", remembered from incident {allowed.incident}"
    table = QualifiedName(allowed.schema, allowed.table)
    return f"{what} on {table} up to {allowed.rows} rows{used}, {until}{source} (by {allowed.by})"


def _print_json(*allowed: tuple[str, Allowance]) -> None:
    documents = [
        {
            "id": each.id,
            "link": link,
            "schema": each.schema,
            "table": each.table,
            "rows": each.rows,
            "used": each.used,
            "kind": each.kind,
            "until": each.until,
            "incident": each.incident,
            "by": each.by,
            "at": each.at,
        }
        for link, each in allowed
    ]
    print_json({"allowances": documents})
