"""One sequence's K/V in one layer, as a thing with snapshots: the handle on (store, slot).

- All the work is the store's; a handle knows which slot it speaks of and keeps the layers' rooms
  in step.
- FullStore is the contract's KVCache, WindowStore its RotatingKVCache; what differs is in their
  restore, snapshot and merge.
- "Takes" means that the caller may not use or close the argument again. All ranges are half-open.
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx

from sapwood.cache.arrays.attention import History
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.ranges import Range, evaluated, split_range

Sides = tuple[Range | None, Range | None]


class Cache(Protocol):
    """The contract, for live caches and for the wrappers of a speculation."""

    @property
    def state(self) -> list[mx.array]:
        """The arrays to be kept and evaluated for the live content; empty where there is none."""

    @property
    def offset(self) -> int:
        """Tokens held. All layers of a sequence agree on it after a commit."""

    def free(self) -> None:
        """Drop everything; the offset is 0."""

    def snapshot(self, from_offset: int) -> Range | None:
        """A copy of [from_offset, offset), evaluated; None where there is nothing.

        Full layers take a negative start for 0, sliding layers give the newest part they retain.
        """

    def restore(self, snapshot: Range | None, target: int) -> bool:
        """Hold exactly [0, target): from live state (None) or a snapshot, which stays the caller's.

        False, with nothing changed, for what cannot be reached without a gap.
        """

    def merge(self, parent: Range | None, child: Range | None) -> Range | None:
        """[a, b) and [b, c) as [a, c), evaluated. Takes both."""

    def split(self, snapshot: Range | None, at: int) -> Sides:
        """[a, at) and [at, c), evaluated; None for an empty side. Takes the snapshot."""

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> History:
        """Append K/V [T, kv_heads, D] of a batch that is this sequence's alone."""

    def view(self, batch: Batch, keep: int) -> History | None:
        """The newest `keep` committed entries, for queries at the last committed position.

        Read-only and valid for one step; None where nothing is held.
        """


class SlotCache:
    """Cache over one layer (index among `caches.stores`) and one slot."""

    def __init__(self, caches: LiveCaches, layer: int, slot: int) -> None:
        self.caches, self.layer, self.slot = caches, layer, slot
        self.store = caches.stores[layer]

    @property
    def state(self) -> list[mx.array]:
        return self.store.arrays if self.offset else []

    @property
    def offset(self) -> int:
        return self.store.offsets.get(self.slot, 0)

    def free(self) -> None:
        self.store.free(self.slot)
        self.caches.vacate(self.slot)

    def snapshot(self, from_offset: int) -> Range | None:
        copied = self.store.snapshot(self.slot, from_offset)
        evaluated([copied])
        return copied

    def restore(self, snapshot: Range | None, target: int) -> bool:
        if not self.store.can_restore(self.slot, snapshot, target):
            return False
        self.caches.reserve(self.slot, target)
        return self.store.restore(self.slot, snapshot, target)

    def merge(self, parent: Range | None, child: Range | None) -> Range | None:
        merged = self.store.merge(parent, child)
        evaluated([merged])
        return merged

    def split(self, snapshot: Range | None, at: int) -> Sides:
        sides = split_range(snapshot, at)
        evaluated(sides)
        return sides

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> History:
        span = self.own_span(batch)
        history = self.write(batch, keys, values)
        self.commit(span.end)
        return history

    def view(self, batch: Batch, keep: int) -> History | None:
        if not self.offset:
            return None
        self.own_span(batch, ends=True)
        return self.store.view(batch, keep)

    def write(self, batch: Batch, keys: mx.array, values: mx.array) -> History:
        """`update` that leaves the offset where it is: `commit` moves it."""
        self.caches.reserve(self.slot, self.own_span(batch).end)
        return self.store.update(batch, keys, values)

    def commit(self, offset: int) -> None:
        """Hold [0, offset), which is written."""
        self.store.commit(self.slot, offset)

    def own_span(self, batch: Batch, ends: bool = False) -> Span:
        """The batch's one span: it starts, or of a view ends, where this slot's tokens end."""
        (span,) = batch.spans
        assert span.slot == self.slot, (span, self.slot)
        assert (span.end if ends else span.start) == self.offset, (span, self.offset)
        return span


def caches_of(caches: LiveCaches, slot: int) -> list[SlotCache]:
    """The handles of a slot's layers, in model order."""
    return [SlotCache(caches, layer, slot) for layer in range(len(caches.stores))]
