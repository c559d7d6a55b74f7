"""A layer's K/V as one batch sees it: what the model's attention gets from `update` and `view`.

- Decode spans share one attention call per capacity class, over the pools, masked by position.
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


@dataclass(frozen=True, slots=True)
class PoolHistory:
    """reach: keys that a query sees, itself included; None: all.

    slices: per prefill span its keys and values [1, kv_heads, past + own, D].
    floors: slot -> lowest position held, where that may lie within reach.
    """

    batch: Batch
    placement: Placement
    pools: Mapping[int, KeysValues]
    reach: int | None
    slices: tuple[KeysValues, ...] = ()
    floors: Mapping[int, int] | None = None

    def attend(self, queries: mx.array, trimmed: bool = False) -> mx.array:
        """History.attend."""
        grids = self.batch.shared(
            ("grids", self.placement), lambda: Grid.classes(self.batch, self.placement)
        )
        pieces = [
            over_grid(queries, grid, *self.pools[capacity], self._mask(capacity, grid))
            for capacity, grid in grids.items()
        ]
        ranges = [self.batch.queries_of(i, trimmed) for i in range(len(self.batch.prefills))]
        for index, (first, end) in enumerate(ranges):
            if end > first:
                keys, values = self.slices[index]
                mask = self._slice_mask(index, end - first, keys.shape[2])
                pieces.append(over_slice(queries[first:end], keys, values, mask))
        order = self.batch.shared(
            ("order", self.placement, trimmed),
            lambda: _order([g.packed for g in grids.values()] + [indices(*r) for r in ranges]),
        )
        out = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)
        return out if order is None else out[order]

    def _mask(self, capacity: int, grid: Grid) -> mx.array:
        floors = self.floors
        if floors is not None:
            # A view's own, and made once: no other layer has these floors.
            lowest = np.array([0 if s is None else floors[s] for s in grid.slots], np.int32)
            key: object = ("floor_mask", self.placement, capacity, self.reach, lowest.tobytes())
            return self.batch.shared(key, lambda: position_mask(grid, capacity, self.reach, lowest))
        return self.batch.shared(
            ("mask", self.placement, capacity, self.reach),
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
