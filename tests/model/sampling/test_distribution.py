"""The distributions against a plain reference, ties, grouping, and drafts."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sapwood.model.sampling.distribution import (
    GREEDY,
    NUCLEUS,
    WHOLE,
    DrawRows,
    Filters,
    distribution_of,
    join_rows,
    ranked,
    take_rows,
)
from sapwood.model.sampling.proposals import DraftLogits, draft
from sapwood.scheduler.sampling import Sampling
from tests.model.sampling.markov import filtered_probs


def rows_of(*samplings: Sampling, depth: int = 1, index: int = 0) -> DrawRows:
    count = len(samplings)
    return DrawRows(samplings, (depth,) * count, (index,) * count)


def distribution_probs(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The product's distribution of one row, in id order."""
    rows = rows_of(sampling)
    distribution = distribution_of(
        mx.array(logits[None]), Filters.of(rows.table), int(rows.reaches[0])
    )
    probs = np.zeros(len(logits))
    ids = np.arange(len(logits)) if distribution.ids is None else np.array(distribution.ids)[0]
    assert len(set(ids.tolist())) == len(ids)
    probs[ids] = np.exp(np.array(distribution.log_probs)[0].astype(np.float64))
    return probs


def on_a_boundary(logits: np.ndarray, sampling: Sampling) -> bool:
    """Whether rounding may decide a filter: some cut lies within 1e-5 of its threshold."""
    plain = Sampling(sampling.temperature, top_k=sampling.top_k)
    probs = np.sort(filtered_probs(logits, plain))[::-1]
    before = np.cumsum(probs) - probs
    near_p = sampling.top_p < 1 and (np.abs(before - sampling.top_p) < 1e-5).any()
    near_min = 0 < sampling.min_p < 1 and np.abs(probs / probs[0] - sampling.min_p).min() < 1e-5
    return bool(near_p or near_min)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([1, 2, 16, 100, 300]),
    step=st.sampled_from([1.0, 0.25, 1e-3]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, 64, 65, 299, 1024]),
    top_p=st.one_of(st.just(1.0), st.floats(1e-3, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
)
@example(seed=1, width=16, step=1.0, temperature=1.0, top_k=3, top_p=0.6, min_p=1.0)
def test_distribution_is_the_reference(
    seed: int, width: int, step: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Every combination of filters, on logits rounded to `step` so that ties are the rule."""
    rng = np.random.default_rng(seed)
    logits = (np.round(rng.normal(0, 3, width) / step) * step).astype(np.float32)
    sampling = Sampling(temperature, top_k, top_p, min_p)
    assume(not on_a_boundary(logits, sampling))
    expected = filtered_probs(logits, sampling)
    actual = distribution_probs(logits, sampling)
    assert ((expected > 0) == (actual > 0)).all()
    np.testing.assert_allclose(actual, expected, rtol=2e-4)


@pytest.mark.parametrize("top_k", [0, 4, 64])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_k: int) -> None:
    """Exact binary fractions: at 0.5 one token reaches it, just above it takes another."""
    logits = np.log(np.array([0.125, 0.5, 0.25, 0.125], np.float32))
    kept = [
        np.flatnonzero(distribution_probs(logits, Sampling(1.0, top_k, top_p))).tolist()
        for top_p in (1e-30, 0.49, 0.51, 0.74, 0.76, 0.874)
    ]
    assert kept == [[1], [1], [1, 2], [1, 2], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(5e-324),
        Sampling(1e-8, top_k=5),
        Sampling(1e-8, top_p=1e-12),
        Sampling(1e300, top_k=1),
        Sampling(1.0, top_k=40, min_p=1.0),
        Sampling(1.0, top_p=1e-300, min_p=5e-324),
    ],
)
def test_extreme_samplers_are_the_argmax(sampling: Sampling) -> None:
    """S2, T -> 0 and its like: finite, and a point mass on the best token."""
    logits = np.array([-30, 29.999, 30, -np.inf, 1e-3] + [0] * 95, np.float32)
    probs = distribution_probs(logits, sampling)
    assert np.flatnonzero(probs > 1e-6).tolist() == [2]
    assert probs[2] == pytest.approx(1)


def test_highest_temperature_is_uniform() -> None:
    probs = distribution_probs(np.array([-30, 30, 0, 12], np.float32), Sampling(1e300))
    np.testing.assert_allclose(probs, 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("width", "k"),
    [(16, 64), (64, 64), (65, 64), (4096, 64), (8192, 64), (8200, 64), (16384, 1), (131_072, 1024)],
)
def test_ranked_breaks_ties_by_id(width: int, k: int) -> None:
    """Directly and through blocks (from 2 * 64 * k wide): what MLX's sorts must keep doing."""
    rng = np.random.default_rng(width)
    logits = rng.integers(-3, 4, (3, width)).astype(np.float32)
    logits[1] = 0
    logits[2] = np.where(np.arange(width) % 97 == 5, 1, rng.normal(-3, 1, width))
    values, ids = (np.array(a) for a in ranked(mx.array(logits), k))
    for row in range(3):
        expected = np.lexsort((np.arange(width), -logits[row]))[:k]
        assert expected.tolist() == ids[row].tolist()
        assert logits[row][expected].tolist() == values[row].tolist()


def test_rows_are_grouped_by_what_they_need() -> None:
    samplings = [
        (Sampling(), GREEDY),
        (Sampling(top_k=3, top_p=0.5, seeded=True), GREEDY),
        (Sampling(1.0), WHOLE),
        (Sampling(1.0, min_p=0.1), WHOLE),
        (Sampling(1.0, top_p=0.9), NUCLEUS),
        (Sampling(1.0, top_k=64, top_p=0.9), 64),
        (Sampling(1.0, top_k=65), 1024),
        (Sampling(1.0, top_k=1025), NUCLEUS),
    ]
    assert [reach for _, reach in samplings] == rows_of(*(s for s, _ in samplings)).reaches.tolist()


def test_joined_rows_return_to_their_places() -> None:
    values = mx.arange(10)[:, None] * mx.array([1, 10])
    members = [np.array([1, 4, 9]), np.array([0, 2]), np.array([3, 5, 6, 7, 8])]
    assert values.tolist() == join_rows([take_rows(values, m) for m in members], members).tolist()


def test_greedy_drafts_are_the_argmax_and_keep_no_distribution() -> None:
    logits = mx.array([[1.0, 3, 3, 0], [2, 2, 2, 2]])
    tokens, distribution = draft(DraftLogits(logits), rows_of(Sampling(), Sampling()), (0, 1), 0)
    assert tokens.tolist() == [1, 0]
    assert distribution is None
    ids = mx.array([[40, 30, 20, 10], [4, 3, 2, 1]])
    tokens, distribution = draft(
        DraftLogits(logits, ids), rows_of(Sampling(), Sampling()), (0, 1), 0
    )
    assert tokens.tolist() == [30, 4]
    assert distribution is None


def test_seeded_drafts_keep_no_distribution() -> None:
    sampling = Sampling(1.0, seeded=True, noise_key=5)
    _, distribution = draft(DraftLogits(mx.zeros((1, 100))), rows_of(sampling), (0,), 0)
    assert distribution is None


@pytest.mark.parametrize("sparse", [False, True])
def test_drafts_are_drawn_from_their_distribution(sparse: bool) -> None:
    """S2 rests on it: a proposal is drawn from exactly what is handed on."""
    rng = np.random.default_rng(3)
    count, width = 40_000, 12
    logits = rng.normal(0, 1.5, width).astype(np.float32)
    ids = rng.permutation(1000)[:width].astype(np.int32)
    samplings = tuple(Sampling(0.8, top_k=9, top_p=0.9, noise_key=k) for k in range(count))
    given_ids = mx.array(np.tile(ids, (count, 1))) if sparse else None
    tokens, distribution = draft(
        DraftLogits(mx.array(np.tile(logits, (count, 1))), given_ids),
        DrawRows(samplings, (1,) * count, (0,) * count),
        range(count),
        0,
    )
    assert distribution is not None
    assert distribution.rows == tuple(range(count))
    expected = filtered_probs(logits, samplings[0])
    names = ids if sparse else np.arange(width)
    probs = dict(
        zip(
            np.array(distribution.ids)[0].tolist(),
            np.exp(np.array(distribution.log_probs)[0]),
            strict=True,
        )
    )
    np.testing.assert_allclose([probs[n] for n in names.tolist()], expected, rtol=1e-5)
    seen = np.array([(np.array(tokens) == n).mean() for n in names])
    assert (np.abs(seen - expected) <= 5 * np.sqrt(expected / count)).all()


def test_draft_distribution_reaches_no_further_than_64_candidates() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 1, (2, 20_000)).astype(np.float32)
    rows = rows_of(Sampling(1.0), Sampling(1.0, top_k=1000))
    _, distribution = draft(DraftLogits(mx.array(logits)), rows, (0, 1), 0)
    assert distribution is not None
    assert np.argsort(-logits, axis=1)[:, :64].tolist() == distribution.ids.tolist()
    np.testing.assert_allclose(np.exp(np.array(distribution.log_probs)).sum(axis=1), 1, rtol=1e-5)


def test_mixed_subset_drafts_each_row_as_if_alone() -> None:
    """Rows come in the runner's order, deepest first, and any of them may have stopped drafting."""
    rng = np.random.default_rng(5)
    table = rng.normal(0, 2, (5, 500)).astype(np.float32)
    samplings = (
        Sampling(1.0, seeded=True, noise_key=1),
        Sampling(),
        Sampling(0.7, top_p=0.9, noise_key=2),
        Sampling(),
        Sampling(1.5, top_k=100, noise_key=3),
    )
    rows = DrawRows(samplings, (3,) * 5, (7, 8, 9, 10, 11))
    subset = [4, 1, 0, 2]
    tokens, distribution = draft(DraftLogits(mx.array(table[subset])), rows, subset, 2)
    assert distribution is not None
    assert distribution.rows == (4, 0, 2)
    for place, row in enumerate(subset):
        alone, own = draft(DraftLogits(mx.array(table[[row]])), rows, [row], 2)
        assert alone.tolist() == tokens[place : place + 1].tolist()
        if own is not None:
            at = distribution.rows.index(row)
            assert own.ids.tolist() == distribution.ids[at : at + 1].tolist()
            assert own.log_probs.tolist() == distribution.log_probs[at : at + 1].tolist()
