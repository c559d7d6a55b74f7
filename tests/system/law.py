"""The exact law of a reply, token by token, and how far drawn replies are from it.

- The logits are those of one plain forward of mlx-lm; everything behind them is here, in float64
  NumPy that shares no line with the product: bans, bias, penalties, temperature, filters.
- Randomised probability integral transform: U = F(below the token) + V * p(token) with V uniform
  is uniform on (0, 1) and independent of all before it exactly if the token has the law p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from scipy import stats

from sapwood.model.pair import Pair
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import Array

FORWARD_REPLIES = 256
BINS = 10


@dataclass(frozen=True)
class Evidence:
    """Of n tokens of whole replies. strays: tokens that the law says cannot be."""

    tokens: int
    strays: int
    p_values: dict[str, float]

    @property
    def least(self) -> float:
        return min(self.p_values.values())


def laws(pair: Pair, sampling: Sampling, prompt: Sequence[int], replies: Array) -> Array:
    """[replies, length, V] float64: the law of each token given those before it."""
    parts = [
        _laws(pair, sampling, prompt, replies[at : at + FORWARD_REPLIES])
        for at in range(0, len(replies), FORWARD_REPLIES)
    ]
    return np.concatenate(parts)


def evidence(law: Array, replies: Array, seed: int = 0) -> Evidence:
    """Against `law` [replies, length, V], tokens by id and by rank, alone and in pairs."""
    width = law.shape[-1]
    noise = np.random.default_rng(seed).random((2, *replies.shape))
    drawn = np.take_along_axis(law, replies[..., None], -1)[..., 0]
    by_id = np.where(np.arange(width) < replies[..., None], law, 0).sum(-1) + noise[0] * drawn
    # Equally probable tokens in the order of their ids.
    above = law > drawn[..., None]
    above |= (law == drawn[..., None]) & (np.arange(width) < replies[..., None])
    by_rank = np.where(above, law, 0).sum(-1) + noise[1] * drawn
    best = law.max(-1)
    hits = (drawn == best).sum()  # ties do not happen
    z = (hits - best.sum()) / np.sqrt((best * (1 - best)).sum())
    return Evidence(
        replies.size,
        int((drawn == 0).sum()),
        {
            "by id": float(stats.kstest(by_id.ravel(), "uniform").pvalue),
            "by rank": float(stats.kstest(by_rank.ravel(), "uniform").pvalue),
            "best": float(2 * stats.norm.sf(abs(z))),
            "pairs by id": _pairs(by_id),
            "pairs by rank": _pairs(by_rank),
        },
    )


def shifted(law: Array, share: float) -> Array:
    """`law` with this share of all taken from its best token and spread over its others."""
    best = law.max(-1, keepdims=True)
    left = np.maximum(best - share, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        others = law * (1 - left) / (1 - best)
    # Where one token is certain there is nobody to give it to.
    return np.where(best == 1, law, np.where(law == best, left, others))


def _pairs(uniform: Array) -> float:
    """Each token with the one before it in its reply, no token twice."""
    even = uniform[:, : uniform.shape[1] // 2 * 2].reshape(-1, 2)
    cells = np.minimum((even * BINS).astype(int), BINS - 1)
    counts = np.bincount(cells[:, 0] * BINS + cells[:, 1], minlength=BINS * BINS)
    return float(stats.chisquare(counts).pvalue)


def _laws(pair: Pair, sampling: Sampling, prompt: Sequence[int], replies: Array) -> Array:
    count, length = replies.shape
    tokens = np.concatenate([np.tile(prompt, (count, 1)), replies[:, :-1]], axis=1)
    logits = np.array(pair.target(mx.array(tokens))[:, len(prompt) - 1 :], np.float64)
    said = np.zeros((count, length, logits.shape[-1]))
    said[:, 1:] = np.cumsum(np.eye(logits.shape[-1])[replies[:, :-1]], axis=1)
    banned = pair.tokenizer.suppressed
    logits[..., sorted(banned.always)] = -np.inf
    logits[:, 0, sorted(banned.first)] = -np.inf
    return law_of(logits, sampling, prompt, said)


def law_of(logits: Array, sampling: Sampling, prompt: Sequence[int], said: Array) -> Array:
    """[..., V] of logits [..., V]. said [..., V]: how often the reply has each token already."""
    scores = logits.astype(np.float64)
    for token, bias in sampling.logit_bias:
        scores[..., token] += bias
    known = said > 0
    known[..., sorted(set(prompt))] = True
    r = sampling.repetition_penalty
    scores = np.where(known, np.where(scores > 0, scores / r, scores * r), scores)
    scores = scores - sampling.presence_penalty * (said > 0) - sampling.frequency_penalty * said
    # Best first, of equals the lower id.
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    weights = np.exp((ranked - ranked[..., :1]) / sampling.temperature)
    weights[..., sampling.top_k or weights.shape[-1] :] = 0
    weights /= weights.sum(-1, keepdims=True)
    reached = np.cumsum(weights, axis=-1) - weights
    if sampling.top_p < 1:
        weights = np.where(reached < sampling.top_p, weights, 0)
    weights = np.where(weights >= sampling.min_p * weights[..., :1], weights, 0)
    law = np.zeros_like(weights)
    np.put_along_axis(law, order, weights / weights.sum(-1, keepdims=True), -1)
    return law
