"""The state directory's files: older formats are upgraded in place, newer ones refused; row counts."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path

import msgspec
import pytest

from fix_copy import refused
from fix_incidents import KEY, NOWHERE, an_incident, at_once, reopened, state_in
from fix_servers import Cli
from pglockstep.errors import ConfigError
from pglockstep.observe.state import LinkStatus, StateDirectory, TableRows
from pglockstep.postgres.names import QualifiedName
from pglockstep.units import Lsn

ROWS = {
    QualifiedName("public", "User"): TableRows(22, 764_000_000_000_000),
    QualifiedName("public", "queue"): TableRows(0, None, 300, 0x16B3748),
    QualifiedName('s"; --', "t\n\x00"): TableRows(None),
}


def written_by_the_first_version(directory: Path) -> None:
    """A directory as a pglockstep before incidents left it behind."""
    directory.mkdir()
    conn = sqlite3.connect(directory / "state.sqlite", isolation_level=None)
    conn.execute("PRAGMA journal_mode = PERSIST")
    conn.execute("CREATE TABLE link (key TEXT PRIMARY KEY, name TEXT NOT NULL, status BLOB NOT NULL)")
    status = msgspec.json.encode(LinkStatus(link_id="0123456789ab", state="streaming", applied_lsn="0/64"))
    conn.execute("INSERT INTO link VALUES (?, 'main', ?)", [KEY, status])
    conn.execute("PRAGMA user_version = 1")
    conn.close()


def format_of(file: Path) -> int:
    conn = sqlite3.connect(file)
    (found,) = conn.execute("PRAGMA user_version").fetchone()
    conn.close()
    assert isinstance(found, int)
    return found


def test_an_older_directory_is_upgraded(tmp_path: Path) -> None:
    """By four processes that come at the same time; what was remembered is kept, and what is new works."""
    directory = tmp_path / "state"
    written_by_the_first_version(directory)
    said = at_once(directory, "state.create(); print(state.load(KEY).link_id)", 4)
    assert said == ["0123456789ab"] * 4
    assert (format_of(directory / "state.sqlite"), format_of(directory / "incidents.sqlite")) == (2, 4)
    state = StateDirectory(directory)
    assert state.load_rows(KEY) is None
    state.save_rows(KEY, Lsn(100), ROWS)
    assert state.load_rows(KEY) == (Lsn(100), ROWS)
    assert reopened(directory).open(KEY, an_incident()).id == "1"


@pytest.mark.parametrize("file", ["state.sqlite", "incidents.sqlite"])
def test_a_newer_directory_is_refused(cli: Cli, file: str) -> None:
    """By every command that uses it, with exit 3, and it is left as it is."""
    directory = cli.directory / "state"
    state_in(directory)
    conn = sqlite3.connect(directory / file)
    conn.execute("PRAGMA user_version = 99")
    conn.close()
    before = (directory / file).read_bytes()
    for command in (("incidents",), ("guard",), ("status",), ("incidents", "restore", "1", "--yes")):
        message, hint = refused(cli(*command, *NOWHERE), 3)
        assert "was written by a newer pglockstep" in message
        assert "newer version" in hint
    assert (directory / file).read_bytes() == before
    with pytest.raises(ConfigError):
        StateDirectory(directory).create()


def test_a_damaged_file(cli: Cli) -> None:
    """Exit 3, with the command that moves it away; after that everything works, and incidents are where they were."""
    directory = cli.directory / "state"
    state_in(directory)
    reopened(directory).open(KEY, an_incident())
    (directory / "state.sqlite").write_bytes(b"not a database" * 400)
    message, hint = refused(cli("status", *NOWHERE), 3)
    assert "state.sqlite is damaged" in message
    assert hint.startswith("move it away, all of it is found out anew: mv ")
    subprocess.run(hint.partition(": ")[2].split(), check=True)
    assert "held: incident 1" in cli("status", *NOWHERE).stdout
    (directory / "incidents.sqlite").write_bytes(b"not a database" * 400)
    assert "incidents.sqlite is damaged" in refused(cli("incidents", *NOWHERE), 3)[0]


def test_row_counts(tmp_path: Path) -> None:
    """As they were saved, of this link only; saved again they replace the others; forgotten they are gone."""
    state = state_in(tmp_path)
    state.save(KEY, "main", LinkStatus(state="streaming"))
    state.save_rows(KEY, Lsn.parse("16/B374D848"), ROWS)
    state.save_rows("another link", Lsn(5), {})
    assert StateDirectory(tmp_path).load_rows(KEY) == (Lsn.parse("16/B374D848"), ROWS)
    assert state.load_rows("another link") == (Lsn(5), {})
    assert state.load_rows("a third") is None
    one = dict(list(ROWS.items())[:1])
    state.save_rows(KEY, Lsn(7), one)
    assert state.load_rows(KEY) == (Lsn(7), one)
    state.forget(KEY)
    assert state.load_rows(KEY) is None
    assert state.load(KEY) is None
    assert state.load_rows("another link") == (Lsn(5), {})
