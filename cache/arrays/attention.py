"""Attention of packed queries over pooled K/V, masked by absolute position.

- Queries come packed [T, heads, D] and leave packed; scale is 1 (Gemma 4 has no 1/sqrt(d)).
- A mask is boolean, True = visible. Invisible keys may hold anything, NaN included; invisible
  values must be finite (0 x NaN is NaN), which pools sees to.
- Pool rows that no span owns are computed along and dropped: never gathered into an output.
- How a call is laid out follows from the kernels that it is handed (attention_routes): on a GPU a
  long round is cut, and the heads of a group become one matrix's rows where no kernel takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.batch import Batch, Ints, Span
from sapwood.cache.arrays.folded import fold, folded, folded_partial, unfold
from sapwood.cache.arrays.placement import Placement
from sapwood.cache.attention_routes import (
    AttentionCall,
    Kernels,
    MaskKind,
    folds,
    lengthens,
    slice_tiles,
)

# A mask of so many places is made on the host: a dozen nodes of the graph cost more.
MASK_ON_HOST = 1 << 14
LENGTH_STEP = 64  # keys are read up to a multiple of this, so that shapes change rarely
Mask = mx.array | str | None


class History(Protocol):
    """What `update` and `view` hand to a layer's attention; it applies its own mask."""

    def attend(self, queries: mx.array, trimmed: bool = False) -> mx.array:
        """[T, heads, D] -> [T, heads, D]. `trimmed`: only the batch's kept rows are present."""


class LayerStore(Protocol):
    """One K/V-owning layer as a target forward writes it."""

    def update(self, batch: Batch, keys: mx.array, values: mx.array) -> History:
        """Write the packed K/V [T, kv_heads, D] and give the layer's history, these included."""


