"""The store of incidents: several processes at once, kill -9, other formats; and what is promised of each call."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from fix_incidents import KEY, NOON, Other, a_decision, an_incident, at_once, reopened, state_in
from pglockstep.errors import ConfigError, DecisionRefused, UsageProblem
from pglockstep.observe.incident import Allowance, Loss
from pglockstep.observe.incidents import Incidents
from pglockstep.observe.state import LinkStatus, StateDirectory


@pytest.fixture
def store(tmp_path: Path) -> Incidents:
    """An empty store, whose clock stands at ten seconds past noon."""
    return Incidents(state_in(tmp_path), lambda: NOON + timedelta(seconds=10))


def an_allowance(**fields: object) -> Allowance:
    """500 rows of public.events, by Ada."""
    allowance = Allowance(schema="public", table="events", rows=500, by="ada@desk", at=NOON)
    return msgspec.structs.replace(allowance, **fields)


# --- one process -------------------------------------------------------------------------------------


def test_an_incident_is_found_again_as_it_was_opened(store: Incidents, tmp_path: Path) -> None:
    """Every piece of evidence, hostile names too, read by a later process; ids are counted texts."""
    evidence = an_incident(
        tables=(Loss('s"; --', "t\n\x1b[31m", None, 7, columns=("ä", ""), keys=("id=1", "\0")),),
        statements=("DROP SCHEMA public CASCADE",),
        since_lsn="0/1",
    )
    opened = store.open(KEY, evidence)
    assert (opened.id, opened.audit[0].what) == ("1", "opened, held")
    assert store.open("another link", an_incident(side="target", kind="floor", state="healing")).id == "2"
    assert reopened(tmp_path).get("1") == opened
    assert msgspec.structs.replace(opened, id="", audit=()) == evidence
    assert store.link_key("2") == "another link"


def test_what_is_listed(store: Incidents) -> None:
    """Of all links or some, all or the open ones, in the order in which they were opened."""
    for key in ("a", "b", "a", "c"):
        store.open(key, an_incident())
    store.concluded("1", "healed")

    def ids(*keys: str, only_open: bool = False) -> list[str]:
        return [each.id for each in store.listed(keys or None, only_open=only_open)]

    assert ids() == ["1", "2", "3", "4"]
    assert ids("a", "c") == ["1", "3", "4"]
    assert ids("a", only_open=True) == ["3"]
    assert ids(only_open=True) == ["2", "3", "4"]
    assert store.listed([]) == []


def test_an_id_is_never_given_twice(store: Incidents, tmp_path: Path) -> None:
    """Not even when a link and all its incidents were forgotten; another link's stay."""
    store.open(KEY, an_incident())
    store.open("another link", an_incident())
    store.open(KEY, an_incident())
    store.allow(KEY, an_allowance())
    kept = store.allow("another link", an_allowance())
    StateDirectory(tmp_path).forget(KEY)
    assert [each.id for each in store.listed()] == ["2"]
    assert store.open(KEY, an_incident()).id == "4"
    assert store.allowances(KEY, NOON) == []
    assert store.allowances("another link", NOON) == [kept]
    assert store.allow(KEY, an_allowance()).id == "3"


@pytest.mark.parametrize("id", ["7", "0", "-1", "01", " 1", "1.0", "", "x", "²", "9" * 40])
def test_an_id_that_there_is_not(store: Incidents, id: str) -> None:
    """Refused with the ids of the open ones, by every call, and nothing is changed."""
    for _ in range(3):
        store.open(KEY, an_incident())
    store.concluded("2", "healed")
    before = store.listed()
    with pytest.raises(UsageProblem, match="there is no incident") as caught:
        store.get(id)
    assert "open are: 1, 3" in caught.value.hint
    with pytest.raises(UsageProblem):
        store.decide(id, a_decision("restore"))
    with pytest.raises(UsageProblem):
        store.undecided(id, "why")
    with pytest.raises(UsageProblem):
        store.link_key(id)
    assert store.listed() == before


def test_the_life_of_a_decision(store: Incidents) -> None:
    """Decided, could not be carried out, decided otherwise, carried out: each with a line of the audit."""
    id = store.open(KEY, an_incident()).id
    assert store.decide(id, a_decision("restore")).state == "healing"
    changed = store.change(id, "three tables are back", who="app@10.0.0.7")
    assert changed.who == "app@10.0.0.7"
    held = store.undecided(id, "the target is gone too")
    assert (held.state, held.decision, held.decided_by) == ("held", None, None)
    decided = store.decide(id, a_decision("approve", 25))
    assert (decided.state, decided.decided_by, decided.is_open) == ("held", "ada@desk", True)
    done = store.concluded(id, "approved", "at 0/2000")
    assert (done.state, done.is_open, done.healed_after_seconds) == ("approved", False, None)
    assert [each.what for each in done.audit] == [
        "opened, held",
        "restore, decided by ada@desk",
        "three tables are back",
        "restore could not be carried out: the target is gone too",
        "approve of 25 rows, decided by ada@desk",
        "let through: at 0/2000",
    ]
    assert store.get(id) == done
    assert store.allowances(KEY, NOON) == []


