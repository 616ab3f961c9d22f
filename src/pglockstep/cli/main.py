"""The ``pglockstep`` command: its subcommands, and how every failure ends it.

An error is one line and one ``HINT:`` line on stderr, and its own exit code. Tracebacks are shown with
``-vv`` only. Connection strings given as options are taken off the process's title at once.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn

import click

from pglockstep import __version__
from pglockstep.compiled import form
from pglockstep.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, LockstepError, one_line

#: name → what it does, in the order of the help; each is `pglockstep.cli.NAME.command`, imported when used
COMMANDS = {
    "demo": "See it work: two throwaway servers, a crash and two wipes.",
    "init": "Write a first configuration file, with every key explained.",
    "doctor": "What do both ends lack? Each finding with its exact fix.",
    "once": "Bring the target level with the source as of now, verify, exit.",
    "run": "Keep the target level with the source: the daemon, in the foreground.",
    "check": "Are the ends identical? Changes nothing.",
    "diff": "The rows that differ. Changes nothing.",
    "repair": "Put just the rows that differ right: a plan first, then --apply.",
    "status": "Every link at a glance.",
    "incidents": "What the guard stopped, and the decision.",
    "guard": "Announce a purge before it happens.",
    "resync": "Make tables what the source has, and let them follow again.",
    "journal": "What was received, transaction by transaction.",
    "teardown": "Remove everything of ours from both ends; never your tables or rows.",
}
ALIASES = {"monitor": "run"}


class Commands(click.Group):
    """Imports a command's module only when it is called: quick to start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        # what is imported stays to the end: to walk through it again and again, and once more at the end, takes as
        # long as a third of what a short command needs in all
        gc.disable()
        try:
            found = importlib.import_module(f"pglockstep.cli.{name}").command
        finally:
            gc.freeze()
            gc.enable()
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        # an option of one command's own is PGLOCKSTEP_COMMAND_OPTION; those of all commands name theirs
        "auto_envvar_prefix": "PGLOCKSTEP",
    },
    help="Keeps two PostgreSQL databases in lockstep: committed there, visible here, exactly once.",
)
@click.version_option(f"{__version__} ({form()})", prog_name="pglockstep")
def cli() -> None:
    """The group of commands."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    hide_arguments()
    verbose = "-vv" in (arguments or sys.argv)
    try:
        code = cli.main(
            args=None if arguments is None else list(arguments), prog_name="pglockstep", standalone_mode=False
        )
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else EXIT_OK)
    except LockstepError as error:
        fail(error.message, error.hint, error.exit_code, trace=verbose)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        name = context.command_path if context else "pglockstep"
        fail(error.format_message(), f"{name} --help tells what it takes", EXIT_USAGE, trace=verbose)
    except (KeyboardInterrupt, click.Abort):
        fail(
            "interrupted",
            "nothing is lost; the same command goes on where this one stopped",
            EXIT_INTERRUPTED,
            trace=False,
        )
    except BrokenPipeError:
        # whoever read our output has left; stdout must not complain about it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_OK)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        fail(
            f"this is a bug in pglockstep: {text}",
            "nothing is lost; please report it with the output of -vv",
            EXIT_BUG,
            trace=verbose,
        )


def fail(message: str, hint: str, code: int, *, trace: bool) -> NoReturn:
    """End the process with an error as it is promised: one line, one hint."""
    if trace and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    say(message, hint)
    sys.exit(code)


def say(message: str, hint: str) -> None:
    """Print an error: one line that names the thing, and one with the next step."""
    click.echo(f"pglockstep: {one_line(message)}", err=True)
    if hint:
        click.echo(f"HINT: {one_line(hint)}", err=True)


def hide_arguments() -> None:
    """A connection string on the command line must not be read by others in ``ps``."""
    if any("=" in each or "://" in each for each in sys.argv[1:]):
        import setproctitle

        shown = []
        hidden = False
        for each in sys.argv[1:]:
            option, given, _ = each.partition("=")
            secret = option in ("--source", "--target")
            shown.append("…" if hidden else f"{option}=…" if secret and given else each)
            hidden = secret and not given
        setproctitle.setproctitle(" ".join(["pglockstep", *shown]))


def run_async(work: Callable[[], Coroutine[Any, Any, int]], *, daemon: bool = False) -> int:
    """Run `work` to its end. SIGTERM and Ctrl-C cancel it; for a daemon SIGTERM is a good end."""
    terminated = False

    async def guarded() -> int:
        nonlocal terminated
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(work(), name="main")

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        loop.add_signal_handler(signal.SIGTERM, terminate)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if terminated and daemon:
            return EXIT_OK
        raise KeyboardInterrupt from None
