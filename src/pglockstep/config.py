"""The configuration: a TOML file, or two connection strings, as typed and frozen values.

Whatever is wrong (a key, a type, a value, a unit, the file itself) stops here with one
:class:`~pglockstep.errors.ConfigError` that names the file, the line, the key and what is expected
instead. Meaning, default and bounds of a key stand together at its field; `docs/configuration.md` is
rendered from there. This room reads files and never writes one, opens no connection, and shows no
secret: a connection string, an alert's URL or a key appears in no message and in no `repr`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from pglockstep.config_reader import Reader, Section, Wrong, header
from pglockstep.config_values import (
    Conninfo,
    Count,
    Destructive,
    Fraction,
    LinkName,
    Listen,
    Memory,
    Mode,
    OnWipe,
    Patterns,
    Pause,
    ProtectTarget,
    Rows,
    Secret,
    Secrets,
    TableName,
    TablePattern,
    WithoutKey,
    Workers,
    check_conninfo,
    key,
)
from pglockstep.errors import ConfigError, NotBuiltYet, Side
from pglockstep.units import Duration

__all__ = [
    "AlertsConfig",
    "BackupConfig",
    "Config",
    "GuardConfig",
    "KeepConfig",
    "LinkConfig",
    "TableGuardConfig",
    "TablePattern",
    "WebConfig",
    "default_state_dir",
    "find",
    "from_ends",
    "load",
    "not_built_yet",
    "refuse_unbuilt",
]

SYSTEM_FILE = Path("/etc/pglockstep/pglockstep.toml")
SYSTEM_STATE_DIR = Path("/var/lib/pglockstep")

#: Choices that are promised and that this version cannot carry out, each with what to write instead.
UNBUILT = {
    ("mode", "poll"): 'write mode = "stream"; it needs wal_level = logical on the source',
    ("mode", "two-way"): 'write mode = "stream", with the end that people write to as the source',
    ("without_key", "poll"): 'write without_key = "full" or "refuse", or leave such tables out with exclude',
}


# --- the tables of the file -------------------------------------------------------------------------------


class TableGuardConfig(Section, frozen=True):
    """The guard's rules for one table; a key that is left out is as in the link's guard."""

    judge: Annotated[bool, key("`false`: this table's rows may come and go unjudged.", example=False)] = True
    max_delete_fraction: Fraction | None = None
    max_delete_rows: Rows | None = None
    max_update_fraction: Fraction | None = None
    min_table_rows: Rows | None = None
    window: Pause | None = None
    truncate: Destructive | None = None
    drop: Destructive | None = None
    keep_deleted: Memory | None = None
    on_source_wipe: OnWipe | None = None
    on_target_wipe: OnWipe | None = None
    protect_target: ProtectTarget | None = None


class GuardConfig(Section, frozen=True):
    """What the guard stops on this link, and what it may put right by itself."""

    max_delete_fraction: Annotated[
        Fraction, key("The share of a table's rows that one transaction may delete, net, within `window`.")
    ] = 0.3
    max_delete_rows: Annotated[
        Rows, key("The number of rows that one transaction may delete from a table.")
    ] = 100_000
    max_update_fraction: Annotated[
        Fraction,
        key(
            "The share of a table's rows in which one transaction may set one column to NULL, "
            "or to one same value."
        ),
    ] = 0.5
    min_table_rows: Annotated[Rows, key("Fractions are not judged on a table with fewer rows.")] = 20
    window: Annotated[Pause, key("How long rows that come back count against rows that went.")] = Duration(60)
    truncate: Annotated[Destructive, key("A TRUNCATE: `hold` it for a decision, or `allow` it.")] = "hold"
    drop: Annotated[Destructive, key("A DROP TABLE: `hold` it for a decision, or `allow` it.")] = "hold"
    keep_deleted: Annotated[
        Memory, key('How long the last images of deleted rows stay on the target; `"0"` keeps none.')
    ] = Duration(3600)
    on_source_wipe: Annotated[
        OnWipe, key("The source lost rows: `hold` for a decision, or `restore` them there.")
    ] = "hold"
    on_target_wipe: Annotated[
        OnWipe, key("The target lost rows: `restore` them there, or `hold` for a decision.")
    ] = "restore"
    protect_target: Annotated[
        ProtectTarget,
        key("Writes on the target that are not ours: `watch` for them, `block` them, or neither (`off`)."),
    ] = "watch"
    floors: Annotated[
        dict[TableName, Rows],
        key(
            "Tables that must never hold fewer rows than this.",
            title="a table of names and numbers",
            example={'public."User"': 5},
        ),
    ] = msgspec.field(default_factory=dict)
    tables: dict[TableName, TableGuardConfig] = msgspec.field(default_factory=dict)


#: The guard of a link that does not mention it; known by identity, as a file may spell out the defaults.
DEFAULT_GUARD = GuardConfig()


class LinkConfig(Section, frozen=True):
    """One source database that is kept in step with one target database."""

    name: LinkName
    source: Annotated[
        Conninfo,
        key("The database to copy from, as libpq reads it.", example="postgresql://app@localhost/app"),
    ]
    target: Annotated[
        Conninfo, key("The database to keep identical to it.", example="postgresql://sync@db.example/app")
    ]
    mode: Annotated[
        Mode,
        key(
            "How changes are followed: `stream` by logical decoding, `poll` by comparing again and again, "
            "`two-way` by streaming in both directions."
        ),
    ] = "stream"
    interval: Annotated[
        Pause,
        key("`poll`: how often the ends are compared; `stream`: how often a share of tables is verified."),
    ] = Duration(30)
    include: Annotated[Patterns, key("The tables to keep in step; an empty list means every table.")] = ()
    exclude: Annotated[Patterns, key("The tables to leave out of these.")] = ()
    jobs: Annotated[Workers, key("Workers that copy, index and compare at once.")] = 2
    without_key: Annotated[
        WithoutKey,
        key(
            "Tables with no replica identity: `full` sets REPLICA IDENTITY FULL before anything is copied, "
            "`poll` leaves them untouched and carries them by compare, `refuse` does not start."
        ),
    ] = "full"
    connect_timeout: Annotated[Pause, key("How long an attempt to connect may take.")] = Duration(10)
    lock_timeout: Annotated[Pause, key("How long a statement of ours may wait for a lock.")] = Duration(5)
    silence_timeout: Annotated[
        Pause, key("An end that has not been heard from for so long is taken to be gone.")
    ] = Duration(30)
    guard: GuardConfig = DEFAULT_GUARD


class WebConfig(Section, frozen=True):
    """The page and its JSON API."""

    listen: Annotated[Listen, key("The address to serve on.")] = "127.0.0.1:8432"
    token: Annotated[
        Secret,
        key(
            "What a visitor must know; needed on any address but loopback.", example="${PGLOCKSTEP_WEB_TOKEN}"
        ),
    ] = ""


class AlertsConfig(Section, frozen=True):
    """Who is told when something needs a person."""

    urls: Annotated[Secrets, key("The channels, as apprise URLs.", example=("${ALERT_URL}",))] = ()
    heartbeat_url: Annotated[
        Secret, key("Fetched while all is well, so that silence is noticed elsewhere; empty means none.")
    ] = ""


class KeepConfig(Section, frozen=True):
    """How many backups are kept: the newest, and the last one of each of so many hours, days and weeks."""

    last: Annotated[Count, key("The newest ones.")] = 6
    hourly: Annotated[Count, key("The last one of each hour.")] = 24
    daily: Annotated[Count, key("The last one of each day.")] = 7
    weekly: Annotated[Count, key("The last one of each week.")] = 4


class BackupConfig(Section, frozen=True):
    """When the databases are backed up, where to, and for how long."""

    store: Annotated[
        Secret,
        key(
            "Where backups are kept: file://, s3://, gs:// or az://; "
            "empty means `backups` in the state directory.",
            example="file:///var/lib/pglockstep/backups",
        ),
    ] = ""
    schedule: Annotated[tuple[str, ...], key("When a backup is taken, as cron expressions.")] = (
        "*/10 * * * *",
    )
    keep: Annotated[KeepConfig, key("How many backups are kept.", title="a table")] = KeepConfig()
    encrypt_key: Annotated[
        Secret,
        key(
            "What backups are encrypted with; empty means not at all.",
            example="${file:/etc/pglockstep/backup.key}",
        ),
    ] = ""


class Config(Section, frozen=True):
    """Everything that is configured."""

    state_dir: Annotated[
        Path,
        key(
            "Where the journal and the state are kept; a relative path starts at this file's directory.",
            example=str(SYSTEM_STATE_DIR),
            extra={
                "computed": f"`{SYSTEM_STATE_DIR}` where this user may write there, else "
                "`$XDG_STATE_HOME/pglockstep`, else `~/.local/state/pglockstep`"
            },
        ),
    ]
    links: dict[LinkName, LinkConfig]
    web: WebConfig | None = None
    alerts: AlertsConfig | None = None
    backup: BackupConfig | None = None
    #: The file that was read; None when the ends were given on the command line.
    path: Path | None = None


# --- where it comes from ----------------------------------------------------------------------------------


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


# --- what this version cannot do yet ----------------------------------------------------------------------


def not_built_yet(config: Config) -> list[str]:
    """The configured parts that are read and checked, and that nothing acts on yet, as their headers."""
    guarded = [name for name, link in config.links.items() if link.guard is not DEFAULT_GUARD]
    others = [part for part in ("web", "alerts", "backup") if getattr(config, part) is not None]
    return [f"[{header(('links', name, 'guard'))}]" for name in guarded] + [f"[{part}]" for part in others]


def refuse_unbuilt(link: LinkConfig) -> None:
    """Raise :class:`NotBuiltYet` if the link asks for a promised way of working that this version lacks."""
    for (name, choice), hint in UNBUILT.items():
        if getattr(link, name) == choice:
            message = f'link {link.name} asks for {name} = "{choice}", which this version does not have yet'
            raise NotBuiltYet(message, hint=hint)
