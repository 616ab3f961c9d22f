"""A verdict as JSON, as sentences and as an exit code."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pglockstep.compare.verdict import TableResult, Verdict
from pglockstep.errors import EXIT_DIFFERS, EXIT_INCONCLUSIVE, EXIT_OK
from pglockstep.link.verify import LinkCheck
from pglockstep.postgres.names import QualifiedName

_EXIT = {"identical": EXIT_OK, "different": EXIT_DIFFERS, "inconclusive": EXIT_INCONCLUSIVE}

#: Differences, and objects whose grants differ, shown in full; the rest is counted.
_SHOWN = 20
_SHOWN_GRANTS = 5


def exit_code(check: LinkCheck) -> int:
    """The exit code of a check."""
    return exit_code_of(check.verdict)


def exit_code_of(verdict: Verdict) -> int:
    """The exit code of a verdict."""
    return _EXIT[verdict]


def document(check: LinkCheck) -> dict[str, object]:
    """The link object of ``check --json``."""
    return msgspec.structs.asdict(check)


def sentences(check: LinkCheck) -> list[str]:
    """The verdict for a person: the conclusion first, then what differs."""
    rows = sum(table.source_rows or 0 for table in check.tables)
    how = "compared by value" if check.tier == "fast" else "compared"
    summary = f"{check.name}: {check.verdict}: {len(check.tables)} tables, {rows} rows, {how} in {check.seconds:.1f} s"
    lines: list[str] = []
    for table in check.tables:
        if table.verdict == "identical":
            continue
        lines.append(table_sentence(table))
    for found in check.schema_differences:
        lines.append(f"{found.kind} {_named(found.schema, found.name)} {found.difference}")
    for late in check.sequences_behind:
        lines.append(
            f"sequence {QualifiedName(late.schema, late.name)} is behind: next is {late.source_next} on the source, "
            f"{late.target_next if late.target_next is not None else 'nothing'} on the target"
        )
    objects = check.large_objects
    if objects.differ:
        lines.append(
            f"large objects: {objects.missing} missing on the target, {objects.extra} extra, "
            f"{objects.changed} changed ({', '.join(map(str, objects.first))})"
        )
    elif not objects.settled:
        lines.append("large objects kept changing while they were compared")
    shown = [f"  {line}" for line in lines[:_SHOWN]]
    if len(lines) > _SHOWN:
        shown.append(f"  … and {len(lines) - _SHOWN} more; --json has them all")
    return [summary, *shown, *(f"  note: {note}" for note in _notes(check))]


def _notes(check: LinkCheck) -> Iterator[str]:
    """What a person should know whatever the verdict is."""
    for what in check.not_streamed:
        yield f"{what} does not follow by itself"
    if check.large_objects.differ:
        yield (
            "large objects come level with a new copy: `pglockstep teardown`, an empty database as the target, "
            "`pglockstep once`; or by hand, as docs/internals/verdicts.md says"
        )
    if unread := check.large_objects.unread:
        yield f"{unread} large objects are not compared: on one end our role may not read them"
    for what in check.not_populated:
        yield f"{what} is filled on the source, and empty on the target: REFRESH {what}"
    grants = check.grants_different
    for found in grants[:_SHOWN_GRANTS]:
        yield f"who may use {found.kind} {_named(found.schema, found.name)} {found.difference}"
    if len(grants) > _SHOWN_GRANTS:
        yield f"… and {len(grants) - _SHOWN_GRANTS} more whose grants differ; --json has them all"


def table_sentence(table: TableResult) -> str:
    """What was found of a table that is not identical."""
    name = QualifiedName(table.schema, table.table)
    if table.verdict == "inconclusive":
        return f"table {name} was not compared to the end: {table.reason}"
    if table.source_rows is None or table.target_rows is None:
        return f"table {name} is {'not on the target' if table.target_rows is None else 'not on the source'}"
    more = f", and not compared to the end: {table.reason}" if table.reason else ""
    return f"table {name}: {table.missing} rows missing on the target, {table.extra} extra, {table.changed} changed{more}"


def _named(schema: str, name: str) -> str:
    return f"{schema}.{name}" if schema else name
