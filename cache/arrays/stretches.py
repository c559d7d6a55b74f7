"""Stored K/V in whole tiles of positions, whatever ranges the tree has cut it into.

- Whoever shares a prefix shares its stretches: they have the same key.
- What several ranges have of one tile is laid side by side when it is read; everything else is read
  where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from sapwood.cache.arrays.ranges import LayerRange, Portion
from sapwood.cache.geometry import whole_tiles


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole tiles of stored K/V, of one range, or one tile of pieces of several."""

    pieces: tuple[Portion, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """The same for all who hold it."""
        return tuple((id(held), start, end) for held, start, end in self.pieces)

    @property
    def start(self) -> int:
        """The first position."""
        return self.pieces[0][1]

    @property
    def end(self) -> int:
        """One past the last."""
        return self.pieces[-1][2]

    def read(self, index: int) -> tuple[mx.array, mx.array]:
        """Keys and values [1, kv_heads, tokens, D] of a full layer."""
        parts: list[LayerRange] = []
        for held, start, end in self.pieces:
            assert not held.closed, f"[{start}, {end}) was taken"
            parts.append(held.layer(index, start, end))
        if len(parts) == 1:
            return parts[0].keys[None], parts[0].values[None]
        keys = mx.concatenate([part.keys for part in parts], axis=1)
        return keys[None], mx.concatenate([part.values for part in parts], axis=1)[None]


def stretches(portions: Sequence[Portion], tile: int) -> Iterator[Stretch]:
    """Gapless portions from 0 on, together whole tiles, as stretches."""
    rest: list[Portion] = []
    at = 0
    for held, start, end in portions:
        at = start
        if rest:  # a tile that an earlier one began
            at = min(end, whole_tiles(start, tile))
            rest.append((held, start, at))
            if at % tile:
                continue
            yield Stretch(tuple(rest))
            rest = []
        cut = end - end % tile
        if at < cut:
            yield Stretch(((held, at, cut),))
        if cut < end:
            rest = [(held, max(at, cut), end)]
    assert not rest, f"{portions} end within a tile"
