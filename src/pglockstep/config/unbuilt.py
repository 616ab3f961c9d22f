"""What can be configured already, and what this version cannot do yet: told or refused, never passed over."""

from __future__ import annotations

from pglockstep.config.sections import Config, LinkConfig
from pglockstep.errors import NotBuiltYet

#: Choices that are promised and that this version cannot carry out, each with what to write instead.
UNBUILT = {
    ("mode", "two-way"): 'write mode = "stream", with the end that people write to as the source',
    ("without_key", "poll"): 'write without_key = "full" or "refuse", or leave such tables out with exclude',
}


def not_built_yet(config: Config) -> list[str]:
    """The configured parts that are read and checked, and that nothing acts on yet, as their headers."""
    return [f"[{part}]" for part in ("web", "alerts", "backup") if getattr(config, part) is not None]


def refuse_unbuilt(link: LinkConfig) -> None:
    """Raise :class:`NotBuiltYet` if the link asks for a promised way of working that this version lacks."""
    for (name, choice), hint in UNBUILT.items():
        if getattr(link, name) == choice:
            message = f'link {link.name} asks for {name} = "{choice}", which this version does not have yet'
            raise NotBuiltYet(message, hint=hint)
