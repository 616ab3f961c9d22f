"""What is confirmed to a source when: durable here, and on the target too as long as that costs little."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pglockstep.link.intake import Waiting, confirmable
from pglockstep.units import Lsn

MB = 1 << 20


def test_never_more_than_is_durable() -> None:
    """A target that is ahead of the disk, behind it by little, by much, or for long."""
    assert confirmable(Lsn(100), Lsn(200), 0.0) == 100
    assert confirmable(Lsn(5 * MB), Lsn(100), 1.0) == 100
    assert confirmable(Lsn(20 * MB), Lsn(100), 1.0) == 20 * MB
    assert confirmable(Lsn(5 * MB), Lsn(100), 9.0) == 5 * MB
    assert confirmable(Lsn(20 * MB), Lsn(0), 60.0) == 0


@given(st.integers(1, 4), st.integers(20, 60))
def test_a_target_that_keeps_up_is_waited_for(behind: int, steps: int) -> None:
    """Under steady load the target is always a little behind: that is no waiting, however long it lasts."""
    waiting = Waiting()
    for step in range(steps):
        seconds = waiting.seconds(Lsn(100 + step), Lsn(max(0, 100 + step - behind)), step * 0.5)
        assert seconds <= behind * 0.5
    stuck = 100 + steps - behind
    passed = [waiting.seconds(Lsn(200 + step), Lsn(stuck), (steps + step) * 0.5) for step in range(40)]
    assert passed == sorted(passed)
    assert passed[-1] >= 19
    assert waiting.seconds(Lsn(300), Lsn(300), 99.0) == 0.0
