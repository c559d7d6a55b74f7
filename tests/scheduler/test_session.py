"""The transition table, walked whole."""

from __future__ import annotations

from itertools import product

import pytest

from cache.tree import Match
from scheduler.depth import Drafting
from scheduler.events import Request
from scheduler.plan import Sampling
from scheduler.session import (
    TRANSITIONS,
    IllegalTransition,
    Session,
    State,
    recompute_causes,
)
from tests.scheduler.fake_device import TOKEN_BYTES, toy_facts

PATHS = {
    State.QUEUED: (),
    State.PREFILL: (State.PREFILL,),
    State.DECODE: (State.PREFILL, State.DECODE),
    State.DONE: (State.DONE,),
}


def session_in(state: State) -> Session:
    request = Request(id=7, root=b"", prompt=(9, 9, 9), max_tokens=4, sampling=Sampling())
    session = Session(request, toy_facts(), TOKEN_BYTES, Drafting(8), now=1.0)
    for step in PATHS[state]:
        session.move(step, 2.0, "test")
    return session


@pytest.mark.parametrize(("start", "end"), list(product(State, State)))
def test_only_edges_of_the_table_are_taken(start: State, end: State) -> None:
    """L1: every pair of states, allowed or refused with the session's story."""
    session = session_in(start)
    if end in TRANSITIONS[start]:
        session.move(end, 3.0, "test")
        assert session.state is end
        return
    with pytest.raises(IllegalTransition, match=rf"{start.name} -> {end.name} .*session 7: 1\.0"):
        session.move(end, 3.0, "test")
    assert session.state is start


def test_done_is_absorbing_and_reached_from_everywhere() -> None:
    """L1: cancel is one edge, so every other state has it."""
    assert not TRANSITIONS[State.DONE]
    assert all(State.DONE in TRANSITIONS[state] for state in State if state is not State.DONE)


def test_the_story_tells_no_text() -> None:
    assert "9, 9" not in session_in(State.DECODE).tell()


@pytest.mark.parametrize(
    ("match", "causes"),
    [
        (Match(0, 0, False), {"cold": 20}),
        (Match(0, 0, True), {"evicted": 20}),
        (Match(8, 8, False), {"diverged": 12}),
        (Match(8, 12, False), {"thinned": 4, "diverged": 8}),
        (Match(8, 12, True), {"thinned": 4, "evicted": 8}),
        (Match(19, 20, False), {"diverged": 1}),
    ],
)
def test_every_computed_token_has_one_cause(match: Match, causes: dict[str, int]) -> None:
    """Cached and recomputed tokens add up to the prompt."""
    start, counted = match.tokens, {}
    for cause, end in recompute_causes(match, 20):
        if end > start:
            counted[cause] = end - start
            start = end
    assert counted == causes
    assert match.tokens + sum(counted.values()) == 20
