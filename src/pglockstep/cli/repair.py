"""``pglockstep repair``: just the rows that differ, put right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import msgspec

from pglockstep.cli import options, person
from pglockstep.cli.each import one_link, print_json
from pglockstep.cli.main import run_async
from pglockstep.cli.options import Settings
from pglockstep.cli.verdicts import exit_code_of, table_sentence
from pglockstep.errors import EXIT_DIFFERS, EXIT_OK, UsageProblem
from pglockstep.findings import counted
from pglockstep.link import repair, repair_plan
from pglockstep.link.level import levelled
from pglockstep.link.link import Link
from pglockstep.link.repair import Repaired
from pglockstep.link.repair_plan import Direction, Plan
from pglockstep.link.verify import Scope


@click.command("repair", short_help="Put just the rows that differ right: a plan first, then --apply.")
@click.argument("link", metavar="[LINK]", required=False)
@options.tables
@options.where
@click.option("--apply", "do_it", is_flag=True, help="Do it; without, only the plan is shown.")
@click.option(
    "--sql", "as_sql", is_flag=True, help="The plan as SQL, for psql on the end that is to be repaired."
)
@click.option(
    "--direction",
    type=click.Choice(["source-to-target", "target-to-source"]),
    default="source-to-target",
    show_default=True,
    help="Which end has the right rows, and which gets them.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    metavar="N",
    help="So many rows of a table are repaired at once.",
)
@options.common
@options.yes
@options.as_json
def command(
    link: str | None,
    tables: tuple[str, ...],
    where: str,
    do_it: bool,
    as_sql: bool,
    direction: Direction,
    limit: int,
    yes: bool,
    as_json: bool,
    **common: Any,
) -> int:
    """Make the rows that differ what the other end has: only these, and each only if it is still what was seen.

    Without --apply it shows what it would do. What the guard would hold is refused, unless it was announced with `pglockstep
    guard allow`. Each --apply leaves a file behind that takes it back, and compares the tables once more.
    """
    if as_sql and (do_it or as_json):
        raise UsageProblem("--sql shows the plan, and does nothing else", hint="leave --apply and --json out")
    chosen = one_link(Settings(**common), link, "is repaired")
    scope = Scope(tables=frozenset(map(options.table, tables)), where=where, proven=limit)
    if do_it and yes:

        async def at_once() -> tuple[Plan, Repaired | None]:
            async with levelled(chosen, "repair", copies=False) as level:
                plan = await repair_plan.plan_at(level, chosen, scope, direction)
                if not plan.rows:
                    return plan, None
                return plan, await repair.apply_at(level, chosen, plan, chosen.state.undo)

        plan, done = run(at_once())
    else:
        plan, done = run(repair_plan.plan(chosen, scope, direction)), None
    if as_sql:
        return _show_sql(chosen, plan)
    for sentence in _sentences(plan):
        click.echo(sentence, err=as_json)
    if done is None and do_it and plan.rows:
        repair_plan.demand_allowed(plan)
        what = f"repair of {counted(plan.rows, 'row')} on the {plan.receiver}"
        person.confirm(f"{what}: do it?", what, yes=False)
        done = run(repair.apply(chosen, plan, chosen.state.undo))
    if done is not None:
        for sentence in _outcome(plan, done):
            click.echo(sentence, err=as_json)
    if as_json:
        print_json(_document(plan, done))
    if plan.left or (done is None and plan.tables):
        return EXIT_DIFFERS
    return EXIT_OK if done is None else exit_code_of(done.verdict)


def _show_sql(link: Link, plan: Plan) -> int:
    for sentence in _against(plan):
        click.echo(f"-- {sentence}")

    async def show() -> None:
        async for text in repair_plan.statements(link, plan):
            click.echo(text, nl=False)

    run(show())
    return EXIT_DIFFERS if plan.tables or plan.left else EXIT_OK


def run(work: Any) -> Any:
    """Run `work` to its end; what it returns."""
    found: list[Any] = []

    async def keeping() -> int:
        found.append(await work)
        return EXIT_OK

    run_async(keeping)
    return found[0]


def _sentences(plan: Plan) -> Iterator[str]:
    if not plan.tables and not plan.left:
        yield f"{plan.link}: nothing differs, and nothing is to be repaired"
        return
    tables = counted(len(plan.tables), "table")
    yield f"{plan.link}: {counted(plan.rows, 'row')} of {tables} would be written on the {plan.receiver}, and nothing else:"
    for table in plan.tables:
        more = f"; {table.more} more differ, for the next time" if table.more else ""
        yield f"  {table.name}: {table.inserts} inserted, {table.updates} updated, {table.deletes} deleted{more}"
    for name, reason in plan.left:
        yield f"  {name} is left: {reason}"
    yield from (f"  {sentence}" for sentence in _against(plan))


def _against(plan: Plan) -> Iterator[str]:
    for table in plan.tables:
        for each in table.too_much:
            yield f"the guard will not have it: {table.name}: {each.sentence}"


def _outcome(plan: Plan, done: Repaired) -> Iterator[str]:
    yield f"{plan.link}: {counted(sum(done.done.values()), 'row')} repaired on the {plan.receiver}"
    for name, rows in done.left.items():
        yield f"  {counted(rows, 'row')} of {name} left alone: changed meanwhile, or a unique value of theirs is taken"
    if done.undo is not None:
        yield f"  to take it back: psql -f {done.undo} on the {plan.receiver}"
    different = [each for each in done.tables if each.verdict != "identical"]
    yield f"  compared again: {done.verdict}"
    for table in different:
        yield f"  {table_sentence(table)}"


def _document(plan: Plan, done: Repaired | None) -> dict[str, object]:
    return {
        "link": plan.link,
        "receiver": plan.receiver,
        "applied": done is not None,
        "tables": [
            {
                "schema": each.name.schema,
                "table": each.name.name,
                "inserts": each.inserts,
                "updates": each.updates,
                "deletes": each.deletes,
                "more": each.more,
                "guard": [against.sentence for against in each.too_much],
                "repaired": done.done.get(each.name, 0) if done else None,
                "left": done.left.get(each.name, 0) if done else None,
            }
            for each in plan.tables
        ],
        "not_repairable": [
            {"schema": name.schema, "table": name.name, "reason": why} for name, why in plan.left
        ],
        "undo": str(done.undo) if done and done.undo else None,
        "verdict": done.verdict if done else None,
        "compared": [msgspec.structs.asdict(each) for each in done.tables] if done else None,
    }
