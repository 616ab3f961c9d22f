"""The face of the command line: help, version, documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fix_servers import Cli
from pglockstep import __version__
from pglockstep.cli.docs import render
from pglockstep.cli.main import COMMANDS
from pglockstep.compiled import form
from pglockstep.errors import worst

DOCS = Path(__file__).parent.parent / "docs"


def test_the_commands_page_is_fresh() -> None:
    """docs/commands.md is what the commands say of themselves; if not: python -m pglockstep.cli.docs > docs/commands.md."""
    assert (DOCS / "commands.md").read_text() == render()


@pytest.mark.parametrize("command", [*COMMANDS, "monitor"])
def test_every_command_has_help(cli: Cli, command: str) -> None:
    """--help of every command explains itself on stdout and ends with 0, without a configuration."""
    done = cli(command, "--help")
    assert done.returncode == 0
    assert "Usage: pglockstep" in done.stdout


def test_version(cli: Cli) -> None:
    """--version names the program, its version, and whether its hot path is compiled."""
    assert cli("--version").stdout.strip() == f"pglockstep, version {__version__} ({form()})"


def test_no_arguments_shows_the_commands(cli: Cli) -> None:
    """Without a command the help is shown, and the exit code says that something was missing."""
    done = cli()
    assert done.returncode == 2
    assert "teardown" in done.stdout + done.stderr


def test_help_is_quick() -> None:
    """Help imports neither the driver nor the terminal library."""
    code = "import sys; from pglockstep.cli.main import cli; cli.main(['--help'], standalone_mode=False); "
    code += "sys.exit(any(name in sys.modules for name in ('psycopg', 'rich')))"
    assert (
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
    )


def test_several_links_exit_with_the_most_serious_code() -> None:
    """The order that is promised: 6, then 4, 5, 8, 1, 7."""
    order = [6, 4, 5, 8, 1, 7, 0]
    for index, code in enumerate(order):
        assert worst(order[index:]) == code
    assert worst([]) == 0
