"""Sliding-window K/V of all slots of one layer: an over-provisioned ring per slot.

- keys, values: [slots * kv_heads * R, D], flat so that one scatter writes a whole packed batch.
- R = window + deepest round + 1: positions P-1-W .. P+k coexist, so a speculative write never lands on
  a live entry, and commit and rollback are one integer.
- Position p of a slot lies at entry p mod R. What a slot holds is [written - R, written) at most; a
  restore or rewind that would need anything older is refused, never guessed.
- Masks go by absolute position, always: the ring holds more than the window.
- A prefill span is never rolled back: it attends to [the last W-1 before it | its own K/V] in logical order
  and leaves its last R entries in the ring. The last W-1 are kept aside between slices (a tail) and not
  read back from the ring: a buffer that a pending read still holds is copied whole by the next write.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from cache.attend import assemble, over_grid, over_slice, position_mask, prefill_rows
from cache.batch import Batch, Grid, Ints
from cache.ranges import Range


KeysValues = tuple[mx.array, mx.array]


@dataclass(frozen=True, slots=True)
class Tail:
    """The newest K/V before position `end` of a session in prefill, [1, kv_heads, n, D]."""

    end: int
    keys: mx.array
    values: mx.array


@dataclass(frozen=True, slots=True)
class WindowHistory:
    """A layer's K/V as one batch sees it. Valid for the step that made it."""

    batch: Batch
    window: int
    ring: int
    keys: mx.array  # [slots, kv_heads, R, D]
    values: mx.array
    slices: tuple[KeysValues, ...] = ()  # per prefill [1, kv_heads, past + own, D]

    def attend(self, queries: mx.array, trimmed: bool = False) -> mx.array:
        pieces: list[tuple[mx.array, Ints]] = []
        if self.batch.decodes:
            grid = slot_grid(self.batch)
            pieces.append((self._decode(queries, grid), grid.packed))
        for index, first, end in prefill_rows(self.batch, trimmed):
            keys, values = self.slices[index]
            mask = self._slice_mask(index, end - first, keys.shape[2])
            rows = np.arange(first, end, dtype=np.int32)
            pieces.append((over_slice(queries[first:end], keys, values, mask), rows))
        return assemble(pieces)

    def _decode(self, queries: mx.array, grid: Grid) -> mx.array:
        keys, values = self.keys, self.values
        if grid.prefix is not None:
            keys, values = keys[: grid.prefix], values[: grid.prefix]
        else:
            rows = self.batch.shared("slot_rows", lambda: mx.array(grid.rows))
            keys, values = keys[rows], values[rows]
        mask = self.batch.shared(
            ("ring_mask", self.window, self.ring),
            lambda: position_mask(
                mx.array(grid.ends - 1), mx.array(grid.starts), grid.queries, self.ring, self.window
            ),
        )
        return over_grid(queries, grid, keys, values, mask)

    def _slice_mask(self, index: int, queries: int, length: int) -> mx.array | str | None:
        """The span's last `queries` rows over `length` keys that end with the span's own."""
        if length <= self.window:
            return "causal" if queries > 1 else None

        def build() -> mx.array:
            key = mx.arange(length, dtype=mx.int32)[None]
            query = mx.arange(length - queries, length, dtype=mx.int32)[:, None]
            return (key <= query) & (key > query - self.window)

        return self.batch.shared(("slice_mask", index, self.window, queries), build)


def slot_grid(batch: Batch) -> Grid:
    """The decode spans laid over slots, which are the rows of every ring pool."""
    slots = [s.slot for s in batch.decodes]
    firsts = batch.firsts[: len(slots)]
    return batch.shared("slot_grid", lambda: Grid.over(batch.decodes, firsts, slots))


