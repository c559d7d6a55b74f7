"""Full-attention K/V of all slots of one layer, in pools by capacity class.

- A slot lives in the pool of the smallest capacity (STEP x 2^i tokens) that holds it: rows of like length
  are attended in one call and padding never doubles what is read, however unlike the sessions are.
- Which pool and row a slot has is one decision for all layers: Placement owns it, stores follow.
- pool: keys, values [rows * kv_heads * capacity, D], flat so that one scatter writes a whole packed batch.
- Position p lies at entry p: rewind to any offset is free, commit and rollback are one integer.
- What lies past a slot's offset is dead and may be anything finite; masks go by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from cache.attend import assemble, causal_mask, over_grid, over_slice, prefill_rows
from cache.batch import Batch, Grid, Ints, Span
from cache.ranges import Range

STEP = 256


def capacity_for(tokens: int) -> int:
    """The smallest capacity class that holds `tokens`."""
    capacity = STEP
    while capacity < tokens:
        capacity *= 2
    return capacity


@dataclass(frozen=True, slots=True)
class Place:
    """Row `row` of the pool of capacity `capacity`."""

    capacity: int
    row: int


class Placement:
    """Which pool row each slot has, the same in every full layer."""

    def __init__(self) -> None:
        self.places: dict[int, Place] = {}
        self._taken: dict[int, set[int]] = {}

    def move(self, slot: int, tokens: int) -> tuple[Place | None, Place] | None:
        """Make room for `tokens`: (old place, new place), or None where the slot already has it."""
        old = self.places.get(slot)
        capacity = capacity_for(tokens)
        if old is not None and old.capacity >= capacity:
            return None
        taken = self._taken.setdefault(capacity, set())
        row = next(r for r in range(len(taken) + 1) if r not in taken)
        taken.add(row)
        self.places[slot] = Place(capacity, row)
        if old is not None:
            self._taken[old.capacity].discard(old.row)
        return old, self.places[slot]

    def free(self, slot: int) -> None:
        place = self.places.pop(slot, None)
        if place is not None:
            self._taken[place.capacity].discard(place.row)

    def rows(self, capacity: int) -> int:
        """Rows that the class's pool must have; 0 = nobody needs it."""
        return max(self._taken.get(capacity, ()), default=-1) + 1


