"""Rows of the stream's own text in the text format of COPY. Pure, and compiled where there is a compiler.

Values are put together without a look into them; then a few counts tell whether one of them holds a character that
COPY reads as its own. If so, all is put together once more with marks where fields and rows end: a value never
holds a zero byte, so one can stand there until everything else has been escaped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from pglockstep.compiled import INTERPRETED
from pglockstep.wal.messages import Row

_FIELD, _ROW, _NULL = b"\0f", b"\0r", b"\0n"


def copy_text(rows: Sequence[Row]) -> bytes:
    """The rows, at least one and all of one width, as COPY's text format has them. No value is missing or binary."""
    join = b"\t".join
    lines = []
    nulls = 0
    for row in rows:
        for value in row:
            if value is None:
                nulls += row.count(None)
                lines.append(join([b"\\N" if each is None else each for each in row]))  # type: ignore[misc]
                break
        else:
            lines.append(join(row))  # type: ignore[arg-type]
    text = b"\n".join(lines)
    # a row without columns is an empty line
    tabs = len(lines) * max(len(rows[0]) - 1, 0)
    if (
        text.count(b"\t") == tabs
        and text.count(b"\n") == len(lines) - 1
        and text.count(b"\\") == nulls
        and b"\r" not in text
    ):
        return text + b"\n"
    return _escaped(rows)


def reads_wire() -> bool:
    """Whether what follows is done at all; else everything is decoded in the end."""
    return _fast is not None


def wire_text(messages: list[bytes], width: int, columns: Sequence[int]) -> bytes | None:
    """The same for the `columns` of rows that stand in messages as they were sent; None where that has to be decoded.

    A message is an Insert, a Delete, or an Update without an old row; a row has `width` columns, of which those at these
    positions are wanted, in the order in which they stand. Only the compiled half does it: it is no detour only there.
    """
    return None if _fast is None else _fast.wire_text(messages, width, columns)


def wire_last(messages: list[bytes], width: int, columns: Sequence[int]) -> list[bytes] | None:
    """Of messages as above, the last one of each key that stands in these columns; None where that has to be decoded."""
    return None if _fast is None else _fast.wire_last(messages, width, columns)


def wire_values(messages: list[bytes], width: int, columns: Sequence[int]) -> list[Row] | None:
    """Of messages as above, the values in these columns, in the table's order; None where that has to be decoded."""
    return None if _fast is None else _fast.wire_values(messages, width, columns)


def _compiled() -> ModuleType | None:
    if os.environ.get(INTERPRETED):
        return None
    try:
        return import_module("pglockstep.apply.wire")
    except ImportError:
        return None


_fast = _compiled()


def _escaped(rows: Sequence[Row]) -> bytes:
    join = _FIELD.join
    text = _ROW.join([join([_NULL if value is None else value for value in row]) for row in rows])  # type: ignore[misc]
    for special, escaped in ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\t", b"\\t"), (b"\r", b"\\r")):
        if special in text:
            text = text.replace(special, escaped)
    text = text.replace(_FIELD, b"\t").replace(_ROW, b"\n")
    if b"\0" in text:
        text = text.replace(_NULL, b"\\N")
    return text + b"\n"
