"""Table names and patterns, and connection strings: what they mean, and what they never give away."""

from __future__ import annotations

import contextlib
import string
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_config import SECRET, refused
from pglockstep.config.values import TablePattern, parse_table_name

# --- table names and patterns -----------------------------------------------------------------------------

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
bare_names = st.text(string.ascii_lowercase + string.digits + "_$-[]!é", min_size=1, max_size=6)
globs = st.text("ab*?[]!^-", min_size=1, max_size=6)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize(
    ("pattern", "schema", "name", "expected"),
    [
        ("public.*", "public", "orders", True),
        ("public.*", "public", "A.b\nc", True),
        ("public.*", "publicity", "orders", False),
        ("*.log_?", "any", "log_1", True),
        ("*.log_?", "any", "log_", False),
        ("*.*", "x", "y", True),
        ('public."User"', "public", "User", True),
        ('public."User"', "public", "user", False),
        ('public."a*"', "public", "ab", False),
        ('public."a*"', "public", "a*", True),
        ('public."Log"*', "public", "Log_2024", True),
        ('"my.schema"."a""b"', "my.schema", 'a"b', True),
        ("public.[ab]", "public", "a", False),
        ("public.[ab]", "public", "[ab]", True),
    ],
)
def test_patterns_mean_what_they_look_like(pattern: str, schema: str, name: str, expected: bool) -> None:
    """`*` and `?` are wild unless quoted, and the whole name has to match."""
    assert TablePattern.parse(pattern).matches(schema, name) is expected


@given(names, names, names, names)
def test_a_quoted_name_is_literal(schema: str, name: str, other_schema: str, other: str) -> None:
    """A name in double quotes, whatever is in it, means that one table and no other."""
    text = f"{quoted(schema)}.{quoted(name)}"
    pattern = TablePattern.parse(text)
    assert parse_table_name(text) == (schema, name)
    assert pattern.matches(schema, name)
    assert pattern.matches(other_schema, other) is ((schema, name) == (other_schema, other))


@given(bare_names, bare_names)
def test_a_bare_name_without_wildcards_is_literal(schema: str, name: str) -> None:
    """A lower-case name needs no quotes, also with characters that other globs treat as special."""
    assert parse_table_name(f"{schema}.{name}") == (schema, name)
    assert TablePattern.parse(f"{schema}.{name}").matches(schema, name)


@given(globs, st.text("ab[]!^-", min_size=1, max_size=6))
def test_wildcards_agree_with_fnmatch(glob: str, name: str) -> None:
    """`*` and `?` match as fnmatch has them, and its character classes do not exist."""
    expected = fnmatchcase(name, glob.replace("[", "[[]"))
    assert TablePattern.parse(f"s.{glob}").matches("s", name) is expected


@given(st.text('a.*"B ', max_size=40) | st.text())
def test_any_text_is_a_pattern_or_a_value_error(text: str) -> None:
    """Nothing else is raised, and a table's name is always a pattern too, for that very table."""
    try:
        schema, name = parse_table_name(text)
    except ValueError:
        with contextlib.suppress(ValueError):
            TablePattern.parse(text)
    else:
        assert TablePattern.parse(text).matches(schema, name)


@pytest.mark.parametrize(
    "text", ["", "a", "a.", ".a", "a.b.c", 'a."b', 'a."b"c"', 'a.""', "a b.c", "Public.a", "a.b ", '"' * 99]
)
def test_what_is_no_pattern(text: str) -> None:
    """Anything but two parts, an open quote, blanks and unquoted upper case are refused."""
    with pytest.raises(ValueError):
        TablePattern.parse(text)


# --- connection strings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conninfo", "reason", "hint"),
    [
        ("", "it is empty", "service=NAME"),
        ("   ", "it is empty", "service=NAME"),
        (f"host=a password={SECRET} oops {SECRET}", 'stands without "="', "postgresql://"),
        (f"mysql://u:{SECRET}@h/d", 'stands without "="', "postgresql://"),
        (f"password='{SECRET}", "a single quote in it is not closed", ""),
        (f"postgresql://u:{SECRET}%zz@h/d", "write a percent sign as %25", ""),
        (f"postgresql://u:{SECRET}%00@h/d", "it holds %00", ""),
        (f"postgresql://u:{SECRET}@h:x {SECRET}/d", "a URI holds no spaces", ""),
        (f"postgresql://u:{SECRET}@[::1/d", "it is neither a URI nor a list of keywords", ""),
        (f"postgresql://u:{SECRET}@h/d?{SECRET}", "it is neither a URI nor a list of keywords", ""),
        (f"host=a pasword={SECRET}", "a keyword that libpq does not know", "did you mean password?"),
        (f"postgresql://h/d?pasword={SECRET}", "a keyword that libpq does not know", "mean password?"),
        (f"host=a {SECRET}={SECRET}", "a keyword that libpq does not know", ""),
        (f"host=a sslpassword={SECRET}", "it holds sslpassword", "service file"),
        (f"postgresql://u@h/d?sslpassword={SECRET}", "it holds sslpassword", "service file"),
        (f"host=a\\u0000password={SECRET}", "a NUL", ""),
    ],
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_wrong_connection_string_is_told_without_its_text(
    tmp_path: Path, side: str, conninfo: str, reason: str, hint: str
) -> None:
    """What libpq cannot parse is refused with link, side and reason, and no piece of it is repeated."""
    source, target = (conninfo, "host=b") if side == "source" else ("host=a", conninfo)
    message, advice = refused(tmp_path, f'[links.main]\nsource = "{source}"\ntarget = "{target}"\n')
    assert message.startswith(f"{2 if side == 'source' else 3}: {side} in [links.main]: ")
    assert reason in message
    assert hint in advice
