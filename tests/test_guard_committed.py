"""Random histories on a real source, a wipe hidden in each: every state that the target commits keeps to the rules.

The target's own WAL tells its committed states, one by one. Each has to be a state of the source's, and none may be behind a
transaction that breaks a rule, which is worked out here a second time.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import sqrt
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fix_copy import refused
from fix_servers import Cli, Pair
from fix_shop import Shop
from pglockstep.wal.messages import Commit, Delete, Insert, Relation, Row, Truncate, Update
from pglockstep.wal.pgoutput import decode

#: a slot of the target's own
pytestmark = pytest.mark.superusers

TABLES = ("a", "b")
#: By so much a row's key grows when it moves.
_MOVED = 1_000_000

#: id, v
State = dict[str, dict[int, str | None]]

#: What the link is allowed.
SETTINGS = """
[links.shop.guard]
max_delete_fraction = 0.3
max_update_fraction = 0.5
min_table_rows = 5
"""

Act = tuple[str, str, int]

ORDINARY = st.tuples(
    st.sampled_from(["insert", "delete one", "rewrite", "update", "turn over", "move"]),
    st.sampled_from(TABLES),
    st.integers(1, 6),
)
#: Of everything, or of nearly everything, in one transaction or in many.
WIPE = st.tuples(
    st.sampled_from(["delete", "delete in many", "truncate", "to null", "replace", "move away"]),
    st.sampled_from(TABLES),
    st.integers(0, 4),
)


@dataclass
class History:
    """What is done to the source, transaction by transaction, and the state that each leaves."""

    states: list[State]
    statements: list[list[str]] = field(default_factory=list)
    truncated: dict[int, str] = field(default_factory=dict)
    #: by the state that it led to: the table, and how many rows were put there and taken away again
    rewritten: dict[int, tuple[str, int]] = field(default_factory=dict)
    next: int = 1000

    def act(self, way: str, table: str, size: int) -> None:
        """Add the transactions of one act."""
        rows = self.states[-1][table]
        ids = list(rows)
        gone: list[int]
        some: dict[int, str | None]
        if way == "delete in many":
            for one in ids[: len(ids) - size]:
                self._commit(table, [f"DELETE FROM {table} WHERE id = {one}"], rows := without(rows, [one]))
        elif way in ("delete", "delete one"):
            gone = ids[: len(ids) - size] if way == "delete" else ids[:1]
            self._commit(table, [f"DELETE FROM {table} WHERE id IN ({listed(gone)})"], without(rows, gone))
        elif way == "truncate":
            self.truncated[len(self.states)] = table
            self._commit(table, [f"TRUNCATE {table}"], {})
        elif way == "to null":
            self._commit(
                table,
                [f"UPDATE {table} SET v = NULL WHERE id IN ({listed(ids[size:])})"],
                rows | dict.fromkeys(ids[size:]),
            )
        elif way == "insert":
            fresh = self._fresh(size)
            self._commit(table, [inserted(table, fresh)], rows | fresh)
        elif way == "rewrite":
            some = {one: rows[one] for one in ids[:size]}
            self.rewritten[len(self.states)] = (table, len(some))
            statements = [f"DELETE FROM {table} WHERE id IN ({listed(some)})"]
            self._commit(table, [*statements, *([inserted(table, some)] if some else [])], dict(rows))
        elif way in ("turn over", "replace"):
            # as many as go come, under other keys
            gone = ids[:1] if way == "turn over" else ids[size:]
            fresh = self._fresh(len(gone) or 1)
            self._commit(
                table,
                [inserted(table, fresh), f"DELETE FROM {table} WHERE id IN ({listed(gone)})"],
                without(rows, gone) | fresh,
            )
        elif way == "update":
            last = ids[-1:]
            self._commit(
                table,
                [f"UPDATE {table} SET v = 'u{self.next}' WHERE id IN ({listed(last)})"],
                rows | dict.fromkeys(last, f"u{self.next}"),
            )
        elif way in ("move", "move away"):
            leaving = [one for one in (ids[:1] if way == "move" else ids[size:]) if one < _MOVED]
            moved = {one + _MOVED: rows[one] for one in leaving}
            self._commit(
                table,
                [f"UPDATE {table} SET id = id + {_MOVED} WHERE id IN ({listed(leaving)})"],
                without(rows, leaving) | moved,
            )

    def _fresh(self, count: int) -> dict[int, str | None]:
        self.next += count
        return {number: f"v{number}" for number in range(self.next - count, self.next)}

    def _commit(self, table: str, statements: list[str], rows: dict[int, str | None]) -> None:
        self.statements.append(statements)
        self.states.append(self.states[-1] | {table: rows})

    def breaks(self, number: int) -> bool:
        """Whether the transaction that leads to state `number` breaks a rule, all before it having passed."""
        before, after = self.states[number - 1], self.states[number]
        for table in TABLES:
            old, new = by_row(before[table]), by_row(after[table])
            if self.truncated.get(number) == table and old:
                return True
            if too_many(len(old.keys() - new.keys()), len(old), 5, Fraction(3, 10)):
                return True
            turned = Counter(new[one] for one in new.keys() & old.keys() if new[one] != old[one])
            became = max([0, *(count for value, count in turned.items() if value is None or count > 1)])
            if too_many(became, len(old), 5, Fraction(1, 2)):
                return True
            stood = len(self.states[0][table])
            if (
                len(new) < len(old)
                and too_many(stood - len(new), stood, 5, Fraction(3, 10))
                and stood - len(new) > int(self._swing(table, number))
            ):
                return True
        return False

    def _swing(self, table: str, number: int) -> float:
        """Four standard deviations of what passed through before."""
        came = went = 0
        for one in range(1, number):
            old, new = by_row(self.states[one - 1][table]), by_row(self.states[one][table])
            name, again = self.rewritten.get(one, ("", 0))
            again = again if name == table else 0
            came += len(new.keys() - old.keys()) + again
            went += len(old.keys() - new.keys()) + again
        return 4 * sqrt(2 * min(came, went))


def by_row(rows: dict[int, str | None]) -> dict[int, str | None]:
    """By the keys that they had at first: a row under another key is the same row."""
    return {one % _MOVED: value for one, value in rows.items()}


def too_many(lost: int, rows: int, judged_from: int, share: Fraction) -> bool:
    """Whether so many of `rows` rows are more than may go."""
    return rows >= judged_from and lost > share * rows


def without(rows: dict[int, str | None], gone: Iterable[int]) -> dict[int, str | None]:
    """The others."""
    return {one: value for one, value in rows.items() if one not in gone}


def listed(ids: Any) -> str:
    """A list for IN, empty or not."""
    return ", ".join(map(str, ids)) or "NULL"


def inserted(table: str, rows: dict[int, str | None]) -> str:
    """The statement that inserts these."""
    values = ", ".join(f"({one}, {'NULL' if value is None else repr(value)})" for one, value in rows.items())
    return f"INSERT INTO {table} VALUES {values}"


def committed(shop: Shop, first: State) -> Iterator[State]:
    """Every state that the target has committed since its slot was made."""
    with shop.pair.superuser_on_target() as conn:
        # our commits are not waited for: one of somebody's own sends them to the disk, from where they are read
        conn.execute("SELECT pg_logical_emit_message(true, 'test', '')")
        found = conn.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes('states', NULL, NULL, 'proto_version', '1', "
            "'publication_names', 'states')"
        ).fetchall()
    state = {table: dict(rows) for table, rows in first.items()}
    named: dict[int, str] = {}
    for (data,) in found:
        message = decode(bytes(data))
        if isinstance(message, Relation):
            named[message.relation_id] = message.name
        elif isinstance(message, Commit):
            yield {table: dict(rows) for table, rows in state.items()}
        elif isinstance(message, Truncate):
            for each in message.relation_ids:
                state[named[each]].clear()
        elif isinstance(message, Delete):
            del state[named[message.relation_id]][key_of(message.old)]
        elif isinstance(message, (Insert, Update)):
            rows = state[named[message.relation_id]]
            if isinstance(message, Update) and message.old is not None:
                del rows[key_of(message.old)]
            value = message.new[1]
            assert value is None or isinstance(value, bytes)
            rows[key_of(message.new)] = None if value is None else value.decode()


def key_of(row: Row) -> int:
    """The row's id."""
    assert isinstance(row[0], bytes)
    return int(row[0])


