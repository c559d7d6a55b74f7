"""K/V arrays of one layer, all slots: a pool [rows, kv_heads, capacity, D] per capacity class.

- Position p of a slot lies at entry (p - base) mod capacity of its row (Placement has the base):
  linear storage is the ring that never wraps.
- What a row holds beside its slot's live content is dead: masks go by position. Dead keys may be
  anything; dead values must be finite (0 x NaN), so a row's are cleared when it changes hands.
- MLX writes in place only where nobody else holds the buffer, pending reads included. So every
  read copies, no view outlives its step, and what moves rows is evaluated before the next write.
- Array objects are updated in place by their owner; nobody else may keep one past its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.batch import Batch, Ints, indices
from sapwood.cache.arrays.placement import Move, Place, Placement

KeysValues = tuple[mx.array, mx.array]


@dataclass(frozen=True, slots=True)
class Writes:
    """What one batch writes into one class's pool: its index arrays, [n, kv_heads] each.

    packed: packed rows [n] to take the K/V from; None: all of them in order. Written out, for MLX
    would spread smaller ones anew in every layer.
    """

    packed: mx.array | None
    rows: mx.array
    heads: mx.array
    entries: mx.array

    @classmethod
    def of(cls, batch: Batch, placement: Placement, kv_heads: int) -> dict[int, Writes]:
        """capacity -> writes. Of a span longer than its row only the newest are written."""
        parts: dict[int, list[tuple[int, int, int, int]]] = {}
        for span, first in zip(batch.spans, batch.firsts, strict=True):
            place = placement.places[span.slot]
            count = min(span.length, place.capacity)
            start = span.end - count - place.base
            assert start >= 0, f"position {start + place.base} in {place}"
            own = first + span.length - count, place.row, start, count
            parts.setdefault(place.capacity, []).append(own)
        return {size: cls._joined(batch, own, size, kv_heads) for size, own in parts.items()}

    @classmethod
    def _joined(
        cls,
        batch: Batch,
        parts: Sequence[tuple[int, int, int, int]],
        capacity: int,
        kv_heads: int,
    ) -> Writes:
        """parts: of each span its first packed row, pool row, first entry (unwrapped), count."""
        counts = [count for *_, count in parts]
        before = np.cumsum([0, *counts])
        spread = np.repeat(np.array(parts, np.int32).T, counts, axis=1)
        own = indices(0, int(before[-1])) - np.repeat(before[:-1], counts)
        to = np.empty((3, own.size, kv_heads), np.int32)
        to[0], to[1] = spread[1][:, None], indices(0, kv_heads)
        to[2] = ((spread[2] + own) % capacity)[:, None]
        packed = None if own.size == batch.tokens else mx.array((spread[0] + own).astype(np.int32))
        return cls(packed, *(mx.array(each) for each in to))


def _entries(place: Place, start: int, end: int) -> Ints:
    """Where positions [start, end) lie in a row."""
    assert place.base <= start, f"position {start} in {place}"
    return indices(start - place.base, end - place.base) % place.capacity


def _entry(place: Place, position: int) -> int:
    return int(_entries(place, position, position + 1)[0])


class Pools:
    """One layer's pools. `placement` says who lies where and is shared by like layers."""

    def __init__(self, kv_heads: int, head_dim: int, placement: Placement, dtype: mx.Dtype) -> None:
        self.kv_heads, self.head_dim, self.dtype = kv_heads, head_dim, dtype
        self.placement = placement
        self.by_capacity: dict[int, KeysValues] = {}

    @property
    def arrays(self) -> list[mx.array]:
        """Keys and values of every class; nobody keeps them past the step."""
        return [a for pool in self.by_capacity.values() for a in pool]

    def follow(self, moves: Sequence[Move]) -> None:
        """Grow to what Placement gave out, carry rows along, and drop what nobody needs. Lazily."""
        for move in moves:
            held = self._grow(move.new.capacity)
            if move.new.row < held:
                self.by_capacity[move.new.capacity][1][move.new.row] = 0
            if move.old is not None:
                self._carry(move.old, move.new)
        self.drop_unused()

    def drop_unused(self) -> None:
        """Free the arrays of classes in which nobody has a row any more."""
        for capacity in [c for c in self.by_capacity if not self.placement.rows(c)]:
            del self.by_capacity[capacity]

    def pack(self, orders: dict[int, list[int]]) -> None:
        """Keep the given old rows of each class, in the given order. Lazily."""
        for capacity, order in orders.items():
            at = mx.array(np.array(order, np.int32))
            keys, values = self.by_capacity[capacity]
            self.by_capacity[capacity] = keys[at], values[at]

    def read(self, slot: int, start: int, end: int) -> KeysValues:
        """A lazy copy of positions [start, end), [kv_heads, n, D]: a gather, so never a view."""
        place = self.placement.places[slot]
        at = mx.array(_entries(place, start, end))
        row = slice(place.row, place.row + 1)
        keys, values = (pool[row] for pool in self.by_capacity[place.capacity])
        # A take from the view: indexing it by an integer first would copy the whole row.
        return mx.take(keys, at, axis=2)[0], mx.take(values, at, axis=2)[0]

    def view(self, slot: int, start: int, end: int) -> KeysValues:
        """Positions [start, end) as they lie, [kv_heads, n, D]; a copy where they wrap.

        For a copy that is evaluated before anything is written. Many times as quick as `read`.
        """
        place, count = self.placement.places[slot], end - start
        row, entry = slice(place.row, place.row + 1), _entry(place, start)
        before = min(count, place.capacity - entry)
        found = []
        for pool in self.by_capacity[place.capacity]:
            held = pool[row, :, entry : entry + before].squeeze(0)
            if before < count:
                rest = pool[row, :, : count - before].squeeze(0)
                held = mx.concatenate([held, rest], axis=1)
            found.append(held)
        return found[0], found[1]

    def write(self, slot: int, start: int, keys: mx.array, values: mx.array) -> None:
        """Write [kv_heads, n, D] at positions [start, start + n), n <= capacity."""
        place = self.placement.places[slot]
        count, entry = keys.shape[1], _entry(place, start)
        assert count <= place.capacity, (count, place)
        before = min(count, place.capacity - entry)
        for pool, fresh in zip(self.by_capacity[place.capacity], (keys, values), strict=True):
            pool[place.row, :, entry : entry + before] = fresh[:, :before].astype(self.dtype)
            if before < count:
                pool[place.row, :, : count - before] = fresh[:, before:].astype(self.dtype)

    def append(self, batch: Batch, keys: mx.array, values: mx.array) -> None:
        """Write the packed batch [T, kv_heads, D] at its own positions: two scatters a class."""
        placement, kv_heads = self.placement, self.kv_heads
        key = ("writes", placement, kv_heads)
        writes = batch.shared(key, lambda: Writes.of(batch, placement, kv_heads))
        for capacity, to in writes.items():
            for pool, packed in zip(self.by_capacity[capacity], (keys, values), strict=True):
                fresh = packed if to.packed is None else packed[to.packed]
                pool[to.rows, to.heads, to.entries] = fresh.astype(self.dtype)

    def _grow(self, capacity: int) -> int:
        """Grow to the rows that Placement gave out, and no further; returns the rows there were.

        More than it gave out are left of a class that went and began anew among these very moves.
        """
        shape = (self.kv_heads, capacity, self.head_dim)
        empty = mx.zeros((0, *shape), self.dtype)
        held = self.by_capacity.get(capacity, (empty, empty))
        rows = int(held[0].shape[0])
        missing = self.placement.rows(capacity) - rows
        if missing < 0:
            self.pack({capacity: list(range(rows + missing))})
        if missing > 0:
            empty = mx.zeros((missing, *shape), self.dtype)
            keys, values = (mx.concatenate([pool, empty]) for pool in held)
            self.by_capacity[capacity] = keys, values
        return rows

    def _carry(self, old: Place, new: Place) -> None:
        assert old.capacity <= new.capacity, (old, new)
        for source, pool in zip(
            self.by_capacity[old.capacity], self.by_capacity[new.capacity], strict=True
        ):
            pool[new.row, :, : old.capacity] = source[old.row]
