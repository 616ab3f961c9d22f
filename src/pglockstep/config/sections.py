"""The configuration's tables as typed and frozen values: what a file may hold, and what each key means.

Meaning, default and bounds of a key stand together at its field; `docs/configuration.md` is rendered from there. A
secret is shown in no `repr`. Pure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from pglockstep.config.reader import Section
from pglockstep.config.values import (
    Conninfo,
    Count,
    Destructive,
    Fraction,
    KeptBytes,
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
    SegmentBytes,
    TableName,
    TableNames,
    WithoutKey,
    Workers,
    key,
)
from pglockstep.units import ByteSize, Duration

#: Where the state is kept on a machine that has a place for it.
SYSTEM_STATE_DIR = Path("/var/lib/pglockstep")


class TableGuardConfig(Section, frozen=True):
    """The guard's rules for one table, or for those that a pattern matches; what is left out is as in the link's guard."""

    judge: Annotated[
        bool,
        key(
            "`false`: rows may come, go and change unjudged. What still holds is a floor, and `drop`.",
            example=False,
        ),
    ] = True
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
        Fraction,
        key(
            "The share of a table's rows that may be lost: those that stood before a transaction and, by their key, "
            "are gone after it; and by so much the table may shrink within `window`."
        ),
    ] = 0.3
    max_delete_rows: Annotated[
        Rows, key("The number of rows that may be lost in the same way, however large the table; 0: none.")
    ] = 100_000
    max_update_fraction: Annotated[
        Fraction,
        key(
            "The share of a table's rows in which one transaction may turn one column into NULL, "
            "or into one same value."
        ),
    ] = 0.5
    min_table_rows: Annotated[
        Rows,
        key(
            "Fractions are not judged on a table with fewer rows; but a table that has held rows for a day is not "
            "emptied, however small."
        ),
    ] = 20
    window: Annotated[
        Pause,
        key(
            "Over how long the losses of transactions add up, by the source's clock; rows that come make up for rows "
            "that go."
        ),
    ] = Duration(60)
    truncate: Annotated[
        Destructive, key("A TRUNCATE of a table that holds rows: `hold` it for a decision, or `allow` it.")
    ] = "hold"
    drop: Annotated[
        Destructive,
        key("A table that is dropped, renamed or replaced: `hold` it for a decision, or `allow` it."),
    ] = "hold"
    keep_deleted: Annotated[
        Memory,
        key(
            'How long the last images of deleted rows stay on the target; `"0"` keeps none. '
            "A TRUNCATE leaves none of a table of more than 100 MB."
        ),
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
            "Tables in which no transaction may leave fewer rows than this; of a partitioned table, in all of it.",
            title="a table of names and numbers",
            example={'public."User"': 5},
        ),
    ] = msgspec.field(default_factory=dict)
    tables: dict[TableNames, TableGuardConfig] = msgspec.field(default_factory=dict)


#: The guard of a link that does not mention it; known by identity, as a file may spell out the defaults.
DEFAULT_GUARD = GuardConfig()


class JournalConfig(Section, frozen=True):
    """How much is kept of what the source sent; what the target still needs is always kept, however much it is."""

    keep_size: Annotated[
        KeptBytes, key("How much is kept that nobody needs any more, beside the segment that is written.")
    ] = ByteSize(1 << 30)
    keep_age: Annotated[Memory, key("For how long it is kept.")] = Duration(86400)
    segment_size: Annotated[
        SegmentBytes, key("How large a file of the journal gets; whole files are removed.")
    ] = ByteSize(64 << 20)


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
            "How changes are followed: `stream` by logical decoding, `poll` by comparing again and again, with no more than "
            "SELECT on the source, `two-way` by streaming in both directions."
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
            "`poll` leaves them untouched and carries them by compare, `refuse` does not start. One that loses its "
            "identity later is set to FULL too, or else no longer followed: its users can write in any case."
        ),
    ] = "full"
    connect_timeout: Annotated[Pause, key("How long an attempt to connect may take.")] = Duration(10)
    lock_timeout: Annotated[Pause, key("How long a statement of ours may wait for a lock.")] = Duration(5)
    silence_timeout: Annotated[
        Pause, key("An end that has not been heard from for so long is taken to be gone.")
    ] = Duration(30)
    journal: JournalConfig = JournalConfig()
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
