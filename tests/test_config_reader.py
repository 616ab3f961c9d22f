"""Every complaint about a file names its line, the key, what was found and what is expected."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fix_config import LINK, SECRET, refused
from pglockstep.config import places
from pglockstep.config.reader import key_lines, line_of, toml
from pglockstep.errors import ConfigError

GUARD = f"{LINK}[links.main.guard]\n"  # what is added to it begins on line 5


@pytest.mark.parametrize(
    ("text", "complaint", "hint"),
    [
        (f"{LINK}mod = 'stream'", "4: mod in [links.main]", "did you mean mode?"),
        (f"{LINK}\n\nJOBS = 3", "6: JOBS in [links.main]", "did you mean jobs?"),
        (f"{LINK}zzz = 1", "4: zzz in [links.main]", "the keys here are source, target, mode"),
        (f"{LINK}name = 'x'", "4: name in [links.main]", ""),
        (f"{LINK}guard.windw = '1s'", "4: windw in [links.main.guard]", "did you mean window?"),
        (f"{LINK}guard = {{ drop = 'hold', windw = '1s' }}", "4: windw in [links.main.guard]", "window"),
        (f"{LINK}[alert]\nurls = []", "4: alert", "did you mean alerts?"),
        (f"path = 'x'\n{LINK}", "1: path", "state_dir"),
        (f"{GUARD}tables.'a.b'.floors = 1", '5: floors in [links.main.guard.tables."a.b"]', ""),
        (f'{LINK}"a\\nb" = 1', '4: "a\\nb" in [links.main]', ""),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(
    tmp_path: Path, text: str, complaint: str, hint: str
) -> None:
    """A key that does not exist, at any depth and in any notation, gives its line and what was meant."""
    message, advice = refused(tmp_path, text)
    assert message == f"{complaint} is not a known key"
    assert hint in advice


@pytest.mark.parametrize(
    ("text", "complaint", "hint"),
    [
        ("", "1: no link is configured", "[links.main]"),
        ("[web]\n\n[links]", "3: no link is configured", "[links.main]"),
        ("[links]\nsource = ''", "2: source in [links] is a string; expected a table", "[links.NAME]"),
        ("links = 5", "1: links is a number; expected a table", "write [links]"),
        ("[[links.main]]", "1: main in [links] is a list; expected a table", "[links.NAME]"),
        ("\n[links.main]\ntarget = ''", "2: source in [links.main] is missing", 'source = "postgresql://'),
        ("[links.main]\nsource = 'host=b'", "1: target in [links.main] is missing", 'target = "postg'),
        ("[links.'a b']", '1: "a b" in [links]: this cannot be the name of a link', "63 letters, digits"),
        ("[links.-a]", "1: -a in [links]: this cannot be the name of a link", "do not begin with"),
        (f"[links.{'x' * 64}]", f"1: {'x' * 64} in [links]: this cannot", "at most 63"),
    ],
)
def test_a_link_needs_a_name_and_two_ends(tmp_path: Path, text: str, complaint: str, hint: str) -> None:
    """A file without links, and a link without name, source or target, show what to write."""
    message, advice = refused(tmp_path, text)
    assert message.startswith(complaint)
    assert hint in advice


MODES = '"stream", "poll" or "two-way"'
DURATION = "a duration above 0, with its unit"
PATTERNS = 'a list of table patterns, such as ["public.*"]'
FRACTION = "a number above 0, at most 1"
ROWS = "a number of rows, 0 or more"


@pytest.mark.parametrize(
    ("table", "written", "found", "expected", "hint"),
    [
        ("links.main", "mode = 'streem'", '"streem"', MODES, "did you mean stream?"),
        ("links.main", "mode = 7", "7", MODES, 'for example: mode = "stream"'),
        ("links.main", "jobs = 0", "0", "a number from 1 to 64", "for example: jobs = 2"),
        ("links.main", "jobs = 65", "65", "a number from 1 to 64", ""),
        ("links.main", "jobs = 2.0", "2.0", "a number from 1 to 64", ""),
        ("links.main", "jobs = true", "true", "a number from 1 to 64", ""),
        ("links.main", "jobs = '2'", '"2"', "a number from 1 to 64", ""),
        ("links.main", f"jobs = 0x{'f' * 5000}", "a number", "a number from 1 to 64", ""),
        ("links.main", "interval = 30", "30", DURATION, 'for example: interval = "30s"'),
        ("links.main", "interval = ''", '""', DURATION, 'for example: interval = "30s"'),
        ("links.main", "silence_timeout = 1979-05-27", "a date or time", DURATION, ""),
        ("links.main", "include = 'a.b'", '"a.b"', PATTERNS, ""),
        ("links.main", "include = [1]", "a list", PATTERNS, ""),
        ("links.main", "source = 5", "a number", "a connection string", "postgresql://"),
        ("links.main.guard", "max_delete_fraction = 0", "0", FRACTION, "= 0.3"),
        ("links.main.guard", "max_delete_fraction = 1.01", "1.01", FRACTION, "= 0.3"),
        ("links.main.guard", "max_update_fraction = nan", "nan", FRACTION, "= 0.5"),
        ("links.main.guard", "max_delete_rows = -1", "-1", ROWS, "= 100000"),
        ("links.main.guard", "max_delete_rows = 1e5", "100000.0", ROWS, "= 100000"),
        ("links.main.guard", "truncate = 'Hold'", '"Hold"', '"hold" or "allow"', "did you mean hold?"),
        ("links.main.guard", "floors = []", "a list", "a table", "[links.main.guard.floors]"),
        ("links.main.guard.floors", "'a.b' = -5", "-5", ROWS, ""),
        ("links.main.guard.tables.'a.b'", "judge = 'no'", '"no"', "true or false", ""),
        ("links.main.journal", "keep_size = 5", "5", 'a size with its unit, or "0"', '= "1GB"'),
        ("links.main.journal", "keep_age = 5", "5", 'a duration with its unit, or "0"', '= "1d"'),
        ("web", "token = 5", "a number", "a string", ""),
        ("backup", "keep = 5", "a number", "a table", "[backup.keep]"),
        ("backup", "schedule = 'x'", '"x"', "a list of strings", '["*/10 * * * *"]'),
        ("backup.keep", "last = -1", "-1", "a number, 0 or more", "last = 6"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_expected(
    tmp_path: Path, table: str, written: str, found: str, expected: str, hint: str
) -> None:
    """A value of a wrong type or out of bounds gives the key, the table, what was found and what is right."""
    key, shown = written.split(" = ", maxsplit=1)[0].replace("'", '"'), table.replace("'", '"')
    ends = LINK.replace('source = "host=a"', "#") if key == "source" else LINK
    header = "" if table == "links.main" else f"[{table}]"
    message, advice = refused(tmp_path, f"{ends}{header}\n{written}\n")
    assert message == f"5: {key} in [{shown}] is {found}; expected {expected}"
    assert hint in advice


@pytest.mark.parametrize(
    ("text", "complaint", "hint"),
    [
        (f"{LINK}interval = '30'", "4: interval in [links.main]: '30' is not a duration; write", ""),
        (f"{LINK}interval = '30 sec'", "4: interval in [links.main]: '30 sec' is not a duration", ""),
        (f"{LINK}interval = '0'", "4: interval in [links.main]: a duration from 1ms to 24d is", ""),
        (f"{LINK}lock_timeout = '0.1ms'", "4: lock_timeout in [links.main]: a duration from 1ms", ""),
        (f"{LINK}lock_timeout = '25d'", "4: lock_timeout in [links.main]: a duration from 1ms", ""),
        (f"{GUARD}keep_deleted = '-1h'", "5: keep_deleted in [links.main.guard]: '-1h' is not", ""),
        (f"{LINK}journal.keep_size = '5'", "4: keep_size in [links.main.journal]: '5' is not a size in", ""),
        (
            f"{LINK}journal.segment_size = '2GB'",
            "4: segment_size in [links.main.journal]: a size from 1MB",
            "",
        ),
        (
            f"{LINK}journal.segment_size = '1kB'",
            "4: segment_size in [links.main.journal]: a size from 1MB",
            "",
        ),
        (
            f"{LINK}include = [\n'b',\n]",
            '4: include in [links.main]: "b" is not of the form',
            "public.orders",
        ),
        (f"{LINK}exclude = ['a.B']", '4: exclude in [links.main]: "a.B" has upper case', "double quotes"),
        (
            f"{GUARD}floors = {{ 'a.*' = 1 }}",
            '5: "a.*" in [links.main.guard.floors]: "a.*" is a',
            "one table",
        ),
        (f"{GUARD}tables.'jobs'.judge = false", '5: jobs in [links.main.guard.tables]: "jobs" is not', ""),
        (f"{GUARD}floors.'a.b' = 1\nfloors.'a.\"b\"' = 2", "6: 'a.\"b\"' in [links.main.guard.floors] s", ""),
        (f"{LINK}[web]\nlisten = '8432'", '5: listen in [web]: "8432" is not HOST:PORT', "127.0.0.1:8432"),
        (f"{LINK}[web]\nlisten = 'a:65536'", '5: listen in [web]: "a:65536" is not HOST:PORT', ""),
        (f"state_dir = ''\n{LINK}", '1: state_dir is ""; expected a path', "/var/lib/pglockstep"),
    ],
)
def test_a_value_gives_its_own_reason(tmp_path: Path, text: str, complaint: str, hint: str) -> None:
    """Durations, patterns, names and addresses say themselves what is wrong with them."""
    message, advice = refused(tmp_path, text)
    assert message.startswith(complaint)
    assert hint in advice


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[links.main]\nsource = host=a", "2: this is not TOML: Invalid value, column 10"),
        ("[links.main]\nmode = 'a'\nmode = 'b'", "3: this is not TOML: Cannot overwrite a value"),
        ("[links.main]\nsource = [\n", "3: this is not TOML: "),
        ("a = " + "[" * 5000, "1: this is not TOML: "),
    ],
)
def test_what_is_not_toml_has_a_line(tmp_path: Path, text: str, line: str) -> None:
    """Syntax errors are told like all others."""
    assert refused(tmp_path, text)[0].startswith(line)


@pytest.mark.parametrize(
    "text",
    [
        f"{LINK}[alerts]\nurls = 'slack://{SECRET}'",
        f"{LINK}[alerts]\nurls = [{{ url = '{SECRET}' }}]",
        f"{LINK}[alerts]\nheartbeat_url = ['{SECRET}']",
        f"alerts = 'slack://{SECRET}'\n{LINK}",
        f"{LINK}[backup]\nencrypt_key = ['{SECRET}']",
        f"{LINK}[backup]\nencrypt_key = '{SECRET} ${{UNKNOWN}}'",
        f"{LINK}[backup]\nencrypt_key = '${{{SECRET} }}'",
        f"[links.main]\nsource = ['{SECRET}']\ntarget = 'host=b'",
        f"[links]\nsource = 'password={SECRET}'",
    ],
)
def test_a_secret_of_the_wrong_type_is_not_shown(tmp_path: Path, text: str) -> None:
    """An error about a value that may be secret tells its type, and never the value."""
    message, _ = refused(tmp_path, text)
    assert SECRET not in message


# --- lines, and anything at all ---------------------------------------------------------------------------

DOCUMENT = (
    r"""
