"""Rows of the stream's own text in the text format of COPY. Pure.

A value never holds a zero byte, so one can mark where fields and rows end until everything that COPY reads as its
own has been escaped: in few passes over many rows instead of several over each value.
"""

from __future__ import annotations

from collections.abc import Iterable

from pglockstep.wal.messages import Row

_FIELD, _ROW, _NULL = b"\0f", b"\0r", b"\0n"


def copy_text(rows: Iterable[Row]) -> bytes:
    """The rows as COPY's text format has them. No value may be missing or binary."""
    join = _FIELD.join
    text = _ROW.join(
        [
            # a row without columns is an empty line; NULLs are rare enough to look for them first
            join(row) if None not in row else join([_NULL if value is None else value for value in row])  # type: ignore
            for row in rows
        ]
    )
    for special, escaped in ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\t", b"\\t"), (b"\r", b"\\r")):
        if special in text:
            text = text.replace(special, escaped)
    text = text.replace(_FIELD, b"\t").replace(_ROW, b"\n")
    if b"\0" in text:
        text = text.replace(_NULL, b"\\N")
    return text + b"\n"
