"""Full-attention K/V of all slots of one layer: the contract's KVCache.

- A slot lies in the pool of the smallest capacity (geometry.row_tokens) that holds it: rows of like
  length are attended in one call and padding never doubles what is read, however unlike the
  sequences are.
- Position p lies at entry p - base: rewind to any offset from the base on is free, commit and
  rollback are one integer.
- What lies before the base is held by reference (arrays/prefixes): [0, base) of stored ranges, read
  where they are and never copied.
- A restore that would leave a gap is refused.
"""

from __future__ import annotations

import mlx.core as mx

from sapwood.cache.arrays.batch import Batch
from sapwood.cache.arrays.placement import Placement
from sapwood.cache.arrays.pool_history import PoolHistory
from sapwood.cache.arrays.pools import Pools
from sapwood.cache.arrays.prefixes import Prefixes
from sapwood.cache.arrays.ranges import LayerRange, merge_full
from sapwood.cache.arrays.strict_attention import StrictHistory
from sapwood.cache.attention_routes import Kernels


class FullStore:
    """One full layer's K/V. `offsets[slot]` = committed tokens, the live length."""

    merge = staticmethod(merge_full)

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        placement: Placement,
        dtype: mx.Dtype,
        kernels: Kernels,
        prefixes: Prefixes,
        index: int,
    ) -> None:
        """kernels: what attention over it is laid out for. index: among the full layers."""
        self.pools = Pools(kv_heads, head_dim, placement, dtype)
        self.kernels = kernels
        self._history = StrictHistory if kernels.strict else PoolHistory
        self.prefixes, self.index = prefixes, index
        self.offsets: dict[int, int] = {}

    @property
    def arrays(self) -> list[mx.array]:
        """Keys and values of every pool; nobody keeps them past the step."""
        return self.pools.arrays

    def free(self, slot: int) -> None:
        """Drop the slot's content. Its pool row is Placement's to free, once for all layers."""
        self.offsets.pop(slot, None)

    def refer(self, slot: int) -> None:
        """The slot holds what its prefix does, [0, base), and nothing else."""
        self.offsets[slot] = self.pools.placement.base(slot)

    def can_restore(self, slot: int, snapshot: LayerRange | None, target: int) -> bool:
        """Whether `restore` would succeed: a target within what is held then, without a gap."""
        offset, base = self.offsets.get(slot, 0), self.pools.placement.base(slot)
        if snapshot is None or target < snapshot.start:
            return base <= target <= offset
        return target <= snapshot.end and snapshot.start <= offset

    def restore(self, slot: int, snapshot: LayerRange | None, target: int) -> bool:
        """Rewind to `target` (None), or feed the snapshot from its start and clamp to `target`.

        False, with nothing changed, where it cannot. The snapshot stays the caller's. The slot must
        have a place for `target` tokens.
        """
        if not self.can_restore(slot, snapshot, target):
            return False
        if snapshot is not None and target > snapshot.start:
            assert snapshot.start >= self.pools.placement.base(slot), (slot, snapshot.start)
            count = target - snapshot.start
            keys, values = snapshot.keys[:, :count], snapshot.values[:, :count]
            self.pools.write(slot, snapshot.start, keys, values)
        self.offsets[slot] = target
        return True

    def snapshot(self, slot: int, start: int, end: int | None = None) -> LayerRange | None:
        """[max(0, start), end), lazily, end None: the offset; None where that is empty.

        From the base on: what is held by reference is stored already. To be copied and evaluated
        before the next write: it may be a view.
        """
        offset = self.offsets.get(slot, 0)
        start, end = max(0, start), offset if end is None else end
        assert end <= offset, (slot, end, offset)
        if start >= end:
            return None
        return LayerRange(start, end, *self.pools.view(slot, start, end))

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> PoolHistory:
        """Write the packed batch [T, kv_heads, D]; offsets move only at `commit`."""
        self.pools.append(batch, keys, values)
        placement, pools = self.pools.placement, self.pools.by_capacity
        slices = []
        for span in batch.prefills:
            place = placement.places[span.slot]
            keys, values = pools[place.capacity]
            row, end = slice(place.row, place.row + 1), span.end - placement.base(span.slot)
            slices.append((keys[row, :, :end], values[row, :, :end]))
        held = self.prefixes.layer(self.index)
        return self._history(
            self.kernels, batch, placement, pools, None, tuple(slices), prefix=held
        )

    def view(self, batch: Batch, keep: int | None = None) -> PoolHistory:
        """Read-only: a decode span's last position sees the newest `keep` entries up to itself.

        keep None: all of them, as it must be where anything is held by reference.
        """
        bases = (self.pools.placement.base(span.slot) for span in batch.spans)
        assert keep is None or not any(bases), "a reach within what is held by reference"
        placement, pools = self.pools.placement, self.pools.by_capacity
        held = self.prefixes.layer(self.index)
        return self._history(self.kernels, batch, placement, pools, keep, prefix=held)

    def commit(self, slot: int, offset: int) -> None:
        """The sequence in `slot` holds `offset` tokens; what its row holds beyond is dead."""
        self.offsets[slot] = offset
