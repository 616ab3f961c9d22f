"""The demo tells its whole story, on the servers of the wheel as well; and it does not tell what is not so."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fix_servers import Cli
from pglockstep.demo.cast import Cast
from pglockstep.demo.story import COLUMNS, Story
from pglockstep.errors import EXIT_OK, LockstepError
from pglockstep.postgres.installations import EMBEDDED, EMBEDDED_PACKAGE

#: What is typed, in this order.
TYPED = [
    "$ pglockstep once",
    "$ pglockstep run",
    "$ kill -9",
    "$ pglockstep check",
    'shop=# DELETE FROM "Order";',
    "$ pglockstep incidents show 1",
    "$ pglockstep incidents restore 1",
    "$ pglockstep check",
    "dashboard=# DROP SCHEMA public CASCADE;",
    "$ pglockstep check",
    "$ pglockstep teardown",
]


def test_the_whole_story(cli: Cli, tmp_path: Path) -> None:
    """It needs nothing that is on PATH; every chapter is there, each comparison ends well, and a terminal is wide enough."""
    done = cli("demo", env={"PATH": str(tmp_path)}, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    typed = [line for line in lines if re.match(r"\$ |\w+=# ", line)]
    assert [line[: len(start)] for line, start in zip(typed, TYPED, strict=True)] == TYPED
    assert done.stdout.count("identical.") == 4
    assert "  |   what     a transaction (xid" in done.stdout
    if find_spec(EMBEDDED_PACKAGE) is not None:
        assert re.findall(r"PostgreSQL (\d+)|and (\d+)", lines[0])[-1][1] == str(max(EMBEDDED))


class _Forgetful(Cast):
    """Whoever types lets the wipe through, where the story says that it is put back."""

    def type(self, *arguments: str, codes: Collection[int] = (EXIT_OK,)) -> str:
        if arguments[:2] == ("incidents", "restore"):
            rows = sum(each["rows_lost"] for each in self.incident("source", "held")["tables"])
            arguments = ("incidents", "approve", arguments[2], "--rows", str(rows), "--yes")
        return super().type(*arguments, codes=codes)


def test_what_is_not_so_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders that are not put back end the story, and nobody reads that they were."""
    monkeypatch.setattr("pglockstep.demo.story.Cast", _Forgetful)
    told: list[str] = []
    with pytest.raises(LockstepError, match="the source does not have all its orders back"):
        Story(told.append, dict(os.environ)).tell()
    assert "it was a mistake" in told[-1]


@pytest.mark.parametrize("verdict", ["different", "inconclusive"])
def test_no_other_verdict_will_do(verdict: str) -> None:
    """A comparison that is not identical is not told as one."""
    link: dict[str, Any] = {"verdict": verdict, "tables": [], "seconds": 0.1}
    told: list[str] = []
    with pytest.raises(LockstepError, match=f"the ends are {verdict}"):
        Story(told.append, {})._identical(link)
    assert told == []
