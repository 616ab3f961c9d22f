"""Whoever sits at the terminal: asked before something is decided, removed or overwritten, and named in what is written down."""

from __future__ import annotations

import getpass
import os
import socket
import sys

import click

from pglockstep.errors import UsageProblem


def confirm(question: str, what: str, *, yes: bool) -> None:
    """Ask, unless `yes` answers; raises `UsageProblem` where nobody can be asked. `what` is what would be done."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageProblem(f"{what} asks first, and there is no terminal to ask on", hint="add --yes")
    click.confirm(question, abort=True, err=True)


def name() -> str:
    """Who this is, as it is written down: the user and the machine."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        # a user that this machine has no name for
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
