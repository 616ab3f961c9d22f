"""What may happen to an incident, in which order, and what a person is told who decides otherwise."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_incidents import NOON, a_decision, an_incident
from pglockstep.errors import DecisionRefused, LockstepError, UsageProblem
from pglockstep.observe.incident import (
    OPEN,
    Incident,
    IncidentState,
    Kind,
    Outcome,
    Step,
    Verb,
    after,
    demand_decidable,
    needs_decision,
    possible,
    told,
)

STATES: tuple[IncidentState, ...] = get_args(IncidentState)
VERBS: tuple[Verb, ...] = get_args(Verb)
STEPS: tuple[Step, ...] = (*VERBS, "undecided", *get_args(Outcome))
INCIDENTS = st.builds(
    an_incident,
    id=st.just("3"),
    kind=st.sampled_from(get_args(Kind)),
    side=st.sampled_from(["source", "target"]),
    state=st.sampled_from(STATES),
)


@given(st.sampled_from(["held", "healing"]), st.lists(st.sampled_from(STEPS), max_size=8))
def test_what_is_over_stays_over(state: IncidentState, steps: list[Step]) -> None:
    """Whatever happens in whatever order, no step leads out of a final state, and each outcome is its own state."""
    for step in steps:
        try:
            following = after(state, step)
        except ValueError:
            continue
        assert state in OPEN
        if step in get_args(Outcome):
            assert following == step
        else:
            assert following in OPEN
        state = following


@given(INCIDENTS, st.sampled_from(VERBS), st.integers(0, 30) | st.none(), st.booleans())
def test_a_decision_is_taken_or_refused_with_the_next_step(
    incident: Incident, verb: Verb, rows: int | None, remember: bool
) -> None:
    """What is not refused can be written down; what is refused has a hint, and exit code 1 or 2."""
    refused: LockstepError | None = None
    try:
        demand_decidable(incident, a_decision(verb, rows, remember=remember))
    except LockstepError as error:
        refused = error
    if refused is not None:
        assert refused.hint
        assert refused.exit_code in (1, 2)
        return
    assert incident.state == "held"
    assert verb in possible(incident)
    assert verb != "approve" or rows == incident.rows_lost == 25
    after(incident.state, verb)


def refusal(
    incident: Incident, verb: Verb, rows: int | None = None, *, remember: bool = False
) -> LockstepError:
    with pytest.raises(LockstepError) as caught:
        demand_decidable(incident, a_decision(verb, rows, remember=remember))
    return caught.value


def test_what_is_wrong_with_a_decision() -> None:
    """Each refusal names the incident, says why, and what to type instead."""
    held = an_incident(id="3")
    wrong = refusal(held, "approve", 22)
    assert isinstance(wrong, UsageProblem)
    assert "took 25 rows, not 22" in wrong.message
    assert wrong.hint.endswith("pglockstep incidents approve 3 --rows 25")
    assert "has to be named" in refusal(held, "approve").message

    decided = msgspec.structs.replace(held, decision=a_decision("reject"))
    late = refusal(decided, "restore")
    assert isinstance(late, DecisionRefused)
    assert "reject, by ada@desk at 2024-05-01 12:01:00 UTC, and that is not done yet" in late.message
    over = msgspec.structs.replace(decided, state="rejected")
    assert "it is rejected" in refusal(over, "restore").message
    assert "without a decision" in refusal(an_incident(id="3", state="healing"), "restore").message
    assert "is over: it was healed" in refusal(an_incident(id="3", state="healed"), "restore").message

    written = an_incident(id="3", side="target", kind="foreign_write")
    assert "a target has to be what its source is" in refusal(written, "approve", 25).message
    assert "restore 3 puts it back; pglockstep incidents reject 3" in refusal(written, "approve", 25).hint
    gone = an_incident(id="3", side="target", kind="missing_database")
    assert "the target's database is gone" in refusal(gone, "reject").message
    other = an_incident(id="3", kind="identity", tables=())
    assert "another source answers" in refusal(other, "reject").message
    assert "once and for all" in refusal(other, "approve", remember=True).message
    # nothing is lost by it as far as is known: there is no number to be named, and 0 is right
    demand_decidable(other, a_decision("approve"))
    demand_decidable(other, a_decision("approve", 0))


def test_an_open_incident_as_an_error() -> None:
    """Exit 6, and a hint that names `show` and each decision as it is to be typed."""
    error = needs_decision(an_incident(id="3"))
    assert error.exit_code == 6
    assert error.message.startswith("incident 3 is open: a transaction deletes 22")
    for each in ("show 3", "approve 3 --rows 25", "restore 3", "reject 3"):
        assert f"pglockstep incidents {each}" in error.hint
    decided = needs_decision(an_incident(id="3", decision=a_decision("restore"), state="healing"))
    assert "restore is decided, and not done yet" in decided.message
    assert "pglockstep run or pglockstep once" in decided.hint
    assert "being put right" in needs_decision(an_incident(id="3", state="healing")).hint


def test_what_status_says_of_the_guard() -> None:
    """What is held comes first; decided is said only where everything that is held is."""
    held, healing = an_incident(id="3"), an_incident(id="4", state="healing")
    decided = an_incident(id="5", decision=a_decision("approve", 25))
    assert told([], otherwise="at rest") == "at rest"
    assert told([healing, held], otherwise="at rest") == "held: incident 3"
    assert told([healing], otherwise="at rest") == "healing: incident 4"
    assert told([decided], otherwise="at rest") == "held: incident 5, decided"
    assert told([held, decided], otherwise="at rest") == "held: incidents 3, 5"
    assert held.opened_at == NOON
