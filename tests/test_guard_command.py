"""``pglockstep guard``: purges announced, listed and revoked."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fix_copy import refused
from fix_incidents import KEY, NOWHERE, a_decision, an_incident, state_in
from fix_servers import Cli
from pglockstep.observe.incidents import Incidents

PURGE = ("--table", "public.events", "--rows", "500", "--for", "10m")


@pytest.fixture
def store(cli: Cli) -> Incidents:
    """The store of the command's state directory."""
    return Incidents(state_in(cli.directory / "state"))


def allowed(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The allowances that a command printed as JSON."""
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["allowances"]
    assert isinstance(found, list)
    return found


def test_announced_listed_and_revoked(cli: Cli, store: Incidents) -> None:
    """With the time at which it ends, by whom; names as in SQL; needs no terminal; ids are never given twice."""
    before = datetime.now(UTC)
    (first,) = allowed(cli("guard", "allow", *PURGE, "--json", *NOWHERE))
    assert [first[key] for key in ("id", "link", "schema", "table", "rows", "used")] == [
        "1",
        "default",
        "public",
        "events",
        500,
        0,
    ]
    assert (first["kind"], first["incident"]) == (None, None)
    until = datetime.fromisoformat(first["until"])
    assert before + timedelta(minutes=10) <= until <= datetime.now(UTC) + timedelta(minutes=10)
    assert store.allowances(KEY, until - timedelta(seconds=1))[0].rows == 500
    quoted = cli(
        "guard", "allow", "default", "--table", 'app."Old Jobs"', "--rows", "7", "--for", "1d", *NOWHERE
    )
    assert 'allowed, as number 2: anything on app."Old Jobs" up to 7 rows, until ' in quoted.stdout
    listed = allowed(cli("guard", "--json", *NOWHERE))
    assert [each["table"] for each in listed] == ["events", "Old Jobs"]
    assert listed[0] == first
    assert len(cli("guard", "list", *NOWHERE).stdout.splitlines()) == 2
    assert allowed(cli("guard", "revoke", "1", "--json", *NOWHERE)) == [first]
    said = cli("guard", "revoke", "2", *NOWHERE)
    assert said.stdout.startswith('default: revoked: anything on app."Old Jobs"')
    assert cli("guard", *NOWHERE).stdout == "nothing is allowed\n"
    assert allowed(cli("guard", "allow", *PURGE, "--json", *NOWHERE))[0]["id"] == "3"


def test_what_a_decision_left_behind(cli: Cli, store: Incidents) -> None:
    """A remembered decision is listed with its incident, without an end, with what was used of it."""
    store.open(KEY, an_incident())
    store.decide("1", a_decision("approve", 25, remember=True))
    store.concluded("1", "approved")
    store.use("1", 20)
    first, second = allowed(cli("guard", "list", "--json", *NOWHERE))
    assert (first["table"], first["rows"], first["used"], first["kind"]) == ("User", 22, 20, "delete")
    assert (first["until"], first["incident"], first["by"]) == (None, "1", "ada@desk")
    assert second["table"] == "jobs"
    said = cli("guard", *NOWHERE).stdout
    assert (
        'delete on public."User" up to 22 rows, 20 of them used, until it is revoked, remembered from' in said
    )


def test_wrong_announcements(cli: Cli, store: Incidents) -> None:
    """A table, a number, a time or an id that is none: exit 2, one line, one hint, and nothing is allowed."""

    def case(table: str = "public.events", rows: str = "5", time: str = "10m") -> tuple[str, ...]:
        return ("allow", "--table", table, "--rows", rows, "--for", time)

    for command, message in (
        (case(table="events"), "not of the form schema.table"),
        (case(table="public.Events"), "upper case outside of double quotes"),
        (case(table="public.*"), "is a pattern"),
        (case(rows="0"), "--rows"),
        (case(rows="many"), "--rows"),
        (case(time="10"), "not a duration"),
        (case(time="0"), "is not from 1s to 30d"),
        (case(time="31d"), "is not from 1s to 30d"),
        (("allow", "--table", "public.events", "--rows", "5"), "--for"),
        (("allow", "elsewhere", *PURGE), "there is no link 'elsewhere'"),
        (("revoke", "7"), "there is no allowance '7'"),
        (("revoke", "one"), "there is no allowance 'one'"),
    ):
        done = cli("guard", *command, *NOWHERE)
        assert done.stdout == ""
        said = refused(done, 2)
        assert message in said[0]
    assert store.allowances(KEY, datetime.now(UTC)) == []


def test_of_several_links(cli: Cli) -> None:
    """A purge is announced for one of them, and only for a table that it carries; the list names each one's link."""
    ends = 'source = "host=/nowhere dbname={0}"\ntarget = "host=/nowhere dbname=x{0}"\n'
    text = f'[links.a]\n{ends.format("a")}exclude = ["app.*"]\n[links.b]\n{ends.format("b")}'
    (cli.directory / "pglockstep.toml").write_text(text)
    message, hint = refused(cli("guard", "allow", *PURGE), 2)
    assert "several links" in message
    assert "configured are: a, b" in hint
    assert (
        "does not carry table app.x"
        in refused(cli("guard", "allow", "a", "--table", "app.x", "--rows", "1", "--for", "1m"), 2)[0]
    )
    for link in ("b", "a"):
        allowed(cli("guard", "allow", link, *PURGE, "--json"))
    assert [(each["id"], each["link"]) for each in allowed(cli("guard", "--json"))] == [
        ("2", "a"),
        ("1", "b"),
    ]
    assert [each["link"] for each in allowed(cli("guard", "list", "b", "--json"))] == ["b"]
    assert allowed(cli("guard", "revoke", "1", "--json"))[0]["link"] == "b"
