"""Any history, as a real source streams it, leaves the same rows applied in sets as applied statement by statement."""

from __future__ import annotations

from typing import LiteralString

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from fix_mirror import Mirror

#: Rows with a key and other unique values, with large values, without a key, with an identity that takes no SET.
TABLES: tuple[LiteralString, ...] = (
    "create table keyed (id int primary key, u int unique, v text, big text)",
    "alter table keyed alter big set storage external",
    "create table swapped (a int, b text, u int unique deferrable, primary key (a, b))",
    "create table bag (n int, v text, j json)",
    "alter table bag replica identity full",
    "create table counted (id int generated always as identity primary key, v text)",
    "create table excluded (id int primary key, r int4range, exclude using gist (r with &&))",
)

_n = st.integers(1, 6)
_big = st.sampled_from(["null", "''", "repeat('x', 4000)", "repeat(chr(1), 3000)"])


def _filled(template: str, **parts: st.SearchStrategy[object]) -> st.SearchStrategy[str]:
    return st.fixed_dictionaries(parts).map(lambda chosen: template.format(**chosen))


#: What may happen; whatever the source refuses did not happen.
STATEMENTS = st.one_of(
    _filled("insert into keyed values ({n}, {u}, 'i', {big}) on conflict do nothing", n=_n, u=_n, big=_big),
    _filled("update keyed set v = v || '{n}' where id = {n}", n=_n),
    _filled("update keyed set big = {big} where id = {n}", n=_n, big=_big),
    _filled("update keyed set id = id + 10 where id = {n}", n=_n),
    _filled("update keyed set id = id - 10 where id > 10"),
    _filled("update keyed set u = null where id = {n}", n=_n),
    _filled("update keyed set u = {u} where id = {n}", n=_n, u=_n),
    _filled("delete from keyed where id = {n}", n=_n),
    _filled("delete from keyed"),
    _filled(
        "insert into swapped select n, 'k', n from generate_series(1, {n}) n on conflict (a, b) do nothing",
        n=_n,
    ),
    _filled("update swapped set u = 100 - u"),
    _filled("update swapped set u = 7 - u where u < 7"),
    _filled("update swapped set b = b || '{n}' where a = {n}", n=_n),
    _filled("delete from swapped where a = {n}", n=_n),
    _filled("insert into bag select {n}, 'same', '{{\"a\":  1}}' from generate_series(1, 3)", n=_n),
    _filled("insert into bag values (null, null, null), ({n}, '', 'null')", n=_n),
    _filled("update bag set n = n + 1 where ctid = (select min(ctid) from bag)"),
    _filled("update bag set v = null where n = {n}", n=_n),
    _filled("delete from bag where ctid = (select max(ctid) from bag)"),
    _filled("delete from bag where n = {n}", n=_n),
    _filled("truncate bag"),
    _filled("insert into counted (v) values ('{n}')", n=_n),
    _filled("update counted set v = v || '{n}' where id % 2 = 0", n=_n),
    _filled("update counted set id = default where id % 3 = {n} % 3", n=_n),
    _filled("delete from counted where id % 4 = {n} % 4", n=_n),
    _filled("insert into excluded values ({n}, int4range({u}, {u} + 2)) on conflict do nothing", n=_n, u=_n),
    _filled("update excluded set r = int4range(upper(r), upper(r) + 2) where id = {n}", n=_n),
    _filled("delete from excluded where id = {n}", n=_n),
)


@pytest.mark.parametrize("per_transaction", [1, 4, 1000])
def test_any_history(mirror: Mirror, per_transaction: int) -> None:
    """Random statements in transactions of all lengths, many to a batch: three times the same rows."""
    mirror.both(*TABLES)

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(st.lists(STATEMENTS, min_size=1, max_size=30))
    def follow(statements: list[str]) -> None:
        done: list[str] = []
        for start in range(0, len(statements), per_transaction):
            done.append("begin")
            for statement in statements[start : start + per_transaction]:
                # what violates a constraint on the source leaves nothing behind there
                body = statement.replace("'", "''").replace("{", "{{").replace("}", "}}")
                done.append(
                    f"do 'begin {body}; exception when integrity_constraint_violation then null; end'"
                )
            done.append("commit")
        mirror.follow(*(sql.SQL(each).format() for each in done))

    follow()
    assert mirror.sets_done > 0


def test_unique_values_that_change_hands(mirror: Mirror) -> None:
    """A set in which unique values move from row to row clashes, and then goes in the source's order after all."""
    mirror.both(
        "create table t (id int primary key, u int unique, v text)",
        "insert into t select n, n, 'x' from generate_series(1, 100) as n",
    )
    mirror.follow(
        "begin",
        "update t set u = null where id = 100",
        "update t set u = 100 where id = 99",
        "update t set u = 99 where id = 100",
        "delete from t where id = 50",
        "insert into t values (200, 50, 'y')",
        "commit",
    )
    assert (mirror.sets_done, mirror.clashes) == (0, 1)
    mirror.follow("update t set v = v || 'z'")
    assert (mirror.sets_done, mirror.clashes) == (1, 1)


def test_a_row_that_is_not_there_is_missed(mirror: Mirror) -> None:
    """A set that finds one row too few is no success."""
    mirror.both("create table t (id int primary key, v text)", "insert into t select generate_series(1, 60)")
    mirror.sets.execute("delete from t where id = 60")
    with pytest.raises(Exception, match="found 0 rows on the target instead of one"):
        mirror.follow("update t set v = 'x'")
