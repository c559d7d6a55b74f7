"""Attention over tiles of keys, one by one, and how what they give is joined.

- A query's heads over one tile are a product of one shape, whoever asks for how many of them.
- The joins are a tree whose leaves are tiles: its shape depends on nothing but their places. A leaf
  of weight 0 changes no bit of what it is joined with, so it does not matter how many follow.
"""

from __future__ import annotations

import mlx.core as mx

from sapwood.cache.arrays.folded import Partial, merged, partial_over
from sapwood.cache.attention_routes import Kernels


def tile_partials(
    kernels: Kernels, queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None
) -> mx.array:
    """Queries [n, Q, heads, D] over K/V [n or 1, kv_heads, L, D], L in whole tiles of
    kernels.tile_tokens.

    mask: bool [n or 1, Q, L]; None: all is visible. Returns [n * tiles * Q, heads, D + 2].
    """
    kv_heads, tiles = keys.shape[1], keys.shape[2] // kernels.tile_tokens
    own = mx.unflatten(queries, 2, (kv_heads, -1)).swapaxes(1, 2)[:, :, None]
    tiled = [mx.unflatten(each, 2, (tiles, -1))[:, :, :, None] for each in (keys, values)]
    # A product for each query and tile, [heads of a group, D] by [D, tile].
    scores = own @ tiled[0].swapaxes(-1, -2)
    if mask is not None:
        seen = mx.unflatten(mask, 2, (tiles, -1)).swapaxes(1, 2)[:, None, :, :, None]
        scores = mx.where(seen, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))
    found = partial_over(kernels, scores, tiled[1])
    n, _, _, count, group, width = found.shape
    ordered = found.transpose(0, 2, 3, 1, 4, 5)
    return ordered.reshape(n * tiles * count, kv_heads * group, width)


def nothing(heads: int, dim: int) -> mx.array:
    """One partial of weight 0."""
    least = mx.full((1, heads, 1), mx.finfo(mx.float32).min)
    return mx.concatenate([mx.zeros((1, heads, dim + 1)), least], axis=-1)


def over_tree(leaves: Partial) -> Partial:
    """Partials [rows, leaves, ...] joined, leaf 2i with 2i + 1 and so on: [rows, ...].

    An odd last one goes up as it is, as if partials of weight 0 followed.
    """
    while (count := leaves[0].shape[1]) > 1:
        even = count - count % 2
        left = tuple(each[:, 0:even:2] for each in leaves)
        right = tuple(each[:, 1:even:2] for each in leaves)
        joined = merged((left[0], left[1], left[2]), (right[0], right[1], right[2]))
        if even < count:
            joined = _with_last(joined, leaves)
        leaves = joined
    return leaves[0].squeeze(1), leaves[1].squeeze(1), leaves[2].squeeze(1)


def _with_last(joined: Partial, leaves: Partial) -> Partial:
    values, weights, best = (
        mx.concatenate([above, below[:, -1:]], axis=1)
        for above, below in zip(joined, leaves, strict=True)
    )
    return values, weights, best