def test_what_is_over_cannot_be_changed_into_something_else(store: Incidents) -> None:
    """A second decision, an outcome that cannot follow, a state set past the rules: refused, and nothing is changed."""
    id = store.open(KEY, an_incident()).id
    with pytest.raises(ValueError, match="cannot become restored"):
        store.concluded(id, "restored")
    with pytest.raises(ValueError, match="not for change: decision, state"):
        store.change(id, "by hand", state="healed", decision=None)
    store.decide(id, a_decision("reject"))
    with pytest.raises(DecisionRefused):
        store.decide(id, a_decision("reject"))
    done = store.concluded(id, "rejected")
    with pytest.raises(ValueError, match="rejected cannot become undecided"):
        store.undecided(id, "why")
    with pytest.raises(DecisionRefused):
        store.decide(id, a_decision("restore"))
    assert store.get(id) == done


def test_how_long_healing_took(store: Incidents) -> None:
    """From when it happened, or else from when it was noticed; never less than nothing; or as measured."""
    cases = ((NOON - timedelta(seconds=2), 12.0), (None, 10.0), (NOON + timedelta(days=1), 0.0))
    for happened, seconds in cases:
        id = store.open(KEY, an_incident(side="target", state="healing", happened_at=happened)).id
        assert store.concluded(id, "healed").healed_after_seconds == seconds
    id = store.open(KEY, an_incident(side="target", state="healing")).id
    assert store.concluded(id, "healed", healed_after_seconds=0.5).healed_after_seconds == 0.5


def test_an_approval_that_is_remembered(store: Incidents) -> None:
    """Allows the same kind on the same tables up to so many rows, from when it was carried out, until it is revoked."""
    id = store.open(KEY, an_incident()).id
    store.decide(id, a_decision("approve", 25, remember=True))
    assert store.allowances(KEY, NOON) == []
    store.concluded(id, "approved")
    allowed = store.allowances(KEY, NOON + timedelta(days=1000))
    assert [(each.schema, each.table, each.rows, each.kind, each.incident, each.by) for each in allowed] == [
        ("public", "User", 22, "delete", id, "ada@desk"),
        ("app", "jobs", 3, "delete", id, "ada@desk"),
    ]
    assert store.revoke([KEY], allowed[0].id) == (KEY, allowed[0])
    assert store.allowances(KEY, NOON) == allowed[1:]


def test_what_was_announced_ends_by_itself(store: Incidents) -> None:
    """It stands until its time, by the clock of whoever asks; what is used of it is counted; revoked it is gone at once."""
    until = NOON + timedelta(minutes=10)
    purge = store.allow(KEY, an_allowance(until=until))
    assert store.allowances(KEY, until - timedelta(microseconds=1)) == [purge]
    assert store.allowances(KEY, until) == []
    assert store.allowances("another link", NOON) == []
    assert store.use(purge.id, 200) == msgspec.structs.replace(purge, used=200)
    store.use(purge.id, 100)
    assert store.allowances(KEY, NOON)[0].used == 300
    with pytest.raises(UsageProblem, match="there is no allowance") as caught:
        store.revoke([KEY], "7")
    assert "there are: 1" in caught.value.hint
    with pytest.raises(UsageProblem):
        store.revoke(["another link"], purge.id)
    store.revoke([KEY], purge.id)
    assert store.use(purge.id, 1) is None
    with pytest.raises(UsageProblem) as caught:
        store.revoke([KEY], purge.id)
    assert caught.value.hint == "nothing is allowed"


# --- several processes -------------------------------------------------------------------------------


def test_opened_by_many_at_once(tmp_path: Path) -> None:
    """Four processes on a directory that none of them has seen: every incident is there, no id twice."""
    tmp_path.joinpath("state").mkdir()
    script = "for _ in range(15): print(store.open(KEY, an_incident()).id)"
    ids = at_once(tmp_path / "state", script, 4)
    assert sorted(map(int, ids)) == list(range(1, 61))
    assert len(reopened(tmp_path / "state").listed([KEY])) == 60


def test_decided_by_many_at_once(store: Incidents, tmp_path: Path) -> None:
    """Of decisions taken at the same moment one is taken, and the others are told so."""
    script = """
for number in map(str, range(1, 6)):
    try:
        store.decide(number, a_decision("reject"))
        print(number)
    except LockstepError as error:
        print(error.exit_code, "was decided before" in error.message)
"""
    for _ in range(5):
        store.open(KEY, an_incident())
    said = at_once(tmp_path, script, 4)
    assert sorted(line for line in said if line.isdigit()) == ["1", "2", "3", "4", "5"]
    assert [line for line in said if not line.isdigit()] == ["1 True"] * 15
    assert all(len(each.audit) == 2 for each in store.listed())


def test_used_by_many_at_once(store: Incidents, tmp_path: Path) -> None:
    """What several processes use of an allowance adds up; so do their lines in an audit."""
    store.allow(KEY, an_allowance())
    store.open(KEY, an_incident())
    script = "for number in range(10): store.use('1', 3); store.change('1', f'step {number}')"
    at_once(tmp_path, script, 4)
    assert store.allowances(KEY, NOON)[0].used == 120
    assert len(store.get("1").audit) == 41


