"""What single values of the configuration may be: table patterns, connection strings, durations, bounds.

Each type carries its own check and says what it expects, so that the tables of the file read like their
documentation. Everything here is pure; a connection string is parsed by libpq itself and never opened,
and no word of it appears in a message.
"""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
import psycopg
from msgspec import Meta
from psycopg.conninfo import conninfo_to_dict

from pglockstep.config.reader import Wrong, nearest, toml
from pglockstep.units import ByteSize, Duration

# --- table names and patterns -----------------------------------------------------------------------------

# A quoted run takes all that it can: two quotes in a row are one quote, never an end and a beginning.
_PIECE = re.compile(r'"((?:[^"]|"")++)"|([^".\s]+)')
_TWO_PARTS = re.compile(r'((?:"(?:[^"]|"")++"|[^".\s])+)\.((?:"(?:[^"]|"")++"|[^".\s])+)')


class _Piece(msgspec.Struct, frozen=True):
    text: str
    quoted: bool


def _split(text: str) -> list[list[_Piece]]:
    """The schema and the table that `text` names, each in pieces."""
    parts = _TWO_PARTS.fullmatch(text)
    if not parts:
        raise Wrong(f"{toml(text)} is not of the form schema.table", "write a name as public.orders")
    if any(bare != bare.lower() for _, bare in _PIECE.findall(text)):
        # Folding it, as SQL does, would silently pass over the table that was meant.
        hint = """put it into double quotes, as in 'public."Orders"': a bare name is lower case"""
        raise Wrong(f"{toml(text)} has upper case outside of double quotes", hint)
    return [
        [_Piece(bare or quoted.replace('""', '"'), not bare) for quoted, bare in _PIECE.findall(part)]
        for part in parts.groups()
    ]


def _bare(part: list[_Piece]) -> list[str]:
    return [piece.text for piece in part if not piece.quoted]


def parse_table_name(text: str) -> tuple[str, str]:
    """The schema and the name of one table, written as in SQL (``public."User"``); raises `ValueError`."""
    schema, name = _split(text)
    if any(set("*?") & set(bare) for bare in _bare(schema + name)):
        raise Wrong(f"{toml(text)} is a pattern", "name one table here")
    return "".join(piece.text for piece in schema), "".join(piece.text for piece in name)


@cache
def _compiled(pattern: str) -> list[re.Pattern[str]]:
    def escaped(piece: _Piece) -> str:
        return glob.escape(piece.text) if piece.quoted else piece.text.replace("[", "[[]")

    return [re.compile(fnmatch.translate("".join(map(escaped, part)))) for part in _split(pattern)]


