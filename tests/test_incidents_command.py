"""``pglockstep incidents``: what is shown, what is refused, and how a decision waits for whoever carries it out."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from typing import Any

import pytest

from fix_copy import refused
from fix_incidents import KEY, NOWHERE, Other, a_decision, an_incident, reopened, state_in
from fix_servers import Cli, Pair, wait_until
from pglockstep.observe.incident import Incident, Loss
from pglockstep.observe.incidents import Incidents
from pglockstep.postgres.connect import fingerprint
from test_run import daemon as a_real_daemon

#: A process that holds the link's claim as a daemon does, and says so.
CLAIMED = "claim = state.claim(KEY); print('claimed', flush=True)\n"
#: It waits for a decision on the first incident.
DECIDED = CLAIMED + "while store.get('1').decision is None: time.sleep(0.01)\n"


@pytest.fixture
def store(cli: Cli) -> Incidents:
    """The store of the command's state directory, with one incident that is held."""
    store = Incidents(state_in(cli.directory / "state"))
    store.open(KEY, an_incident())
    return store


def incidents(done: subprocess.CompletedProcess[str], code: int = 0) -> list[dict[str, Any]]:
    """The incidents that a command printed as JSON."""
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads(done.stdout)["incidents"]
    assert isinstance(found, list)
    return found


def daemon(cli: Cli, script: str) -> Other:
    """A process that plays the daemon's part."""
    other = Other(cli.directory / "state", script)
    other.go()
    assert other.line() == "claimed"
    return other


# --- what is shown -----------------------------------------------------------------------------------


def test_the_document_of_an_incident(cli: Cli, store: Incidents) -> None:
    """The promised keys and shapes; what is not known is null; list is what is meant where nothing is named."""
    store.open(
        KEY, an_incident(side="target", kind="identity", tables=(), xid=None, lsn=None, happened_at=None)
    )
    first, second = incidents(cli("incidents", "--json", *NOWHERE))
    promised = {
        "id": "1",
        "link": "default",
        "side": "source",
        "kind": "delete",
        "xid": 731,
        "lsn": "0/16B3748",
        "state": "held",
        "opened_at": "2024-05-01T12:00:00Z",
        "detected_after_seconds": 0.25,
        "healed_after_seconds": None,
        "decided_by": None,
    }
    assert {key: first[key] for key in promised} == promised
    tables = [
        [each[key] for key in ("schema", "table", "rows_before", "rows_lost")] for each in first["tables"]
    ]
    assert tables == [["app", "jobs", None, 3], ["public", "User", 22, 22]]
    assert first["decisions"] == ["approve", "restore", "reject"]
    assert set(second) == set(first)
    assert (second["id"], second["tables"], second["xid"], second["lsn"]) == ("2", [], None, None)
    assert incidents(cli("incidents", "show", "1", "--json", *NOWHERE)) == [first]
    assert incidents(cli("incidents", "list", "default", "--json", *NOWHERE)) == [first, second]


def test_what_is_listed(cli: Cli, store: Incidents) -> None:
    """Those of the configured links, on request only the open ones; a directory without any says so."""
    store.open("a link of another configuration", an_incident())
    store.decide(store.open(KEY, an_incident(message="decided")).id, a_decision("reject"))
    store.concluded(store.open(KEY, an_incident(message="over")).id, "healed")
    lines = cli("incidents", *NOWHERE).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["1", "held"], ["3", "decided"], ["4", "healed"]]
    assert lines[0].endswith('delete on the source: a transaction deletes 22 of the 22 rows of public."User"')
    assert [each["id"] for each in incidents(cli("incidents", "--open", "--json", *NOWHERE))] == ["1", "3"]
    other = cli("incidents", *NOWHERE, "--state-dir", cli.directory / "other")
    assert (other.returncode, other.stdout) == (0, "there has been no incident\n")


