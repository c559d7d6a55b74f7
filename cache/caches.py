"""All layers' K/V of all slots: the one owner of live caches.

- Every layer that owns K/V has a store; layers that borrow a donor's K/V have none.
- All layers of a slot agree on its offset after admit and after commit.
- A capture is copied out and evaluated before the next write; no view outlives its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from cache.batch import Batch
from cache.full import STEP, FullStore, Placement
from cache.ranges import EdgePayload, Range, evaluated, merge_sliding
from cache.window import WindowStore


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One K/V-owning layer. `sliding`: a ring of the window; else all positions."""

    sliding: bool
    kv_heads: int
    head_dim: int


class Caches:
    """Stores of all K/V-owning layers, in model order."""

    def __init__(
        self, layers: Sequence[LayerShape], window: int, round_max: int, dtype: mx.Dtype
    ) -> None:
        self.placement = Placement()
        self.stores: list[FullStore | WindowStore] = [
            WindowStore(s.kv_heads, s.head_dim, window, round_max, dtype)
            if s.sliding
            else FullStore(s.kv_heads, s.head_dim, self.placement, dtype)
            for s in layers
        ]
        self.window = window
        self._offsets: dict[int, int] = {}

    @property
    def full(self) -> list[FullStore]:
        return [s for s in self.stores if isinstance(s, FullStore)]

    @property
    def sliding(self) -> list[WindowStore]:
        return [s for s in self.stores if isinstance(s, WindowStore)]

    @property
    def arrays(self) -> list[mx.array]:
        """Everything live, to be evaluated with a step."""
        return [a for s in self.stores for a in s.arrays]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays)

    def offset(self, slot: int) -> int:
        return self._offsets.get(slot, 0)

    def admit(self, slot: int, path: Sequence[EdgePayload], target: int) -> None:
        """Restore [0, target) into a free slot from payloads root to leaf; the payloads stay whose they are."""
        assert slot not in self._offsets, f"slot {slot} is taken"
        self.reserve(slot, max(target, STEP))
        for index, store in enumerate(self.full):
            store.offsets[slot] = 0
            for payload in path:
                held = payload.full[index]
                assert held is not None, (payload.start, payload.end)
                restored = store.restore(slot, held, min(target, payload.end))
                assert restored, (slot, payload.start, payload.end, target)
        for index, ring in enumerate(self.sliding):
            ring.offsets[slot] = 0
            joined = window_of([p.sliding[index] for p in path], target, self.window)
            if target:
                assert ring.restore(slot, joined, target), (slot, target)
        self._offsets[slot] = target

    def release(self, slot: int) -> None:
        for store in self.stores:
            store.free(slot)
        self.placement.free(slot)
        for full in self.full:
            full.drop_unused()
        self._offsets.pop(slot, None)

    def reserve(self, slot: int, tokens: int) -> None:
        """Room for `tokens` positions of a slot in every layer."""
        moved = self.placement.move(slot, tokens)
        for store in self.stores:
            if isinstance(store, WindowStore):
                store.reserve(slot + 1)
            elif moved is not None:
                store.follow(slot, *moved)

    def prepare(self, batch: Batch) -> None:
        """Room for everything that the batch writes."""
        for span in batch.decodes + batch.prefills:
            assert span.start == self.offset(span.slot), (span, self.offset(span.slot))
            self.reserve(span.slot, span.end)

    def commit(self, slot: int, offset: int) -> None:
        """The newest committed state of a slot is [0, offset): commit and rollback in one."""
        for store in self.stores:
            store.commit(slot, offset)
        self._offsets[slot] = offset

    def capture(self, slot: int, start: int, end: int) -> EdgePayload | None:
        """Copy [start, end) out, evaluated: full layers all of it, sliding what the rings retain."""
        if start >= end:
            return None
        full = tuple(s.snapshot(slot, start, end) for s in self.full)
        sliding = tuple(s.snapshot(slot, start, end) for s in self.sliding)
        evaluated([*full, *sliding])
        return EdgePayload(start, end, full, sliding)


def window_of(parts: Sequence[Range | None], target: int, window: int) -> Range | None:
    """One range that covers [max(0, target - window), target), from a path's sliding ranges.

    Assembled from the newest part backwards, so that a parent thinned away never refuses what the
    children alone cover. The parts stay whose they are. None where target is 0.
    """
    low = max(0, target - window)
    joined: Range | None = None
    for held in reversed(parts):
        if held is None or held.start >= target or (joined is not None and joined.start <= low):
            continue
        end = target if joined is None else joined.start
        if held.end < end:
            break
        part = held.part(max(held.start, low), min(held.end, end))
        joined = part if joined is None else merge_sliding(part, joined)
    return joined
