"""What slots hold of stored ranges by reference: the full K/V of [0, base), never copied.

- The ranges are the tree's, immutable and evaluated. Whoever shares them holds the same objects:
  the queries of all that do meet one copy of the keys, in one product.
- A range that was taken since (cut, joined) is dead: whoever owns the slots points them to what
  took its place before the next step.
- Where a prefix ends a slot's row begins: its base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.attention import over_stretch
from sapwood.cache.arrays.batch import Batch, Ints, indices
from sapwood.cache.arrays.folded import merged, split_partial, whole
from sapwood.cache.arrays.ranges import EdgePayload, Portion
from sapwood.cache.attention_routes import Kernels


class Prefixes:
    """Each slot's portions of stored ranges of full layers: gapless from 0, oldest first."""

    def __init__(self) -> None:
        self._portions: dict[int, tuple[Portion, ...]] = {}

    def set(self, slot: int, portions: Sequence[Portion]) -> int:
        """The slot holds these from now on; returns its base."""
        starts_and_ends = [(0, 0), *((start, end) for _, start, end in portions)]
        for (_, end), (start, _) in pairwise(starts_and_ends):
            assert end == start, (slot, starts_and_ends)
        self._portions[slot] = tuple(portions)
        return starts_and_ends[-1][1]

    def drop(self, slot: int) -> None:
        """The slot holds nothing by reference."""
        self._portions.pop(slot, None)

    def of(self, slot: int) -> tuple[Portion, ...]:
        """() where it holds nothing."""
        return self._portions.get(slot, ())

    def layer(self, index: int) -> LayerPrefixes:
        """As one full layer sees them."""
        return LayerPrefixes(self, index)


def portions_of(path: Sequence[EdgePayload], base: int) -> list[Portion]:
    """Full K/V of [0, base), of the path's payloads root to leaf; less where there is less."""
    found: list[Portion] = []
    for payload in path:
        if payload.full is not None and payload.start < base:
            found.append((payload.full, payload.start, min(base, payload.end)))
    return found


@dataclass(frozen=True, slots=True)
class Level:
    """Portions that no row sees two of, and which packed rows see each, [first, end) or an array.

    rows: those of all, one portion's behind another's; None: every row of the batch, in order.
    """

    portions: tuple[tuple[Portion, slice | mx.array], ...]
    rows: mx.array | None


def levels_of(prefixes: Prefixes, batch: Batch, trimmed: bool) -> tuple[Level, ...]:
    """What the rows of a packed batch hold by reference: each portion once, in few levels."""
    members: dict[tuple[int, int, int, int], tuple[Portion, list[Ints]]] = {}
    count = 0
    for first, end, slot in _rows(batch, trimmed):
        count = max(count, end)
        for level, portion in enumerate(prefixes.of(slot) if first < end else ()):
            held, start, stop = portion
            assert not held.closed, f"slot {slot}: [{start}, {stop}) was taken"
            # Whoever shares a portion shares all before it, so it is of one level for all.
            key = (level, id(held), start, stop)
            members.setdefault(key, (portion, []))[1].append(indices(first, end))
    levels: dict[int, list[tuple[Portion, Ints]]] = {}
    for (level, *_), (portion, parts) in members.items():
        levels.setdefault(level, []).append((portion, np.concatenate(parts)))
    return tuple(_level(levels[level], count) for level in sorted(levels))


def _level(found: Sequence[tuple[Portion, Ints]], count: int) -> Level:
    rows = np.concatenate([own for _, own in found])
    every = np.array_equal(rows, indices(0, count))
    portions = tuple((portion, _run(own)) for portion, own in found)
    return Level(portions, None if every else mx.array(rows))


def _run(rows: Ints) -> slice | mx.array:
    first = int(rows[0])
    if np.array_equal(rows, indices(first, first + rows.size)):
        return slice(first, first + rows.size)
    return mx.array(rows)


def _rows(batch: Batch, trimmed: bool) -> list[tuple[int, int, int]]:
    """(first, end, slot) of every span's rows in the full or the trimmed packing, ascending."""
    decodes = [
        (first, first + span.length, span.slot)
        for span, first in zip(batch.decodes, batch.firsts, strict=False)
    ]
    prefills = [
        (*batch.queries_of(index, trimmed), span.slot) for index, span in enumerate(batch.prefills)
    ]
    return decodes + prefills


@dataclass(frozen=True, slots=True)
class LayerPrefixes:
    """Attention of one full layer over what slots hold by reference. index: among full layers."""

    prefixes: Prefixes
    index: int

    def levels(self, batch: Batch, trimmed: bool) -> tuple[Level, ...]:
        """Those of the batch: the same for all layers, so sought once."""
        key = ("levels", self.prefixes, trimmed)
        return batch.shared(key, lambda: levels_of(self.prefixes, batch, trimmed))

    def join(
        self, kernels: Kernels, queries: mx.array, own: mx.array, levels: Sequence[Level]
    ) -> mx.array:
        """Attention of packed queries [T, heads, D] over everything: [T, heads, D].

        own: their partials over what lies in rows, [T, heads, D + 2].
        """
        found = split_partial(own)
        for level in levels:
            seen = []
            for (held, start, end), rows in level.portions:
                layer = held.layer(self.index, start, end)
                seen.append(over_stretch(kernels, queries[rows], layer.keys, layer.values))
            others = split_partial(seen[0] if len(seen) == 1 else mx.concatenate(seen))
            if (at := level.rows) is None:
                found = merged(found, others)
                continue
            some = merged((found[0][at], found[1][at], found[2][at]), others)
            for every, new in zip(found, some, strict=True):
                every[at] = new
        return whole(found).astype(queries.dtype)
