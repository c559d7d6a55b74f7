"""Attention of packed queries over pooled K/V, masked by absolute position.

- Queries come packed [T, heads, D] and leave packed; scale is 1 (Gemma 4 has no 1/sqrt(d)).
- A mask is boolean, True = visible. Invisible keys may hold anything, NaN included; invisible
  values must be finite (0 x NaN is NaN), which no write of ours ever violates.
- Pool rows that no span owns are computed along and dropped: never gathered into an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx
import numpy as np

from cache.batch import Batch, Grid, Ints


class History(Protocol):
    """What `update` and `view` hand to a layer's attention; it applies its own mask."""

    def attend(self, queries: mx.array, trimmed: bool = False) -> mx.array:
        """[T, heads, D] -> [T, heads, D]. `trimmed`: only the batch's kept rows are present."""


def over_grid(
    queries: mx.array, grid: Grid, keys: mx.array, values: mx.array, mask: mx.array
) -> mx.array:
    """Packed queries over K/V [n, kv_heads, L, D] with mask [n, 1, Q, L]; returns grid.packed order."""
    heads, dim = queries.shape[-2:]
    if not grid.plain:
        queries = queries[mx.array(grid.gather.ravel())]
    elif queries.shape[0] != grid.packed.size:
        queries = queries[: grid.packed.size]
    padded = queries.reshape(-1, grid.queries, heads, dim).transpose(0, 2, 1, 3)
    out = mx.fast.scaled_dot_product_attention(padded, keys, values, scale=1.0, mask=mask)
    out = out.transpose(0, 2, 1, 3).reshape(-1, heads, dim)
    return out if grid.plain else out[mx.array(grid.places)]


def over_slice(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None
) -> mx.array:
    """One prefill span: queries [q, heads, D] over its own K/V [1, kv_heads, L, D]."""
    padded = queries.transpose(1, 0, 2)[None]
    out = mx.fast.scaled_dot_product_attention(padded, keys, values, scale=1.0, mask=mask)
    return out[0].transpose(1, 0, 2)


def assemble(pieces: Sequence[tuple[mx.array, Ints]]) -> mx.array:
    """Join outputs that know their packed rows back into packed order."""
    out = pieces[0][0] if len(pieces) == 1 else mx.concatenate([piece for piece, _ in pieces])
    rows = np.concatenate([rows for _, rows in pieces])
    if np.array_equal(rows, np.arange(rows.size)):
        return out
    return out[mx.array(np.argsort(rows).astype(np.int32))]


def position_mask(last: mx.array, first: mx.array, queries: int, ring: int, window: int) -> mx.array:
    """Visibility [n, 1, Q, ring] of ring entries.

    `last` [n]: highest position written in the row, `first` [n]: position of its first query.
    Entry r holds the newest position p <= last with p = r mod ring. What an earlier, deeper round
    left beyond `last` shows up as p - ring, which no window reaches: ring > window + deepest round.
    """
    entry = mx.arange(ring, dtype=mx.int32)[None]
    back = mx.remainder(last[:, None] - entry, ring)
    position = (last[:, None] - back)[:, None, None, :]
    query = (first[:, None] + mx.arange(queries, dtype=mx.int32)[None])[:, None, :, None]
    return (position <= query) & (position > query - window) & (position >= 0)


def causal_mask(first: mx.array, queries: int, length: int) -> mx.array:
    """Visibility [n, 1, Q, length] of linearly stored keys: position <= query."""
    query = (first[:, None] + mx.arange(queries, dtype=mx.int32)[None])[:, None, :, None]
    return mx.arange(length, dtype=mx.int32)[None, None, None, :] <= query


def prefill_rows(batch: Batch, trimmed: bool) -> list[tuple[int, int, int]]:
    """(index, first, end) of every prefill span that has queries in this packing."""
    ranges = [(i, *batch.queries_of(i, trimmed)) for i in range(len(batch.prefills))]
    return [(i, first, end) for i, first, end in ranges if end > first]
