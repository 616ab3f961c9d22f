"""LSNs, durations and byte counts read and print as PostgreSQL's users expect."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pglockstep.units import ByteSize, Duration, Lsn, human_bytes

lsns = st.integers(0, 2**64 - 1)


@given(lsns)
def test_lsn_survives_its_text(position: int) -> None:
    """Every position of 64 bits prints and reads back as itself."""
    lsn = Lsn(position)
    assert Lsn.parse(str(lsn)) == lsn == position
    assert f"{lsn}" == str(lsn) == repr(lsn)


@given(lsns, lsns)
def test_lsns_compare_as_positions(one: int, other: int) -> None:
    """Order is that of the WAL, whatever the texts look like."""
    assert (Lsn.parse(str(Lsn(one))) < Lsn.parse(str(Lsn(other)))) is (one < other)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("0/0", 0),
        ("16/B374D848", 0x16B374D848),
        ("16/b374d848", 0x16B374D848),
        ("FFFFFFFF/FFFFFFFF", 2**64 - 1),
    ],
)
def test_lsn_reads_what_postgresql_prints(text: str, position: int) -> None:
    """The text form is PostgreSQL's: two halves of 32 bits, in hexadecimal of either case."""
    assert Lsn.parse(text) == position


@pytest.mark.parametrize("text", ["", "0", "/", "0/", "/0", "0/0/0", "123456789/0", "G/0"])
def test_lsn_refuses_anything_else(text: str) -> None:
    """What is not two halves of up to eight digits is no LSN."""
    with pytest.raises(ValueError):
        Lsn.parse(text)


@pytest.mark.parametrize("text", ["0x1/0", "-1/0", "0/-1", "+1/0", "1_0/0", " 1/0", "1/0 ", "1/0\n"])
def test_lsn_refuses_what_only_python_takes_for_a_number(text: str) -> None:
    """Signs, blanks, prefixes and underscores would be read by `int`, and PostgreSQL refuses them."""
    with pytest.raises(ValueError):
        Lsn.parse(text)


@given(st.text())
def test_lsn_parse_raises_nothing_but_value_error(text: str) -> None:
    """Any text is either an LSN of 64 bits or a `ValueError`."""
    with contextlib.suppress(ValueError):
        assert 0 <= Lsn.parse(text) < 2**64


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("10m", 600),
        ("1h", 3600),
        ("2d", 172800),
        ("1.5h", 5400),
        (" 30 s ", 30),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_duration_reads_every_unit(text: str, seconds: float) -> None:
    """A duration is a number of seconds, whatever unit it was written in."""
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "30 sec", "-1s", "1e3s", "1,5s", "1h30m", "30S", "inf", "nan"]
)
def test_duration_needs_a_number_and_a_unit(text: str) -> None:
    """A bare number, another unit or a sign is refused, and the message shows how to write it."""
    with pytest.raises(ValueError, match='such as "500ms", "30s", "10m" or "1h"'):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (0.25, "250ms"),
        (1, "1s"),
        (1.5, "1500ms"),
        (90, "90s"),
        (120, "2m"),
        (7200, "2h"),
        (86400, "1d"),
    ],
)
def test_duration_prints_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    """A duration prints the way a person would have written it."""
    assert str(Duration(seconds)) == text


@given(st.integers(0, 10 * 365 * 86_400_000))
@example(4007)
def test_duration_survives_its_text(milliseconds: int) -> None:
    """Every whole number of milliseconds prints as itself and reads back as itself."""
    duration = Duration.parse(f"{milliseconds}ms")
    assert Duration.parse(str(duration)) == pytest.approx(milliseconds / 1000, abs=1e-7)


@given(st.text())
def test_duration_parse_raises_nothing_but_value_error(text: str) -> None:
    """Any text is either a duration of no less than nothing, or a `ValueError`."""
    with contextlib.suppress(ValueError):
        assert Duration.parse(text) >= 0


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("100B", 100), ("512kB", 1 << 19), ("64MB", 1 << 26), ("1.5GB", 3 << 29), (" 2 TB ", 1 << 41)],
)
def test_byte_size_reads_postgresqls_units(text: str, count: int) -> None:
    """A size is a number of bytes; units are powers of 1024."""
    assert ByteSize.parse(text) == count


@pytest.mark.parametrize(
    "text", ["", "64", "MB", "64mb", "64KB", "-1MB", "1e3MB", "1GiB", "1M", "9" * 400 + "MB"]
)
def test_byte_size_needs_a_number_and_a_unit(text: str) -> None:
    """A bare number, another unit or a sign is refused, and the message shows how to write it."""
    with pytest.raises(ValueError, match='such as "512kB", "64MB" or "1GB"'):
        ByteSize.parse(text)


@given(st.integers(0, 2**60))
@example(3 << 29)
def test_byte_size_survives_its_text(count: int) -> None:
    """Every number of bytes prints in the largest unit that leaves it whole, and reads back as itself."""
    assert ByteSize.parse(str(ByteSize(count))) == count


@given(st.text())
def test_byte_size_parse_raises_nothing_but_value_error(text: str) -> None:
    """Any text is either a size of no less than nothing, or a `ValueError`."""
    with contextlib.suppress(ValueError):
        assert ByteSize.parse(text) >= 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 kB"),
        (20 * 2**20, "20 MB"),
        (3 * 2**30, "3.0 GB"),
        (2**40, "1.0 TB"),
    ],
)
def test_human_bytes_uses_postgresqls_powers(count: int, text: str) -> None:
    """Units are powers of 1024 with PostgreSQL's names, and a small number keeps one decimal."""
    assert human_bytes(count) == text
