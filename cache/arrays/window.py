"""Sliding-window K/V of all slots of one layer, in over-provisioned rings: the contract's
RotatingKVCache.

- R = geometry.ring_tokens entries a slot, position p at entry p mod R: positions P-1-W ..
  P+k coexist, so a round never lands on a live entry, and commit and rollback are one integer.
- A slot holds exactly [floor, offset). What a restore, rewind, snapshot or view would need below
  the floor is refused or left out, never guessed: the entry may hold another sequence's K/V.
- Masks go by absolute position, always: the ring holds more than the window.
- A prefill span is never rolled back: it attends to [the last W-1 before it | its own K/V] in
  logical order and leaves its last R entries in the ring. The last W-1 are kept aside between
  slices (a tail) and not read back from the ring: a buffer that a pending read still holds is
  copied whole by the next write.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from sapwood.cache.arrays.batch import Batch
from sapwood.cache.arrays.placement import Placement
from sapwood.cache.arrays.pool_history import PoolHistory
from sapwood.cache.arrays.pools import KeysValues, Pools
from sapwood.cache.arrays.ranges import LayerRange, merge_sliding
from sapwood.cache.arrays.strict_attention import StrictHistory
from sapwood.cache.attention_routes import Kernels
from sapwood.cache.geometry import tail_tokens


@dataclass(frozen=True, slots=True)
class Tail:
    """K/V [1, kv_heads, n, D] of at least the W-1 positions before `end`, the slot's offset."""

    end: int
    keys: mx.array
    values: mx.array


