"""Both ends of a link as a session holds them: a connection each, and what is known of either server."""

from __future__ import annotations

import msgspec
from psycopg import AsyncConnection

from pglockstep.postgres.connect import End
from pglockstep.postgres.privileges import Facts


class Ends(msgspec.Struct, frozen=True):
    """Both ends with a connection each and what is known of them."""

    source: End
    target: End
    source_conn: AsyncConnection
    target_conn: AsyncConnection
    source_facts: Facts
    target_facts: Facts

    @property
    def both(self) -> tuple[End, End]:
        """Source and target."""
        return self.source, self.target
