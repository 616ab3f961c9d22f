"""A command with commands below it, the first of which is meant where none is named."""

from __future__ import annotations

import click


class Group(click.Group):
    """``pglockstep NAME [COMMAND]``: options and links may stand before the command's name, too."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not {"-h", "--help"} & set(args[:1]):
            named = next((each for each in args if each in self.commands), None)
            if named is not None:
                args.remove(named)
            args = [named or next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)