class WindowStore:
    """One sliding layer's rings. `offsets[slot]` = committed tokens, the live length."""

    merge = staticmethod(merge_sliding)

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        window: int,
        round_max: int,
        placement: Placement,
        dtype: mx.Dtype,
        kernels: Kernels,
    ) -> None:
        """placement's one capacity is the ring. round_max: most decode rows of one span.

        kernels: what attention over it is laid out for.
        """
        assert window > 0, window
        self.window, self.round_max, self.ring = window, round_max, placement.capacity_for(0)
        self.pools = Pools(kv_heads, head_dim, placement, dtype)
        self.kernels = kernels
        self._history = StrictHistory if kernels.strict else PoolHistory
        self.offsets: dict[int, int] = {}
        self._floors: npt.NDArray[np.int64] = np.zeros(0, np.int64)  # by slot
        self._tails: dict[int, Tail] = {}

    @property
    def arrays(self) -> list[mx.array]:
        """Keys and values of every ring and tail; nobody keeps them past the step."""
        tails = [a for tail in self._tails.values() for a in (tail.keys, tail.values)]
        return self.pools.arrays + tails

    def free(self, slot: int) -> None:
        """Drop the slot's content. Its pool row is Placement's to free, once for all layers."""
        self.offsets.pop(slot, None)
        self._tails.pop(slot, None)
        self._set_floor(slot, 0)

    def can_restore(self, slot: int, snapshot: LayerRange | None, target: int) -> bool:
        """Whether `restore` would succeed: [max(0, target - W), target) is covered."""
        low, offset = max(0, target - self.window), self.offsets.get(slot, 0)
        start, end = (
            (self._floor(slot), offset) if snapshot is None else (snapshot.start, snapshot.end)
        )
        return 0 <= target <= end and (low == target or start <= low)

    def restore(self, slot: int, snapshot: LayerRange | None, target: int) -> bool:
        """Rewind to `target` (None), or replace the content by the snapshot's newest R before it.

        False, with nothing changed, where [max(0, target - W), target) is not covered. The snapshot
        stays the caller's. The slot must have a place.
        """
        if not self.can_restore(slot, snapshot, target):
            return False
        self._tails.pop(slot, None)
        floor = self._floor(slot)
        if snapshot is not None and target > snapshot.start:
            floor = max(snapshot.start, target - self.ring)
            at = slice(floor - snapshot.start, target - snapshot.start)
            keys, values = snapshot.keys[:, at], snapshot.values[:, at]
            self.pools.write(slot, floor, keys, values)
            self._tails[slot] = Tail(target, keys[None], values[None])
        self._set_floor(slot, min(floor, target))
        self.offsets[slot] = target
        return True

    def snapshot(self, slot: int, start: int, end: int | None = None) -> LayerRange | None:
        """What is retained of [start, end), lazily; end None: the offset. None: nothing.

        To be copied and evaluated before the next write: it may be a view.
        """
        offset = self.offsets.get(slot, 0)
        end = offset if end is None else end
        assert end <= offset, (slot, end, offset)
        first = max(start, self._floor(slot))
        if first >= end:
            return None
        return LayerRange(first, end, *self.pools.view(slot, first, end))

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> PoolHistory:
        """Write the packed batch [T, kv_heads, D]; offsets move only at `commit`."""
        slots, floors = batch.shared(("floors", self.ring), lambda: self._lowest(batch))
        slices = self._slices(batch, keys, values)
        self.pools.append(batch, keys, values)
        self._fit(int(slots.max()))
        self._floors[slots] = np.maximum(self._floors[slots], floors)
        placement, pools = self.pools.placement, self.pools.by_capacity
        return self._history(self.kernels, batch, placement, pools, self.window, slices)

    def view(self, batch: Batch, keep: int) -> PoolHistory:
        """Read-only: each decode span's last position sees the newest `keep` entries up to itself.

        Fewer where fewer are held: W right after a restore, which is one less than the ring keeps.
        """
        assert keep <= self.window + 1, (keep, self.window)
        floors = {span.slot: self._floor(span.slot) for span in batch.decodes}
        placement, pools = self.pools.placement, self.pools.by_capacity
        return self._history(self.kernels, batch, placement, pools, keep, floors=floors)

    def commit(self, slot: int, offset: int) -> None:
        """The sequence in `slot` holds `offset` tokens; what its ring holds beyond is dead."""
        assert max(0, offset - self.window) >= self._floor(slot), "a window that was overwritten"
        self.offsets[slot] = offset
        if (tail := self._tails.get(slot)) is not None and tail.end != offset:
            del self._tails[slot]

    def _floor(self, slot: int) -> int:
        return int(self._floors[slot]) if slot < self._floors.size else 0

    def _lowest(self, batch: Batch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(slots, lowest position each still holds once the batch is written)."""
        deepest = max((s.length for s in batch.decodes), default=0)
        assert deepest <= self.round_max, f"a round of {deepest} rows, {self.round_max} at most"
        slots = np.array([s.slot for s in batch.spans], np.int64)
        return slots, np.array([s.end - self.ring for s in batch.spans], np.int64)

    def _set_floor(self, slot: int, floor: int) -> None:
        self._fit(slot)
        self._floors[slot] = floor

    def _fit(self, slot: int) -> None:
        missing = slot + 1 - self._floors.size
        if missing > 0:
            self._floors = np.concatenate([self._floors, np.zeros(missing, np.int64)])

    def _slices(self, batch: Batch, keys: mx.array, values: mx.array) -> tuple[KeysValues, ...]:
        """K/V of every prefill span behind the last W-1 before it, in logical order."""
        slices = []
        for index, span in enumerate(batch.prefills):
            first, end = batch.queries_of(index, trimmed=False)
            past = self._past(span.slot, span.start)
            own = [a[first:end].transpose(1, 0, 2)[None] for a in (keys, values)]
            if past is not None:
                own = [mx.concatenate(list(pair), axis=2) for pair in zip(past, own, strict=True)]
            slices.append((own[0], own[1]))
            # Copied: a view would keep all of the slice, and the window before it, in memory.
            if reach := tail_tokens(self.window):
                tail = [mx.contiguous(a[:, :, -reach:]) for a in own]
                self._tails[span.slot] = Tail(span.end, tail[0], tail[1])
        return tuple(slices)

    def _past(self, slot: int, start: int) -> KeysValues | None:
        """The last W-1 entries before `start`; read from the ring only where no tail fits."""
        low = max(0, start - tail_tokens(self.window))
        if low == start:
            return None
        if (tail := self._tails.get(slot)) is not None:
            assert tail.end == start, (slot, tail.end, start)
            return tail.keys[:, :, low - start :], tail.values[:, :, low - start :]
        assert low >= self._floor(slot), (slot, low, self._floor(slot))
        keys, values = self.pools.read(slot, low, start)
        return keys[None], values[None]
