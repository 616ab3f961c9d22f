"""``pglockstep init`` writes a file that is what it says: loadable, complete, at its defaults, and for one pair of eyes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fix_config import loaded
from fix_servers import Cli, Pair
from pglockstep.config import places
from pglockstep.config.docs import example, first_file
from pglockstep.config.sections import Config
from pglockstep.config.unbuilt import not_built_yet

ENDS = ["--source", "postgresql://app:s3cr3t@localhost/app", "--target", "service=elsewhere"]


def test_what_it_writes_loads_and_has_every_default(cli: Cli) -> None:
    """The file says of a link what two connection strings alone say of it, and its mode keeps a password to its owner."""
    done = cli("init", *ENDS)
    assert done.returncode == 0, done.stderr
    path = cli.directory / "pglockstep.toml"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "next: pglockstep doctor" in done.stdout
    assert "s3cr3t" not in done.stdout + done.stderr
    written = places.load(path, os.environ)
    given = places.from_ends(ENDS[1], ENDS[3], os.environ, None)
    assert list(written.links) == ["main"]
    link, same = written.links["main"], given.links["default"]
    assert [getattr(link, name) for name in link.__struct_fields__ if name != "name"] == [
        getattr(same, name) for name in same.__struct_fields__ if name != "name"
    ]
    assert not_built_yet(written) == []
    assert ".pgpass" in path.read_text()


def test_every_key_is_in_it_and_can_be_uncommented(tmp_path: Path) -> None:
    """Without its #, each line is a key of the example in the docs, and the whole is a configuration."""
    text = first_file("main", "host=a", "host=b", Path("/var/lib/pglockstep"))
    key_file = tmp_path / "backup.key"
    key_file.write_text("k\n")
    bare = re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE).replace(
        "/etc/pglockstep/backup.key", str(key_file)
    )

    def load(content: str) -> Config:
        return loaded(tmp_path, content, ALERT_URL="json://alerts", PGLOCKSTEP_WEB_TOKEN="t")

    documented = re.sub("^source = .*$", 'source = "host=a"', example(), flags=re.MULTILINE)
    documented = re.sub("^target = .*$", 'target = "host=b"', documented, flags=re.MULTILINE)
    assert load(bare) == load(documented.replace("/etc/pglockstep/backup.key", str(key_file)))


def test_names_and_strings_of_any_kind(tmp_path: Path) -> None:
    """Quotes, backslashes and blanks of a connection string come back as they were."""
    odd = "host='/tmp/a b' dbname='it\\'s \\\\ \"odd\"' user=ü"
    whole = loaded(tmp_path, first_file("main", odd, "host=b"))
    assert whole.links["main"].source == odd


def test_a_file_is_not_overwritten_unasked(cli: Cli) -> None:
    """Exit 2 and the old file as it was; with --yes the new one, again for its owner alone."""
    path = cli.directory / "pglockstep.toml"
    path.write_text("# mine\n")
    done = cli("init", *ENDS)
    assert done.returncode == 2
    assert "--yes" in done.stderr.splitlines()[1]
    assert path.read_text() == "# mine\n"
    assert cli("init", *ENDS, "--yes").returncode == 0
    assert "links.main" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in cli.directory.iterdir() if each.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ([], 2, "no terminal"),
        (ENDS[:2], 2, "the target"),
        (["--source", "host=a b c", "--target", "host=b"], 3, "libpq cannot read it"),
        ([*ENDS, "-c", "nowhere/at/all.toml"], 3, "nowhere/at/all.toml"),
    ],
)
def test_what_it_refuses(cli: Cli, arguments: list[str], code: int, word: str) -> None:
    """Wrong input ends with its code, one line and a hint, and leaves no file."""
    done = cli("init", *arguments)
    assert done.returncode == code, done.stderr
    line, hint = done.stderr.splitlines()
    assert word in line
    assert hint.startswith("HINT: ")
    assert list(cli.directory.iterdir()) == []


def test_it_asks_at_a_terminal(cli: Cli) -> None:
    """Both ends are asked for where somebody can answer."""
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "pglockstep", "init", "-c", "asked.toml"]
    with subprocess.Popen(
        command, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cli.directory, text=True
    ) as process:
        os.close(follower)
        os.write(leader, b"host=a dbname=x\nhost=b dbname=y\n")
        output, questions = process.communicate(timeout=60)
        os.close(leader)
    assert process.returncode == 0, questions
    assert "Where is the source" in questions
    assert "next: pglockstep doctor -c asked.toml" in output
    written = places.load(cli.directory / "asked.toml", os.environ).links["main"]
    assert (written.source, written.target) == ("host=a dbname=x", "host=b dbname=y")


def test_the_next_step_that_it_names_works(pair: Pair, cli: Cli) -> None:
    """init, doctor, once: three commands from nothing to two identical databases."""
    assert cli("init", "--source", pair.source, "--target", pair.target).returncode == 0
    assert cli("doctor").returncode == 0
    assert cli("once").returncode == 0