class WindowStore:
    """One sliding layer's rings. `offsets[slot]` = committed tokens, the live length."""

    def __init__(
        self, kv_heads: int, head_dim: int, window: int, round_max: int, dtype: mx.Dtype
    ) -> None:
        """round_max: most rows one round verifies, the bonus token's included."""
        self.kv_heads, self.head_dim, self.window, self.dtype = kv_heads, head_dim, window, dtype
        self.ring = window + round_max + 1
        self.slots = 0
        self.keys = self.values = mx.zeros((0, head_dim), dtype)
        self.offsets: dict[int, int] = {}
        self._written: dict[int, tuple[int, int]] = {}  # positions [lowest, end) that a ring holds
        self._tails: dict[int, Tail] = {}

    @property
    def arrays(self) -> KeysValues:
        return self.keys, self.values

    def reserve(self, slots: int) -> None:
        """Grow the pool to at least `slots` rings, and no further: bytes are budgeted."""
        if slots <= self.slots:
            return
        entries = (slots - self.slots) * self.kv_heads * self.ring
        empty = mx.zeros((entries, self.head_dim), self.dtype)
        self.keys = mx.concatenate([self.keys, empty])
        self.values = mx.concatenate([self.values, empty])
        self.slots = slots

    def free(self, slot: int) -> None:
        for state in (self.offsets, self._written, self._tails):
            state.pop(slot, None)

    def holds(self, slot: int, start: int, end: int) -> bool:
        """Whether positions [start, end) are in the ring."""
        low, high = self._written.get(slot, (0, 0))
        return start >= end or (start >= max(low, high - self.ring) and end <= high)

    def restore(self, slot: int, snapshot: Range | None, target: int) -> bool:
        """Rewind to `target` (None), or replace the content by the snapshot's newest R before it.

        False, with nothing changed, where [max(0, target - W), target) would not be covered.
        The snapshot stays the caller's.
        """
        if target < 0:
            return False
        low = max(0, target - self.window)
        if snapshot is None:
            if target > self.offsets.get(slot, 0) or not self.holds(slot, low, target):
                return False
            self.offsets[slot] = target
            return True
        if target > snapshot.end or low < snapshot.start:
            return False
        first = max(snapshot.start, target - self.ring)
        if first < target:
            self.reserve(slot + 1)
            at = slice(first - snapshot.start, target - snapshot.start)
            self._write(
                self._entries(slot, np.arange(first, target)),
                snapshot.keys[:, at].reshape(-1, self.head_dim),
                snapshot.values[:, at].reshape(-1, self.head_dim),
            )
            keys, values = (a[None, :, at] for a in (snapshot.keys, snapshot.values))
            self._tails[slot] = Tail(target, keys, values)
        self.offsets[slot] = target
        self._written[slot] = (first, target)
        return True

    def snapshot(self, slot: int, start: int, end: int | None = None) -> Range | None:
        """A lazy copy of the newest retained part of [start, end); None where that is empty."""
        end = self.offsets.get(slot, 0) if end is None else end
        low, high = self._written.get(slot, (0, 0))
        first = max(start, low, high - self.ring)
        if first >= end:
            return None
        assert end <= high, (slot, end, high)
        entries = mx.array(self._entries(slot, np.arange(first, end)))
        shape = (self.kv_heads, end - first, self.head_dim)
        return Range(
            first, end, self.keys[entries].reshape(shape), self.values[entries].reshape(shape)
        )

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> WindowHistory:
        """Write the packed batch [T, kv_heads, D]; offsets move only at `commit`."""
        slices = self._slices(batch, keys, values)
        rows, entries = batch.shared(
            ("ring_writes", self.ring, self.kv_heads), lambda: self._writes(batch)
        )
        if rows is not None:
            keys, values = keys[rows], values[rows]
        flat = (-1, self.head_dim)
        self._write(entries, keys.reshape(flat), values.reshape(flat))
        for span in batch.decodes + batch.prefills:
            low, high = self._written.get(span.slot, (span.start, span.start))
            assert low <= span.start, f"slot {span.slot} jumps to {span.start} before {low}"
            self._written[span.slot] = (max(low, max(high, span.end) - self.ring), max(high, span.end))
        return self._history(batch, slices)

    def view(self, batch: Batch, keep: int) -> WindowHistory:
        """Read-only: each decode span's last position sees the newest `keep` entries up to itself."""
        assert keep <= self.window + 1, (keep, self.window)
        return WindowHistory(batch, keep, self.ring, *self._pools())

    def commit(self, slot: int, offset: int) -> None:
        """The session in `slot` holds `offset` tokens; what a ring holds beyond is dead."""
        self.offsets[slot] = offset

    def _history(self, batch: Batch, slices: tuple[KeysValues, ...]) -> WindowHistory:
        return WindowHistory(batch, self.window, self.ring, *self._pools(), slices)

    def _pools(self) -> KeysValues:
        shape = (self.slots, self.kv_heads, self.ring, self.head_dim)
        return self.keys.reshape(shape), self.values.reshape(shape)

    def _write(self, entries: Ints | mx.array, keys: mx.array, values: mx.array) -> None:
        at = entries if isinstance(entries, mx.array) else mx.array(entries)
        pools = []
        for pool, fresh in ((self.keys, keys), (self.values, values)):
            pool[at] = fresh.astype(self.dtype)
            pools.append(pool)
        self.keys, self.values = pools

    def _entries(self, slot: int, positions: Ints) -> Ints:
        """Flat pool rows of [kv_heads, positions], head-major."""
        heads = (slot * self.kv_heads + np.arange(self.kv_heads)) * self.ring
        return (heads[:, None] + (positions % self.ring)[None]).ravel().astype(np.int32)

    def _writes(self, batch: Batch) -> tuple[mx.array | None, mx.array]:
        """(packed rows to write or None for all, flat pool rows [rows * kv_heads], token-major)."""
        rows, entries = [], []
        for span, first in zip(batch.decodes + batch.prefills, batch.firsts, strict=True):
            count = min(span.length, self.ring)
            positions = np.arange(span.end - count, span.end)
            rows.append(np.arange(first + span.length - count, first + span.length))
            entries.append(self._entries(span.slot, positions).reshape(self.kv_heads, -1).T)
        written = np.concatenate(rows).astype(np.int32)
        flat = mx.array(np.concatenate(entries).ravel().astype(np.int32))
        return (None if written.size == batch.tokens else mx.array(written)), flat

    def _slices(self, batch: Batch, keys: mx.array, values: mx.array) -> tuple[KeysValues, ...]:
        """K/V of every prefill span behind the last W-1 before it, in logical order."""
        slices = []
        for index, span in enumerate(batch.prefills):
            first, end = batch.queries_of(index, trimmed=False)
            held = self._tail(span.slot, span.start)
            own = [a[first:end].transpose(1, 0, 2)[None] for a in (keys, values)]
            if held is not None:
                past = (held.keys, held.values)
                own = [mx.concatenate(pair, axis=2) for pair in zip(past, own, strict=True)]
            slices.append((own[0], own[1]))
            tail = [a[:, :, -(self.window - 1) :] for a in own]
            self._tails[span.slot] = Tail(span.end, tail[0], tail[1])
        for span in batch.decodes:
            self._tails.pop(span.slot, None)
        return tuple(slices)

    def _tail(self, slot: int, start: int) -> Tail | None:
        """The last W-1 entries before `start`; read from the ring only where no tail fits."""
        low = max(0, start - (self.window - 1))
        if low == start:
            return None
        tail = self._tails.get(slot)
        if tail is not None and tail.end == start and start - tail.keys.shape[2] <= low:
            keep = start - low
            return Tail(start, tail.keys[:, :, -keep:], tail.values[:, :, -keep:])
        assert self.holds(slot, low, start), (slot, low, start)
        at = mx.array(self._entries(slot, np.arange(low, start)))
        shape = (1, self.kv_heads, start - low, self.head_dim)
        return Tail(start, self.keys[at].reshape(shape), self.values[at].reshape(shape))
