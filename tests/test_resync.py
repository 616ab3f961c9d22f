"""Tables that do not follow any more are brought back by one command: told and confirmed, with a daemon and without."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from fix_copy import refused
from fix_servers import Cli, Pair, wait_until
from fix_shop import Shop, load
from test_run import Daemon


def rejected(shop: Shop, *statements: str, running: Daemon | None = None) -> dict[str, Any]:
    """Do this to the source, and reject the incident; everything else follows."""
    shop.wipe(*statements)
    if running is None:
        refused(shop.cli("once"), 6)
    incident = shop.held()
    done = shop.command("incidents", "reject", incident["id"], "--yes")
    assert done["incidents"][0]["state"] == "rejected"
    return incident


def follows(shop: Shop, running: Daemon | None = None) -> None:
    """Both ends are identical, and what is written to the source arrives."""
    shop.wipe("INSERT INTO visit VALUES ('since', 1)")
    if running is None:
        assert shop.once()["copied_rows"] == 0
    else:
        wait_until(lambda: "(since,1)" in shop.target_rows("visit"), 20, "the table to follow")
        assert running.process.poll() is None
    assert shop.command("check")["links"][0]["verdict"] == "identical"


@pytest.mark.parametrize("daemon", [True, False])
def test_brought_back(pair: Pair, cli: Cli, daemon: bool) -> None:
    """The number of rows that the target loses has to be told; then it has what the source has, and follows."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start() if daemon else None
    rejected(shop, "DELETE FROM visit WHERE n > 100", running=running)
    shop.wipe("INSERT INTO visit VALUES ('later', 1)")
    assert len(shop.target_rows("visit")) == 400
    assert shop.command("status")["links"][0]["detached"] == ["public.visit"]
    assert "public.visit: not followed any more, until pglockstep resync" in cli("status").stdout
    message, hint = refused(cli("resync", "public.visit", "--yes"), 2)
    assert "takes 300 rows from the target" in message
    assert "--rows 300" in hint
    message, _ = refused(cli("resync", "public.visit", "--rows", "299", "--yes"), 2)
    assert "--rows 299 is too few" in message
    refused(cli("resync", "public.visit", "--rows", "300"), 2)
    assert len(shop.target_rows("visit")) == 400
    done = cli("resync", "public.visit", "--rows", "300", "--yes")
    assert done.returncode == 0, done.stderr
    assert (
        "public.visit: 101 rows on the source, 400 on the target; 300 rows of the target's would be gone"
        in done.stdout
    )
    assert (
        "public.visit follows again: 1 row put back, 300 rows that the source does not have taken away"
        in done.stdout
    )
    assert shop.target_rows("visit") == shop.source_rows("visit")
    follows(shop, running)
    assert shop.command("status")["links"][0]["detached"] == []
    # nothing to do, and nothing to confirm but that
    done = cli("resync", "public.visit", "--yes")
    assert done.returncode == 0, done.stderr
    assert "nothing would be lost, 0 would come from the source" in done.stdout


def test_several_under_load(pair: Pair, cli: Cli) -> None:
    """Tables that are written to all the time, with keys and without; nothing is applied twice, and nothing is missed."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start()
    with load(pair.source):
        rejected(shop, 'TRUNCATE "order", visit', running=running)
        shop.wipe("INSERT INTO visit SELECT 'again', n FROM generate_series(1, 50) AS n")
        done = cli("resync", 'public."order"', "public.visit", "--rows", "5000", "--yes", "--json")
        assert done.returncode == 0, done.stderr
        wait_until(lambda: running.status()["state"] == "streaming", 20, "the link to stream")
    follows(shop, running)


@pytest.mark.parametrize("failpoint", ["heal.begun", "heal.commit", "heal.committed"])
def test_killed_over_it(pair: Pair, cli: Cli, failpoint: str) -> None:
    """What was asked for stays asked for: whoever comes next does it, once."""
    shop = Shop(cli, pair)
    shop.once()
    rejected(shop, "DELETE FROM visit")
    done = cli("resync", "public.visit", "--rows", "400", "--yes", env={"PGLOCKSTEP_FAILPOINT": failpoint})
    assert done.returncode == -signal.SIGKILL
    running = shop.start()
    wait_until(lambda: shop.target_rows("visit") == [], 20, "the daemon to do it")
    follows(shop, running)


def test_more_would_be_lost_by_now(pair: Pair, cli: Cli) -> None:
    """The source is wiped further between the count and the act: nothing is done, by whoever comes to it."""
    shop = Shop(cli, pair)
    shop.once()
    rejected(shop, "DELETE FROM visit WHERE n > 100")
    # asked for, and killed before anything was done
    done = cli("resync", "public.visit", "--rows", "300", "--yes", env={"PGLOCKSTEP_FAILPOINT": "heal.begun"})
    assert done.returncode == -signal.SIGKILL
    shop.wipe("DELETE FROM visit")
    shop.command("once", code=1)
    assert len(shop.target_rows("visit")) == 400
    message, _ = refused(cli("resync", "public.visit", "--rows", "300", "--yes"), 2)
    assert "takes 400 rows" in message
    assert cli("resync", "public.visit", "--rows", "400", "--yes").returncode == 0
    follows(shop)


@pytest.mark.parametrize("daemon", [True, False])
def test_made_again_on_the_source(pair: Pair, cli: Cli, daemon: bool) -> None:
    """Dropped, made anew and rejected: it is published again and follows as what it is now; so is one that never followed."""
    shop = Shop(cli, pair)
    shop.once()
    running = shop.start() if daemon else None
    rejected(shop, "DROP TABLE visit", "CREATE TABLE visit (path text, n int)", running=running)
    shop.wipe(
        "INSERT INTO visit VALUES ('new', 1)",
        'CREATE TABLE "Since then" (id int PRIMARY KEY, v text)',
        "INSERT INTO \"Since then\" VALUES (1, 'x')",
    )
    done = cli("resync", "public.visit", 'public."Since then"', "--rows", "400", "--yes")
    assert done.returncode == 0, done.stderr
    assert shop.target_rows("visit") == ["(new,1)"]
    shop.wipe("INSERT INTO \"Since then\" VALUES (2, 'y')", "UPDATE visit SET n = 2 WHERE n = 1")
    follows(shop, running)
    assert len(shop.target_rows('"Since then"')) == 2


def test_wrong_tables(pair: Pair, cli: Cli) -> None:
    """Each is told in one line, and nothing is changed; while something is held nothing is brought back."""
    shop = Shop(cli, pair, "exclude = ['public.mail']\n")
    message, hint = refused(cli("resync", "public.visit", "--yes"), 5)
    assert "has not been copied yet" in message
    assert "pglockstep once" in hint
    shop.once()
    for table, words in (
        ('public."user"', 'there is no table public."user" on the source'),
        ("public.nowhere", "there is no table public.nowhere"),
        ("public.mail", "does not carry table public.mail"),
        ("a.b.c", "a.b.c"),
        ("", ""),
    ):
        message, _ = refused(cli("resync", table, "--yes"), 2)
        assert words in message
    assert 'did you mean public."User"?' in refused(cli("resync", 'public."user"', "--yes"), 2)[1]
    refused(cli("resync", "--yes"), 2)
    refused(cli("resync", "public.visit", "--link", "other", "--yes"), 2)
    shop.wipe("DELETE FROM visit")
    refused(cli("once"), 6)
    message, _ = refused(cli("resync", "public.visit", "--yes"), 6)
    assert "incident 1 is open" in message