# [not.a.table]
top = 1
text = '''
[not.a.table]
key = 1 '''"" = 2
" quoted.key " = "x # \" = 1"
dotted . "with\u002edot" . c = 3
[ table . 'x.y' ]  # comment [a]
when = 1979-05-27 07:32:00.5Z
list = [ 1, # one = 1
  "]", { a = 1, b.c = [ { d = 2 } ] },
]
inline = { x = 1, "y" = '}', z = { deep = true } }
[[ many ]]
a = """
    '"""\nb = 1\n""""\n'
    r"""b = -1.5e3
[[many]]
a = 2
[table]
late = 1
"""
)


def test_every_key_has_its_line() -> None:
    """Strings, comments, arrays, dotted and quoted keys and inline tables do not lead the scan astray."""
    text = DOCUMENT.replace("'''\"\" = 2", "'''")
    tomllib.loads(text)
    found = key_lines(text)
    lines = text.splitlines()
    assert {path: lines[line - 1].strip() for path, line in found.items() if len(path) == 1} == {
        ("top",): "top = 1",
        ("text",): "text = '''",
        (" quoted.key ",): r'" quoted.key " = "x # \" = 1"',
        ("many",): "[[ many ]]",
        ("table",): "[table]",
    }
    assert line_of(found, ("dotted", "with.dot", "c")) == line_of(found, ("dotted",)) == 8
    assert line_of(found, ("table", "x.y")) == 9
    assert line_of(found, ("table", "x.y", "when")) == 10
    assert line_of(found, ("table", "x.y", "list", "b", "c", "d")) == 12
    assert line_of(found, ("table", "x.y", "inline", "z", "deep")) == 14
    assert line_of(found, ("many", "b")) == 19
    assert line_of(found, ("table", "unknown")) == 22
    assert line_of(found, ("unknown",)) == 1


known = (
    "links main source target guard tables a.b floors window web alerts backup keep jobs mode include urls"
)
keys = st.sampled_from(known.split()) | st.text()
scalars = st.just("host=a") | st.booleans() | st.integers() | st.floats() | st.text()
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)  # a disk may be slow
@given(st.dictionaries(keys, trees, max_size=4))
def test_any_toml_loads_or_is_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    """Whatever the values, the answer is a configuration or one error with a line; never a crash."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    main = {"source": "host=a", "target": "host=b", **{key: tree.pop(key) for key in list(tree)[:2]}}
    document = {"links": {"main": main}, **tree}
    path.write_text("".join(f"{toml({key: value})[2:-2]}\n" for key, value in document.items()), "utf-8")
    try:
        places.load(path, {"HOME": "/h"})
    except ConfigError as error:
        complaint = error.message
    else:
        complaint = f"{path}:0: none"
    assert re.match(rf"{re.escape(str(path))}:\d+: ", complaint)


@settings(deadline=None)  # a disk may be slow
@given(st.text(max_size=60) | st.text("[]{}=.\"'#\na1 ", max_size=60))
def test_any_text_loads_or_is_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever the file holds, reading it ends in one error with a line."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}:\d+: "):
        places.load(path, {"HOME": "/h"})
