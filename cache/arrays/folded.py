"""Attention by products and a softmax of our own: the heads of a group are one matrix's rows.

- One product reads each K/V head once, where one for each query head may read it again.
- Invisible scores become the dtype's least, as in MLX's own unfused attention: a row that sees
  nothing stays finite.
- A *partial* is attention over some of a query's keys: [.., D + 2] in float32, the sum of their
  values weighted with e ** (score - best), the sum of these weights, and best. Those over disjoint
  keys give attention over all of them, exactly (FlashDecoding: Dao et al., 2023): `merged`,
  `whole`. No fused kernel of MLX's gives the weights' sum, and in half precision its logarithm
  would be off by percents.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from sapwood.cache.arrays.powers import weighted, weighted_partial
from sapwood.cache.attention_routes import Kernels


def folded(
    kernels: Kernels, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None
) -> mx.array:
    """[n, heads, Q, D] over [n, kv_heads, L, D] -> [n, heads, Q, D].

    mask: bool [.., 1, Q, L] as `visible` gives it; None: all is visible.
    """
    heads = queries.shape[1]
    scores = _scores(queries, keys, mask)
    if kernels.backend == "cpu" and scores.dtype == mx.float32:
        return unfold(weighted(scores, values), heads)
    return unfold(mx.softmax(scores, axis=-1, precise=True) @ values, heads)


def folded_partial(
    kernels: Kernels, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None
) -> mx.array:
    """The same as a partial: [n, heads, Q, D + 2]."""
    heads = queries.shape[1]
    return unfold(partial_over(kernels, _scores(queries, keys, mask), values), heads)


def partial_over(kernels: Kernels, scores: mx.array, values: mx.array) -> mx.array:
    """Partials [.., rows, D + 2] of masked scores [.., rows, L] over values [.., L, D]."""
    if kernels.backend == "cpu" and scores.dtype == mx.float32:
        return weighted_partial(scores, values)
    mean = mx.softmax(scores, axis=-1, precise=True) @ values
    best = mx.logsumexp(scores.astype(mx.float32), axis=-1, keepdims=True)
    held = [mean.astype(mx.float32), mx.ones_like(best), best]
    return mx.concatenate(held, axis=-1)


Partial = tuple[mx.array, mx.array, mx.array]


def split_partial(joined: mx.array) -> Partial:
    """Weighted values [.., D], sum of weights [.., 1], best [.., 1]."""
    return joined[..., :-2], joined[..., -2:-1], joined[..., -1:]


def merged(ours: Partial, theirs: Partial) -> Partial:
    """The partial over the keys of both."""
    values, weights, best = _merged(*ours, *theirs)
    return values, weights, best


def whole(over_all: Partial) -> mx.array:
    """Attention [.., D], of the partial over all keys."""
    return over_all[0] / over_all[1]


@partial(mx.compile, shapeless=True)
def _merged(
    values: mx.array,
    weights: mx.array,
    best: mx.array,
    other_values: mx.array,
    other_weights: mx.array,
    other_best: mx.array,
) -> list[mx.array]:
    above = mx.maximum(best, other_best)
    ours, theirs = mx.exp(best - above), mx.exp(other_best - above)
    return [
        ours * values + theirs * other_values,
        ours * weights + theirs * other_weights,
        above,
    ]


def _scores(queries: mx.array, keys: mx.array, mask: mx.array | None) -> mx.array:
    """[n, kv_heads, Q * group, L]."""
    n, heads, count, _ = queries.shape
    kv_heads, length = keys.shape[1:3]
    scores = fold(queries, kv_heads) @ keys.swapaxes(-1, -2)
    if mask is None:
        return scores
    if count == 1:
        return _masked(mask, scores)
    shaped = scores.reshape(n, kv_heads, count, heads // kv_heads, length)
    return _where(mask[..., None, :], shaped).reshape(scores.shape)


def _where(mask: mx.array, scores: mx.array) -> mx.array:
    return mx.where(mask, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))


_masked = mx.compile(_where, shapeless=True)  # an operation instead of three, for few scores


def fold(queries: mx.array, kv_heads: int) -> mx.array:
    """[n, heads, Q, D] -> [n, kv_heads, Q * group, D], a query's heads one under another.

    In this order nothing is copied where there is one K/V head, or one query.
    """
    n, heads, count, dim = queries.shape
    if count == 1:
        return queries.reshape(n, kv_heads, -1, dim)
    split = queries.reshape(n, kv_heads, heads // kv_heads, count, dim)
    return split.swapaxes(2, 3).reshape(n, kv_heads, -1, dim)


def unfold(rows: mx.array, heads: int) -> mx.array:
    """`fold` undone."""
    n, kv_heads, count, dim = rows.shape
    if count * kv_heads == heads:  # one query
        return rows.reshape(n, heads, 1, dim)
    split = rows.reshape(n, kv_heads, -1, heads // kv_heads, dim)
    return split.swapaxes(2, 3).reshape(n, heads, -1, dim)
