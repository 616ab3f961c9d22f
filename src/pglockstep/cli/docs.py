"""``docs/commands.md``, rendered from the commands themselves: ``python -m pglockstep.cli.docs``."""

from __future__ import annotations

import click

from pglockstep.cli.main import ALIASES, COMMANDS, cli
from pglockstep.errors import EXIT_CODES


def render() -> str:
    """The page as it must stand in ``docs/commands.md``."""
    parts = [
        "# Commands",
        "",
        "This page is rendered from the commands' own help: `python -m pglockstep.cli.docs > docs/commands.md`.",
        "",
        "Data goes to stdout, talk to stderr. With `--json` stdout holds one JSON document and nothing else.",
        "An error is one line that names the thing and one `HINT:` line with the next step.",
        "",
        "Every option can be given in the environment as well: those that all commands have as `PGLOCKSTEP_OPTION`",
        "(`PGLOCKSTEP_STATE_DIR`), those of one command as `PGLOCKSTEP_COMMAND_OPTION` (`PGLOCKSTEP_CHECK_FAST=1`).",
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()),
        "",
        "With several links the most serious code wins: 6, then 4, 5, 8, 1, 7.",
        "",
    ]
    group = click.Context(cli, info_name="pglockstep")
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        context = _context(command, name, group)
        aliases = [alias for alias, meant in ALIASES.items() if meant == name]
        also = f" (also: `{'`, `'.join(aliases)}`)" if aliases else ""
        parts += [f"## `pglockstep {name}`{also}", "", "```text", command.get_help(context), "```", ""]
        for below, each in (command.commands if isinstance(command, click.Group) else {}).items():
            shown = each.get_help(_context(each, below, context))
            parts += [f"### `pglockstep {name} {below}`", "", "```text", shown, "```", ""]
    return "\n".join(parts)


def _context(command: click.Command, name: str, parent: click.Context) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)


if __name__ == "__main__":
    click.echo(render(), nl=False)
