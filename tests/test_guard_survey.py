"""What the source did before a heal commits: no wipe of values is brought over, and ordinary traffic is not taken for one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from fix_copy import refused
from fix_servers import Cli, Pair
from fix_shop import Shop
from test_guard_doors import restored, states
from test_guard_target import concluded, harm, level

#: More rows than a batch holds changes.
LARGE = 80_000


def things(cli: Cli, pair: Pair, rows: int) -> Shop:
    """A link that is level, with a table `thing` of so many rows and a column that is NULL in all of them; nobody applies."""
    shop = Shop(cli, pair)
    shop.wipe(
        "CREATE TABLE thing (id int PRIMARY KEY, label text, n bigint NOT NULL DEFAULT 0, note text)",
        f"INSERT INTO thing SELECT n, 'thing ' || n FROM generate_series(1, {rows}) AS n",
    )
    shop.once()
    shop.watched()
    return shop


@contextmanager
def repeating(pair: Pair, statement: str) -> Iterator[None]:
    """Do this on the source again and again until the block ends."""
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(pair.source, autocommit=True) as conn:
            while not stop.wait(0.03):
                conn.execute(statement.encode())

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("rows", "harmed"),
    [
        (400, "DELETE FROM thing WHERE id > 160"),
        (LARGE, f"DELETE FROM thing WHERE id > {LARGE // 5 * 2}"),
        (400, "ALTER TABLE thing DROP COLUMN note"),
        (400, "DROP SCHEMA pglockstep CASCADE"),
    ],
)
def test_values_that_only_the_target_has(pair: Pair, cli: Cli, rows: int, harmed: str) -> None:
    """They are lost on the source, and the target has lost rows, another column, or how far it was: what is left stays."""
    shop = things(cli, pair, rows)
    shop.wipe("UPDATE thing SET label = 'gone'")
    harm(pair, harmed)
    with pair.on_target() as conn:
        before = conn.execute("SELECT id, label FROM thing ORDER BY id").fetchall()
        refused(cli("once"), 6)
        assert conn.execute("SELECT id, label FROM thing ORDER BY id").fetchall() == before


def test_a_truncate_of_what_the_target_lost_too(pair: Pair, cli: Cli) -> None:
    """One TRUNCATE takes several tables, one of which is gone from the target; as many rows as there were take their place."""
    shop = things(cli, pair, 400)
    before = set(shop.target_rows("thing"))
    with pair.on_source() as conn:
        junk = "INSERT INTO thing SELECT n, 'gone' FROM generate_series(1, 400) AS n"
        conn.execute(f"BEGIN; TRUNCATE thing, visit; {junk}; COMMIT".encode())
    harm(pair, "DROP TABLE visit", "INSERT INTO thing VALUES (1000, 'theirs')")
    refused(cli("once"), 6)
    assert before <= set(shop.target_rows("thing"))


def test_what_was_put_back_by_hand(pair: Pair, cli: Cli) -> None:
    """The source was wiped, and somebody did what the refusal of the heal says: then it is not refused again."""
    shop = things(cli, pair, 400)
    with pair.on_source() as conn:
        conn.execute("CREATE TABLE kept AS SELECT * FROM thing")
    before = shop.source_rows("thing")
    shop.wipe("DELETE FROM thing")
    harm(pair, "DELETE FROM thing WHERE id <= 5")
    refused(cli("once"), 6)
    shop.wipe("INSERT INTO thing SELECT * FROM kept WHERE id > 200")
    shop.command("incidents", "restore", "1", "--yes", code=1)
    assert len(shop.target_rows("thing")) == 395
    shop.wipe("INSERT INTO thing SELECT * FROM kept WHERE id <= 200", "DROP TABLE kept")
    shop.command("incidents", "restore", "1", "--yes")
    shop.once()
    assert states(shop) == [("delete", "healed")]
    assert shop.target_rows("thing") == before


def test_rows_that_change_all_the_time(pair: Pair, cli: Cli) -> None:
    """Most of a table changes while it is put right, and a column is NULL as it always was: that is no wipe."""
    shop = things(cli, pair, 40)
    running = shop.start()
    with repeating(pair, "UPDATE thing SET n = n + id"):
        for _ in range(3):
            harm(pair, "DELETE FROM thing WHERE id <= 5")
            assert concluded(shop)["state"] == "healed"
    level(shop, running)
    assert {state for _, state in states(shop)} == {"healed"}


@pytest.mark.parametrize("harmed", ["DELETE FROM thing", f"DELETE FROM thing WHERE id > {LARGE // 5}"])
def test_a_large_update_of_what_the_target_lost(pair: Pair, cli: Cli, harmed: str) -> None:
    """It does not fit into memory, and a column is NULL as it always was: that the target holds fewer of it is no wipe."""
    shop = things(cli, pair, LARGE)
    shop.wipe("UPDATE thing SET n = n + id")
    harm(pair, harmed)
    shop.once()
    assert states(shop) == [("delete", "healed")]


def test_a_large_update_behind_what_is_restored(pair: Pair, cli: Cli) -> None:
    """It does not fit into memory, and goes on where a held deletion left off: its values are put back, too."""
    shop = things(cli, pair, 2 * LARGE)
    before = shop.source_rows("thing")
    shop.wipe(f"DELETE FROM thing WHERE id > {LARGE * 5 // 4}")
    refused(cli("once"), 6)
    shop.wipe("UPDATE thing SET label = 'gone'")
    restored(shop, shop.held())
    shop.once()
    assert shop.source_rows("thing") == shop.target_rows("thing") == before


#: ``once``, which says in the end how many kB it took at most: what the kernel tells of a child may be its parent's.
MEASURED = """
import sys
from pathlib import Path
from pglockstep.cli.main import main
try: main(["once"])
finally: print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


