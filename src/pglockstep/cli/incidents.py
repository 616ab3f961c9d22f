"""``pglockstep incidents``: what the guard stopped, and the decision."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from pglockstep.cli import options, person
from pglockstep.cli.each import print_json
from pglockstep.cli.evidence import document, line, plain, sentences
from pglockstep.cli.group import Group
from pglockstep.cli.main import run_async, say
from pglockstep.cli.options import Settings
from pglockstep.config.sections import Config
from pglockstep.errors import EXIT_INTERRUPTED, EXIT_OK, UsageProblem
from pglockstep.link.decisions import settled
from pglockstep.link.link import Link
from pglockstep.observe import logs
from pglockstep.observe.incident import Decision, Incident, Verb, demand_decidable
from pglockstep.observe.incidents import Incidents
from pglockstep.observe.state import StateDirectory

_id = click.argument("id", metavar="ID")


@click.group("incidents", cls=Group, short_help="What the guard stopped, and the decision.")
def command() -> None:
    """What the guard stopped, and what is to become of it.

    While an incident is held the target keeps its last good state and goes on serving, and the journal goes on
    receiving. Without a command it is list.
    """


@command.command("list")
@options.links
@click.option(
    "--open", "only_open", is_flag=True, help="Only those that somebody, or the link, has to settle."
)
@options.common
@options.as_json
def _list(links: tuple[str, ...], only_open: bool, as_json: bool, **common: Any) -> int:
    """Every incident of the links, the newest last."""
    settings = Settings(**common)
    config, state = _opened(settings)
    keys = [Link(each, state).key for each in settings.links(config, links)]
    found = Incidents(state).listed(keys, only_open=only_open)
    if as_json:
        print_json({"incidents": [document(each) for each in found]})
        return EXIT_OK
    for each in found:
        click.echo(line(each))
    if not found:
        click.echo("no incident is open" if only_open else "there has been no incident")
    elif any(each.is_open for each in found):
        click.echo("pglockstep incidents show ID tells all of one, and what to type to decide it", err=True)
    return EXIT_OK


@command.command("show")
@_id
@options.common
@options.as_json
def _show(id: str, as_json: bool, **common: Any) -> int:
    """Everything about one: what was lost, who did it, what is safe, and what to type for each decision."""
    _, state = _opened(Settings(**common))
    _print(Incidents(state).get(id), as_json=as_json)
    return EXIT_OK


@command.command("approve")
@_id
@click.option(
    "--rows",
    type=click.IntRange(0),
    metavar="N",
    help="How many rows are lost by it, all tables together: has to be right, and --yes does not replace it.",
)
@click.option(
    "--remember", is_flag=True, help="From now on the same may happen to these tables, up to so many rows."
)
@options.common
@options.yes
@options.as_json
def _approve(id: str, rows: int | None, remember: bool, yes: bool, as_json: bool, **common: Any) -> int:
    """It was meant: let it through, this once. Another server: accept it, after a compare.

    Returns when it is done. Ctrl-C does not take the decision back.
    """
    decision = _decision("approve", rows, remember=remember)
    return _decide(id, decision, Settings(**common), yes=yes, as_json=as_json)


@command.command("restore")
@_id
@options.common
@options.yes
@options.as_json
def _restore(id: str, yes: bool, as_json: bool, **common: Any) -> int:
    """It was not meant: put back what was lost, on the end that lost it, and nothing else.

    Returns when it is done. Ctrl-C does not take the decision back.
    """
    return _decide(id, _decision("restore"), Settings(**common), yes=yes, as_json=as_json)


@command.command("reject")
@_id
@options.common
@options.yes
@options.as_json
def _reject(id: str, yes: bool, as_json: bool, **common: Any) -> int:
    """Leave both ends as they are: the tables of the incident do not follow any more, until resync.

    Returns when it is done. Ctrl-C does not take the decision back.
    """
    return _decide(id, _decision("reject"), Settings(**common), yes=yes, as_json=as_json)


def _opened(settings: Settings) -> tuple[Config, StateDirectory]:
    logs.configure(settings.verbose, daemon=False)
    config = settings.load()
    state = StateDirectory(config.state_dir)
    state.create()
    return config, state


def _decision(verb: Verb, rows: int | None = None, *, remember: bool = False) -> Decision:
    return Decision(verb, person.name(), datetime.now(UTC), rows, remember)


def _decide(id: str, decision: Decision, settings: Settings, *, yes: bool, as_json: bool) -> int:
    """Ask, write the decision down, and wait until it is carried out."""
    config, state = _opened(settings)
    store = Incidents(state)
    incident = store.get(id)
    link = _link(config, state, incident, store.link_key(id))
    demand_decidable(incident, decision)
    person.confirm(
        f"incident {id}, {plain(incident.message)}: {_QUESTION[decision.verb]}",
        f"{decision.verb} {id}",
        yes=yes,
    )
    decided = store.decide(id, decision)

    async def carried_out() -> int:
        if state.daemon_pid(link.key) is not None:
            click.echo(f"incident {id}: {decision.verb} is decided; the daemon carries it out …", err=True)
        _print(await settled(link, decided), as_json=as_json, briefly=True)
        return EXIT_OK

    try:
        return run_async(carried_out)
    except KeyboardInterrupt:
        say(
            f"interrupted; the decision stands: {decision.verb} incident {id}",
            f"pglockstep incidents show {id} tells what has become of it",
        )
        return EXIT_INTERRUPTED


_QUESTION: dict[Verb, str] = {
    "approve": "let it through?",
    "restore": "put back what was lost?",
    "reject": "leave both ends as they are, and let these tables not follow any more?",
}


def _link(config: Config, state: StateDirectory, incident: Incident, key: str) -> Link:
    """The configured link that the incident belongs to."""
    for each in config.links.values():
        if (link := Link(each, state)).key == key:
            return link
    raise UsageProblem(
        f"incident {incident.id} is of link {incident.link!r}, and no link between the same two ends is configured",
        hint="name the configuration file that has it with -c, or its two ends with --source and --target",
    )


def _print(incident: Incident, *, as_json: bool, briefly: bool = False) -> None:
    if as_json:
        print_json({"incidents": [document(incident)]})
        return
    lines = sentences(incident)
    for each in lines[:1] if briefly else lines:
        click.echo(each)
