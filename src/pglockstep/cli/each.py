"""Doing one thing for each chosen link, and putting the answers together: text or JSON, and one exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import click
import msgspec

from pglockstep.cli.main import run_async, say
from pglockstep.cli.options import Settings
from pglockstep.errors import LockstepError, UsageProblem, worst
from pglockstep.link.link import Link
from pglockstep.observe import logs
from pglockstep.observe.state import StateDirectory

T = TypeVar("T")


def for_each(
    settings: Settings,
    names: Sequence[str],
    work: Callable[[Link], Awaitable[T]],
    document: Callable[[T], dict[str, object]],
    sentences: Callable[[T], Iterable[str]],
    exit_code: Callable[[T], int],
    *,
    as_json: bool,
) -> int:
    """Run `work` for each link; print what came of it; return the exit code that stands for all."""
    logs.configure(settings.verbose, daemon=False)
    config = settings.load()
    chosen = settings.links(config, names)
    state = StateDirectory(config.state_dir)
    state.create()

    async def all_of_them() -> int:
        results = await asyncio.gather(*(work(Link(link, state)) for link in chosen), return_exceptions=True)
        codes: list[int] = []
        done: list[T] = []
        errors: list[dict[str, object]] = []
        for link, result in zip(chosen, results, strict=True):
            if isinstance(result, LockstepError):
                if settings.verbose > 1 or (len(chosen) == 1 and not as_json):
                    raise result
                codes.append(result.exit_code)
                errors.append(
                    {
                        "name": link.name,
                        "message": result.message,
                        "hint": result.hint,
                        "exit_code": result.exit_code,
                    }
                )
                say(f"{link.name}: {result.message}", result.hint)
            elif isinstance(result, BaseException):
                raise result
            else:
                done.append(result)
                codes.append(exit_code(result))
        if as_json:
            print_json({"links": [document(each) for each in done], **({"errors": errors} if errors else {})})
        else:
            for each in done:
                for sentence in sentences(each):
                    click.echo(sentence)
        return worst(codes)

    return run_async(all_of_them)


def one_link(settings: Settings, name: str | None, what: str) -> Link:
    """The link that is meant; raises `UsageProblem` where that is not clear. `what` is done to a table."""
    logs.configure(settings.verbose, daemon=False)
    config = settings.load()
    chosen = settings.links(config, [name] if name else [])
    if len(chosen) > 1:
        raise UsageProblem(
            f"several links are configured, and a table {what} in one of them",
            hint=f"name it; configured are: {', '.join(each.name for each in chosen)}",
        )
    state = StateDirectory(config.state_dir)
    state.create()
    return Link(chosen[0], state)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
