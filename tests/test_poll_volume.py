"""Polls of large tables: in bounded memory however much differs, and without reading what did not change."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from fix_polled import Polled, polled
from fix_servers import Cli, Pair, wait_until
from pglockstep.link.stillness import EVERY, Counted, Stillness, has_turn
from pglockstep.postgres.names import QualifiedName
from test_traps_memory import AT_WORK, Watched

BIG = """
CREATE TABLE big (id bigint PRIMARY KEY, a text, b int, at timestamptz, d numeric);
CREATE TABLE named (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE loose (a int, b text);
CREATE TABLE small (id int PRIMARY KEY, n int);
"""
#: No wipe is meant here.
EASY = "[links.shop.guard]\nmax_delete_fraction = 1\nmax_delete_rows = 100000000\nmax_update_fraction = 1\n"


def level(link: Polled, watched: Watched, *tables: str, patience: float) -> None:
    """Wait until the tables hold the same, by their sums; look at the memory meanwhile."""
    query = " UNION ALL ".join(
        f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {each} AS t" for each in tables
    )
    theirs = link.admin.execute(query.encode()).fetchall()
    end = time.monotonic() + patience
    with link.pair.on_target() as target:
        while target.execute(query.encode()).fetchall() != theirs:
            assert time.monotonic() < end, f"{tables} are not level after {patience:g} s"
            for _ in range(20):
                watched.look()
                time.sleep(0.1)


@pytest.mark.unforked
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("rows", [100_000, pytest.param(2_000_000, marks=pytest.mark.soak)])
def test_many_rows(pair: Pair, cli: Cli, rows: int) -> None:
    """Rows that come, change, swap what is unique and go, all of them in one poll each, within the memory of a daemon at work."""
    some = rows // 5
    with polled(cli, pair, schema=BIG, settings=EASY) as link:
        link.once()
        watched = Watched(link.start())
        patience = 60 + rows / 2000
        link.write(
            f"INSERT INTO big SELECT n, repeat('x', 50) || n, 1, '2024-01-01', n / 7.0 FROM generate_series(1, {rows}) AS n",
            f"INSERT INTO named SELECT n, 'n' || n FROM generate_series(1, {some}) AS n",
            f"INSERT INTO loose SELECT n % 100, 'l' || n FROM generate_series(1, {some}) AS n",
        )
        level(link, watched, "big", "named", "loose", patience=patience)
        link.write("UPDATE big SET b = id % 9")
        level(link, watched, "big", patience=patience)
        link.write("UPDATE named SET name = 'm' || id", "UPDATE named SET name = 'n' || (id + 1)")
        level(link, watched, "named", patience=patience)
        link.write("UPDATE loose SET b = 'other' WHERE a < 3", "DELETE FROM big WHERE id % 10 > 0")
        level(link, watched, "big", "loose", patience=patience)
        link.check()
        assert watched.peak < AT_WORK, f"{watched.peak:.0f} MB"


def test_what_stands_still_is_not_read(pair: Pair, cli: Cli) -> None:
    """While a small table is written to, a large one is read at its turn only; what is written to it is seen."""
    rows = 20_000
    fill = f"INSERT INTO big SELECT n, repeat('x', 100), 1, '2024-01-01', 1 FROM generate_series(1, {rows}) AS n; ANALYZE"
    with polled(cli, pair, schema=BIG + fill) as link:
        link.once()
        running = link.start()
        link.write("INSERT INTO small VALUES (0, 0)")
        link.arrives("small")
        read = "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'big'"

        def reads() -> int:
            row = link.admin.execute(read).fetchone()
            assert row is not None
            return int(row[0])

        # the server counts late, and the target is compared once more after what was written to it
        seen = []
        for number in range(1, 25):
            link.write(f"INSERT INTO small VALUES ({number}, 1)")
            link.arrives("small")
            seen.append(reads())
        grown = sum(one != other for one, other in pairwise(seen[8:]))
        assert grown <= 3, seen
        link.write("UPDATE big SET b = 2 WHERE id = 7")
        wait_until(lambda: link.same("big"), 40, "the large table to be compared")
        assert running.process.poll() is None


def test_hints() -> None:
    """A table stands still only if it is large, both servers count, and nothing was counted since; and its turn comes."""
    name, still = QualifiedName("public", "t"), Stillness()
    before = Counted(1, 2, 10, 20, 30, large=True, known=True)
    assert not still.stands(name, {name: before}, {name: before})
    still.found_level(name, {name: before}, {name: before})
    assert still.stands(name, {name: before}, {name: before})
    for now in (
        Counted(1, 2, 11, 20, 30, large=True, known=True),
        Counted(1, 3, 10, 20, 30, large=True, known=True),
        Counted(1, 2, 0, 0, 0, large=True, known=True),
        Counted(1, 2, 10, 20, 30, large=False, known=True),
        Counted(1, 2, 10, 20, 30, large=True, known=False),
    ):
        assert not still.stands(name, {name: now}, {name: before})
        assert not still.stands(name, {name: before}, {name: now})
    assert not still.stands(name, {}, {name: before})
    still.forget()
    assert not still.stands(name, {name: before}, {name: before})
    turns = [number for number in range(3 * EVERY) if has_turn(name, number)]
    assert len(turns) == 3
