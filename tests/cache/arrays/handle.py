"""One sequence's K/V in one layer as the cache contract speaks of it: the pair (store, slot).

The product asks a layer's store and names the slot; a handle names it once, so that a test reads
like the contract. All the work is the store's.
"""

from __future__ import annotations

import mlx.core as mx

from sapwood.cache.arrays.attention import History
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.ranges import Range, evaluate, split_range, stack_layers

Sides = tuple[Range | None, Range | None]


class Handle:
    """One layer (index among `caches.stores`) and one slot."""

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
        copied = stack_layers([self.store.snapshot(self.slot, from_offset)])
        evaluate([] if copied is None else [copied])
        return copied

    def restore(self, snapshot: Range | None, target: int) -> bool:
        held = None if snapshot is None else snapshot.layer(0, snapshot.start, snapshot.end)
        if not self.store.can_restore(self.slot, held, target):
            return False
        self.caches.reserve(self.slot, target)
        return self.store.restore(self.slot, held, target)

    def merge(self, parent: Range | None, child: Range | None) -> Range | None:
        merged = self.store.merge(parent, child)
        evaluate([] if merged is None else [merged])
        return merged

    def split(self, snapshot: Range | None, at: int) -> Sides:
        sides = split_range(snapshot, at)
        evaluate([side for side in sides if side is not None])
        return sides

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> History:
        """Append K/V [T, kv_heads, D] of a batch that is this sequence's alone."""
        (span,) = batch.spans
        assert (span.slot, span.start) == (self.slot, self.offset)
        self.caches.reserve(self.slot, span.end)
        history = self.store.update(batch, keys, values)
        self.store.commit(self.slot, span.end)
        return history

    def view(self, batch: Batch, keep: int) -> History | None:
        if not self.offset:
            return None
        (span,) = batch.spans
        assert (span.slot, span.end) == (self.slot, self.offset)
        return self.store.view(batch, keep)


def handles(caches: LiveCaches, slot: int) -> list[Handle]:
    """Of a slot's layers, in model order."""
    return [Handle(caches, layer, slot) for layer in range(len(caches.stores))]


def decode(slot: int, start: int, length: int) -> Batch:
    """A batch of one decode span."""
    return Batch([Span(slot, start, length)])
