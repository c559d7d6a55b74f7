"""All layers' K/V of all slots: the one owner of live caches.

- Every layer that owns K/V has a store; layers that borrow a donor's K/V have none.
- All layers of a slot agree on its offset after restore and after commit.
- Like stores share one Placement, so a slot's row is the same in all of them; whoever gives a
  slot room gives it in all layers.
- What a slot holds by reference is the same ranges in all full layers (arrays/prefixes).
- A capture is copied out and evaluated before the next write; no view outlives its step. What a
  restore, a move or packing builds is evaluated before the next forward, in a few groups of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import mlx.core as mx

from sapwood.cache.arrays.batch import Batch
from sapwood.cache.arrays.full import FullStore
from sapwood.cache.arrays.placement import Placement
from sapwood.cache.arrays.prefixes import Prefixes, portions_of
from sapwood.cache.arrays.ranges import (
    Copies,
    EdgePayload,
    LayerRange,
    Portion,
    read_portions,
    stack_layers,
    window_of,
)
from sapwood.cache.arrays.window import WindowStore
from sapwood.cache.attention_routes import CPU_KERNELS, Kernels
from sapwood.cache.geometry import (
    ARRAY_ELEMENTS_MAX,
    MOVED_GROUPS_MAX,
    ring_tokens,
    row_tokens,
)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One K/V-owning layer. `sliding`: a ring of the window; else all positions."""

    sliding: bool
    kv_heads: int
    head_dim: int


