"""Attention whose sums have one order for each row, whoever else is there: strict numerics.

- Keys are summed over in tiles of kernels.tile_tokens absolute positions. A query's heads over one
  tile are a product of one shape, whoever asks: decode row or prompt slice, pool, ring or stored
  range (arrays/tiles).
- The partials of a query's tiles (arrays/folded) are joined as a binary tree whose leaves are
  tiles: a full layer's by their number, a sliding one's by it modulo what its window can touch.
  A tile of which a query sees nothing is a partial of weight 0, and joining it changes no bit: so
  padding, capacities, dead entries and how much is read beyond do not matter.
- Prefixes that are held by reference are whole tiles (LiveCaches). What the tree has cut within a
  tile is laid side by side for the call: no sum ends where a range does.
- Which calls those are is decided once for a step and a kind of layer.
- It costs a read of K and V for every query of a slot, not for every slot, and the partials beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from sapwood.cache.arrays.attention import Grid
from sapwood.cache.arrays.batch import Ints, Span, indices
from sapwood.cache.arrays.folded import split_partial, whole
from sapwood.cache.arrays.pool_history import PoolHistory, packed_order
from sapwood.cache.arrays.pools import KeysValues
from sapwood.cache.arrays.stretches import Stretch, stretches
from sapwood.cache.arrays.tiles import nothing, over_tree, tile_partials
from sapwood.cache.attention_routes import TILE_QUERIES_MIN

# Partials [count, heads, D + 2] of a layer, from its history and the packed queries.
TileCall = Callable[["StrictHistory", mx.array], mx.array]
_Places = npt.NDArray[np.int64]


class StrictHistory(PoolHistory):
    """A PoolHistory that sums up strictly."""

    __slots__ = ()

    def attend(self, queries: mx.array, trimmed: bool = False) -> mx.array:
        """History.attend."""
        heads = queries.shape[1]
        key = ("strict", self.placement, self.reach, self._floors_key, heads, trimmed)
        parts = self.batch.shared(key, lambda: tuple(self._parts(heads, trimmed)))
        seen = [part.attend(self, queries) for part in parts]
        out = seen[0] if len(seen) == 1 else mx.concatenate(seen)
        order = self.batch.shared((*key, "order"), lambda: packed_order([p.rows for p in parts]))
        return out if order is None else out[order]

    def slice_of(self, index: int, low: int, high: int) -> KeysValues:
        """Of a prompt slice's keys and values [1, kv_heads, high - low, D], whole tiles of it.

        A full layer's lie in the slot's row, where they were written, and end where it does; a
        sliding layer's in logical order. Positions that it does not have are anything finite.
        """
        span = self.batch.prefills[index]
        if self.reach is None:
            place = self.placement.places[span.slot]
            row = slice(place.row, place.row + 1)
            at = slice(low - place.base, high - place.base)
            keys, values = self.pools[place.capacity]
            return keys[row, :, at], values[row, :, at]
        keys, values = self.slices[index]
        start = span.end - keys.shape[2]
        at = slice(max(low, start) - start, min(high, span.end) - start)
        padding = (max(0, start - low), max(0, high - span.end))
        pads = [(0, 0), (0, 0), padding, (0, 0)]
        return mx.pad(keys[:, :, at], pads), mx.pad(values[:, :, at], pads)

    def _parts(self, heads: int, trimmed: bool) -> Iterator[_Part]:
        """All decode rows together; of a prompt slice as many queries as scores may exist."""
        if self.batch.decodes:
            yield self._of_decodes()
        for index, span in enumerate(self.batch.prefills):
            first, end = self.batch.queries_of(index, trimmed)
            low = span.end - (end - first)
            keys = span.end if self.reach is None else min(span.end, self.reach + end - first)
            step = max(TILE_QUERIES_MIN, self.kernels.slice_scores_max // (heads * keys))
            for cut in range(0, end - first, step):
                count = min(step, end - first - cut)
                own = Span(span.slot, low + cut, count)
                yield self._of_slice(index, own, first + cut)

    def _of_decodes(self) -> _Part:
        grids = Grid.classes(self.batch, self.placement, None)
        spans = list(zip(self.batch.decodes, self.batch.firsts, strict=False))
        leaves, tile = (
            _Leaves(spans, self.reach, self.kernels.tile_tokens),
            self.kernels.tile_tokens,
        )
        for grid in grids:
            tiles = grid.length // tile
            found = leaves.add(_of_grid(grid, self._mask(grid)), grid.n * tiles * grid.queries)
            flat = found + np.arange(grid.n * tiles * grid.queries).reshape(grid.n, tiles, -1)
            for row, slot in enumerate(grid.slots):
                if slot is not None:
                    own = int(grid.ends[row] - grid.starts[row])
                    leaves.place(slot, self._tiles_of(slot, grid, row), flat[row, :, :own])
        self._add_prefixes(leaves)
        return leaves.part()

    def _tiles_of(self, slot: int, grid: Grid, row: int) -> _Places:
        """Which tile of positions each of a pool row's first tiles holds; < 0: none yet.

        A ring's hold the newest that fall on them.
        """
        tile = self.kernels.tile_tokens
        at = np.arange(grid.length // tile)
        if self.reach is None:
            return self.placement.base(slot) // tile + at
        last = (int(grid.ends[row]) - 1) // tile
        return last - (last - at) % (grid.capacity // tile)

    def _of_slice(self, index: int, own: Span, first: int) -> _Part:
        """own: the queries' positions; first: the packed row of the first."""
        tile = self.kernels.tile_tokens
        leaves = _Leaves([(own, first)], self.reach, tile)
        base = self.placement.base(own.slot)
        low = base if self.reach is None else max(0, own.start - self.reach + 1)
        tiles = range(low // tile, (own.end - 1) // tile + 1)
        keys = (tiles.start * tile, tiles.stop * tile)
        call = _of_slice(index, first, own, keys, self.reach)
        found = leaves.add(call, len(tiles) * own.length)
        flat = found + np.arange(len(tiles) * own.length).reshape(len(tiles), -1)
        leaves.place(own.slot, np.array(tiles, np.int64), flat)
        self._add_prefixes(leaves)
        return leaves.part()

    def _add_prefixes(self, leaves: _Leaves) -> None:
        """What the spans' slots hold by reference, each stretch once for all that share it."""
        if self.prefix is None:
            return
        sharers: dict[tuple[object, ...], tuple[Stretch, list[tuple[Span, int]]]] = {}
        tile = self.kernels.tile_tokens
        for span, first in leaves.spans:
            for stretch in stretches(self.prefix.prefixes.of(span.slot), tile):
                sharers.setdefault(stretch.key, (stretch, []))[1].append((span, first))
        for stretch, spans in sharers.values():
            rows = np.concatenate([indices(first, first + s.length) for s, first in spans])
            tiles = np.arange(stretch.start // tile, stretch.end // tile)
            found = leaves.add(_of_stretch(stretch, rows), tiles.size * rows.size)
            flat = found + np.arange(tiles.size * rows.size).reshape(tiles.size, -1)
            at = 0
            for span, _ in spans:
                leaves.place(span.slot, tiles, flat[:, at : at + span.length])
                at += span.length


@dataclass(frozen=True, slots=True)
class _Part:
    """Queries that are finished together.

    rows: their packed rows. calls: whose partials lie one behind another, and behind them one of
    weight 0. table [rows, leaves]: which of these are a query's leaves.
    """

    rows: Ints
    calls: tuple[TileCall, ...]
    table: mx.array

    def attend(self, history: StrictHistory, queries: mx.array) -> mx.array:
        """[rows, heads, D]."""
        _, heads, dim = queries.shape
        found = [call(history, queries) for call in self.calls]
        joined = mx.concatenate([*found, nothing(heads, dim)])
        return whole(over_tree(split_partial(joined[self.table]))).astype(queries.dtype)


def touched_tiles(reach: int, tile: int) -> int:
    """How many tiles `reach` positions in a row can touch."""
    return (reach + tile - 2) // tile + 1


class _Leaves:
    """The calls of some spans' queries, and which partial is which query's leaf."""

    def __init__(self, spans: Sequence[tuple[Span, int]], reach: int | None, tile: int) -> None:
        """spans: with the packed row of each one's first query."""
        self.spans, self._reach, self._tile = spans, reach, tile
        self._calls: list[TileCall] = []
        self._count = 0
        self._firsts: dict[int, int] = {}
        self._positions: dict[int, Ints] = {}
        rows = 0
        for span, _ in spans:
            self._firsts[span.slot] = rows
            self._positions[span.slot] = indices(span.start, span.end)
            rows += span.length
        self._wide = 1 + max(span.end - 1 for span, _ in spans) // tile
        if reach is not None:
            self._wide = min(self._wide, touched_tiles(reach, tile))
        self._table = np.full((rows, self._wide), -1, np.int64)

    def add(self, call: TileCall, count: int) -> int:
        """A call that gives `count` partials; returns the number of the first."""
        first, self._count = self._count, self._count + count
        self._calls.append(call)
        return first

    def place(self, slot: int, tiles: _Places, flat: _Places) -> None:
        """flat [tiles, queries of the slot]: the partials over these tiles of positions."""
        positions = self._positions[slot]
        seen = tiles[:, None] <= positions // self._tile
        seen &= tiles[:, None] >= 0
        if self._reach is not None:
            seen &= tiles[:, None] >= np.maximum(0, positions - self._reach + 1) // self._tile
        tile, query = np.nonzero(seen)
        rows, leaves = self._firsts[slot] + query, tiles[tile] % self._wide
        assert (self._table[rows, leaves] < 0).all(), f"slot {slot}: a tile twice"
        self._table[rows, leaves] = flat[tile, query]

    def part(self) -> _Part:
        """Once all is placed."""
        table = np.where(self._table < 0, self._count, self._table)
        packed = [indices(first, first + span.length) for span, first in self.spans]
        return _Part(np.concatenate(packed), tuple(self._calls), mx.array(table.astype(np.int32)))


def _of_grid(grid: Grid, mask: mx.array) -> TileCall:
    def over(history: StrictHistory, queries: mx.array) -> mx.array:
        pools = history.pools[grid.capacity]
        keys, values = (grid.read(pool, grid.length) for pool in pools)
        own = mx.unflatten(grid.of_rows(queries), 0, (grid.n, grid.queries))
        return tile_partials(history.kernels, own, keys, values, mask.squeeze(1))

    return over


def _of_slice(
    index: int, first: int, own: Span, keys: tuple[int, int], reach: int | None
) -> TileCall:
    """A prompt slice's queries, packed from `first` on, over these positions of its keys."""
    low, high = keys
    mask = mx.array(_visible(own, low, high, reach))[None]

    def over(history: StrictHistory, queries: mx.array) -> mx.array:
        keys, values = history.slice_of(index, low, high)
        rows = queries[None, first : first + own.length]
        return tile_partials(history.kernels, rows, keys, values, mask)

    return over


def _visible(own: Span, low: int, high: int, reach: int | None) -> npt.NDArray[np.bool_]:
    keys, queries = indices(low, high)[None], indices(own.start, own.end)[:, None]
    seen: npt.NDArray[np.bool_] = keys <= queries
    return seen if reach is None else seen & (keys > queries - reach)


def _of_stretch(stretch: Stretch, rows: Ints) -> TileCall:
    at = mx.array(rows)

    def over(history: StrictHistory, queries: mx.array) -> mx.array:
        assert history.prefix is not None
        keys, values = stretch.read(history.prefix.index)
        return tile_partials(history.kernels, queries[at][None], keys, values, None)

    return over
