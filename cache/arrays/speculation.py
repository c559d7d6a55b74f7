"""A target forward whose decode rows may be taken back: the one way in which anything is committed.

- `begin_speculation` gives the layers for one forward over live caches, and its transaction. The
  forward writes past the live offsets, where nothing live lies (linear rows, over-provisioned
  rings); `commit` moves a sequence's offset. What is not committed is dead where it lies.
- A prompt slice may overwrite what a ring rolls over, so it commits whole or not at all.
- `begin_isolated_speculation` gives the same over a copy of one sequence: a check replays a round
  through it while the sequence goes on. Nothing of it is ever committed.
- Layers are for one forward: nothing is stored, restored or split through them, for what they
  wrote may be taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from sapwood.cache.arrays.batch import Batch
from sapwood.cache.arrays.full import FullStore
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.pool_history import PoolHistory
from sapwood.cache.arrays.ranges import stack_layers
from sapwood.cache.arrays.window import WindowStore


class SpeculativeStore:
    """A layer's store that writes once and commits nothing."""

    def __init__(self, store: FullStore | WindowStore) -> None:
        self._store = store
        self.written = False
        self.closed = False

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> PoolHistory:
        """Write the packed batch [T, kv_heads, D], once; no offset moves."""
        assert not self.closed, "the speculation is over"
        assert not self.written, "a speculation is one forward"
        self.written = True
        return self._store.update(batch, keys, values)


@dataclass(frozen=True, slots=True)
class SpeculativeLayers:
    """K/V-owning layers in model order, as a target forward takes them."""

    stores: Sequence[SpeculativeStore]

    def close(self) -> bool:
        """End the forward; whether it reached every layer."""
        for store in self.stores:
            store.closed = True
        return all(store.written for store in self.stores)


class Transaction:
    """Commits or drops what the batch's forward wrote, each sequence by itself and once."""

    def __init__(self, caches: LiveCaches, layers: SpeculativeLayers, batch: Batch) -> None:
        self._caches, self._layers = caches, layers
        self._spans = {span.slot: span for span in batch.spans}
        self._slices = {span.slot for span in batch.prefills}
        self._whole: bool | None = None  # whether every layer was written; None: not asked yet

    def commit(self, slot: int, n: int) -> None:
        """Keep exactly the first n new tokens of the slot's sequence, in every layer.

        n is clamped to what was written, [0, length]; nothing was where the forward did not reach
        every layer. A prompt slice keeps all of its tokens.
        """
        if self._whole is None:
            self._whole = self._layers.close()
        span = self._spans.pop(slot, None)
        assert span is not None, f"slot {slot} was committed before, or wrote nothing"
        if slot in self._slices:
            assert self._whole and n == span.length, f"{n} of a slice of {span.length} tokens"
        if self._whole:
            self._caches.commit(slot, span.start + max(0, min(n, span.length)))


def begin_speculation(caches: LiveCaches, batch: Batch) -> tuple[SpeculativeLayers, Transaction]:
    """Layers for one forward of `batch`, which `caches` made room for, and its transaction."""
    layers = SpeculativeLayers([SpeculativeStore(store) for store in caches.stores])
    return layers, Transaction(caches, layers, batch)


def begin_isolated_speculation(
    caches: LiveCaches, slot: int, offset: int, rows_max: int
) -> SpeculativeLayers:
    """Layers over a copy of [0, offset) of a slot, evaluated, with room for `rows_max` rows more.

    The same forward gives the same result as through the live caches. `offset` is where the live
    offset stands, or stood before the newest round: rings still hold that window. The copy lives as
    long as its layers do.
    """
    copy = LiveCaches(
        caches.shapes,
        caches.window,
        caches.round_max,
        caches.dtype,
        caches.row_tokens_min,
        caches.kernels,
    )
    copy.refer(slot, caches.prefixes.of(slot))  # immutable: shared, not copied
    copy.reserve(slot, offset + rows_max)
    for store, live in zip(copy.stores, caches.stores, strict=True):
        held = stack_layers([live.snapshot(slot, live.pools.placement.base(slot), offset)])
        own = None if held is None else held.layer(0, held.start, held.end)
        assert store.restore(slot, own, offset), f"slot {slot} no longer holds [0, {offset})"
    # A read left pending would make the next write of the live pools copy them.
    mx.eval(copy.arrays)
    return SpeculativeLayers([SpeculativeStore(store) for store in copy.stores])