def begin(shop: Shop, cli: Cli, sizes: dict[str, int]) -> History:
    """Both ends anew, level, and a slot on the target."""
    shop.pair.close()
    with shop.pair.superuser_on_target() as target:
        target.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'states'"
        )
    if (cli.directory / "state").exists():
        done = cli("teardown", "--yes")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(cli.directory / "state")
    first: State = {table: {one: f"v{one}" for one in range(1, size + 1)} for table, size in sizes.items()}
    with shop.pair.on_source() as source, shop.pair.superuser_on_target() as target:
        for table, rows in first.items():
            for conn in (source, target):
                conn.execute(f"DROP TABLE IF EXISTS {table}".encode())
            source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, v text)".encode())
            if rows:
                source.execute(inserted(table, rows).encode())
    shop.once()
    with shop.pair.superuser_on_target() as target:
        target.execute("DROP PUBLICATION IF EXISTS states")
        target.execute("CREATE PUBLICATION states FOR TABLE a, b")
        target.execute("SELECT pg_create_logical_replication_slot('states', 'pgoutput')")
    return History([first])


class Small(Shop):
    """Nothing but what a history brings."""

    def __post_init__(self) -> None:
        self.configure(self.settings)


@pytest.mark.parametrize(
    "examples", [2, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_what_the_target_commits_keeps_to_the_rules(pair: Pair, cli: Cli, examples: int) -> None:
    """It is the source as it was before the first transaction that breaks a rule, or is all of it where none does."""
    shop = Small(cli, pair, SETTINGS)

    @settings(
        max_examples=examples,
        deadline=None,
        # a smaller one takes as long to find as to understand a large one
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        st.fixed_dictionaries({table: st.integers(0, 40) for table in TABLES}),
        st.lists(ORDINARY, max_size=12),
        WIPE,
        st.lists(ORDINARY, max_size=12),
    )
    def holds(sizes: dict[str, int], before: list[Act], wipe: Act, after: list[Act]) -> None:
        history = begin(shop, cli, sizes)
        for act in [*before, wipe, *after]:
            history.act(*act)
        with pair.on_source() as source:
            for statements in history.statements:
                with source.transaction():
                    for each in statements:
                        source.execute(each.encode())
        broken = next((one for one in range(1, len(history.states)) if history.breaks(one)), None)
        last = history.states[-1 if broken is None else broken - 1]
        if broken is None:
            shop.once()
        else:
            refused(cli("once"), 6)
        at = 0
        state = history.states[0]
        for state in committed(shop, history.states[0]):
            # one after another, and none that is behind the broken rule
            at += history.states[at:broken].index(state)
        assert state == last
        while shop.incidents() and (held := [each for each in shop.incidents() if each["state"] == "held"]):
            shop.command("incidents", "restore", held[0]["id"], "--yes")
            assert cli("once").returncode in (0, 6)
        shop.once()
        with pair.on_source() as source:
            for table in TABLES:
                kept = {row[0] for row in source.execute(f"SELECT id FROM {table}".encode())}
                if broken is not None and len(history.states) == broken + 1:
                    assert last[table].keys() <= kept

    holds()
