"""Rows of the stream's own text in the text format of COPY. Pure, and compiled where there is a compiler.

Values are put together without a look into them; then a few counts tell whether one of them holds a character that
COPY reads as its own. If so, all is put together once more with marks where fields and rows end: a value never
holds a zero byte, so one can stand there until everything else has been escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

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
