"""Which tables a link carries, and whether what it carries can stand without what it leaves out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from pglockstep.config.reader import toml
from pglockstep.config.sections import LinkConfig
from pglockstep.config.values import TablePattern
from pglockstep.errors import ConfigError
from pglockstep.postgres.names import QualifiedName

#: Where such a line belongs.
IN_CONFIG = "in the configuration, in the table of the link"

#: Kinds of things that patterns choose; types and functions always come along.
_CHOSEN = {"table", "view", "materialized view", "foreign table"}


class Reference(msgspec.Struct, frozen=True):
    """A thing of the source that cannot be made without the relation `other`; `how` joins both into a sentence."""

    kind: str
    name: QualifiedName
    how: str
    other: QualifiedName


class Selection(msgspec.Struct, frozen=True):
    """A link's ``include`` and ``exclude``: without any, everything."""

    include: tuple[TablePattern, ...] = ()
    exclude: tuple[TablePattern, ...] = ()

    @classmethod
    def of(cls, link: LinkConfig) -> Selection:
        """The selection that a link's configuration asks for."""
        return cls(tuple(link.include), tuple(link.exclude))

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.include and not self.exclude

    def carries(self, schema: str, name: str) -> bool:
        """Whether a table of this name is carried."""
        wanted = not self.include or any(pattern.matches(schema, name) for pattern in self.include)
        return wanted and not any(pattern.matches(schema, name) for pattern in self.exclude)

    def left_out(self, names: Iterable[QualifiedName]) -> Sequence[QualifiedName]:
        """Those of `names` that are not carried."""
        return [name for name in names if not self.carries(*name)]

    def excluding(self, names: Iterable[QualifiedName]) -> str:
        """The ``exclude`` to write into the configuration so that these tables are left out as well."""
        return f"exclude = {toml([*self.exclude, *map(str, names)])}"

    def demand_whole(self, references: Iterable[Reference]) -> None:
        """Raise `ConfigError`, naming both, if something carried refers to a relation that is left out."""
        broken = [
            each
            for each in references
            if (each.kind not in _CHOSEN or self.carries(*each.name)) and not self.carries(*each.other)
        ]
        if not broken:
            return
        first, more = broken[0], f" (and {len(broken) - 1} more such)" if len(broken) > 1 else ""
        hint = f"carry {first.other} too"
        if first.kind in _CHOSEN:
            hint += f", or leave {first.name} out as well with `exclude`"
        raise ConfigError(
            f"{first.kind} {first.name} {first.how} {first.other}, which include and exclude leave out{more}",
            hint=hint,
        )
