"""Of what kinds messages are, and how large: asked of every portion that arrives. Pure; compiled where it can be."""

from __future__ import annotations

from collections.abc import Sequence


def kinds_of(messages: Sequence[bytes]) -> bytes:
    """The first byte of each message, which is its kind. Raises `IndexError` for an empty one, which has none."""
    kinds = bytearray(len(messages))
    for index in range(len(messages)):
        message = messages[index]
        kinds[index] = message[0]
    return bytes(kinds)


def size_of(messages: Sequence[bytes]) -> int:
    """The bytes of all of them."""
    size = 0
    for message in messages:
        size += len(message)
    return size
