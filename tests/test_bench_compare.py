"""The comparing part of the benchmarks: who does not see a difference takes no part, and an answer is read as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from bench import compare, work
from bench.comparers import Comparer, PglockstepCheck, Plain
from bench.datadiff import DataDiff
from bench.processes import Argv, ContenderFailed
from bench.results import Conditions
from bench.servers import Servers as Ends
from bench.servers import create_database, drop_database
from bench.work import Twins

from fix_servers import INSTALLED, Servers, majors
from pglockstep.postgres.installations import Installation

SMALL = Twins(pgbench_scale=1, rows=1000)


class Told:
    """A contender that always says the same, and looks at nothing."""

    differs = 1

    def __init__(self, name: str, script: str, same: dict[str, bool]) -> None:
        self.name = self.title = name
        self._script = script
        self._same = same

    def missing(self, installation: Installation) -> str:
        """Nothing."""
        return ""

    def commands(self, servers: Ends, source: str, target: str, scratch: Path) -> list[Argv]:
        """Something that ends."""
        return [["sh", "-c", self._script]]

    def same(self, written: Sequence[str]) -> dict[str, bool]:
        """What it was told to say."""
        return self._same


@pytest.fixture
def ends(servers: Servers) -> Ends:
    """Two servers of one version."""
    major = majors[-1]
    return Ends(INSTALLED[major], servers.source(major), servers.target(major))


def test_who_takes_part_has_seen_a_difference(ends: Ends) -> None:
    """On real ends: those who look are timed; who is blind, fails or names too much is told of and not timed."""
    truth = {table: table not in Twins.DAMAGE for table in Twins.KEYS}
    others = [
        Told("blind", "true", dict.fromkeys(Twins.KEYS, True)),
        Told("lazy", "true", truth | {"five": True}),
        Told("broken", "echo no route >&2; exit 3", truth),
        Told("suspicious", "exit 1", truth),
    ]
    contenders: list[Comparer] = [Plain(), PglockstepCheck(), *others]
    held = compare.measure(ends, contenders, SMALL, 2, Conditions.here("", "", {}))

    contest = held.contest
    assert held.rows == 101_011
    for name in ("plain", "pglockstep"):
        assert contest.complaint(name) == ""
        assert len(contest.of(name)) == 2
    assert contest.absent["blind"] == "five: told the same, pgbench_accounts: told the same"
    assert contest.absent["lazy"] == "five: told the same"
    assert contest.absent["broken"] == "ContenderFailed: sh ended with 3: no route"
    # it did see the damage, but there is none any more: its exit code alone says that it is wrong
    assert contest.complaint("suspicious") == "failed: ContenderFailed: sh ended with 1:"


def test_the_damage_and_its_end(ends: Ends) -> None:
    """What is damaged differs in just those tables, and is afterwards what it was; some values of all columns are NULL."""
    tables = list(Twins.KEYS)
    try:
        source, target = (create_database(server, "twins") for server in (ends.source, ends.target))
        assert SMALL.prepare(ends, "twins") > 0
        truth = work.fingerprints(source, tables)
        assert sum(rows for rows, _ in truth.values()) == SMALL.all_rows
        assert work.fingerprints(target, tables) == truth
        SMALL.damage(target)
        harmed = work.fingerprints(target, tables)
        assert {table for table in tables if harmed[table] != truth[table]} == set(Twins.DAMAGE)
        SMALL.mend(target)
        assert work.fingerprints(target, tables) == truth
    finally:
        for server in (ends.source, ends.target):
            drop_database(server, "twins")


def test_the_standard_twins() -> None:
    """What the goal is set for: 4 M rows and a few."""
    assert Twins.scaled(1) == Twins(pgbench_scale=30, rows=1_000_000)
    assert Twins.scaled(1).all_rows == 4_000_330


def test_an_answer_has_to_speak_of_every_table() -> None:
    """Who leaves a table out, or names one that is the same, is wrong."""
    same = dict.fromkeys(Twins.KEYS, True)
    assert compare.misjudged(same, ()) == ""
    assert compare.misjudged(same | {"five": False}, ()) == "five: told different"
    assert compare.misjudged({table: True for table in same if table != "five"}, ()) == "five: told nothing"
    assert compare.misjudged(same | {"five": False}, ["five"]) == ""


def test_psql_told_of_fewer_tables() -> None:
    """A line is missing: that is no answer."""
    lines = [f"{number}|7" for number in range(len(Twins.KEYS))]
    assert set(Plain().same(["\n".join(lines)] * 2).values()) == {True}
    assert Plain().same(["\n".join(lines), "\n".join(["0|8", *lines[1:]])])["five"] is False
    with pytest.raises(ContenderFailed, match="psql told of 4 and 3 of 4 tables"):
        Plain().same(["\n".join(lines), "\n".join(lines[:3])])


def test_what_check_writes_is_read() -> None:
    """The link's verdict and its tables' have to agree: a difference elsewhere is one, too."""
    document = (
        '{"links": [{"name": "x", "verdict": "%s", "tables": [{"table": "five", "verdict": "identical"}]}]}'
    )
    assert PglockstepCheck().same([document % "identical"]) == {"five": True}
    for written in (document % "different", document % "inconclusive", "", '{"links": []}'):
        with pytest.raises(ContenderFailed):
            PglockstepCheck().same([written])


def test_what_data_diff_counts_is_read() -> None:
    """No row that differs is the same; anything but the counts is no answer."""
    differ = DataDiff("data-diff", "by default", 2, 32)
    assert differ.title == "data-diff 0.11.2, by default (2 threads, factor 32)"
    assert differ.same(['{"five": 0, "pgbench_accounts": 2}']) == {"five": True, "pgbench_accounts": False}
    with pytest.raises(ContenderFailed):
        differ.same(["Traceback"])
