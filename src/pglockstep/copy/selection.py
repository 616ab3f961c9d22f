"""Which tables a link carries. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from pglockstep.config import LinkConfig, TablePattern
from pglockstep.postgres.names import QualifiedName


class Selection(msgspec.Struct, frozen=True):
    """A link's ``include`` and ``exclude``: without any, everything."""

    include: tuple[TablePattern, ...] = ()
    exclude: tuple[TablePattern, ...] = ()

    @classmethod
    def of(cls, link: LinkConfig) -> Selection:
        """The selection that a link's configuration asks for."""
        return cls(tuple(link.include), tuple(link.exclude))

    def carries(self, schema: str, name: str) -> bool:
        """Whether a table of this name is carried."""
        wanted = not self.include or any(pattern.matches(schema, name) for pattern in self.include)
        return wanted and not any(pattern.matches(schema, name) for pattern in self.exclude)

    def left_out(self, names: Iterable[QualifiedName]) -> Sequence[QualifiedName]:
        """Those of `names` that are not carried."""
        return [name for name in names if not self.carries(*name)]
