"""A layer's K/V as one batch sees it: what the model's attention gets from `update` and `view`.

- Decode spans share one attention call per capacity class, over the pools, masked by position;
  on a GPU what the vector kernel has no room for of a long one follows in further calls.
- A prefill span attends in its own call, over keys in logical order that end with its own.
- What is held by reference is attended to apart, for all that share it together (arrays/prefixes).
- Valid for the step that made it. Holding one longer makes the pools' next write a full copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.attention import Grid, over_grid, over_slice, position_mask, slice_mask
from sapwood.cache.arrays.batch import Batch, Ints, indices
from sapwood.cache.arrays.placement import Placement
from sapwood.cache.arrays.pools import KeysValues
from sapwood.cache.arrays.prefixes import LayerPrefixes
from sapwood.cache.attention_routes import AttentionCall, Kernels, is_fused, queries_max


@dataclass(frozen=True, slots=True)
class PoolHistory:
    """kernels: those of the device. reach: keys that a query sees, itself included; None: all.

    slices: per prefill span its keys and values [1, kv_heads, past + own, D].
    floors: slot -> lowest position held, where that may lie within reach. prefix: of a full layer.
    """

    kernels: Kernels
    batch: Batch
    placement: Placement
    pools: Mapping[int, KeysValues]
    reach: int | None
    slices: tuple[KeysValues, ...] = ()
    floors: Mapping[int, int] | None = None
    prefix: LayerPrefixes | None = None

    def attend(self, queries: mx.array, trimmed: bool = False) -> mx.array:
        """History.attend."""
        kv_heads = next(iter(self.pools.values()))[0].shape[1]
        _, heads, dim = queries.shape
        group = heads // kv_heads
        # What all layers have alike is decided once for a step.
        key = ("layout", self.placement, self.reach, self._floors_key, dim, group, trimmed)
        layout = self.batch.shared(key, lambda: self._layout(dim, group, trimmed))
        prefix = self.prefix
        levels = () if prefix is None else prefix.levels(self.batch, trimmed)
        partial = len(levels) > 0
        pieces = []
        for grid, length, mask in layout.calls:
            keys, values = self.pools[grid.capacity]
            held = grid.read(keys, length), grid.read(values, length)
            pieces.append(over_grid(self.kernels, queries, grid, *held, mask, partial))
        for index, first, end in layout.slices:
            keys, values = self.slices[index]
            slice_mask = self._slice_mask(index, end - first, keys.shape[2])
            own = queries[first:end]
            pieces.append(over_slice(self.kernels, own, keys, values, slice_mask, partial))
        out = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)
        out = out if layout.order is None else out[layout.order]
        if prefix is None or not levels:
            return out
        return prefix.join(self.kernels, queries, out, levels)

    def _layout(self, dim: int, group: int, trimmed: bool) -> _Layout:
        most = queries_max(self.kernels, dim, group)
        grids = self.batch.shared(
            ("grids", self.placement, most),
            lambda: Grid.classes(self.batch, self.placement, most),
        )
        prefills = range(len(self.batch.prefills))
        ranges = [self.batch.queries_of(index, trimmed) for index in prefills]
        slices = tuple((i, *r) for i, r in enumerate(ranges) if r[1] > r[0])
        order = packed_order([g.packed for g in grids] + [indices(*r) for r in ranges])
        return _Layout(tuple(self._call(grid, dim, group) for grid in grids), slices, order)

    def _call(self, grid: Grid, dim: int, group: int) -> tuple[Grid, int, mx.array | None]:
        end = self._lone_end(grid)
        # A fused kernel that takes no mask gets this call without one.
        if end and is_fused(self.kernels, AttentionCall(dim, group, 1, end, "none")):
            return grid, end, None
        return grid, grid.length, self._mask(grid)

    @property
    def _floors_key(self) -> object:
        return None if self.floors is None else tuple(self.floors.items())

    def _lone_end(self, grid: Grid) -> int | None:
        """Where everything that a grid's one query sees ends, if that is all the row holds."""
        if self.reach is None and grid.n == grid.queries == 1:
            return int(grid.ends[0])
        return None

    def _mask(self, grid: Grid) -> mx.array:
        capacity = grid.capacity
        floors = self.floors
        if floors is not None:
            # A view's own: no other layer has these floors.
            lowest = np.array([0 if s is None else floors[s] for s in grid.slots], np.int32)
            return position_mask(grid, capacity, self.reach, lowest)
        return self.batch.shared(
            ("mask", grid, self.reach),
            lambda: position_mask(grid, capacity, self.reach, None),
        )

    def _slice_mask(self, index: int, queries: int, length: int) -> mx.array | str | None:
        return self.batch.shared(
            ("slice_mask", index, queries, length, self.reach),
            lambda: slice_mask(queries, length, self.reach),
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    """The calls of all layers with one placement and reach.

    calls: a grid, how many keys of its rows are read, and the mask over them. slices: index of a
    prompt slice, and its rows [first, end). order: as packed_order gives it.
    """

    calls: tuple[tuple[Grid, int, mx.array | None], ...]
    slices: tuple[tuple[int, int, int], ...]
    order: mx.array | None


def packed_order(packed: Sequence[Ints]) -> mx.array | None:
    """What brings rows that lie in the given order back into packed order; None: they are."""
    rows = packed[0] if len(packed) == 1 else np.concatenate(packed)
    if (rows == indices(0, rows.size)).all():
        return None
    return mx.array(np.argsort(rows).astype(np.int32))
