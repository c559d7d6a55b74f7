"""Which work a step's matmuls are, and that the least of its turns is what counts."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from bench import matmuls
from bench.matmuls import MatmulWork, PairMatmuls, measure_least
from sapwood.model.pair import Pair, load_pair
from tests.model.reference import checkpoint


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(checkpoint("a4b-tiny"), checkpoint("a4b-tiny-assistant"), "float32")


def test_a_round_verifies_what_it_drafts_and_one_more() -> None:
    assert MatmulWork.of_round(4, 3) == MatmulWork(16, 16, drafting=4, depth=3)
    assert MatmulWork.of_round(4, 3).target == MatmulWork(16, 16)
    assert MatmulWork.of_round(4, 3).drafter == MatmulWork(drafting=4, depth=3)


def test_nobody_drafts_at_depth_0() -> None:
    assert MatmulWork.of_round(8, 0) == MatmulWork(8, 8)
    assert MatmulWork.of_round(8, 0).drafter == MatmulWork()


def test_of_a_prompt_one_row_goes_on() -> None:
    assert MatmulWork.of_prompts(4, 20) == MatmulWork(80, 4)
    assert MatmulWork.of_prompts(4, 0) == MatmulWork()


def test_the_least_turn_counts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two works, three turns, each work once in each: 3, 5, 2, 6, 4, 7 seconds."""
    # The first is where the turns begin; what ends after one of them is asked once they are done.
    marks = iter([0, 0, 3, 10, 15, 20, 22, 30, 36, 40, 44, 50, 57, 57])
    monkeypatch.setattr("bench.matmuls.time.perf_counter", lambda: next(marks))
    timed, works = PairMatmuls(pair), [MatmulWork.of_round(1, 0), MatmulWork.of_round(2, 1)]
    measure_least(timed, works, 3)
    assert timed.least_s == {works[0]: 2.0, works[1]: 5.0}


def test_small_works_get_more_turns(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second each by this clock, so that eight seconds are not over after one turn."""
    marks, turns = iter(range(1000)), []
    monkeypatch.setattr("bench.matmuls.time.perf_counter", lambda: next(marks))
    monkeypatch.setattr(PairMatmuls, "measure", lambda _, work: turns.append(work))
    measure_least(PairMatmuls(pair), [MatmulWork(1, 1)], 1, 8.0)
    assert len(turns) == 8


def test_nothing_takes_no_time(pair: Pair) -> None:
    timed = PairMatmuls(pair)
    assert timed.measure(MatmulWork()) == timed.least_s[MatmulWork()] == 0.0


def test_more_rows_than_one_go_to_experts_of_their_own() -> None:
    """No row has an expert twice, and all of them are asked."""
    chosen = np.array(matmuls._even_choice(64, 8, 2))
    assert chosen.shape == (64, 2) and set(chosen.ravel().tolist()) == set(range(8))
    assert (chosen[:, 0] != chosen[:, 1]).all()


def test_all_of_a_work_is_behind_its_one_result(pair: Pair) -> None:
    """And it can be computed: finite numbers of the head's shape."""
    (last,) = PairMatmuls(pair).graph(MatmulWork.of_round(3, 2))
    assert last.shape == (9, pair.target_config.text.vocabulary)
    assert mx.isfinite(last).all().item()
