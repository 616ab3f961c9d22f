"""Names of things in a database, and how they become SQL.

A name is data until :meth:`QualifiedName.sql` composes it: nothing in pglockstep writes an identifier
into a statement by string formatting.
"""

from __future__ import annotations

from typing import NamedTuple

from psycopg import sql

#: The schema that holds everything of ours on a target. Nothing in it is ever copied, published or compared.
OUR_SCHEMA = "pglockstep"


class QualifiedName(NamedTuple):
    """A relation's schema and name, exactly as the catalog spells them; sorts by schema, then name."""

    schema: str
    name: str

    def sql(self) -> sql.Identifier:
        """The name, quoted, for use in a composed statement."""
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        return f"{quote_if_needed(self.schema)}.{quote_if_needed(self.name)}"


def quote_if_needed(identifier: str) -> str:
    """`identifier` as a person would write it: quoted only where PostgreSQL would fold or refuse it bare.

    For what people read or paste; statements of ours are composed with :mod:`psycopg.sql`.
    """
    plain = identifier.isascii() and identifier.replace("_", "a").isalnum() and identifier.islower()
    if plain and not identifier[0].isdigit() and identifier not in _KEYWORDS:
        return identifier
    return '"' + identifier.replace('"', '""') + '"'


# The words that PostgreSQL 14 to 18 do not take bare as a name (R and T of pg_get_keywords).
_WORDS = (
    "all analyse analyze and any array as asc asymmetric authorization binary both case cast check "
    "collate collation column concurrently constraint create cross current_catalog current_date "
    "current_role current_schema current_time current_timestamp current_user default deferrable desc "
    "distinct do else end except false fetch for foreign freeze from full grant group having ilike in "
    "initially inner intersect into is isnull join lateral leading left like limit localtime "
    "localtimestamp natural not notnull null offset on only or order outer overlaps placing primary "
    "references returning right select session_user similar some symmetric system_user table tablesample "
    "then to trailing true union unique user using variadic verbose when where window with "
)
_KEYWORDS = frozenset(_WORDS.split())
