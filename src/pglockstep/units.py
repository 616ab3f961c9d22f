"""Small values with a meaning: LSNs, durations, byte sizes.

Everything here is pure and compares, hashes and prints the way PostgreSQL's users expect.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import ClassVar


class Lsn(int):
    """A position in a server's WAL, printed as PostgreSQL prints it (``16/B374D848``)."""

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read PostgreSQL's text form; raises `ValueError` on anything else."""
        found = re.fullmatch(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", text)
        if not found:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(found[1], 16) << 32) | int(found[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    __repr__ = __str__


#: Behind every other.
LAST_LSN = Lsn((1 << 64) - 1)


class Duration(float):
    """Seconds, written with a unit in configuration files: ``500ms``, ``30s``, ``10m``, ``1h``, ``2d``."""

    _UNITS: ClassVar = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read a duration; a bare ``0`` is allowed. Raises `ValueError` with what was expected."""
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)\s*", text)
        if found:
            return cls(float(found[1]) * cls._UNITS[found[2]])
        if text.strip() == "0":
            return cls(0.0)
        expected = 'write a number and a unit, such as "500ms", "30s", "10m" or "1h"'
        raise ValueError(f"{text!r} is not a duration; {expected}")

    def __str__(self) -> str:
        for unit in ("d", "h", "m", "s"):
            if self and self % self._UNITS[unit] == 0:
                return f"{int(self / self._UNITS[unit])}{unit}"
        return "0" if not self else f"{round(self * 1000, 3):.15g}ms"


class ByteSize(int):
    """Bytes, written with a unit in configuration files, as PostgreSQL has them: ``512kB``, ``64MB``, ``1GB``."""

    _UNITS: ClassVar = {"TB": 1 << 40, "GB": 1 << 30, "MB": 1 << 20, "kB": 1 << 10, "B": 1}

    @classmethod
    def parse(cls, text: str) -> ByteSize:
        """Read a size; a bare ``0`` is allowed. Raises `ValueError` with what was expected."""
        found = re.fullmatch(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(TB|GB|MB|kB|B)\s*", text)
        if found:
            return cls(round(Fraction(found[1]) * cls._UNITS[found[2]]))
        if text.strip() == "0":
            return cls(0)
        expected = 'write a number and a unit, such as "512kB", "64MB" or "1GB"'
        raise ValueError(f"{text!r} is not a size in bytes; {expected}")

    def __str__(self) -> str:
        for unit, size in self._UNITS.items():
            if self and self % size == 0:
                return f"{self // size}{unit}"
        return "0"

    __repr__ = __str__


def human_bytes(count: int) -> str:
    """A byte count as people read it: ``0 B``, ``1.5 kB``, ``20 MB`` (powers of 1024, PostgreSQL's habit)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"
