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

    For messages only, never for SQL.
    """
    plain = identifier.isascii() and identifier.replace("_", "a").isalnum() and identifier.islower()
    if plain and not identifier[0].isdigit():
        return identifier
    return '"' + identifier.replace('"', '""') + '"'