class TablePattern(str):
    """Which tables are meant: ``schema.table``, with ``*`` and ``?``; what is double-quoted is literal."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> TablePattern:
        """Read a pattern; raises `ValueError` on anything that is not one."""
        _compiled(text)
        return cls(text)

    def matches(self, schema: str, name: str) -> bool:
        """Whether the table of that schema and name, spelt as in the catalog, is meant."""
        in_schema, named = _compiled(str(self))
        return bool(in_schema.fullmatch(schema) and named.fullmatch(name))

    @property
    def names_one(self) -> bool:
        """Whether it is the name of one table."""
        return not any(set("*?") & set(bare) for part in _split(str(self)) for bare in _bare(part))


# --- what a value must be ---------------------------------------------------------------------------------

# libpq's own messages echo pieces of the string, and a piece may be the password.
_LIBPQ_SAYS = {
    'missing "="': 'something in it stands without "="; a value with spaces needs single quotes',
    "unterminated quoted string": "a single quote in it is not closed",
    "invalid percent-encoded token": "a % in a URI begins an escape; write a percent sign as %25",
    "forbidden value %00": "it holds %00",
    "unexpected spaces": "a URI holds no spaces; write a space as %20",
    "invalid connection option": "it holds a keyword that libpq does not know",
    "invalid URI query parameter": "it holds a keyword that libpq does not know",
}


def check_conninfo(text: str) -> str:
    """`text` itself, if libpq can read it; raises :class:`Wrong`, which does not quote it."""
    if not text.strip() or "\0" in text:
        raise Wrong("it is empty or holds a NUL", "write a URI, keywords, or service=NAME")
    try:
        keywords = conninfo_to_dict(text)
    except (psycopg.Error, UnicodeError) as error:
        raise _unreadable(str(error)) from None
    port, database = str(keywords.get("port") or ""), str(keywords.get("dbname") or "")
    if "://" in text and ((not port.replace(",", "").isdigit() and port) or "@" in database):
        hint = (
            "write / as %2F, @ as %40, : as %3A and % as %25 inside a user name or password, or use .pgpass"
        )
        raise Wrong("it holds a character that has a meaning of its own in a URI", hint)
    if "sslpassword" in keywords:
        hint = "put it into a service file (pg_service.conf), and write service=NAME here"
        raise Wrong("it holds sslpassword, which would be handed on in plain sight", hint)
    return text


def _unreadable(said: str) -> Wrong:
    fault = next((ours for theirs, ours in _LIBPQ_SAYS.items() if said.startswith(theirs)), "")
    unknown = re.search('"(.*)"', said) if "does not know" in fault else None
    known = [option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()]
    return Wrong(
        f"libpq cannot read it: {fault or 'it is neither a URI nor a list of keywords'}",
        (unknown and nearest(unknown[1], known))
        or "for example postgresql://user@host/database, or host=… dbname=…; a password belongs into .pgpass",
    )


def _link_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", text):
        hint = "use at most 63 letters, digits, - _ and . and do not begin with - or ."
        raise Wrong("this cannot be the name of a link", hint)
    return text


def _listen(text: str) -> str:
    found = re.fullmatch(r"(?:\[[^\s\[\]/]+\]|[^\s:\[\]/]+):([0-9]{1,5})", text)
    if not found or not 0 < int(found[1]) < 1 << 16:
        raise Wrong(f"{toml(text)} is not HOST:PORT", 'for example: listen = "127.0.0.1:8432"')
    return text


def _pause(value: Duration) -> Duration:
    # PostgreSQL keeps its timeouts in 32 bits of milliseconds, and takes a 0 for "wait for ever".
    return _between("1ms", value, "24d")


def _memory(value: Duration) -> Duration:
    return _between("0", value, "3650d")


def _bytes_between(least: str, most: str) -> Callable[[ByteSize], ByteSize]:
    def check(value: ByteSize) -> ByteSize:
        if not ByteSize.parse(least) <= value <= ByteSize.parse(most):
            raise Wrong(f"a size from {least} to {most} is expected")
        return value

    return check


def _between(least: str, value: Duration, most: str) -> Duration:
    if not Duration.parse(least) <= value <= Duration.parse(most):
        raise Wrong(f"a duration from {least} to {most} is expected")
    return value


def key(description: str, *, example: object = None, **constraints: Any) -> Meta:
    """What the docs say of a key; an example where the default shows nothing."""
    return Meta(description=description, examples=None if example is None else [example], **constraints)


Conninfo = Annotated[str, Meta(title="a connection string", extra={"secret": True, "check": check_conninfo})]
Secret = Annotated[str, Meta(extra={"secret": True, "expand": True})]
Secrets = Annotated[tuple[str, ...], Meta(extra={"secret": True, "expand": True})]
LinkName = Annotated[str, Meta(extra={"check": _link_name})]
TableName = Annotated[tuple[str, str], Meta(extra={"check": parse_table_name})]
TableNames = Annotated[TablePattern, Meta(extra={"check": TablePattern.parse})]
Patterns = Annotated[tuple[TablePattern, ...], Meta(title='a list of table patterns, such as ["public.*"]')]
Fraction = Annotated[float, Meta(gt=0, le=1, title="a number above 0, at most 1")]
Rows = Annotated[int, Meta(ge=0, le=(1 << 63) - 1, title="a number of rows, 0 or more")]
Count = Annotated[int, Meta(ge=0, le=(1 << 31) - 1, title="a number, 0 or more")]
Workers = Annotated[int, Meta(ge=1, le=64, title="a number from 1 to 64")]
Listen = Annotated[str, Meta(title="HOST:PORT", extra={"check": _listen})]
Pause = Annotated[Duration, Meta(title="a duration above 0, with its unit", extra={"check": _pause})]
Memory = Annotated[Duration, Meta(title='a duration with its unit, or "0"', extra={"check": _memory})]
KeptBytes = Annotated[
    ByteSize, Meta(title='a size with its unit, or "0"', extra={"check": _bytes_between("0", "1024TB")})
]
SegmentBytes = Annotated[
    ByteSize,
    Meta(title="a size from 1MB to 1GB, with its unit", extra={"check": _bytes_between("1MB", "1GB")}),
]
Mode = Literal["stream", "poll", "two-way"]
WithoutKey = Literal["full", "poll", "refuse"]
Destructive = Literal["hold", "allow"]
OnWipe = Literal["hold", "restore"]
ProtectTarget = Literal["watch", "block", "off"]