def test_whoever_comes_second_waits(store: Incidents, tmp_path: Path) -> None:
    """A process that holds the file makes others wait, and not fail."""
    other = Other(
        tmp_path,
        "with state.lasting.writing():\n print('in', flush=True); sys.stdin.readline()\nprint('out')",
    )
    other.go()
    assert other.line() == "in"
    waiting = Other(tmp_path, "print(store.open(KEY, an_incident()).id)")
    waiting.go()
    # reading does not have to wait
    assert store.listed() == []
    other.go()
    assert other.said() == ["out"]
    assert waiting.said() == ["1"]


def test_killed_while_it_writes(store: Incidents, tmp_path: Path) -> None:
    """kill -9 at any moment: what was said to be done is there, at most one more, and each either whole or not at all."""
    script = """
while True:
    id = store.open(KEY, an_incident()).id
    print("opened", id, flush=True)
    store.decide(id, a_decision("reject"))
    print("decided", id, flush=True)
"""
    for delay in (0.0, 0.02, 0.05, 0.11, 0.23):
        before = len(store.listed())
        other = Other(tmp_path, script)
        other.go()
        assert other.line().startswith("opened")
        time.sleep(delay)
        said = other.kill()
        incidents = store.listed()
        opened = before + 1 + sum(line.startswith("opened") for line in said)
        assert len(incidents) in (opened, opened + 1)
        assert [int(each.id) for each in incidents] == list(range(1, len(incidents) + 1))
        for each in incidents:
            assert len(each.audit) == (1 if each.decision is None else 2)
        decided = {line.split()[1] for line in said if line.startswith("decided")}
        assert decided <= {each.id for each in incidents if each.decision is not None}


def test_killed_within_a_transaction(store: Incidents, tmp_path: Path) -> None:
    """What was not committed is undone by whoever comes next, and its lock goes with the process."""
    store.open(KEY, an_incident())
    before = store.listed()
    other = Other(
        tmp_path,
        """
with state.lasting.writing() as conn:
    conn.execute("PRAGMA cache_size = 1")
    conn.execute("DELETE FROM incident")
    for _ in range(2000):
        conn.execute("INSERT INTO incident (key, open, body) VALUES ('torn', 1, zeroblob(500))")
    print("in", flush=True)
    sys.stdin.readline()
""",
    )
    other.go()
    assert other.line() == "in"
    # it has written into the file itself already
    assert (tmp_path / "incidents.sqlite").stat().st_size > 500_000
    other.kill()
    assert store.listed() == before
    assert store.open(KEY, an_incident()).id == "2"


# --- the file ----------------------------------------------------------------------------------------


def test_it_is_on_the_disk(tmp_path: Path) -> None:
    """Every commit of the store waits for the disk; that of how a link stands does not, and is in another file."""
    state = state_in(tmp_path)
    with state.lasting.writing() as conn:
        assert conn.execute("PRAGMA synchronous").fetchone() == (2,)
        assert conn.execute("PRAGMA database_list").fetchone()[2] == str(tmp_path / "incidents.sqlite")
    state.save(KEY, "main", LinkStatus(state="streaming"))
    with sqlite3.connect(tmp_path / "incidents.sqlite") as conn:
        names = {name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    conn.close()
    assert names == {"incident", "allowance", "pinned", "request", "target", "sqlite_sequence"}


def test_a_directory_that_is_gone(store: Incidents, tmp_path: Path) -> None:
    """A store that cannot be written says so, with what to do; nothing is passed over."""
    store.open(KEY, an_incident())
    shutil.rmtree(tmp_path)
    for call in (lambda: store.open(KEY, an_incident()), store.listed, lambda: store.allowances(KEY, NOON)):
        with pytest.raises(ConfigError, match="cannot be written") as caught:
            call()
        assert "--state-dir" in caught.value.hint


def test_a_file_that_is_none(store: Incidents, tmp_path: Path) -> None:
    """A damaged file is an error, never an empty list of incidents."""
    (tmp_path / "incidents.sqlite").write_bytes(b"not a database" * 400)
    with pytest.raises(ConfigError, match=r"incidents\.sqlite is damaged: file is not a database") as caught:
        store.listed()
    assert "incidents is lost with it" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk(tmp_path: Path) -> None:
    """What is open can be decided and concluded; what cannot be written down any more is told, and not half there."""
    folder = tmp_path / "state"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        store = Incidents(state_in(folder))
        store.open(KEY, an_incident())
        store.decide("1", a_decision("restore"))
        store.undecided("1", "the target is away")
        with suppress(OSError):
            (folder / "filler").write_bytes(bytes(1_000_000))
        opened = 1
        with pytest.raises(ConfigError, match="is full"):
            while True:
                store.open(KEY, an_incident())
                opened += 1
        assert len(store.listed()) == opened
        store.decide("1", a_decision("reject"))
        assert store.concluded("1", "rejected").state == "rejected"
        assert store.get("1").state == "rejected"
    finally:
        subprocess.run(["umount", folder], check=True)
