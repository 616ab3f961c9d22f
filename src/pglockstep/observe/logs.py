"""Logging for people: one line an event, to stderr, with the time, the link and no secret.

Records carry ``extra={"action": …, "link": …}``; row values are never logged.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        link = getattr(record, "link", "")
        line = f"{time}Z {record.levelname.lower():<7} {f'[{link}] ' if link else ''}{record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Talk(logging.Formatter):
    """For commands that a person waits for: just the sentence."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


def configure(verbosity: int, *, daemon: bool) -> None:
    """Send pglockstep's log to stderr: with times for a daemon, as plain sentences for a command."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line() if daemon else _Talk())
    logger = logging.getLogger("pglockstep")
    logger.handlers = [handler]
    logger.propagate = False
    # what goes wrong is said by the error that it leads to
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    logger.setLevel(logging.DEBUG if verbosity else logging.INFO)
