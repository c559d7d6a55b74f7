"""A layer's K/V as one batch sees it: what the model's attention gets from `update` and `view`.

- Decode spans share one attention call per capacity class, over the pools, masked by position;
  on a GPU what the vector kernel has no room for of a long one follows in further calls.
- A prefill span attends in its own call, over keys in logical order that end with its own.
- Valid for the step that made it. Holding one longer makes the pools' next write a full copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.attention import Grid, over_grid, over_slice, position_mask, slice_mask
from sapwood.cache.arrays.batch import Batch, Ints, indices
from sapwood.cache.arrays.placement import Placement
from sapwood.cache.arrays.pools import KeysValues
from sapwood.cache.attention_routes import AttentionCall, Kernels, is_fused, queries_max


@dataclass(frozen=True, slots=True)
class PoolHistory:
    """kernels: those of the device. reach: keys that a query sees, itself included; None: all.

    slices: per prefill span its keys and values [1, kv_heads, past + own, D].
    floors: slot -> lowest position held, where that may lie within reach.
    """

    kernels: Kernels
    batch: Batch
    placement: Placement
    pools: Mapping[int, KeysValues]
    reach: int | None
    slices: tuple[KeysValues, ...] = ()
    floors: Mapping[int, int] | None = None

    def attend(self, queries: mx.array, trimmed: bool = False) -> mx.array:
        """History.attend."""
        grids = self._grids(queries)
        pieces = [self._over(queries, grid) for grid in grids]
        ranges = [self.batch.queries_of(i, trimmed) for i in range(len(self.batch.prefills))]
        for index, (first, end) in enumerate(ranges):
            if end > first:
                keys, values = self.slices[index]
                mask = self._slice_mask(index, end - first, keys.shape[2])
                own = queries[first:end]
                pieces.append(over_slice(self.kernels, own, keys, values, mask))
        order = self.batch.shared(
            ("order", grids, trimmed),
            lambda: _order([g.packed for g in grids] + [indices(*r) for r in ranges]),
        )
        out = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)
        return out if order is None else out[order]

    def _grids(self, queries: mx.array) -> tuple[Grid, ...]:
        heads, dim = queries.shape[-2:]
        kv_heads = next(iter(self.pools.values()))[0].shape[1]
        most = queries_max(self.kernels, dim, heads // kv_heads)
        return self.batch.shared(
            ("grids", self.placement, most),
            lambda: Grid.classes(self.batch, self.placement, most),
        )

    def _over(self, queries: mx.array, grid: Grid) -> mx.array:
        keys, values = self.pools[grid.capacity]
        if (end := self._lone_end(grid)) is not None:
            # A fused kernel that takes no mask gets this call without one.
            kv_heads, (heads, dim) = keys.shape[1], queries.shape[-2:]
            call = AttentionCall(dim, heads // kv_heads, 1, end, "none")
            if is_fused(self.kernels, call):
                held = grid.read(keys, end), grid.read(values, end)
                return over_grid(self.kernels, queries, grid, *held, None)
        held = grid.read(keys, grid.length), grid.read(values, grid.length)
        return over_grid(self.kernels, queries, grid, *held, self._mask(grid))

    def _lone_end(self, grid: Grid) -> int | None:
        """Where everything that a grid's one query sees ends, if that is all the row holds."""
        if self.reach is None and grid.n == grid.queries == 1:
            return int(grid.ends[0])
        return None

    def _mask(self, grid: Grid) -> mx.array:
        capacity = grid.capacity
        floors = self.floors
        if floors is not None:
            # A view's own, and made once: no other layer has these floors.
            lowest = np.array([0 if s is None else floors[s] for s in grid.slots], np.int32)
            key: object = ("floor_mask", grid, self.reach, lowest.tobytes())
            return self.batch.shared(key, lambda: position_mask(grid, capacity, self.reach, lowest))
        return self.batch.shared(
            ("mask", grid, self.reach),
            lambda: position_mask(grid, capacity, self.reach, None),
        )

    def _slice_mask(self, index: int, queries: int, length: int) -> mx.array | str | None:
        return self.batch.shared(
            ("slice_mask", index, queries, length, self.reach),
            lambda: slice_mask(queries, length, self.reach),
        )


def _order(packed: list[Ints]) -> mx.array | None:
    """What brings rows that lie in the given order back into packed order; None: they are."""
    rows = np.concatenate(packed)
    if np.array_equal(rows, indices(0, rows.size)):
        return None
    return mx.array(np.argsort(rows).astype(np.int32))
