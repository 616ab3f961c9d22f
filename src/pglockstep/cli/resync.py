"""``pglockstep resync``: tables that do not follow any more, brought back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from pglockstep.cli import options, person
from pglockstep.cli.each import one_link, print_json
from pglockstep.cli.main import run_async, say
from pglockstep.cli.options import Settings
from pglockstep.errors import EXIT_INTERRUPTED, EXIT_OK, UsageProblem
from pglockstep.findings import counted, listed
from pglockstep.link.decisions import resynced
from pglockstep.link.link import Link
from pglockstep.link.resync import Planned, planned, sentence
from pglockstep.observe.requests import Requests, Resync


@click.command("resync", short_help="Make tables what the source has, and let them follow again.")
@click.argument("tables", metavar="TABLE…", nargs=-1, required=True)
@click.option("--link", metavar="LINK", help="Which link, where several are configured.")
@click.option(
    "--rows",
    type=click.IntRange(0),
    metavar="N",
    help="How many rows of the target's may be gone or changed by it, all tables together; --yes does not replace it.",
)
@options.common
@options.yes
@options.as_json
def command(
    tables: tuple[str, ...], link: str | None, rows: int | None, yes: bool, as_json: bool, **common: Any
) -> int:
    """Bring tables back that do not follow: rejected in an incident, or made on the source after the copy.

    The target gets exactly what the source has, and what is committed from then on. It first tells what that takes from the
    target. Write a table as in SQL: public.orders, 'public."Orders"'. Returns when it is done; Ctrl-C does not take it back.
    """
    names = [options.table(each) for each in tables]
    chosen = one_link(Settings(**common), link, "is brought back")
    plans: list[Planned] = []

    async def look() -> int:
        plans.extend(await planned(chosen, names))
        return EXIT_OK

    run_async(look)
    for each in plans:
        click.echo(sentence(each), err=as_json)
    what = f"resync of {listed(each.table for each in plans)}"
    lost = sum(each.lost for each in plans)
    if (rows or 0) < lost:
        raise UsageProblem(
            f"{what} takes {counted(lost, 'row')} from the target, or changes them, and has to be told so"
            + ("" if rows is None else f": --rows {rows} is too few"),
            hint=f"if that is meant: --rows {lost}, or more if they are still being changed on the source",
        )
    person.confirm(f"{what}: do it?", what, yes=yes)
    request = Resync(
        tables=tuple(each.table for each in plans), rows=rows or 0, by=person.name(), at=datetime.now(UTC)
    )
    asked = Requests(chosen.state).ask(chosen.key, request)

    async def done() -> int:
        if chosen.state.daemon_pid(chosen.key) is not None:
            click.echo(f"{what} is asked for; the daemon carries it out …", err=True)
        found = await resynced(chosen, asked)
        if as_json:
            print_json(_document(chosen, plans, found))
        else:
            click.echo(
                f"{listed(found.tables)} {'follows' if len(found.tables) == 1 else 'follow'} again: {found.outcome}"
            )
        return EXIT_OK

    try:
        return run_async(done)
    except KeyboardInterrupt:
        say(f"interrupted; it stays asked for: {what}", "pglockstep status tells whether a daemon is at it")
        return EXIT_INTERRUPTED


def _document(link: Link, plans: list[Planned], done: Resync) -> dict[str, object]:
    return {
        "link": link.config.name,
        "outcome": done.outcome,
        "tables": [
            {
                "schema": each.table.schema,
                "table": each.table.name,
                "source_rows": each.source_rows,
                "target_rows": each.target_rows,
                "rows_lost": each.lost,
                "rows_missing": each.missing,
            }
            for each in plans
        ],
    }
