"""Rows as text and as hashes, computed where they are, in a form in which no two different rows agree."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

#: What two hashes of one text are seeded with: texts that collide under one do not under the other.
SEEDS = (5577006791947779410, 8674665223082153551)

# PostgreSQL promises its hashes to nobody: they follow the machine's byte order, and a new major version may
# change them. A server that answers otherwise cannot be compared this way.
PROBE = "pglockstep"
PROBE_HASH = 3058436515578806207

# SQL_ASCII means bytes as they are; everything else is brought to UTF-8 before it is hashed.
_HASHED_AS_IS = ("UTF8", "SQL_ASCII")


def row_text(columns: Sequence[str], encoding: str, of: str = "") -> sql.Composed:
    """The text of a row with these columns, in UTF-8 whatever the database's own `encoding`.

    No two different rows share it. `of`: what the table is called in the query, where others may have columns of these names.
    """
    # It quotes what needs it and tells NULL from ''. It comes from the types' output functions, so that no cast to
    # text hides a difference, be it char's, which drops blanks, or one that a user has defined. Any number of columns
    # that a table can have will do.
    return record_text(
        [sql.Identifier(of, each) if of else sql.Identifier(each) for each in columns], encoding
    )


def record_text(values: Sequence[sql.Composable], encoding: str) -> sql.Composed:
    """The text of a record of these values, as `row_text` has that of a row."""
    return utf8(sql.SQL("ROW({})::text").format(sql.SQL(", ").join(values)), encoding)


def utf8(text: sql.Composed, encoding: str) -> sql.Composed:
    """An SQL text of a database of this `encoding`, brought to UTF-8."""
    if encoding in _HASHED_AS_IS:
        return text
    # The bytes of the UTF-8 form, taken for text of this database: right for every single-byte encoding.
    return sql.SQL("convert_from(convert_to({}, 'UTF8'), {})").format(text, sql.Literal(encoding))


def text_hash(text: sql.Composable, seed: int) -> sql.Composed:
    """The 64-bit hash of an SQL text, byte by byte whatever its collation."""
    return sql.SQL('hashtextextended({} COLLATE "C", {})').format(text, sql.Literal(seed))