class Layers(Protocol):
    """What a target forward runs over: live caches, or the wrappers of a speculation."""

    @property
    def stores(self) -> Sequence[LayerStore]:
        """The K/V-owning layers in model order."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Decode spans of one capacity class laid over rows of its pool, padded to one query length.

    Of a long span one of the parts that it is cut into: to each what the span wrote behind it is
    like what a deeper round left there, which masks go round.

    base, n: pool rows [base, base + n) are read, which is a view and costs nothing; or, where that
    is too many, `rows` [n] are gathered.
    length: keys to read of each. queries: Q, the longest span's length.
    first: packed row of the first query where all [n * Q] lie in one run from there, else None and
    gather [n * Q] says which packed row supplies each query (padding: an arbitrary one), places
    where in [n * Q] the real ones lie, in the order of `packed`, their packed rows. Of a run both
    are None: nobody asks.
    starts, ends: [n] position of a row's first query and one past its last, counted from where the
    row begins; 0, 0 in nobody's row.
    """

    capacity: int
    base: int
    n: int
    rows: mx.array | None
    length: int
    queries: int
    first: int | None
    gather: mx.array | None
    places: mx.array | None
    packed: Ints
    starts: Ints
    ends: Ints
    slots: tuple[int | None, ...]

    @classmethod
    def classes(
        cls, batch: Batch, placement: Placement, queries_max: int | None
    ) -> tuple[Grid, ...]:
        """The decode spans of a batch by the capacity of their pools.

        queries_max: what one grid may hold of a span; None: all of it. What is longer goes on in
        further grids, so that nobody else's rows are padded beyond.
        """
        members: dict[tuple[int, int], list[tuple[Span, int, int]]] = {}
        for span, first in zip(batch.decodes, batch.firsts, strict=False):
            place = placement.places[span.slot]
            for part, cut in enumerate(range(0, span.length, queries_max or span.length)):
                length = min(span.length - cut, queries_max or span.length)
                own = Span(span.slot, span.start + cut - place.base, length)
                members.setdefault((place.capacity, part), []).append((own, first + cut, place.row))
        return tuple(cls._over(capacity, spans) for (capacity, _), spans in members.items())

    @classmethod
    def _over(cls, capacity: int, members: Sequence[tuple[Span, int, int]]) -> Grid:
        """Holes among the rows are read along, unless they outnumber the owners.

        Then the owners' rows are gathered, which copies them.
        """
        # In Python's own numbers: a step has a few dozen, and each call of numpy's is worth ten.
        rows = [row for _, _, row in members]
        base, reach = min(rows), max(rows) + 1 - min(rows)
        dense = reach < 2 * len(rows)
        n, at = (reach, [row - base for row in rows]) if dense else (len(rows), range(len(rows)))
        queries = max(span.length for span, _, _ in members)
        gather = [members[0][1]] * (n * queries)
        starts, ends = [0] * n, [0] * n
        slots: list[int | None] = [None] * n
        packed: list[int] = []
        places: list[int] = []
        for row, (span, first, _) in zip(at, members, strict=True):
            begin, end = row * queries, row * queries + span.length
            gather[begin:end] = own = range(first, first + span.length)
            packed += own
            places += range(begin, end)
            starts[row], ends[row], slots[row] = span.start, span.end, span.slot
        whole = gather == list(range(packed[0], packed[0] + n * queries))
        longest = max(1, -(-max(ends) // LENGTH_STEP)) * LENGTH_STEP
        return cls(
            capacity, base, n, None if dense else mx.array(rows, mx.int32),
            min(capacity, longest), queries, packed[0] if whole else None,
            None if whole else mx.array(gather, mx.int32),
            None if whole else mx.array(places, mx.int32),
            np.array(packed, np.int32), np.array(starts, np.int32), np.array(ends, np.int32),
            tuple(slots),
        )  # fmt: skip

    def of_rows(self, queries: mx.array) -> mx.array:
        """Packed queries [T, ...] -> [n * Q, ...]; copied only where there is padding."""
        if self.first is None:
            return queries[self.gather]
        if self.packed.size == queries.shape[0]:
            return queries
        return queries[self.first : self.first + self.packed.size]

    def read(self, pool: mx.array, length: int) -> mx.array:
        """[n, kv_heads, length, D] of a pool."""
        if self.rows is not None:
            return pool[self.rows][:, :, :length]
        return pool[self.base : self.base + self.n, :, :length]


def over_grid(
    kernels: Kernels,
    queries: mx.array,
    grid: Grid,
    keys: mx.array,
    values: mx.array,
    mask: mx.array | None,
    partial: bool = False,
) -> mx.array:
    """Packed queries [T, heads, D] over what grid.read gave, [n, kv_heads, length, D].

    mask [n, 1, Q, length]; None: all is visible. Returns [t, heads, D]: one for each of
    grid.packed, in its order. partial: as partials, [t, heads, D + 2].
    """
    attend = _attend_partial if partial else _attend
    queries = grid.of_rows(queries)
    if grid.queries == 1:
        out = attend(kernels, mx.expand_dims(queries, 2), keys, values, mask).squeeze(2)
    else:
        padded = mx.unflatten(queries, 0, (-1, grid.queries)).swapaxes(1, 2)
        seen = attend(kernels, padded, keys, values, mask)
        out = mx.flatten(seen.swapaxes(1, 2), 0, 1)
    return out if grid.places is None else out[grid.places]


def over_slice(
    kernels: Kernels,
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    mask: Mask,
    partial: bool = False,
) -> mx.array:
    """One prefill span: queries [q, heads, D] over K/V [1, kv_heads, L, D] that end with its own.

    mask: as slice_mask gives it for q and L. Returns [q, heads, D]; partial: [q, heads, D + 2].

    In tiles of queries, each over the keys up to its own end, so that no more scores exist at once
    than kernels.slice_scores_max: a late slice of a long prompt would need gigabytes, and no fused
    kernel spares them at head size 512.
    """
    (count, heads, dim), (kv_heads, length) = queries.shape, keys.shape[1:3]
    call = AttentionCall(dim, heads // kv_heads, count, length, _kind(mask))
    attend = _attend_partial if partial else _attend

    def seen(own: mx.array, first: int, end: int) -> mx.array:
        reach = length - count + end
        part = mask[first:end, :reach] if isinstance(mask, mx.array) else mask
        return attend(kernels, own, keys[:, :, :reach], values[:, :, :reach], part)

    return _in_tiles(queries, slice_tiles(kernels, call, kv_heads), seen)


def over_stretch(kernels: Kernels, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """Queries [q, heads, D] of any sequences, each of which sees all of K/V [kv_heads, L, D].

    Returns partials [q, heads, D + 2]. In tiles as a prompt slice is.
    """
    (count, heads, dim), (kv_heads, length) = queries.shape, keys.shape[:2]
    call = AttentionCall(dim, heads // kv_heads, count, length, "none")

    def seen(own: mx.array, _first: int, _end: int) -> mx.array:
        return folded_partial(kernels, own, keys[None], values[None], None)

    return _in_tiles(queries, slice_tiles(kernels, call, kv_heads), seen)


def _in_tiles(
    queries: mx.array,
    tiles: Sequence[tuple[int, int]],
    seen: Callable[[mx.array, int, int], mx.array],
) -> mx.array:
    """Queries [q, heads, D] as one sequence's, tile by tile: `seen` is given [1, heads, n, D]."""
    out = []
    for first, end in tiles:
        own = queries[None, first:end].swapaxes(1, 2)
        out.append(seen(own, first, end).swapaxes(1, 2)[0])
    return out[0] if len(out) == 1 else mx.concatenate(out)


def _attend_partial(
    kernels: Kernels, queries: mx.array, keys: mx.array, values: mx.array, mask: Mask
) -> mx.array:
    """_attend as a partial: no kernel of MLX's tells what it summed."""
    seen = _visible(mask, queries.shape[2], keys.shape[2])
    return folded_partial(kernels, queries, keys, values, seen)


def _attend(
    kernels: Kernels, queries: mx.array, keys: mx.array, values: mx.array, mask: Mask
) -> mx.array:
    """[n, heads, Q, D] over [n, kv_heads, L, D] -> [n, heads, Q, D].

    mask: bool, [Q, L] or [n, 1, Q, L]; "causal": the last query sees all keys; None: all do.
    """
    (_, heads, count, dim), (_, kv_heads, length, _) = queries.shape, keys.shape
    call = AttentionCall(dim, heads // kv_heads, count, length, _kind(mask))
    if folds(kernels, call):
        return folded(kernels, queries, keys, values, _visible(mask, count, length))
    if lengthens(kernels, call):
        return _as_longer_slice(queries, keys, values, _visible(mask, count, length))
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0, mask=mask)


def _as_longer_slice(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None
) -> mx.array:
    """As MLX's attention of kv_heads heads with a group's queries each: a call long enough for the
    kernel of matrix units. The mask is repeated, which is a byte for each score of one head.
    """
    heads, kv_heads = queries.shape[1], keys.shape[1]
    repeated = None if mask is None else mx.repeat(mask, heads // kv_heads, axis=-2)
    out = mx.fast.scaled_dot_product_attention(
        fold(queries, kv_heads), keys, values, scale=1.0, mask=repeated
    )
    return unfold(out, heads)


def _visible(mask: mx.array | str | None, queries: int, length: int) -> mx.array | None:
    """A mask of any kind as an array [1, 1, Q, L] or [n, 1, Q, L]; None: all is visible."""
    if mask is None:
        return None
    if isinstance(mask, str):
        mask = _window(queries, length, None)
    return mask if mask.ndim == 4 else mask[None, None]


def position_mask(grid: Grid, capacity: int, reach: int | None, floors: Ints | None) -> mx.array:
    """Visibility [n, 1, Q, length] of the first `length` entries of rows that wrap at `capacity`.

    Entry r holds the newest position p <= last, the row's last written one, with
    p = r mod capacity; p < 0 was never written. A query sees at most `reach` keys with its own.
    What a deeper round left beyond `last` shows up as p - capacity, which no reach of an
    over-provisioned ring goes back to. floors [n]: the lowest position that a row still holds.
    """
    if grid.n * grid.queries * grid.length <= MASK_ON_HOST:
        return mx.array(_visible_places(np, grid, capacity, reach, floors))
    return cast("mx.array", _visible_places(mx, grid, capacity, reach, floors))


def _visible_places(
    made_with: Any, grid: Grid, capacity: int, reach: int | None, floors: Ints | None
) -> Any:
    """position_mask's, by numpy or mx: what these functions are called is the same in both."""
    array, arange, int32 = made_with.array, made_with.arange, made_with.int32
    last = array(grid.ends - 1)[:, None]
    entry = arange(grid.length, dtype=int32)[None]
    position = (last - made_with.remainder(last - entry, capacity))[:, None, None, :]
    query = array(grid.starts)[:, None] + arange(grid.queries, dtype=int32)[None]
    query = query[:, None, :, None]
    visible = (position <= query) & (position >= 0)
    if reach is not None:
        visible = visible & (position > query - reach)
    if floors is not None:
        visible = visible & (position >= array(floors)[:, None, None, None])
    return visible


def slice_mask(queries: int, length: int, reach: int | None) -> mx.array | str | None:
    """The last `queries` of `length` positions over all of them: bool [queries, length].

    "causal" where every key is within reach, and None then for one query alone.
    """
    if reach is None or length <= reach:
        return "causal" if queries > 1 else None
    return _window(queries, length, reach)


def _window(queries: int, length: int, reach: int | None) -> mx.array:
    key = mx.arange(length, dtype=mx.int32)[None]
    query = mx.arange(length - queries, length, dtype=mx.int32)[:, None]
    visible = key <= query
    return visible if reach is None else visible & (key > query - reach)


def _kind(mask: mx.array | str | None) -> MaskKind:
    if mask is None:
        return "none"
    return "causal" if isinstance(mask, str) else "array"