def test_show_for_a_tired_person(cli: Cli, store: Incidents) -> None:
    """What happened, when, who, how much of which table, what is safe, and each decision as it is to be typed."""
    done = cli("incidents", "show", "1", *NOWHERE)
    assert done.returncode == 0
    said = done.stdout
    for each in (
        "incident 1 of link default: held, a decision is needed",
        "transaction 731 at 0/16B3748",
        "2024-05-01 11:59:59 UTC, noticed 0.25 s later",
        "app, with psql",
        'public."User": 22 of 22 rows (id=1; id=2; …)',
        "app.jobs: 3 rows",
        "the target keeps its last good state",
        "the journal goes on receiving",
        "  pglockstep incidents approve 1 --rows 25\n      it was meant",
        "  pglockstep incidents restore 1\n      it was not meant",
        "  pglockstep incidents reject 1\n      the source stays",
        "opened, held",
    ):
        assert each in said, each
    store.decide("1", a_decision("restore"))
    said = cli("incidents", "show", "1", *NOWHERE).stdout
    assert "healing, as decided by ada@desk" in said
    assert "to decide, type" not in said
    store.concluded("1", "restored", healed_after_seconds=1.5)
    said = cli("incidents", "show", "1", *NOWHERE).stdout
    assert said.startswith(
        "incident 1 of link default: restored 1.5 s after it happened, as decided by ada@desk"
    )
    assert "safe" not in said


def test_show_offers_what_can_be_done(cli: Cli, store: Incidents) -> None:
    """Another server, a target that was written to, a database that is gone: each its own decisions."""
    cases = (
        (an_incident(kind="identity", tables=()), ["approve 2", "restore 2"]),
        (an_incident(kind="foreign_write", side="target"), ["restore 3", "reject 3"]),
        (an_incident(kind="missing_database", side="target"), ["restore 4"]),
    )
    for incident, offered in cases:
        id = store.open(KEY, incident).id
        said = cli("incidents", "show", id, *NOWHERE).stdout
        typed = [line.split("incidents ")[1] for line in said.splitlines() if line.startswith("  pglockstep")]
        assert typed == offered


def test_nothing_shown_obeys_a_stranger(cli: Cli, store: Incidents) -> None:
    """Control characters in names, keys and statements never reach a terminal, and a long statement is cut off."""
    hostile = "\x1b[2J\r\n\x07"
    store.open(
        KEY,
        an_incident(
            message=hostile,
            tables=(Loss("s", f"t{hostile}", 1, 1, (hostile,), (hostile,)),),
            who=hostile,
            statements=(f"DROP {hostile}" + "x" * 10_000,),
        ),
    )
    for command in (("show", "2"), ("list",), ("restore", "2", "--yes")):
        done = cli("incidents", *command, *NOWHERE)
        said = done.stdout + done.stderr
        assert not {"\x1b", "\r", "\x07"} & set(said)
        assert len(said) < 5000


# --- what is refused ---------------------------------------------------------------------------------


def test_wrong_decisions_change_nothing(cli: Cli, store: Incidents) -> None:
    """A wrong id, a wrong number of rows or none, nobody to ask, a decision that makes no sense: exit 2, one line, one hint."""
    store.open(KEY, an_incident(kind="foreign_write", side="target"))
    before = store.listed()
    cases = (
        (("restore", "7", "--yes"), "there is no incident '7'", "open are: 1, 2"),
        (("approve", "one", "--rows", "25", "--yes"), "there is no incident 'one'", "open are: 1, 2"),
        (("show", "7"), "there is no incident '7'", "open are: 1, 2"),
        (("approve", "1", "--yes"), "the number of rows that it took has to be named", "approve 1 --rows 25"),
        (("approve", "1", "--rows", "22", "--yes"), "took 25 rows, not 22", "show 1"),
        (("approve", "1", "--rows", "25"), "there is no terminal to ask on", "--yes"),
        (("restore", "1"), "there is no terminal to ask on", "--yes"),
        (("reject", "1"), "there is no terminal to ask on", "--yes"),
        (
            ("approve", "2", "--rows", "25", "--yes"),
            "incident 2 cannot be approved",
            "restore 2 puts it back",
        ),
        (("approve", "1", "--rows", "-1", "--yes"), "--rows", "--help"),
        (("restore", "--yes"), "Missing argument 'ID'", "--help"),
    )
    for command, message, hint in cases:
        done = cli("incidents", *command, *NOWHERE)
        assert done.stdout == ""
        said = refused(done, 2)
        assert message in said[0]
        assert hint in said[1]
    assert store.listed() == before


