"""``pglockstep diff``: the rows that differ."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import click
import msgspec

from pglockstep.cli import options
from pglockstep.cli.each import for_each
from pglockstep.cli.options import Settings
from pglockstep.cli.verdicts import exit_code_of, table_sentence
from pglockstep.errors import UsageProblem
from pglockstep.link.diff import Cell, DiffRow, LinkDiff, diff
from pglockstep.link.verify import Scope
from pglockstep.postgres.names import QualifiedName, quote_if_needed

#: As much of a value as a line has room for.
_WIDTH = 60
_CSV_HEAD = "link,schema,table,kind,copies,key,column,source,target"


@click.command("diff", short_help="The rows that differ. Changes nothing.")
@options.links
@options.tables
@options.where
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="Rows shown of each table.",
)
@click.option(
    "--csv", "as_csv", is_flag=True, help="One line for each column that differs; an empty field is NULL."
)
@options.common
@options.as_json
def command(
    links: tuple[str, ...],
    tables: tuple[str, ...],
    where: str,
    limit: int,
    as_csv: bool,
    as_json: bool,
    **common: Any,
) -> int:
    """Show the rows that are missing on the target, extra there, or changed, column by column with both values.

    Beside a live daemon it compares at a barrier that the daemon has passed; without one it compares the ends as they are, and
    what has not been applied yet is a difference. Changes nothing.
    """
    if as_csv and as_json:
        raise UsageProblem("--csv and --json are two forms of one answer", hint="leave one of the two out")
    scope = Scope(tables=frozenset(map(options.table, tables)), where=where)
    if as_csv:
        click.echo(_CSV_HEAD)
    return for_each(
        Settings(**common),
        links,
        lambda link: diff(link, scope, limit),
        msgspec.structs.asdict,
        _csv if as_csv else partial(_sentences, limit=limit),
        lambda found: exit_code_of(found.verdict),
        as_json=as_json,
    )


def _sentences(found: LinkDiff, limit: int) -> Iterator[str]:
    rows: dict[tuple[str, str], list[DiffRow]] = {}
    for row in found.rows:
        rows.setdefault((row.schema, row.table), []).append(row)
    yield f"{found.name}: {found.verdict}: {len(found.tables)} tables"
    for table in found.tables:
        if table.verdict == "identical":
            continue
        yield f"  {table_sentence(table)}"
        shown = rows.get((table.schema, table.table), [])
        for row in shown:
            yield f"    {_told(row)}"
        if table.missing is not None:
            counted = table.missing + (table.extra or 0) + (table.changed or 0)
            if (more := counted - sum(row.copies for row in shown)) > 0:
                yield f"    … and {more} more; --limit {max(2 * limit, limit + more)} shows them"


def _told(row: DiffRow) -> str:
    key = ", ".join(f"{quote_if_needed(name)} = {_clipped(text)}" for name, text in row.key.items())
    copies = f" ({row.copies} times)" if row.copies > 1 else ""
    if row.kind == "changed":
        cells = ", ".join(
            f"{quote_if_needed(name)}: {_shown(cell.source)} on the source, {_shown(cell.target)} on the target"
            for name, cell in row.columns.items()
        )
        return f"changed  {key}: {cells}"
    of = "target" if row.kind == "extra" else "source"
    cells = ", ".join(
        f"{quote_if_needed(name)} = {_shown(getattr(cell, of))}"
        for name, cell in row.columns.items()
        if name not in row.key
    )
    return f"{row.kind:8} {key}{': ' if key and cells else ''}{cells}{copies}"


def _shown(text: str | None) -> str:
    return "NULL" if text is None else f"'{_clipped(text)}'"


def _clipped(text: str) -> str:
    line = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    line = "".join(letter if letter.isprintable() else "�" for letter in line)
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _csv(found: LinkDiff) -> Iterator[str]:
    for row in found.rows:
        name = QualifiedName(row.schema, row.table)
        key = " AND ".join(f"{quote_if_needed(column)} = '{text}'" for column, text in row.key.items())
        for column, cell in row.columns.items() or [("", Cell())]:
            fields = (found.name, *name, row.kind, str(row.copies), key, column, cell.source, cell.target)
            yield ",".join(map(_field, fields))


def _field(text: str | None) -> str:
    """A field of CSV as PostgreSQL reads it: NULL is empty, and an empty string is quoted."""
    if text is None:
        return ""
    if text and not set(text) & set(',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'