@dataclass(frozen=True, slots=True)
class ClassGrid:
    """The decode spans of one capacity class over its pool's rows."""

    grid: Grid
    length: int  # keys to read: the longest span's end, rounded up

    @classmethod
    def build(cls, batch: Batch, placement: Placement) -> dict[int, ClassGrid]:
        by_class: dict[int, list[tuple[Span, int, int]]] = {}
        for span, first in zip(batch.decodes, batch.firsts, strict=False):
            place = placement.places[span.slot]
            by_class.setdefault(place.capacity, []).append((span, first, place.row))
        return {capacity: cls._of(capacity, members) for capacity, members in by_class.items()}

    @classmethod
    def _of(cls, capacity: int, members: Sequence[tuple[Span, int, int]]) -> ClassGrid:
        spans, firsts, rows = zip(*members, strict=True)
        longest = max(s.end for s in spans)
        return cls(Grid.over(spans, firsts, rows), min(capacity, -(-longest // 64) * 64))


@dataclass(frozen=True, slots=True)
class FullHistory:
    """A layer's K/V as one batch sees it. Valid for the step that made it."""

    batch: Batch
    placement: Placement
    pools: dict[int, tuple[mx.array, mx.array]]  # capacity -> [rows, kv_heads, capacity, D]

    def attend(self, queries: mx.array, trimmed: bool = False) -> mx.array:
        pieces: list[tuple[mx.array, Ints]] = []
        if self.batch.decodes:
            grids = self.batch.shared(
                "class_grids", lambda: ClassGrid.build(self.batch, self.placement)
            )
            for capacity, laid in grids.items():
                pieces.append((self._decode(queries, capacity, laid), laid.grid.packed))
        for index, first, end in prefill_rows(self.batch, trimmed):
            span = self.batch.prefills[index]
            place = self.placement.places[span.slot]
            keys, values = (
                pool[place.row : place.row + 1, :, : span.end]
                for pool in self.pools[place.capacity]
            )
            mask = "causal" if end - first > 1 else None
            rows = np.arange(first, end, dtype=np.int32)
            pieces.append((over_slice(queries[first:end], keys, values, mask), rows))
        return assemble(pieces)

    def _decode(self, queries: mx.array, capacity: int, laid: ClassGrid) -> mx.array:
        grid, keys_values = laid.grid, self.pools[capacity]
        if grid.prefix is not None:
            keys, values = (a[: grid.prefix, :, : laid.length] for a in keys_values)
        else:
            rows = self.batch.shared(("class_rows", capacity), lambda: mx.array(grid.rows))
            keys, values = (a[rows, :, : laid.length] for a in keys_values)
        mask = self.batch.shared(
            ("class_mask", capacity),
            lambda: causal_mask(mx.array(grid.starts), grid.queries, laid.length),
        )
        return over_grid(queries, grid, keys, values, mask)


class FullStore:
    """One full layer's pools. `offsets[slot]` = committed tokens, the live length."""

    def __init__(self, kv_heads: int, head_dim: int, placement: Placement, dtype: mx.Dtype) -> None:
        self.kv_heads, self.head_dim, self.dtype = kv_heads, head_dim, dtype
        self.placement = placement
        self.pools: dict[int, tuple[mx.array, mx.array]] = {}
        self.offsets: dict[int, int] = {}

    @property
    def arrays(self) -> list[mx.array]:
        return [a for pool in self.pools.values() for a in pool]

    def follow(self, slot: int, old: Place | None, new: Place) -> None:
        """Carry a slot's content to its new place."""
        self._reserve(new.capacity)
        if old is not None and self.offsets.get(slot, 0):
            content = self._read(old, 0, self.offsets[slot])
            self._write(new, 0, *content)
        self.drop_unused()

    def drop_unused(self) -> None:
        for capacity in [c for c in self.pools if not self.placement.rows(c)]:
            del self.pools[capacity]

    def free(self, slot: int) -> None:
        """Drop the slot's content; Placement frees its row once for all layers."""
        self.offsets.pop(slot, None)

    def restore(self, slot: int, snapshot: Range | None, target: int) -> bool:
        """Rewind to `target` (None), or feed the snapshot from its start and clamp to `target`.

        False, with nothing changed, for a negative target, one past what is held, or a gap between
        the live content and the snapshot. The slot must have a place for `target` tokens.
        """
        offset = self.offsets.get(slot, 0)
        if target < 0:
            return False
        if snapshot is None or target < snapshot.start:
            if target > offset:
                return False
            self.offsets[slot] = target
            return True
        if target > snapshot.end or offset < snapshot.start:
            return False
        if target > snapshot.start:
            at = slice(0, target - snapshot.start)
            self._write(
                self.placement.places[slot],
                snapshot.start,
                snapshot.keys[:, at],
                snapshot.values[:, at],
            )
        self.offsets[slot] = target
        return True

    def snapshot(self, slot: int, start: int, end: int | None = None) -> Range | None:
        """A lazy copy of [max(0, start), end); None where that is empty."""
        start, end = max(0, start), self.offsets.get(slot, 0) if end is None else end
        if start >= end:
            return None
        return Range(start, end, *self._read(self.placement.places[slot], start, end))

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> FullHistory:
        """Write the packed batch [T, kv_heads, D]; offsets move only at `commit`."""
        writes = batch.shared(("full_writes", self.kv_heads), lambda: self._writes(batch))
        flat = (-1, self.head_dim)
        for capacity, (rows, entries) in writes.items():
            fresh = (keys, values) if rows is None else (keys[rows], values[rows])
            pools = []
            for pool, new in zip(self.pools[capacity], fresh, strict=True):
                pool[entries] = new.reshape(flat).astype(self.dtype)
                pools.append(pool)
            self.pools[capacity] = (pools[0], pools[1])
        return self._history(batch)

    def view(self, batch: Batch) -> FullHistory:
        """Read-only: each decode span's last position sees everything up to itself."""
        return self._history(batch)

    def commit(self, slot: int, offset: int) -> None:
        self.offsets[slot] = offset

    def _history(self, batch: Batch) -> FullHistory:
        return FullHistory(
            batch,
            self.placement,
            {
                capacity: (
                    keys.reshape(-1, self.kv_heads, capacity, self.head_dim),
                    values.reshape(-1, self.kv_heads, capacity, self.head_dim),
                )
                for capacity, (keys, values) in self.pools.items()
            },
        )

    def _reserve(self, capacity: int) -> None:
        """Grow a class's pool to the rows that Placement gave out, and no further: bytes are budgeted."""
        entries = self.kv_heads * capacity
        empty = mx.zeros((0, self.head_dim), self.dtype)
        keys, values = self.pools.get(capacity, (empty, empty))
        held, needed = keys.shape[0] // entries, self.placement.rows(capacity)
        if needed > held:
            empty = mx.zeros(((needed - held) * entries, self.head_dim), self.dtype)
            keys, values = (mx.concatenate([pool, empty]) for pool in (keys, values))
        self.pools[capacity] = (keys, values)

    def _entries(self, place: Place, positions: Ints) -> Ints:
        """Flat pool rows [kv_heads, positions]."""
        heads = (place.row * self.kv_heads + np.arange(self.kv_heads)) * place.capacity
        return (heads[:, None] + positions[None]).astype(np.int32)

    def _read(self, place: Place, start: int, end: int) -> tuple[mx.array, mx.array]:
        at = mx.array(self._entries(place, np.arange(start, end)))
        keys, values = (pool[at] for pool in self.pools[place.capacity])
        return keys, values

    def _write(self, place: Place, start: int, keys: mx.array, values: mx.array) -> None:
        at = mx.array(self._entries(place, np.arange(start, start + keys.shape[1])))
        pools = []
        for pool, fresh in zip(self.pools[place.capacity], (keys, values), strict=True):
            pool[at] = fresh.astype(self.dtype)
            pools.append(pool)
        self.pools[place.capacity] = (pools[0], pools[1])

    def _writes(self, batch: Batch) -> dict[int, tuple[mx.array | None, mx.array]]:
        """Per class: (packed rows or None for all, flat pool rows, token-major)."""
        rows: dict[int, list[Ints]] = {}
        entries: dict[int, list[Ints]] = {}
        for span, first in zip(batch.decodes + batch.prefills, batch.firsts, strict=True):
            place = self.placement.places[span.slot]
            assert span.end <= place.capacity, (span, place)
            positions = np.arange(span.start, span.end)
            rows.setdefault(place.capacity, []).append(np.arange(first, first + span.length))
            entries.setdefault(place.capacity, []).append(self._entries(place, positions).T.ravel())
        whole = len(rows) == 1
        return {
            capacity: (
                None if whole else mx.array(np.concatenate(rows[capacity]).astype(np.int32)),
                mx.array(np.concatenate(entries[capacity]).astype(np.int32)),
            )
            for capacity in rows
        }
