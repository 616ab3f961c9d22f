"""The configuration's documentation, rendered from the types that read it.

Whatever can be said of a key is said once, at its field in :mod:`pglockstep.config.sections`; here it becomes
pages. Pure: it returns text, and ``python -m pglockstep.config.docs > docs/configuration.md`` stores it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import msgspec

from pglockstep.config.places import SYSTEM_FILE
from pglockstep.config.reader import Section, Where, about, header, is_section, toml
from pglockstep.config.sections import (
    AlertsConfig,
    BackupConfig,
    Config,
    WebConfig,
)
from pglockstep.config.unbuilt import UNBUILT, not_built_yet

# What a table is called whose name is the user's own: in the tables of keys, and in the example.
_CALLED = {"links": ("NAME", "main"), "tables": ("SCHEMA.TABLE", "public.jobs")}


class _Table(NamedTuple):
    where: Where
    example: Where
    kind: type[Section]
    around: type[Section] | None
    inline: bool


def _tables(table: _Table) -> Iterator[_Table]:
    """`table` and every table below it, in the order of the file."""
    yield table
    for field in msgspec.structs.fields(table.kind):
        says = about(field.type)
        where, example, kind = (*table.where, field.name), (*table.example, field.name), says.kind
        if get_origin(kind) is dict:
            kind = about(get_args(kind)[1]).kind
            if is_section(kind):
                name, sample = _CALLED[field.name]
                where, example = (*where, name), (*example, sample)
        if is_section(kind):
            yield from _tables(_Table(where, example, kind, table.kind, bool(says.description)))


_EVERY_TABLE = tuple(_tables(_Table((), (), Config, None, False)))


class _Row(NamedTuple):
    key: str
    meaning: str
    takes: str
    default: str
    example: Any


def _rows(table: _Table) -> Iterator[_Row]:
    """The keys of one table; what a key does not say of itself, its namesake in the table around it says."""
    around = msgspec.structs.fields(table.around) if table.around else ()
    said = {field.name: about(field.type).description for field in around}
    for field in msgspec.structs.fields(table.kind):
        says = about(field.type)
        value = field.default_factory() if callable(field.default_factory) else field.default
        if value is None:
            default = f"as in `[{header(table.where[:-2])}]`"
        else:
            default = says.computed or ("required" if field.required else f"`{toml(value)}`")
        if meaning := says.description or said.get(field.name, ""):
            example = value if says.example is None else says.example
            yield _Row(field.name, meaning, says.expected, default, example)


def example() -> str:
    """A whole file: every key with its default, or with an example where the default shows nothing."""
    lines: list[str] = []
    for table in _EVERY_TABLE:
        if table.inline:
            continue
        if table.where:
            lines += ["", *_comment(table.kind.__doc__ or ""), f"[{header(table.example)}]"]
        for row in _rows(table):
            if row.example is not None:
                lines += [*_comment(row.meaning), f"{row.key} = {toml(row.example)}"]
    return "\n".join(lines) + "\n"


_FIRST_FILE = """\
# pglockstep: which databases to keep in step. Every key is here; one that begins with #, without a blank, stands at its
# default, or shows how it is written where the default is nothing. Take the # away to change it.
#
# A connection string is libpq's: a URI, keywords, or service=NAME. A password is best kept out of this file: in
# ~/.pgpass (host:port:database:user:password, mode 0600), or in a service file (~/.pg_service.conf).
"""


def first_file(link: str, source: str, target: str, state_dir: Path | None = None) -> str:
    """A file for one link: its ends are set, and every other key stands there commented out with its default.

    Prose begins with ``# ``, a key that can be uncommented with ``#``.
    """
    given: dict[Where, str] = {("links", link, "source"): source, ("links", link, "target"): target}
    if state_dir is not None:
        given[("state_dir",)] = str(state_dir)
    lines = _FIRST_FILE.splitlines()
    for table in _EVERY_TABLE:
        if table.inline:
            continue
        # the link that the example calls main
        where = tuple(link if name == "main" else name for name in table.example)
        live = not where or where == ("links", link)
        if where:
            lines += ["", *_comment(table.kind.__doc__ or ""), f"{'' if live else '#'}[{header(where)}]"]
        for row in _rows(table):
            if row.example is not None:
                value = given.get((*where, row.key))
                lines += ["", *_comment(row.meaning)] if live else _comment(row.meaning)
                lines.append(
                    f"#{row.key} = {toml(row.example)}" if value is None else f"{row.key} = {toml(value)}"
                )
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _reference(table: _Table) -> str:
    title = f"`[{header(table.where)}]`" if table.where else "At the top of the file"
    lines = [f"### {title}", "", table.kind.__doc__ or "", ""]
    lines += ["| key | meaning | takes | default |", "|---|---|---|---|"]
    lines += [f"| `{row.key}` | {row.meaning} | {row.takes} | {row.default} |" for row in _rows(table)]
    return "\n".join(lines)


def _unbuilt() -> str:
    whole = Config(Path(), {}, WebConfig(), AlertsConfig(), BackupConfig())
    parts = ", ".join(f"`{part}`" for part in not_built_yet(whole))
    choices = ", ".join(f'`{key} = "{choice}"`' for key, choice in UNBUILT)
    return (
        f"This version reads and checks {parts}, but does not act on them yet;\n"
        f"`run` warns of it. It refuses {choices}, with exit code 3."
    )


_PAGE = """\
# Configuration

