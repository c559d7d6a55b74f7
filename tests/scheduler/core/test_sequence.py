"""The transition table, walked whole."""

from __future__ import annotations

from itertools import product

import pytest

from sapwood.cache.prefix.tree import Match
from sapwood.scheduler.core.sequence import (
    TRANSITIONS,
    IllegalTransition,
    Sequence,
    SequenceState,
    recompute_causes,
)
from sapwood.scheduler.events import Request
from sapwood.scheduler.policy.depth import Drafting
from sapwood.scheduler.sampling import Sampling
from tests.scheduler.fake_device import TOKEN_BYTES, toy_facts

PATHS = {
    SequenceState.QUEUED: (),
    SequenceState.PREFILL: (SequenceState.PREFILL,),
    SequenceState.DECODE: (SequenceState.PREFILL, SequenceState.DECODE),
    SequenceState.PARKED: (SequenceState.PREFILL, SequenceState.PARKED),
    SequenceState.DONE: (SequenceState.DONE,),
}


def sequence_in(state: SequenceState) -> Sequence:
    request = Request(id=7, root=b"", prompt=(9, 9, 9), max_tokens=4, sampling=Sampling())
    sequence = Sequence(request, toy_facts(), TOKEN_BYTES, Drafting(8), now=1.0)
    for step in PATHS[state]:
        sequence.move(step, 2.0, "test")
    return sequence


@pytest.mark.parametrize(("start", "end"), list(product(SequenceState, SequenceState)))
def test_only_edges_of_the_table_are_taken(start: SequenceState, end: SequenceState) -> None:
    """L1: every pair of states, allowed or refused with the sequence's story."""
    sequence = sequence_in(start)
    if end in TRANSITIONS[start]:
        sequence.move(end, 3.0, "test")
        assert sequence.state is end
        return
    with pytest.raises(IllegalTransition, match=rf"{start.name} -> {end.name} .*sequence 7: 1\.0"):
        sequence.move(end, 3.0, "test")
    assert sequence.state is start


def test_done_is_absorbing_and_reached_from_everywhere() -> None:
    """L1: cancel is one edge, so every other state has it."""
    assert not TRANSITIONS[SequenceState.DONE]
    assert all(
        SequenceState.DONE in TRANSITIONS[state]
        for state in SequenceState
        if state is not SequenceState.DONE
    )


def test_the_story_tells_no_text() -> None:
    assert "9, 9" not in sequence_in(SequenceState.DECODE).tell()


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
