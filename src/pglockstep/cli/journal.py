"""``pglockstep journal``: what was received, transaction by transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

import click

from pglockstep.cli import options
from pglockstep.cli.each import for_each
from pglockstep.cli.group import Group
from pglockstep.cli.options import Settings
from pglockstep.errors import EXIT_DIFFERS, EXIT_OK, UsageProblem
from pglockstep.findings import counted
from pglockstep.link import history
from pglockstep.link.history import Change, Choice, JournalCheck, JournalInfo, Shown, Transaction, Value
from pglockstep.units import Lsn, human_bytes

#: Tables named in the line of a transaction; --json has them all.
_NAMED = 4


@click.group("journal", cls=Group, short_help="What was received, transaction by transaction.")
def command() -> None:
    """Look into the journal, the files in which all that was received from the source is kept.

    Reads the files alone: works beside a daemon and without one, and neither end has to answer. Without a command
    it is info.
    """


@command.command("info")
@options.links
@options.common
@options.as_json
def _info(links: tuple[str, ...], as_json: bool, **common: Any) -> int:
    """What there is: segments, transactions, from where to where, the disk."""
    settings = Settings(**common)
    return for_each(settings, links, history.info, _facts, _told, lambda _: EXIT_OK, as_json=as_json)


@command.command("verify")
@options.links
@options.common
@options.as_json
def _verify(links: tuple[str, ...], as_json: bool, **common: Any) -> int:
    """Try every checksum; list all damage with its file and offset. Exits 1 if there is any.

    The unfinished end of the newest segment is no damage: it is being written, or a crash left it, and is cut off at
    the next start. A gap is none either: what was sent in between never came here.
    """
    settings = Settings(**common)
    return for_each(settings, links, history.verify, _damage, _judged, _exit_code, as_json=as_json)


@command.command("show")
@options.links
@click.option("--xid", type=click.IntRange(0, 2**32 - 1), metavar="N", help="The transaction of this number.")
@click.option(
    "--lsn",
    metavar="LSN",
    help="The one whose commit record has this LSN in it, or else the first one after it.",
)
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="So many of the newest.")
@click.option("--rows", is_flag=True, help="Every change with its key, or the old row where there is no key.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="With --rows: so many of each."
)
@options.common
@options.as_json
def _show(
    links: tuple[str, ...],
    xid: int | None,
    lsn: str | None,
    last: int,
    rows: bool,
    limit: int,
    as_json: bool,
    **common: Any,
) -> int:
    """What happened in transactions: tables and counts, in the order of their commits.

    A progress (applied_lsn of status) is where a commit record ended: --lsn shows what came next. No value of a row
    is shown without --rows. Exits 1 if the journal does not have what was asked for.
    """
    if xid is not None and lsn is not None:
        raise UsageProblem("--xid and --lsn both name a transaction", hint="leave one of the two out")
    choice = Choice(xid, None if lsn is None else _lsn(lsn), last, limit if rows else None)
    work = partial(history.show, choice=choice)
    return for_each(
        Settings(**common), links, work, _document, _sentences, lambda _: EXIT_OK, as_json=as_json
    )


def _lsn(text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except ValueError:
        raise UsageProblem(f"{text!r} is no LSN", hint="write it as PostgreSQL does: 16/B374D848") from None


# --- info ------------------------------------------------------------------------------------------


def _facts(found: JournalInfo) -> dict[str, object]:
    times = [each for each in found.segments if each.first_at is not None]
    return {
        "name": found.name,
        "link_id": found.link_id,
        "folder": str(found.folder),
        "first_lsn": None if found.extent is None else str(found.extent[0]),
        "last_lsn": None if found.extent is None else str(found.extent[1]),
        "first_at": times[0].first_at if times else None,
        "last_at": times[-1].last_at if times else None,
        "bytes": sum(each.size for each in found.segments),
        "transactions": sum(each.transactions for each in found.segments),
        "disk_bytes": None if found.room is None else found.room.size,
        "disk_free_bytes": None if found.room is None else found.room.free,
        "disk_used_percent": None if found.room is None else found.room.used_percent,
        "damage": found.damage or None,
        "segments": [
            {
                "number": each.file.number,
                "path": str(each.file.path),
                "first_lsn": str(each.file.start),
                "last_lsn": str(each.end),
                "bytes": each.size,
                "transactions": each.transactions,
                "first_at": each.first_at,
                "last_at": each.last_at,
                "after_gap": each.after_gap,
                "unfinished_bytes": each.unfinished,
            }
            for each in found.segments
        ],
    }


def _told(found: JournalInfo) -> list[str]:
    size = sum(each.size for each in found.segments)
    count = sum(each.transactions for each in found.segments)
    held = (counted(len(found.segments), "segment"), human_bytes(size), counted(count, "transaction"))
    lines = [f"{found.name}: {', '.join(held)}", f"  folder   {found.folder}"]
    if found.extent is not None:
        lines.append(f"  holds    everything from {found.extent[0]} to {found.extent[1]}")
    if found.damage:
        lines.append(f"  damage   {found.damage}; pglockstep journal verify lists all of it")
    if found.room is not None:
        lines.append(f"  disk     {found.room.used_percent} % used, {human_bytes(found.room.free)} free")
    for number, each in enumerate(found.segments):
        if each.after_gap and number:
            lines.append("           a gap: what was sent between these two is not here")
        when = (
            ""
            if each.first_at is None or each.last_at is None
            else f", {_time(each.first_at)} to {_time(each.last_at)}"
        )
        lines.append(
            f"  segment  {each.file.number} from {each.file.start}: {human_bytes(each.size)}, "
            f"{counted(each.transactions, 'transaction')}{when}"
        )
    return lines


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


# --- verify ----------------------------------------------------------------------------------------


def _exit_code(check: JournalCheck) -> int:
    return EXIT_OK if check.sound else EXIT_DIFFERS


def _damage(check: JournalCheck) -> dict[str, object]:
    return {
        "name": check.name,
        "folder": str(check.folder),
        "sound": check.sound,
        "segments": len(check.segments),
        "blocks": sum(each.blocks for each in check.segments),
        "damage": [
            {"path": str(each.path), "offset": each.offset, "problem": each.problem}
            for segment in check.segments
            for each in segment.damage
        ],
        "gaps": [
            {"path": str(each.file.path), "after_lsn": str(before.end), "until_lsn": str(each.file.start)}
            for before, each in check.gaps
        ],
        "unfinished_bytes": sum(each.unfinished for each in check.segments),
    }


def _judged(check: JournalCheck) -> list[str]:
    places = [each for segment in check.segments for each in segment.damage]
    blocks = sum(each.blocks for each in check.segments)
    looked = f"{counted(len(check.segments), 'segment')}, {counted(blocks, 'block')}"
    if places:
        lines = [f"{check.name}: damaged in {counted(len(places), 'place')} ({looked})"]
        lines += [f"  {each.path} at byte {each.offset}: {each.problem}" for each in places]
        lines.append(
            "  only what the target has not applied yet is in danger: pglockstep status tells how far it is"
        )
    else:
        lines = [f"{check.name}: no damage ({looked})"]
    for before, each in check.gaps:
        lines.append(
            f"  note: a gap before {each.file.path.name}: from {before.end} to {each.file.start} nothing came here"
        )
    for each in check.segments:
        if each.unfinished:
            lines.append(
                f"  note: the end of {each.file.path.name} is unfinished ({human_bytes(each.unfinished)})"
            )
    return lines


# --- show ------------------------------------------------------------------------------------------


def _document(shown: Shown) -> dict[str, object]:
    return {
        "name": shown.name,
        "transactions": [_transaction(each, shown.limit) for each in shown.transactions],
    }


def _transaction(found: Transaction, limit: int | None) -> dict[str, object]:
    return {
        "xid": found.xid,
        "lsn": str(found.lsn),
        "end_lsn": str(found.end_lsn),
        "committed_at": found.committed_at,
        "bytes": found.size,
        "changes": found.total,
        "tables": [
            {
                "schema": name.schema,
                "table": name.name,
                "inserts": count["insert"],
                "updates": count["update"],
                "deletes": count["delete"],
                "truncates": count["truncate"],
            }
            for name, count in found.counts.items()
        ],
        "rows": None if limit is None else [_row(each) for each in found.changes],
    }


def _row(change: Change) -> dict[str, object]:
    return {
        "op": change.op,
        "schema": change.table.schema,
        "table": change.table.name,
        "key": _values(change.key),
        "new_key": None if change.new_key is None else _values(change.new_key),
    }


def _values(values: Sequence[Value]) -> dict[str, str | None]:
    return {each.column: each.value for each in values}


def _sentences(shown: Shown) -> list[str]:
    lines = []
    for each in shown.transactions:
        lines.append(
            f"{shown.name}: {each.committed_at:%Y-%m-%d %H:%M:%S.%f} UTC  xid {each.xid}  {each.lsn}  {_what(each)}"
        )
        if shown.limit is not None:
            lines += [f"  {_change(change)}" for change in each.changes]
            if each.total > len(each.changes):
                lines.append(f"  … and {each.total - len(each.changes)} more; --limit shows more of them")
    return lines or [f"{shown.name}: no transaction has been received yet"]


def _what(found: Transaction) -> str:
    if not found.counts:
        return "nothing of any table"
    told = []
    for name, count in list(found.counts.items())[:_NAMED]:
        told.append(f"{name} {', '.join(counted(number, operation) for operation, number in count.items())}")
    more = len(found.counts) - _NAMED
    return "; ".join(told) + (f"; and {counted(more, 'more table')}" if more > 0 else "")


def _change(change: Change) -> str:
    key = ", ".join(_value(each) for each in change.key)
    new = "" if change.new_key is None else f" → {', '.join(_value(each) for each in change.new_key)}"
    return f"{change.op} {change.table}{' ' if key else ''}{key}{new}"


def _value(found: Value) -> str:
    # a value may hold line breaks, and control characters that a terminal obeys
    return f"{found.column}={'null' if found.value is None else repr(found.value)}"
