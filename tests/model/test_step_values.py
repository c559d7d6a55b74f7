"""What a step's numbers may be: anything else is the device's fault, before anybody acts on it."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.sampling.logprobs import LogprobsReport, ScoredPlaces
from sapwood.model.scoring import PromptScores
from sapwood.model.step_values import DeviceFault, read_rows, read_scores
from sapwood.scheduler.result import TokenLogprobs

VOCABULARY = 10
# Three rows of depth 2, 0 and 1: the accepted drafts and the drawn token, anything, the count.
SOUND = ((3, 9, 0, 2), (7, 99, -1, 0), (5, -7, 1 << 30, 0))
DEPTHS = (2, 0, 1)


def array(**changed: int) -> mx.array:
    """SOUND with one place changed: r0c3=1 is the count of the first row."""
    rows = np.array(SOUND, np.int32)
    for place, value in changed.items():
        rows[int(place[1]), int(place[3])] = value
    return mx.array(rows)


def report(chosen: float = -1.0, best: float = -0.5, id: int = 4) -> LogprobsReport:
    """Of the second row's one place, and of the third's two, of which it committed one."""
    values = mx.array([chosen, -1.0, math.nan])
    alternatives = mx.array([[best], [-0.5], [math.inf]])
    places = ScoredPlaces(values, alternatives, mx.array([[id], [4], [99]]))
    return LogprobsReport(np.array([1, 2, 2]), (0, 1, 1), places)


def test_what_is_past_the_count_is_nobodys_affair() -> None:
    rows = read_rows(array(), report(), DEPTHS, VOCABULARY)
    place = TokenLogprobs(-1.0, ((4, -0.5),))
    assert rows == [((3, 9, 0), ()), ((7,), (place,)), ((5,), (place,))]
    assert read_rows(None, None, (), VOCABULARY) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"r0c0": -1},
        {"r0c1": VOCABULARY},
        {"r0c2": 1 << 30},
        {"r1c0": -(1 << 31)},
        {"r2c0": VOCABULARY},
    ],
    ids=str,
)
def test_an_id_outside_of_the_vocabulary(changed: dict[str, int]) -> None:
    with pytest.raises(DeviceFault, match="token id"):
        read_rows(array(**changed), None, DEPTHS, VOCABULARY)


@pytest.mark.parametrize(
    "changed", [{"r0c3": 3}, {"r0c3": -1}, {"r1c3": 1}, {"r2c3": 2}, {"r2c3": 1 << 30}], ids=str
)
def test_a_count_that_is_not_of_the_rows_own_depth(changed: dict[str, int]) -> None:
    """The deepest row's depth is no bound for the others."""
    with pytest.raises(DeviceFault, match="more drafts"):
        read_rows(array(**changed), None, DEPTHS, VOCABULARY)


def test_a_model_that_overflows_is_no_fault_of_the_device() -> None:
    rows = read_rows(array(), report(chosen=math.nan, best=math.inf), DEPTHS, VOCABULARY)
    (place,) = rows[1][1]
    assert math.isnan(place.logprob)
    assert place.alternatives == ((4, math.inf),)


@pytest.mark.parametrize("id", [-1, VOCABULARY])
def test_an_alternative_outside_of_the_vocabulary(id: int) -> None:
    with pytest.raises(DeviceFault, match="token id"):
        read_rows(array(), report(id=id), DEPTHS, VOCABULARY)


def test_an_id_outside_of_the_vocabulary_among_a_prompts_scores() -> None:
    def scored(id: int) -> PromptScores:
        places = ScoredPlaces(mx.array([-1.0]), mx.array([[math.nan]]), mx.array([[id]]))
        return PromptScores({1: [places]})

    (none, found) = read_scores(scored(4), (0, 1), VOCABULARY)
    assert none == () and len(found) == 1
    assert read_scores(None, (0, 1), VOCABULARY) == [(), ()]
    with pytest.raises(DeviceFault, match="token id"):
        read_scores(scored(VOCABULARY), (0, 1), VOCABULARY)