def test_a_second_decision(cli: Cli, store: Incidents) -> None:
    """Exit 1; says what was decided, by whom and when; nothing is changed."""
    store.decide("1", a_decision("reject"))
    before = store.get("1")
    message, hint = refused(cli("incidents", "restore", "1", "--yes", *NOWHERE), 1)
    assert "was decided before: reject, by ada@desk at 2024-05-01 12:01:00 UTC" in message
    assert "show 1" in hint
    store.concluded("1", "rejected")
    assert (
        "it is rejected" in refused(cli("incidents", "approve", "1", "--rows", "25", "--yes", *NOWHERE), 1)[0]
    )
    assert store.get("1").decision == before.decision


def test_an_incident_of_a_link_that_is_not_configured(cli: Cli, store: Incidents) -> None:
    """It can be looked at, and not decided."""
    id = store.open("a link of another configuration", an_incident(link="elsewhere")).id
    assert cli("incidents", "show", id, *NOWHERE).returncode == 0
    message, hint = refused(cli("incidents", "restore", id, "--yes", *NOWHERE), 2)
    assert "is of link 'elsewhere'" in message
    assert "-c" in hint
    assert store.get(id).decision is None


@pytest.mark.parametrize("typed", ["n", "y"])
def test_on_a_terminal_it_asks(cli: Cli, store: Incidents, typed: str) -> None:
    """The question names the incident; no is no, and yes is decided by whoever sits there."""
    command = [sys.executable, "-m", "pglockstep", "incidents", "restore", "1", *NOWHERE]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*command, "--state-dir", str(cli.directory / "state")],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cli.directory,
    ) as process:
        os.write(ours, f"{typed}\n".encode())
        _, said = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert "incident 1, a transaction deletes 22" in said
    decided = store.get("1").decision
    if typed == "n":
        assert decided is None
        assert process.returncode == 130
    else:
        assert decided is not None
        assert decided.verb == "restore"
        assert "@" in decided.by
        # without a daemon it goes about it itself, and there is no source
        assert process.returncode == 4


# --- who carries it out ------------------------------------------------------------------------------


def test_without_a_daemon_the_decision_stands(cli: Cli, store: Incidents) -> None:
    """An end that is away is told; the incident is open and decided, by whoever typed it."""
    message, _ = refused(cli("incidents", "approve", "1", "--rows", "25", "--remember", "--yes", *NOWHERE), 4)
    assert "cannot connect to the source" in message
    message, hint = refused(cli("check", *NOWHERE), 6)
    assert "approve is decided, and not done yet" in message
    assert "pglockstep run or pglockstep once" in hint
    found = store.get("1")
    assert found.decision is not None
    assert (found.state, found.decision.rows, found.decision.remember) == ("held", 25, True)
    assert "@" in found.decision.by


def test_a_daemon_carries_it_out(cli: Cli, store: Incidents) -> None:
    """The command returns when the store says that it is done, with what became of it."""
    for verb, outcome, options in (
        ("restore", "restored", ()),
        ("reject", "rejected", ()),
        ("approve", "approved", ("--rows", "25")),
    ):
        id = store.open(KEY, an_incident()).id
        script = CLAIMED + (
            f"while store.get('{id}').decision is None: time.sleep(0.01)\n"
            f"store.change('{id}', 'half of it is done'); store.concluded('{id}', '{outcome}'); sys.stdin.readline()"
        )
        other = daemon(cli, script)
        (found,) = incidents(cli("incidents", verb, id, *options, "--yes", "--json", *NOWHERE))
        assert (found["id"], found["state"]) == (id, outcome)
        assert found["decided_by"] == reopened(cli.directory / "state").get(id).decided_by
        other.kill()
    other = daemon(cli, DECIDED + "store.concluded('1', 'restored', healed_after_seconds=2)")
    done = cli("incidents", "restore", "1", "--yes", *NOWHERE)
    assert done.returncode == 0
    assert done.stdout.startswith(
        "incident 1 of link default: restored 2 s after it happened, as decided by "
    )
    other.said()


