"""Sums over a vocabulary of 262,144 are exact enough to count by, whatever the logits' dtype.

Expected values are NumPy's float64 over the same logits.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.sampling.distribution import (
    NUCLEUS,
    WHOLE,
    DrawRows,
    Filters,
    distribution_of,
    log_total,
)
from sapwood.model.sampling.logprobs import logprobs_report
from sapwood.scheduler.sampling import Sampling
from tests.quick import few_quick

VOCABULARY = 262_144


def log_probs_of(logits: mx.array, sampling: Sampling) -> np.ndarray:
    """[n, V] float64, what the product makes of logits [n, V]."""
    rows = DrawRows((sampling,), (0,), (0,))
    reach = int(rows.reaches[0])
    assert reach in (NUCLEUS, WHOLE)
    table = np.repeat(rows.table, logits.shape[0], axis=0)
    return np.array(distribution_of(logits, Filters.of(table), reach).log_probs, np.float64)


def fewest(logits: np.ndarray, top_p: float, top_k: int = 0) -> np.ndarray:
    """[V] bool: the fewest of the best tokens that reach top_p, of the best top_k."""
    logits = logits.astype(np.float64)
    order = np.lexsort((np.arange(logits.size), -logits))[: top_k or logits.size]
    probs = np.exp(logits[order] - logits.max())
    before = (np.cumsum(probs) - probs) / probs.sum()
    kept = np.zeros(logits.size, np.bool_)
    kept[order[before < top_p]] = True
    return kept


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("top_k", few_quick([0, 100_000], 0))
def test_top_p_keeps_the_fewest_tokens_that_reach_it(spread: float, top_k: int) -> None:
    """From a handful of tokens to nearly all; not one more."""
    logits = np.random.default_rng(7).normal(0, spread, VOCABULARY).astype(np.float32)
    for top_p in (0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999):
        log_probs = log_probs_of(mx.array(logits[None]), Sampling(1.0, top_k, top_p))[0]
        assert np.array_equal(np.isfinite(log_probs), fewest(logits, top_p, top_k)), top_p


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 1 << 20])
def test_of_equal_tokens_it_keeps_its_share_by_id(vocabulary: int) -> None:
    for top_p in (2**-18, 0.25, 0.5, 0.75, 1 - 2**-18):
        log_probs = log_probs_of(mx.zeros((1, vocabulary)), Sampling(1.0, top_p=top_p))[0]
        kept = np.flatnonzero(np.isfinite(log_probs))
        assert kept.tolist() == list(range(int(top_p * vocabulary)))


def test_a_long_tail_is_not_lost_against_one_token() -> None:
    """Each token of the tail is below 2**-25 of all; together they have 0.4 %."""
    logits = np.full(VOCABULARY, np.log(0.004 / (VOCABULARY - 1)), np.float32)
    logits[7] = np.log(0.996)
    for top_p in (0.9961, 0.997, 0.998, 0.9999):
        log_probs = log_probs_of(mx.array(logits[None]), Sampling(1.0, top_p=top_p))[0]
        kept, due = (np.count_nonzero(a) for a in (np.isfinite(log_probs), fewest(logits, top_p)))
        # One score's last bit, which all of the tail shares, is 2**-20 of its mass: a token's.
        assert abs(kept - due) <= 1


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.8, min_p=1e-4), Sampling(1.0, top_p=0.9)], ids=str
)
def test_distributions_sum_to_one(dtype: mx.Dtype, sampling: Sampling) -> None:
    """A bfloat16 softmax of equal scores would sum to 1,024 on a CPU, a float32 one to 1.0004."""
    logits = np.random.default_rng(3).normal(0, 3, (3, VOCABULARY)).astype(np.float32)
    logits[0] = 0
    logits[2, VOCABULARY // 4 :] = -np.inf  # whole blocks of what is never generated
    sums = np.exp(log_probs_of(mx.array(logits).astype(dtype), sampling)).sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=2e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_reported_log_probabilities_are_the_models_own(dtype: mx.Dtype) -> None:
    drawn = np.random.default_rng(4).normal(0, 3, (4, VOCABULARY)).astype(np.float32)
    drawn[0] = 0
    logits = mx.array(drawn).astype(dtype)
    rows = DrawRows((Sampling(),) * 4, (0,) * 4, (0,) * 4)
    tokens = mx.array([[5, 0], [6, 0], [7, 0], [8, 0]])
    report = logprobs_report(logits, rows, tokens, (3,) * 4)
    assert report is not None
    wide = np.array(logits.astype(mx.float32), np.float64)
    own = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(
        np.array(report.places.chosen), own[range(4), [5, 6, 7, 8]], atol=4e-6
    )
    np.testing.assert_allclose(np.array(report.places.best), -np.sort(-own)[:, :3], atol=4e-6)


@pytest.mark.parametrize("width", [1, 7, 511, 512, 513, 1000, 1024, 70_001])
def test_log_total_of_any_width(width: int) -> None:
    scores = np.random.default_rng(width).normal(0, 9, (3, width)).astype(np.float32)
    scores[1, 1:] = -np.inf
    expected = np.log(np.exp(scores.astype(np.float64)).sum(axis=1))
    total = log_total(mx.array(scores))
    assert total.shape == (3, 1)
    np.testing.assert_allclose(np.array(total)[:, 0], expected, atol=4e-6)
