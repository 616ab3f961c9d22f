"""Configurations for the tests: a text becomes a file, and the file a configuration or an error."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from pglockstep.config import places
from pglockstep.config.sections import Config
from pglockstep.errors import EXIT_CONFIG, ConfigError

#: The smallest configuration, of three lines; what is added to it begins on line 4, in the table of the link.
LINK = '[links.main]\nsource = "host=a"\ntarget = "host=b"\n'
#: Stands for a password, and must never be seen.
SECRET = "s3cr3t"


def loaded(directory: Path, text: str, **environ: str) -> Config:
    """Load `text` as a file in `directory`, which is the home of the environment too."""
    path = directory / "pglockstep.toml"
    path.write_text(text, encoding="utf-8")
    return places.load(path, {"HOME": str(directory), **environ})


def refused(directory: Path, text: str, **environ: str) -> tuple[str, str]:
    """Load `text`, which has to be refused: the message, without the file's name, and the hint."""
    with pytest.raises(ConfigError) as caught:
        loaded(directory, text, **environ)
    error = caught.value
    assert error.exit_code == EXIT_CONFIG
    assert SECRET not in "".join(traceback.format_exception(error)) + error.hint
    file = f"{directory}/pglockstep.toml:"
    assert error.message.startswith(file)
    return error.message.removeprefix(file), error.hint