@pytest.mark.parametrize("anew", ["", "store.decide('1', a_decision('reject'))"])
def test_what_cannot_be_carried_out(cli: Cli, store: Incidents, anew: str) -> None:
    """Exit 1 with the reason; it is held as before, or decided otherwise by somebody else meanwhile."""
    other = daemon(
        cli, DECIDED + f"store.undecided('1', 'the target is gone too'); {anew}\nsys.stdin.readline()"
    )
    message, hint = refused(cli("incidents", "restore", "1", "--yes", *NOWHERE), 1)
    other.kill()
    assert "incident 1 is held again: restore could not be carried out: the target is gone too" in message
    assert "show 1" in hint
    assert store.get("1").decided_by == ("ada@desk" if anew else None)


def test_a_daemon_that_dies_before(cli: Cli, store: Incidents) -> None:
    """The command waits no longer than the daemon lives; the decision stands."""
    other = daemon(cli, DECIDED + "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    message, _ = refused(cli("incidents", "reject", "1", "--yes", *NOWHERE), 4)
    assert "cannot connect to the source" in message
    assert store.get("1").decision is not None
    other.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_waits(cli: Cli, store: Incidents, how: signal.Signals) -> None:
    """Ctrl-C ends the waiting, and not the decision, and the command says so."""
    other = daemon(cli, CLAIMED + "sys.stdin.readline()")
    command = cli.start("incidents", "restore", "1", "--yes", *NOWHERE)

    def decided() -> Incident | None:
        found = store.get("1")
        return found if found.decision is not None else None

    wait_until(decided, 30, "the decision")
    assert command.stdout is not None
    assert "the daemon carries it out" in command.stdout.readline()
    command.send_signal(how)
    assert command.wait(30) == 130
    assert "the decision stands: restore incident 1" in command.stdout.read()
    assert store.get("1").state == "healing"
    other.kill()


# --- status ------------------------------------------------------------------------------------------


def test_status_tells_of_open_incidents(cli: Cli, store: Incidents) -> None:
    """How many, and which hold the link, also where neither end answers."""

    def guard() -> tuple[int, str]:
        done = cli("status", "--json", *NOWHERE)
        assert done.returncode == 1
        link = json.loads(done.stdout)["links"][0]
        return link["open_incidents"], link["guard"]

    assert guard() == (1, "held: incident 1")
    assert "  guard    held: incident 1; pglockstep incidents tells of it" in cli("status", *NOWHERE).stdout
    store.open(KEY, an_incident(state="healing"))
    store.open("another link", an_incident())
    assert guard() == (2, "held: incident 1")
    store.concluded("1", "healed")
    assert guard() == (1, "healing: incident 2")
    store.concluded("2", "healed")
    assert guard() == (0, "nothing is held")
    other = daemon(cli, CLAIMED + "sys.stdin.readline()")
    assert guard() == (0, "nothing is held")
    other.kill()


def test_beside_a_real_daemon_and_after_teardown(cli: Cli, pair: Pair) -> None:
    """The daemon and the commands mean the same link; what teardown removes of it is its incidents, too."""
    ends = ("--source", pair.source, "--target", pair.target)
    store = Incidents(state_in(cli.directory / "state"))
    with a_real_daemon(cli, pair) as running:
        assert running.status()["guard"] == "nothing is held"
        store.open(fingerprint(pair.source, pair.target), an_incident(state="healing"))
        status = running.status()
        assert (status["guard"], status["open_incidents"]) == ("healing: incident 1", 1)
        assert "  guard    healing: incident 1" in cli("status", *ends).stdout
        assert incidents(cli("incidents", "--json", *ends))[0]["id"] == "1"
    assert cli("teardown", "--yes", *ends).returncode == 0
    assert incidents(cli("incidents", "--json", *ends)) == []
