"""A daemon verifies its tables again and again: drift that no watch has seen is healed, and nothing else is called drift."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_servers import Cli, Pair, on_all_pairs, wait_until
from fix_shop import Shop, load
from pglockstep.link.rolling import Pass
from pglockstep.postgres.names import QualifiedName

#: What a replica writes no watch sees: our own applier is one.
UNSEEN = "SET session_replication_role = replica"


def verified(shop: Shop) -> dict[str, Any]:
    found: dict[str, Any] = shop.command("status")["links"][0]["last_verified"]
    return found


@pytest.mark.superusers
@on_all_pairs
def test_drift_is_found_and_healed(pair: Pair, cli: Cli) -> None:
    """A row that was changed behind the watch's back: an incident of the target's, put right, while the shop is open."""
    shop = Shop(cli, pair, "interval = '100ms'\n")
    shop.once()
    running = shop.start()
    with load(pair.source):
        wait_until(lambda: verified(shop)["verdict"] == "identical", 30, "a pass over all tables")
        assert shop.incidents() == []
        target = pair.on_target()
        target.execute(UNSEEN)
        target.execute("UPDATE \"User\" SET name = 'drift' WHERE id = 7; DELETE FROM visit WHERE n = 4")
        healed = wait_until(
            lambda: [each for each in shop.incidents() if each["state"] == "healed"],
            60,
            "the drift to be healed",
        )
        assert {(each["side"], each["kind"]) for each in shop.incidents()} == {("target", "foreign_write")}
        named = {table["table"] for each in healed for table in each["tables"]}
        assert named <= {"User", "visit"}
        wait_until(
            lambda: (
                shop.target_rows('"User"') == shop.source_rows('"User"')
                and shop.target_rows("visit") == shop.source_rows("visit")
            ),
            60,
            "both tables to be put right",
        )
    running.process.terminate()
    assert running.process.wait(20) == 0
    shop.once()


def test_nothing_else_is_drift(pair: Pair, cli: Cli) -> None:
    """Under load, pass after pass: no incident, and the age of the verdict keeps moving on."""
    shop = Shop(cli, pair, "interval = '50ms'\n")
    shop.once()
    shop.start()
    with load(pair.source, pause=0):
        first = wait_until(lambda: verified(shop)["verdict"] == "identical" and verified(shop), 30, "a pass")
        wait_until(lambda: verified(shop)["at"] > first["at"], 30, "another pass")
        time.sleep(2)
    assert shop.incidents() == []


@pytest.mark.superusers
def test_where_the_target_is_not_protected_it_is_only_told(pair: Pair, cli: Cli) -> None:
    """`protect_target = "off"`: a person hears of it, and decides."""
    shop = Shop(cli, pair, "interval = '100ms'\n[links.shop.guard]\nprotect_target = 'off'\n")
    shop.once()
    log = cli.directory / "log"
    process = cli.start("run", log=log)
    wait_until(lambda: "streaming from" in log.read_text(), 30, "the daemon")
    pair.on_target().execute("UPDATE \"User\" SET name = 'drift' WHERE id = 7")
    said = (
        '0 rows of public."User" are missing on the target, 0 extra, 1 changed; the target is not protected'
    )
    wait_until(lambda: said in log.read_text(), 30, "it to be told")
    assert shop.incidents() == []
    assert "drift" in "".join(shop.target_rows('"User"'))
    process.terminate()
    assert process.wait(20) == 0


@pytest.mark.superusers
def test_drift_is_held_where_that_was_chosen(pair: Pair, cli: Cli) -> None:
    """`on_target_wipe = "hold"`: the incident waits for a decision, and the drift is still there."""
    shop = Shop(cli, pair, "interval = '100ms'\n[links.shop.guard]\non_target_wipe = 'hold'\n")
    shop.once()
    shop.start()
    target = pair.on_target()
    target.execute(UNSEEN)
    target.execute("UPDATE item SET label = 'drift' WHERE id = 7")
    incident = shop.held()
    assert (incident["side"], incident["kind"]) == ("target", "foreign_write")
    assert "drift" in "".join(shop.target_rows("item"))
    shop.command("incidents", "restore", incident["id"], "--yes")
    assert shop.target_rows("item") == shop.source_rows("item")


@pytest.mark.parametrize("plain_roles", [True], indirect=True, ids=["plain"])
def test_a_table_that_may_not_be_read_is_not_in_the_way_of_others(pair: Pair, cli: Cli) -> None:
    """It is told of, again and again; drift of another table is found all the same."""
    shop = Shop(cli, pair, "interval = '100ms'\n")
    shop.once()
    shop.start()
    pair.on_source().execute('REVOKE SELECT ON "User" FROM CURRENT_USER')
    target = pair.on_target()
    target.execute(UNSEEN)
    target.execute("UPDATE item SET label = 'drift' WHERE id = 7")
    wait_until(lambda: shop.target_rows("item") == shop.source_rows("item"), 60, "the drift to be healed")


NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1)


@given(st.lists(st.tuples(NAMES, st.integers(1, 4)), min_size=1, max_size=30))
def test_every_table_has_its_turn(turns: list[tuple[list[str], int]]) -> None:
    """However tables come and go: the longest not compared is first, and a verdict on all is as old as the oldest of it."""
    known = Pass()
    at = datetime(2024, 1, 1, tzinfo=UTC)
    compared: dict[str, datetime] = {}
    for letters, count in turns:
        names = [QualifiedName("s", letter) for letter in sorted(letters)]
        compared = {letter: when for letter, when in compared.items() if letter in letters}
        order = known.turn(names)
        assert sorted(order) == names
        ages = [compared.get(name.name, datetime.min.replace(tzinfo=UTC)) for name in order]
        assert ages == sorted(ages)
        for name in order[:count]:
            at += timedelta(seconds=1)
            known.note(name, at, "identical")
            compared[name.name] = at
        over_all = known.over_all(names)
        if set(compared) == set(letters):
            assert over_all == (min(compared.values()), "identical")
        else:
            assert over_all is None


def test_a_table_that_differs_is_not_known() -> None:
    """Until it is compared again there is no verdict over all; one that could not be compared makes it inconclusive."""
    known = Pass()
    a, b = QualifiedName("s", "a"), QualifiedName("s", "b")
    at = datetime(2024, 1, 1, tzinfo=UTC)
    for name in known.turn([a, b]):
        known.note(name, at, "identical")
    known.note(a, at, "different")
    assert known.over_all([a, b]) is None
    assert known.turn([a, b])[0] == a
    known.note(a, at, "inconclusive")
    assert known.over_all([a, b]) == (at, "inconclusive")
    assert known.over_all([]) is None


def test_tables_that_differ_do_not_take_every_turn() -> None:
    """While nobody heals them the others are compared all the same."""
    known = Pass()
    names = [QualifiedName("s", letter) for letter in "abcdef"]
    at = datetime(2024, 1, 1, tzinfo=UTC)
    seen = set()
    for _ in range(3):
        for name in known.turn(names)[:2]:
            at += timedelta(seconds=1)
            seen.add(name)
            known.note(name, at, "different" if name.name in "ab" else "identical")
    assert seen == set(names)
