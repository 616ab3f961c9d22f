"""Taking what has arrived out of libpq, message by message. Waits for nothing, and knows nothing of what it takes.

Compiled where there is a compiler: a stream is millions of small messages.
"""

from __future__ import annotations

from collections.abc import Callable

#: What libpq's PQgetCopyData returns: the length of a message, or that there is none, and the message.
Receive = Callable[[int], tuple[int, memoryview]]


def take(receive: Receive, most: int, messages: list[bytes]) -> int:
    """Put the messages at hand behind `messages`, until they are `most` bytes or more.

    Returns how many bytes they are; or, if there is none, how `receive` says that: 0 for now, or -1 at the end.
    """
    size = 0
    while size < most:
        length, data = receive(1)
        if length <= 0:
            return size or length
        messages.append(bytes(data))
        size += length
    return size
