"""Where the configuration comes from: a file, or two connection strings; and where the state is kept by default.

Whatever is wrong (a key, a type, a value, a unit, the file itself) stops here with one
:class:`~pglockstep.errors.ConfigError` that names the file, the line, the key and what is expected
instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pglockstep.config.reader import Reader, Wrong
from pglockstep.config.sections import SYSTEM_STATE_DIR, Config, LinkConfig
from pglockstep.config.values import check_conninfo
from pglockstep.errors import ConfigError, Side

SYSTEM_FILE = Path("/etc/pglockstep/pglockstep.toml")


def find(environ: Mapping[str, str], explicit: Path | None) -> Path | None:
    """The file to read, or None if there is none; raises :class:`ConfigError` if a named one is missing."""
    if explicit is None and environ.get("PGLOCKSTEP_CONFIG"):
        explicit = Path(environ["PGLOCKSTEP_CONFIG"])
    if explicit is None:
        return next(filter(_is_there, (Path("pglockstep.toml"), SYSTEM_FILE)), None)
    if not _is_there(explicit):
        raise ConfigError(
            f"there is no file {explicit}",
            hint="correct the path, or write a first file there with pglockstep init",
        )
    return explicit


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        # Reading it will fail and say why; passing over it would hide the reason.
        return True
    except OSError:
        return False
    return True


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read the file at `path`; raises :class:`ConfigError` on the first thing that is wrong with it."""
    reader = Reader(path, environ)
    if not reader.raw.get("links"):
        hint = 'write [links.main], and below it source = "…" and target = "…"; or see pglockstep init'
        raise reader.error(("links",), "no link is configured", hint)
    raw = dict(reader.raw)
    if "state_dir" not in raw:
        raw["state_dir"] = str(default_state_dir(environ))
    config = reader.section(Config, raw, (), path=path)
    first, *rest = config.state_dir.parts
    state_dir = _home(environ).joinpath(*rest) if first == "~" else config.state_dir
    return msgspec.structs.replace(config, state_dir=path.absolute().parent / state_dir)


def from_ends(source: str, target: str, environ: Mapping[str, str], state_dir: Path | None) -> Config:
    """One link, called ``default``, between two connection strings; everything else is as by default."""
    ends: dict[Side, str] = {"source": source, "target": target}
    for side, text in ends.items():
        try:
            check_conninfo(text)
        except Wrong as error:
            raise ConfigError(f"the {side} of link default: {error}", hint=error.hint) from None
    link = LinkConfig(name="default", source=source, target=target)
    state_dir = (state_dir or default_state_dir(environ)).absolute()
    return Config(state_dir=state_dir, links={link.name: link})


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Where the state is kept if nobody says: the system's place where we may write, else the user's own.

    Only looks; creates nothing.
    """
    place = SYSTEM_STATE_DIR if os.path.lexists(SYSTEM_STATE_DIR) else SYSTEM_STATE_DIR.parent
    if os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
        return SYSTEM_STATE_DIR
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    # The XDG specification has a relative path ignored.
    return (state_home if state_home.is_absolute() else _home(environ) / ".local/state") / "pglockstep"


def _home(environ: Mapping[str, str]) -> Path:
    try:
        return Path(environ.get("HOME") or "~").expanduser()
    except RuntimeError:
        hint = "name a directory as state_dir, or with --state-dir"
        raise ConfigError("there is no place for the state: this user has no home", hint=hint) from None
