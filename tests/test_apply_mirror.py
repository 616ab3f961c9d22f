"""Whether the mirror, which the tests of the apply trust, would notice a difference."""

from __future__ import annotations

from typing import LiteralString

import pytest
from psycopg import sql

from fix_mirror import Mirror


@pytest.mark.parametrize("odd", ["(1, 'a'), (1, 'a')", "(1, null)", "(1, 'A')", "(1, 'a ')", "(2, 'a')"])
def test_a_difference_is_seen(mirror: Mirror, odd: LiteralString) -> None:
    """A row too many, NULL, a blank or another case on the target fails a test."""
    mirror.both("create table t (id int, v text)")
    mirror.source.execute("insert into t values (1, 'a')")
    mirror.follow()
    mirror.target.execute(sql.SQL("truncate t; insert into t values {}").format(sql.SQL(odd)))
    with pytest.raises(AssertionError):
        mirror.follow()


def test_a_missed_row_is_seen(mirror: Mirror) -> None:
    """A statement that finds no row fails a test."""
    mirror.both("create table t (id int primary key, v text)", "insert into t values (1, 'a')")
    mirror.target.execute("delete from t")
    with pytest.raises(AssertionError, match=r"UPDATE of public\.t where id = '1' touched 0 rows"):
        mirror.follow("update t set v = 'b'")