def test_large_values_are_looked_at(pair: Pair, cli: Cli) -> None:
    """A batch is counted in bytes, also by whoever only judges it: what a heal takes does not grow with the values."""
    shop = Shop(cli, pair)
    shop.wipe(
        "CREATE TABLE large (id int PRIMARY KEY, v text)", "ALTER TABLE large ALTER v SET STORAGE EXTERNAL"
    )
    shop.once()
    shop.watched()
    shop.wipe("INSERT INTO large SELECT n, repeat('x', 1000000) FROM generate_series(1, 200) AS n")
    harm(pair, "DELETE FROM visit WHERE n = 1")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED],
        cwd=cli.directory,
        env=cli._environment(None),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # without the heal it is 90 MB, and there are 200 MB of values
    assert int(done.stderr.splitlines()[-1]) < 150 << 10


def test_what_passed_through_a_table_is_known_for_it(pair: Pair, cli: Cli) -> None:
    """A queue has shrunk, which is no loss; what it holds then is what it held, for a heal, for the next run and for the look."""
    shop = Shop(cli, pair)
    shop.configure("\n[links.shop.guard]\nmin_table_rows = 5\n")
    shop.wipe("CREATE TABLE queue (id int PRIMARY KEY)", "INSERT INTO queue SELECT generate_series(1, 40)")
    shop.once()
    shop.watched()
    passing = "INSERT INTO queue SELECT generate_series(101, 110)", "DELETE FROM queue WHERE id > 100"
    for each in passing * 12:
        shop.wipe(each)
    for number in range(1, 21):
        shop.wipe(f"DELETE FROM queue WHERE id = {number}")
    shop.once()
    # nothing more is lost than was
    harm(pair, "DELETE FROM queue WHERE id = 40")
    shop.once()
    # and here one more, which waits for the stream
    shop.wipe("DELETE FROM queue WHERE id = 21")
    harm(pair, "DELETE FROM queue WHERE id = 40")
    shop.once()
    # a process that has seen none of it
    shop.wipe("DELETE FROM queue WHERE id = 22")
    shop.once()
    assert {each["state"] for each in shop.incidents()} <= {"healed"}


def test_a_purge_of_a_large_table_of_which_little_is_left(pair: Pair, cli: Cli) -> None:
    """Nobody has counted it since it changed, and it is too large to be; the purge is judged by what it held."""
    shop = Shop(cli, pair)
    shop.wipe("CREATE TABLE log (id int PRIMARY KEY)", "INSERT INTO log SELECT generate_series(1, 1200000)")
    shop.once()
    shop.watched()
    shop.wipe("DELETE FROM log WHERE id <= 60000")
    harm(pair, "DELETE FROM log WHERE id <= 1150000")
    shop.once()
    assert [each["state"] for each in shop.incidents()] == ["healed"]