class LiveCaches:
    """Stores of all K/V-owning layers, in model order."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        window: int,
        round_max: int,
        dtype: mx.Dtype,
        row_tokens_min: int | None = None,
        kernels: Kernels = CPU_KERNELS,
        page_bytes: int = 1,
    ) -> None:
        """round_max: most rows one round verifies, the bonus token's included.

        row_tokens_min: the smallest capacity of a full layer's row; None: what kernels ask for,
        those of the device.
        page_bytes: of what buffers of stored K/V are counted in.
        """
        ring = ring_tokens(window, round_max, kernels.tile_tokens)
        row_tokens_min = row_tokens_min or kernels.row_tokens_min
        per_token = max((s.kv_heads * s.head_dim for s in layers), default=1)
        tokens_max = ARRAY_ELEMENTS_MAX // per_token
        self.rows = Placement(partial(row_tokens, tokens_min=row_tokens_min), tokens_max)
        self.rings = Placement(lambda _: ring, tokens_max)
        self.row_tokens_min, self.kernels, self.page_bytes = row_tokens_min, kernels, page_bytes
        self.shapes, self.window, self.round_max, self.dtype = layers, window, round_max, dtype
        self.prefixes = Prefixes()
        full = count()
        self.stores: list[FullStore | WindowStore] = [
            WindowStore(s.kv_heads, s.head_dim, window, round_max, self.rings, dtype, kernels)
            if s.sliding
            else FullStore(
                s.kv_heads, s.head_dim, self.rows, dtype, kernels, self.prefixes, next(full)
            )
            for s in layers
        ]
        self.full = [s for s in self.stores if isinstance(s, FullStore)]
        self.sliding = [s for s in self.stores if isinstance(s, WindowStore)]
        ordered: list[FullStore | WindowStore] = [*self.full, *self.sliding]
        # Dealt out, so that each group has its share of either kind.
        parts = (ordered[i::MOVED_GROUPS_MAX] for i in range(MOVED_GROUPS_MAX))
        self._groups = [group for group in parts if group]
        self.copies = Copies()  # of what was stored from here
        self._settled = True  # whether all that was restored and moved is evaluated

    @property
    def arrays(self) -> list[mx.array]:
        """Everything live, to be evaluated with a step."""
        return [a for s in self.stores for a in s.arrays]

    def offset(self, slot: int) -> int:
        """Committed tokens of a slot; 0 where it is free."""
        return self.stores[0].offsets.get(slot, 0)

    def restore(
        self, slot: int, path: Sequence[EdgePayload], target: int, base: int = 0, room: int = 0
    ) -> None:
        """Restore [0, target) into a free slot from the tree's payloads, root to leaf.

        They stay the tree's, and the last may reach past `target`. base: full layers hold [0, base)
        by reference and copy the rest. room: tokens that there is to be room for; target or more.
        """
        assert not self.holds(slot), f"slot {slot} is taken"
        assert 0 <= base <= target, (base, target)
        self.settle()  # or the pools would grow twice in one evaluation
        self.refer(slot, portions_of(path, base))
        self._reserve([(slot, max(room, target))])
        self._feed(slot, path, base, target)
        window = window_of([p.sliding for p in path], target, self.window)
        for index, ring in enumerate(self.sliding):
            assert ring.restore(slot, read_portions(window, index), target), (slot, target)
        self._settled = False

    def _feed(self, slot: int, path: Sequence[EdgePayload], start: int, end: int) -> None:
        """Copy [start, end) of stored full K/V into the slot's rows, which end at `start`."""
        for index, store in enumerate(self.full):
            for payload in path:
                first, last = max(start, payload.start), min(end, payload.end)
                if first < last:
                    assert payload.full is not None, (payload.start, payload.end)
                    restored = store.restore(slot, payload.full.layer(index, first, last), last)
                    assert restored, (slot, payload.start, payload.end, end)

    def refer(self, slot: int, portions: Sequence[Portion]) -> None:
        """Full layers of a slot without a row hold these, from position 0 on, and no more."""
        self.rows.begin_at(slot, self.prefixes.set(slot, portions))
        for store in self.full:
            store.refer(slot)

    def repoint(self, slot: int, path: Sequence[EdgePayload]) -> None:
        """What a slot holds by reference lies in `path` now: the tree cut or joined ranges of it.

        To be told of before the next step.
        """
        base = self.rows.base(slot)
        assert self.prefixes.set(slot, portions_of(path, base)) == base, (slot, base)

    def seal(self, slot: int, path: Sequence[EdgePayload], room: int) -> None:
        """All that full layers hold of a slot is stored in `path`: it is held by reference, and its
        rows are given back for others that have room for [base, room). What of it is no whole tile
        is copied; where there are no tiles all is held by reference.
        """
        offset = self.offset(slot)
        base = offset - offset % self.kernels.tile_tokens
        self.rows.free(slot)
        self.refer(slot, portions_of(path, base))
        for store in self.full:
            store.pools.drop_unused()
        self.grow([(slot, room)])
        if base < offset:
            self._feed(slot, path, base, offset)
            self._settled = False

    def holds(self, slot: int) -> bool:
        """Whether somebody has the slot."""
        return any(slot in store.offsets for store in self.stores)

    def release(self, slot: int) -> None:
        """Free a slot: its bytes are back by the next `pack`, or at once with a pool's last."""
        for store in self.stores:
            store.free(slot)
        self.prefixes.drop(slot)
        self.vacate(slot)

    def release_all(self) -> None:
        """Free all slots, in whatever state a step that failed has left them."""
        held = {slot for store in self.stores for slot in store.offsets}
        for slot in {*held, *self.rows.places, *self.rings.places}:
            self.release(slot)
        self._settled = True

    def vacate(self, slot: int) -> None:
        """Give back a slot's pool rows once no layer holds anything in it."""
        if self.holds(slot):
            return
        for placement in (self.rows, self.rings):
            placement.free(slot)
        for store in self.stores:
            store.pools.drop_unused()

    def reserve(self, slot: int, tokens: int) -> None:
        """Room for `tokens` positions of a slot in every layer."""
        self._reserve([(slot, tokens)])

    def grow(self, wants: Sequence[tuple[int, int]]) -> None:
        """Room for `tokens` positions of each (slot, tokens) that is live, all at once."""
        if wants:
            self.settle()  # as in restore
            self._reserve(wants)

    def pack(self) -> None:
        """Close all holes that slots have left in pools, and give their bytes back."""
        self.settle()
        orders = {placement: placement.pack() for placement in (self.rows, self.rings)}
        for store in self.stores:
            if order := orders[store.pools.placement]:
                store.pools.pack(order)
                self._settled = False

    def prepare(self, batch: Batch) -> None:
        """Room for everything that the batch writes, where it was not reserved before."""
        for span in batch.spans:
            assert span.start == self.offset(span.slot), (span, self.offset(span.slot))
        self._reserve([(s.slot, s.end) for s in batch.spans])
        self.settle()

    def commit(self, slot: int, offset: int) -> None:
        """The newest committed state of a slot is [0, offset): commit and rollback in one."""
        assert self.holds(slot), f"slot {slot} is free"
        for store in self.stores:
            store.commit(slot, offset)

    def capture(self, slot: int, start: int, end: int) -> EdgePayload | None:
        """Copy [start, end) out, evaluated: full layers all of it, rings what they retain.

        The copy is the caller's; None where [start, end) is empty.
        """
        if start >= end:
            return None
        payload = self.payload(
            start,
            end,
            [store.snapshot(slot, start, end) for store in self.full],
            [ring.snapshot(slot, start, end) for ring in self.sliding],
        )
        mx.eval(payload.arrays)
        return payload

    def payload(
        self,
        start: int,
        end: int,
        full: Sequence[LayerRange | None],
        sliding: Sequence[LayerRange | None],
    ) -> EdgePayload:
        """An edge of what its layers hold, in model order: a lazy copy of it."""
        stacks = stack_layers(full), stack_layers(sliding)
        return EdgePayload(start, end, *stacks, self.page_bytes, self.copies)

    def settle(self) -> None:
        """Evaluate what restores and moves have built, before anything is written.

        A pool that grows exists twice meanwhile, and never all of them at once; a wait for each
        layer would cost more than its copy.
        """
        if not self._settled:
            for group in self._groups:
                mx.eval([a for store in group for a in store.arrays])
            self._settled = True

    def _reserve(self, wants: Sequence[tuple[int, int]]) -> None:
        moves = {placement: placement.reserve(wants) for placement in (self.rows, self.rings)}
        for store in self.stores:
            if moved := moves[store.pools.placement]:
                store.pools.follow(moved)
                self._settled = False