<!-- Rendered from the code by `python -m pglockstep.config.docs`; a test fails when this page is stale. -->

One TOML file tells pglockstep which databases to keep in step. It is the file that `-c` or
`$PGLOCKSTEP_CONFIG` names, else `./pglockstep.toml`, else `{system_file}`. For one link with nothing but
defaults, `--source CONNINFO --target CONNINFO` do without a file; that link is called `default`.

A wrong key, type, value or unit stops the command at its start, with exit code 3 and a message that gives
the file, the line, the key and what it takes.

{unbuilt}

## An example with every key

Only `source` and `target` of one link have to be there.

```toml
{example}```

## How values are written

**Connection strings.** `source` and `target` go to libpq untouched: a URI, keywords, or `service=NAME`, with
`.pgpass` and the `PG*` variables as everywhere else. Nothing is expanded in them. A password is best left to
`.pgpass` or a service file; `sslpassword` is taken from a service file only.

**Durations** are a number and a unit in quotes: `"500ms"`, `"30s"`, `"10m"`, `"1h"`, `"2d"`. Where a zero
makes sense, it is `"0"`.

**Sizes** are a number and a unit in quotes, in powers of 1024 as PostgreSQL has them: `"512kB"`, `"64MB"`, `"1GB"`.

**Table names** are a schema and a name as in SQL: `public.orders`, or `public."User"` where a name has upper
case, dots or blanks. As a key they need quotes of TOML's own around that: `'public."User"' = 5`.

**Table patterns** are table names in which `*` stands for any characters and `?` for one: `public.*`,
`*.log_?`. What is double-quoted is taken literally: `public."Log"*`. If `include` names any, only those
tables are kept in step; `exclude` then leaves out some of them. The guard's rules for single tables take patterns
too: `[links.main.guard.tables.'public.events_*']`. A table goes by the part with its very name, else by the first
part whose pattern matches it. A partition that has no part with its own name goes by that of the table that it is a
partition of, before patterns; and by patterns that match that one, after those that match itself.

**Link names** are at most 63 letters, digits, `-`, `_` and `.`, and begin with a letter, a digit or `_`.

**Secrets.** In `token`, `urls`, `heartbeat_url`, `store` and `encrypt_key`, `${{NAME}}` stands for an
environment variable and `${{file:/path}}` for the content of a file, without the end of its last line. Both
are read at start; one that is missing, unreadable or empty is an error.

## Every key

{reference}
"""


def render_docs() -> str:
    """The page `docs/configuration.md`."""
    return _PAGE.format(
        system_file=SYSTEM_FILE,
        unbuilt=_unbuilt(),
        example=example(),
        reference="\n\n".join(map(_reference, _EVERY_TABLE)),
    )


if __name__ == "__main__":
    print(render_docs(), end="")
