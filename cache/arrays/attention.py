"""Attention of packed queries over pooled K/V, masked by absolute position.

- Queries come packed [T, heads, D] and leave packed; scale is 1 (Gemma 4 has no 1/sqrt(d)).
- A mask is boolean, True = visible. Invisible keys may hold anything, NaN included; invisible
  values must be finite (0 x NaN is NaN), which pools sees to.
- Pool rows that no span owns are computed along and dropped: never gathered into an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.batch import Batch, Ints, Span, indices
from sapwood.cache.arrays.placement import Placement

LENGTH_STEP = 64  # keys are read up to a multiple of this, so that shapes change rarely
SLICE_SCORES_MAX = 1 << 23  # scores of one tile of a prompt slice, over all heads
TILE_QUERIES_MIN = 8


class History(Protocol):
    """What `update` and `view` hand to a layer's attention; it applies its own mask."""

    def attend(self, queries: mx.array, trimmed: bool = False) -> mx.array:
        """[T, heads, D] -> [T, heads, D]. `trimmed`: only the batch's kept rows are present."""


class LayerStore(Protocol):
    """One K/V-owning layer as a target forward writes it."""

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> History:
        """Write the packed K/V [T, kv_heads, D] and give the layer's history, these included."""


class Layers(Protocol):
    """What a target forward runs over: live caches, or the wrappers of a speculation."""

    @property
    def stores(self) -> Sequence[LayerStore]:
        """The K/V-owning layers in model order."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Decode spans of one capacity class laid over rows of its pool, padded to one query length.

    rows: pool rows [n] to read; None: the first n, which is a view and costs nothing.
    length: keys to read of each. queries: Q, the longest span's length.
    first: packed row of the first query where all [n * Q] lie in one run from there, else None and
    gather [n * Q] says which packed row supplies each query (padding: an arbitrary one), places
    where in [n * Q] the real ones lie, in the order of `packed`, their packed rows.
    starts, ends: [n] position of a row's first query and one past its last; 0, 0 in nobody's row.
    """

    n: int
    rows: mx.array | None
    length: int
    queries: int
    first: int | None
    gather: mx.array
    places: mx.array
    packed: Ints
    starts: Ints
    ends: Ints
    slots: tuple[int | None, ...]

    @classmethod
    def classes(cls, batch: Batch, placement: Placement) -> dict[int, Grid]:
        """The decode spans of a batch by the capacity of their pools."""
        members: dict[int, list[tuple[Span, int, int]]] = {}
        for span, first in zip(batch.decodes, batch.firsts, strict=False):
            place = placement.places[span.slot]
            members.setdefault(place.capacity, []).append((span, first, place.row))
        return {capacity: cls._over(capacity, spans) for capacity, spans in members.items()}

    @classmethod
    def _over(cls, capacity: int, members: Sequence[tuple[Span, int, int]]) -> Grid:
        """Holes among the rows are read along, unless they outnumber the owners.

        Then the owners' rows are gathered, which copies them.
        """
        spans = [span for span, _, _ in members]
        rows = [row for _, _, row in members]
        dense = max(rows) < 2 * len(rows)
        n, at = (max(rows) + 1, rows) if dense else (len(rows), range(len(rows)))
        queries = max(s.length for s in spans)
        gather = np.full((n, queries), members[0][1], np.int32)
        starts, ends = np.zeros(n, np.int32), np.zeros(n, np.int32)
        slots: list[int | None] = [None] * n
        for row, (span, first, _) in zip(at, members, strict=True):
            gather[row, : span.length] = indices(first, first + span.length)
            starts[row], ends[row], slots[row] = span.start, span.end, span.slot
        packed = np.concatenate([indices(first, first + s.length) for s, first, _ in members])
        places = [
            indices(row * queries, row * queries + s.length)
            for row, s in zip(at, spans, strict=True)
        ]
        whole = np.array_equal(
            gather.ravel(), indices(int(packed[0]), int(packed[0]) + packed.size)
        )
        longest = -(-int(ends.max()) // LENGTH_STEP) * LENGTH_STEP
        return cls(
            n, None if dense else mx.array(np.array(rows, np.int32)), min(capacity, longest),
            queries, int(packed[0]) if whole else None, mx.array(gather.ravel()),
            mx.array(np.concatenate(places)), packed, starts, ends, tuple(slots),
        )  # fmt: skip

    def read(self, pool: mx.array) -> mx.array:
        """[n, kv_heads, length, D] of a pool."""
        return (pool[: self.n] if self.rows is None else pool[self.rows])[:, :, : self.length]


def over_grid(
    queries: mx.array, grid: Grid, keys: mx.array, values: mx.array, mask: mx.array
) -> mx.array:
    """Packed queries [T, heads, D] over pools [rows, kv_heads, capacity, D].

    mask [n, 1, Q, length]. Returns [t, heads, D]: one for each of grid.packed, in its order.
    """
    heads, dim = queries.shape[-2:]
    if grid.first is None:
        queries = queries[grid.gather]
    else:
        queries = queries[grid.first : grid.first + grid.packed.size]
    padded = queries.reshape(-1, grid.queries, heads, dim).transpose(0, 2, 1, 3)
    out = mx.fast.scaled_dot_product_attention(
        padded, grid.read(keys), grid.read(values), scale=1.0, mask=mask
    )
    out = out.transpose(0, 2, 1, 3).reshape(-1, heads, dim)
    return out if grid.first is not None else out[grid.places]


def over_slice(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None
) -> mx.array:
    """One prefill span: queries [q, heads, D] over K/V [1, kv_heads, L, D] that end with its own.

    mask: as slice_mask gives it for q and L. Returns [q, heads, D].

    In tiles of queries, each over the keys up to its own end, so that no more than
    SLICE_SCORES_MAX scores exist at once: a late slice of a long prompt would need gigabytes, and
    no fused kernel spares them at head size 512.
    """
    (count, heads, _), length = queries.shape, keys.shape[2]
    tile = max(TILE_QUERIES_MIN, SLICE_SCORES_MAX // (heads * length))
    out = []
    for first in range(0, count, tile):
        end = min(first + tile, count)
        reach = length - count + end
        rows = queries[first:end].transpose(1, 0, 2)[None]
        part = mask[first:end, :reach] if isinstance(mask, mx.array) else mask
        seen = mx.fast.scaled_dot_product_attention(
            rows, keys[:, :, :reach], values[:, :, :reach], scale=1.0, mask=part
        )
        out.append(seen[0].transpose(1, 0, 2))
    return out[0] if len(out) == 1 else mx.concatenate(out)


def position_mask(grid: Grid, capacity: int, reach: int | None, floors: Ints | None) -> mx.array:
    """Visibility [n, 1, Q, length] of the first `length` entries of rows that wrap at `capacity`.

    Entry r holds the newest position p <= last, the row's last written one, with
    p = r mod capacity; p < 0 was never written. A query sees at most `reach` keys with its own.
    What a deeper round left beyond `last` shows up as p - capacity, which no reach of an
    over-provisioned ring goes back to. floors [n]: the lowest position that a row still holds.
    """
    last = mx.array(grid.ends - 1)[:, None]
    entry = mx.arange(grid.length, dtype=mx.int32)[None]
    position = (last - mx.remainder(last - entry, capacity))[:, None, None, :]
    query = mx.array(grid.starts)[:, None] + mx.arange(grid.queries, dtype=mx.int32)[None]
    query = query[:, None, :, None]
    visible = (position <= query) & (position >= 0)
    if reach is not None:
        visible = visible & (position > query - reach)
    if floors is not None:
        visible = visible & (position >= mx.array(floors)[:, None, None, None])
    return visible


def slice_mask(queries: int, length: int, reach: int | None) -> mx.array | str | None:
    """The last `queries` of `length` positions over all of them: bool [queries, length].

    "causal" where every key is within reach, and None then for one query alone.
    """
    if reach is None or length <= reach:
        return "causal" if queries > 1 else None
    key = mx.arange(length, dtype=mx.int32)[None]
    query = mx.arange(length - queries, length, dtype=mx.int32)[:, None]
    return (key <= query) & (key > query - reach)
