"""A target forward whose tokens may be taken back, for one sequence's caches.

- The live form writes past the live offset, where nothing live lies (linear rows,
  over-provisioned rings), and moves the offset at `commit` only. Drafts that are not committed
  are dead where they lie.
- The isolated form runs over a copy of the sequence and never touches live state: a check may
  replay a round through it while the sequence goes on.
- Wrappers are for one forward: no snapshots, restores or splits of what may be taken back.
- Layers without a cache of their own pass through: None in, None out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from sapwood.cache.arrays.attention import History
from sapwood.cache.arrays.batch import Batch
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.ranges import Range
from sapwood.cache.arrays.slot_cache import Cache, Sides, SlotCache, caches_of


class Speculative:
    """A Cache that writes and never commits."""

    def __init__(self, cache: SlotCache) -> None:
        self.cache = cache
        self.start = cache.offset
        #: tokens of the forward; 0 before it
        self.written = 0
        self.closed = False

    @property
    def state(self) -> list[mx.array]:
        return self.cache.store.arrays if self.written else self.cache.state

    @property
    def offset(self) -> int:
        return self.cache.offset

    def free(self) -> None:
        """Nothing: the live cache is freed by who owns it."""

    def snapshot(self, from_offset: int) -> Range | None:
        return None

    def restore(self, snapshot: Range | None, target: int) -> bool:
        return False

    def merge(self, parent: Range | None, child: Range | None) -> Range | None:
        for side in (parent, child):
            if side is not None:
                side.close()
        return None

    def split(self, snapshot: Range | None, at: int) -> Sides:
        return None, snapshot

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> History:
        assert not self.closed, "the speculation is over"
        assert not self.written, "a speculation is one forward"
        # A prefill span may overwrite what it rolls over: only decode rows can be taken back.
        assert not batch.prefills, "a speculative prefill"
        history = self.cache.write(batch, keys, values)
        self.written = batch.tokens
        return history

    def view(self, batch: Batch, keep: int) -> History | None:
        return self.cache.view(batch, keep)


class Transaction:
    """Commits or drops what the forward wrote through its wrappers, once."""

    def __init__(self, wrappers: Sequence[Speculative]) -> None:
        self._wrappers = wrappers

    def commit(self, n: int) -> None:
        """Keep exactly the first n new tokens, n clamped to [0, written], in every layer."""
        kept = max(0, min([n, *(w.written for w in self._wrappers)]))
        for wrapper in self._wrappers:
            assert not wrapper.closed, "a speculation committed twice"
            wrapper.closed = True
            if wrapper.written:
                wrapper.cache.commit(wrapper.start + kept)


@dataclass(frozen=True, slots=True)
class SpeculativeLayers:
    """Wrappers in the shape that a target forward takes."""

    stores: tuple[Speculative, ...]

    @classmethod
    def of(cls, wrappers: Sequence[Speculative | None]) -> SpeculativeLayers:
        return cls(tuple(w for w in wrappers if w is not None))


Wrappers = list[Speculative | None]


def begin_speculation(caches: Sequence[Cache | None]) -> tuple[Wrappers, Transaction] | None:
    """Wrappers of one sequence's layers and a transaction; None where a kind cannot take part."""
    live = _slot_caches(caches)
    if live is None:
        return None
    wrappers = [None if cache is None else Speculative(cache) for cache in live]
    return wrappers, Transaction([w for w in wrappers if w is not None])


def begin_isolated_speculation(caches: Sequence[Cache | None]) -> Wrappers | None:
    """Wrappers over a copy of the sequence, evaluated; None where a kind cannot take part.

    The same forward gives the same result as through the live caches. The copy lives as long as
    its wrappers do.
    """
    live = _slot_caches(caches)
    if live is None:
        return None
    first = next((cache for cache in live if cache is not None), None)
    if first is None:
        return [None] * len(live)
    copies = caches_of(_copy_of(first.caches, first.slot), first.slot)
    return [None if cache is None else Speculative(copies[cache.layer]) for cache in live]


def _slot_caches(caches: Sequence[Cache | None]) -> list[SlotCache | None] | None:
    """The handles among `caches`, None for None; None where another kind is among them."""
    live: list[SlotCache | None] = []
    for cache in caches:
        if cache is not None and not isinstance(cache, SlotCache):
            return None
        live.append(cache)
    sequences = {(cache.caches, cache.slot, cache.offset) for cache in live if cache is not None}
    assert len(sequences) <= 1, "caches of several sequences, or layers at several offsets"
    return live


def _copy_of(caches: LiveCaches, slot: int) -> LiveCaches:
    """A sequence's content in caches of its own, evaluated: a read left pending would make the next
    write of the live pools copy them."""
    least = caches.row_tokens_min
    copy = LiveCaches(caches.shapes, caches.window, caches.round_max, caches.dtype, least)
    offset = caches.offset(slot)
    copy.reserve(slot, offset + caches.round_max)
    for store, live in zip(copy.stores, caches.stores, strict=True):
        held = live.snapshot(slot, 0)
        assert store.restore(slot, held, offset), (slot, offset)
    mx.eval(copy.arrays)
    return copy
