"""A link's states, and the one function that maps a state and an event to the next state. Pure.

::

    new ──▶ copying ──▶ streaming ◀──▶ catching_up
              any of these ──▶ waiting (an end is unreachable) ──▶ where it was going
              any of these ──▶ held (an incident waits for a decision) ──▶ catching_up
              any of these ──▶ healing (what an end lost is being put back) ──▶ catching_up
              any of these ──▶ stopped (cannot go on without a person)

``paused`` belongs to a person's steering.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a link stands; the words of ``status``."""

    NEW = "new"
    COPYING = "copying"
    STREAMING = "streaming"
    CATCHING_UP = "catching_up"
    HELD = "held"
    HEALING = "healing"
    PAUSED = "paused"
    WAITING = "waiting"
    STOPPED = "stopped"


class Event(StrEnum):
    """What can happen to a link."""

    COPY_STARTED = "copy_started"
    STREAM_STARTED = "stream_started"
    FELL_BEHIND = "fell_behind"
    LEVELLED = "levelled"
    END_LOST = "end_lost"
    HELD = "held"
    HEAL_STARTED = "heal_started"
    RELEASED = "released"
    REFUSED = "refused"


_ANYWHERE: dict[Event, State] = {
    Event.COPY_STARTED: State.COPYING,
    Event.STREAM_STARTED: State.CATCHING_UP,
    Event.END_LOST: State.WAITING,
    Event.HELD: State.HELD,
    Event.HEAL_STARTED: State.HEALING,
    Event.REFUSED: State.STOPPED,
}
_ONLY_FROM: dict[tuple[State, Event], State] = {
    (State.STREAMING, Event.FELL_BEHIND): State.CATCHING_UP,
    (State.CATCHING_UP, Event.LEVELLED): State.STREAMING,
    (State.HELD, Event.HEAL_STARTED): State.HEALING,
    (State.HELD, Event.RELEASED): State.CATCHING_UP,
    (State.HEALING, Event.RELEASED): State.CATCHING_UP,
}
#: Left by a person's or the guard's decision only: an end that returns is no such decision.
_STICKY = frozenset({State.HELD, State.PAUSED, State.STOPPED})


def after(state: State, event: Event) -> State:
    """The state that follows; an event that means nothing in a state leaves it as it is."""
    if (state, event) in _ONLY_FROM:
        return _ONLY_FROM[state, event]
    if state in _STICKY and event is not Event.REFUSED:
        return state
    return _ANYWHERE.get(event, state)


#: States in which a link is not doing its work as it should.
UNHEALTHY = frozenset({State.WAITING, State.STOPPED, State.HELD})
