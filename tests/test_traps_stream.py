"""Everything that goes wrong between two servers' tables, on both roads: beside a daemon, and as a backlog."""

from __future__ import annotations

import pytest
from psycopg import sql

from fix_roads import together, walk_both_roads
from fix_servers import Cli, Connection, Pair, all_pairs, connect, majors
from fix_stories import STORIES, Story

pytestmark = pytest.mark.unguarded

#: How often all stories are told while no daemon runs.
_TELLINGS = 16


class Teller:
    """Tells all stories that both servers know, one transaction of each in turn."""

    def __init__(self, pair: Pair) -> None:
        oldest = min(pair.source_server.major, pair.target_server.major)
        self._stories = {name.format(): each for name, each in STORIES.items() if each.since <= oldest}
        self._number = 0
        with connect(pair.source) as conn:
            for name, story in self._stories.items():
                conn.execute(sql.SQL("CREATE SCHEMA {0}; SET search_path = {0}").format(sql.Identifier(name)))
                conn.execute(story.setup.format().encode())

    def tell(self, conn: Connection) -> None:
        """Tell every story once more."""
        self._number += 1
        self._in_turn(conn, self._stories)

    def tell_often(self, conn: Connection) -> None:
        """Tell every story many times over; those that truncate, which cuts everybody's changes in two, at the end."""
        cutting = {name: each for name, each in self._stories.items() if "TRUNCATE" in str(each.transactions)}
        for _ in range(_TELLINGS):
            self._number += 1
            self._in_turn(conn, {name: each for name, each in self._stories.items() if name not in cutting})
        for name, each in cutting.items():
            for _ in range(_TELLINGS // 2):
                self._number += 1
                self._in_turn(conn, {name: each})

    def _in_turn(self, conn: Connection, stories: dict[str, Story]) -> None:
        for chapter in range(max(len(each.transactions) for each in stories.values())):
            for name, story in stories.items():
                if chapter < len(story.transactions):
                    conn.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(name)))
                    self._transaction(conn, story, chapter)

    def _transaction(self, conn: Connection, story: Story, chapter: int) -> None:
        written = story.transactions[chapter]
        statements = [written] if isinstance(written, str) else written
        together(conn, [each.format(n=self._number) for each in statements])


@pytest.mark.parametrize(
    ("pair", "plain_roles"),
    [
        ((majors[-1], majors[-1]), True),
        ((majors[0], majors[-1]), False),
        *(pytest.param(pair, False, marks=pytest.mark.soak) for pair in all_pairs),
    ],
    indirect=True,
)
def test_stories_on_both_roads(pair: Pair, cli: Cli) -> None:
    """Each story leaves both ends alike, told alone beside a daemon, and told many times over before one starts."""
    teller = Teller(pair)
    walk_both_roads(cli, pair, teller.tell, teller.tell_often)
