"""Stored K/V of tokens [start, end): one array for all layers of a kind, two for an edge.

- A Range holds all layers of one kind in one array and owns it: never a view into a live pool,
  which would make the pool's next write a full copy. A device counts its buffers, so a node of the
  tree has one for its full layers and one for its sliding layers.
- What the tree cuts, joins and thins is copied, and a copy is made later, with others: the host
  waits for each evaluation. It reads ranges alone and no pool, so no pool is copied for its sake;
  until it is made, what it is made from stays in memory. A join of joins that are not made is one
  copy: the tree joins in pairs, and each token would be copied once for every round of them.
- `split` and `merge` take their inputs; a taken or closed range is dead and says so.
- An EdgePayload is what the prefix tree stores for one edge: all full layers over the whole edge,
  all sliding layers over the same newest part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx

from sapwood.cache.arrays.batch import indices
from sapwood.cache.geometry import buffer_bytes
from sapwood.cache.prefix.snapshot import Payload


class LayerRange(NamedTuple):
    """K/V [kv_heads, end - start, D] of one layer, lazily: a view or a copy, and nobody's own."""

    start: int
    end: int
    keys: mx.array
    values: mx.array


@dataclass(slots=True)
class Range:
    """K/V of tokens [start, end) of all layers of a kind: the contract's Snapshot.

    stack: [sum of 2 x kv_heads, end - start, D], layer by layer, keys then values. kv_heads: of
    each layer. unmade_bytes: what making it takes, with all that it is made from and that is not
    made either; 0: it is there, or whoever had it made sees to it. joins: the stacks that it lays
    side by side, oldest first; none once it is made, and of what is no join.
    """

    start: int
    end: int
    stack: mx.array
    kv_heads: tuple[int, ...]
    unmade_bytes: int = 0
    closed: bool = field(default=False)
    joins: tuple[mx.array, ...] = ()

    def __post_init__(self) -> None:
        assert self.start < self.end, (self.start, self.end)
        expected = (2 * sum(self.kv_heads), self.end - self.start)
        assert self.stack.shape[:2] == expected, (self.stack.shape, expected)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers together; 0 once closed."""
        return int(self.stack.nbytes)

    def close(self) -> None:
        """Free the array. Exactly once, directly or by being taken."""
        assert not self.closed, f"range [{self.start}, {self.end}) closed twice"
        self.closed = True
        self.stack, self.joins = mx.array(()), ()

    def part(self, start: int, end: int) -> Range:
        """A copy of [start, end), lazily; the caller evaluates it.

        A gather: `contiguous` keeps the whole buffer alive where that is up to 16 KiB larger.
        """
        assert self.start <= start < end <= self.end
        assert not self.closed
        at = mx.array(indices(start - self.start, end - self.start))
        stack = self.stack[:, at]
        return Range(start, end, stack, self.kv_heads, self.unmade_bytes + int(stack.nbytes))

    def layer(self, index: int, start: int, end: int) -> LayerRange:
        """Views of [start, end) of one layer, counted among those of its kind."""
        assert self.start <= start < end <= self.end
        assert not self.closed
        first, heads = 2 * sum(self.kv_heads[:index]), self.kv_heads[index]
        at = slice(start - self.start, end - self.start)
        keys, values = (self.stack[h : h + heads, at] for h in (first, first + heads))
        return LayerRange(start, end, keys, values)


def stack_layers(layers: Sequence[LayerRange | None]) -> Range | None:
    """All layers of a kind over the same tokens as one: a single lazy copy, whatever they are.

    None where there is no layer, or nothing is held.
    """
    held = [layer for layer in layers if layer is not None]
    if not held:
        return None
    start, end = held[0].start, held[0].end
    assert len(held) == len(layers), "some layers hold nothing"
    assert all((layer.start, layer.end) == (start, end) for layer in held), (start, end)
    # Of two arrays or more: a lone one would be handed back as it is.
    stack = mx.concatenate([a for layer in held for a in (layer.keys, layer.values)])
    return Range(start, end, stack, tuple(int(layer.keys.shape[0]) for layer in held))


def split_range(snapshot: Range | None, at: int) -> tuple[Range | None, Range | None]:
    """[a, at) and [at, c); at or outside an end, one side is None. Takes the snapshot."""
    if snapshot is None:
        return None, None
    assert not snapshot.closed, (snapshot.start, snapshot.end)
    if at <= snapshot.start:
        return None, snapshot
    if at >= snapshot.end:
        return snapshot, None
    left, right = snapshot.part(snapshot.start, at), snapshot.part(at, snapshot.end)
    snapshot.close()
    return left, right


def join_ranges(parts: Sequence[Range]) -> Range:
    """Adjacent ranges, oldest first and at least one, as one: a single lazy copy. Takes them."""
    for older, newer in pairwise(parts):
        assert older.end == newer.start, (older.end, newer.start)
    joins = tuple(stack for p in parts for stack in p.joins or (p.stack,))
    stack = mx.concatenate(list(joins), axis=1)
    # Of a join in a join its own bytes are never taken.
    unmade = sum(p.unmade_bytes - (int(p.stack.nbytes) if p.joins else 0) for p in parts)
    unmade += int(stack.nbytes)
    joined = Range(parts[0].start, parts[-1].end, stack, parts[0].kv_heads, unmade, joins=joins)
    for part in parts:
        part.close()
    return joined


def merge_full(parent: Range | None, child: Range | None) -> Range | None:
    """Full layers have no use for half a range: a missing side closes the other. Takes both."""
    if parent is not None and child is not None:
        return join_ranges((parent, child))
    for side in (parent, child):
        if side is not None:
            side.close()
    return None


def merge_sliding(parent: Range | None, child: Range | None) -> Range | None:
    """Only the newest part matters: without a child nothing is left, over a gap only the child.

    Takes both.
    """
    if parent is not None and child is not None and parent.end == child.start:
        return join_ranges((parent, child))
    if parent is not None:
        parent.close()
    return child


class Copies:
    """What the tree has asked for and the device has not made.

    To be made before anything takes the room that was made: a copy's sources still lie in it.
    """

    def __init__(self) -> None:
        self._due: list[Range] = []

    def add(self, *ranges: Range | None) -> None:
        """Make those that are not made."""
        self._due += [r for r in ranges if r is not None and r.unmade_bytes]

    def make(self, bytes_max: int) -> None:
        """Make all but what was closed or taken since, up to bytes_max in each evaluation.

        A copy that is larger has one for itself.
        """
        due, self._due = {id(r): r for r in self._due if not r.closed}, []
        group: list[Range] = []
        taken = 0
        for copy in due.values():
            if taken + copy.unmade_bytes > bytes_max:
                evaluate(group)
                group, taken = [], 0
            group.append(copy)
            taken += copy.unmade_bytes
        evaluate(group)


def evaluate(ranges: Sequence[Range]) -> None:
    """Make what was built lazily, at once."""
    if ranges:
        mx.eval([r.stack for r in ranges])
    for made in ranges:
        made.unmade_bytes, made.joins = 0, ()


@dataclass(slots=True)
class EdgePayload:
    """All layers' K/V of one edge [start, end): the arrays behind prefix.snapshot.Payload.

    full: of all full layers over [start, end), None in a model without any. sliding: of all sliding
    layers over [sliding_start, end), None where that is empty. page_bytes: of the device's buffers.
    copies: where its operations leave what they build.
    """

    start: int
    end: int
    full: Range | None
    sliding: Range | None
    page_bytes: int = 1
    copies: Copies = field(default_factory=Copies)
    closed: bool = field(default=False)

    def __post_init__(self) -> None:
        assert self.start < self.end, (self.start, self.end)
        assert self.full is None or (self.full.start, self.full.end) == (self.start, self.end)
        assert self.sliding is None or self.sliding.end == self.end, (self.sliding.end, self.end)
        assert self.start <= self.sliding_start, (self.start, self.sliding_start)

    @property
    def sliding_start(self) -> int:
        """Payload.sliding_start; the same for all sliding layers."""
        return self.end if self.sliding is None else self.sliding.start

    @property
    def arrays(self) -> list[mx.array]:
        """All of it, to be evaluated together."""
        return [held.stack for held in (self.full, self.sliding) if held is not None]

    @property
    def full_bytes(self) -> int:
        """Payload.full_bytes, of all full layers together."""
        return 0 if self.full is None else buffer_bytes(self.full.nbytes, self.page_bytes)

    @property
    def sliding_bytes(self) -> int:
        """Payload.sliding_bytes, of all sliding layers together."""
        return 0 if self.sliding is None else buffer_bytes(self.sliding.nbytes, self.page_bytes)

    def split(self, at: int) -> tuple[Payload, Payload]:
        """Payload.split."""
        assert self.start < at < self.end, (self.start, at, self.end)
        self._take()
        above, below = split_range(self.full, at)
        old, new = split_range(self.sliding, at)
        return self._left(self.start, at, above, old), self._left(at, self.end, below, new)

    def merge(self, child: Payload) -> Payload:
        """Payload.merge."""
        assert isinstance(child, EdgePayload)
        assert self.end == child.start, (self.end, child.start)
        self._take()
        child._take()
        full = merge_full(self.full, child.full)
        sliding = merge_sliding(self.sliding, child.sliding)
        return self._left(self.start, child.end, full, sliding)

    def thin(self, sliding_start: int) -> Payload:
        """Payload.thin."""
        assert sliding_start <= self.end, (sliding_start, self.end)
        self._take()
        dropped, kept = split_range(self.sliding, sliding_start)
        if dropped is not None:
            dropped.close()
        return self._left(self.start, self.end, self.full, kept)

    def copy(self, start: int, end: int, sliding_start: int) -> Payload:
        """Payload.copy."""
        assert not self.closed, f"payload [{self.start}, {self.end}) was closed or taken"
        first = max(start, sliding_start, self.sliding_start)
        full = None if self.full is None else self.full.part(start, end)
        sliding = None
        if self.sliding is not None and first < end:
            sliding = self.sliding.part(first, end)
        return self._left(start, end, full, sliding)

    def close(self) -> None:
        """Payload.close."""
        self._take()
        for held in (self.full, self.sliding):
            if held is not None:
                held.close()

    def _left(self, start: int, end: int, full: Range | None, sliding: Range | None) -> EdgePayload:
        """What an operation gives, to be made with all others."""
        self.copies.add(full, sliding)
        return EdgePayload(start, end, full, sliding, self.page_bytes, self.copies)

    def _take(self) -> None:
        assert not self.closed, f"payload [{self.start}, {self.end}) closed or taken twice"
        self.closed = True


Portion = tuple[Range, int, int]  # tokens [start, end) of a stored range


def window_of(parts: Sequence[Range | None], target: int, window: int) -> list[Portion]:
    """What a path's sliding ranges cover of [max(0, target - window), target), newest, gapless.

    Found from the newest part backwards, so that a parent thinned away never refuses what the
    children alone cover; told oldest first. Nothing where nothing is covered.
    """
    low, end = max(0, target - window), target
    found: list[Portion] = []
    for held in reversed(parts):
        if end == low or held is None or held.start >= end:
            continue
        if held.end < end:
            break
        found.insert(0, (held, max(held.start, low), end))
        end = found[0][1]
    return found


def read_portions(portions: Sequence[Portion], index: int) -> LayerRange | None:
    """Adjacent portions as one layer's K/V, a lazy copy: they stay whose they are."""
    if not portions:
        return None
    parts = [held.layer(index, start, end) for held, start, end in portions]
    start, end = parts[0].start, parts[-1].end
    if len(parts) == 1:  # which concatenate would hand back as it is
        at = mx.array(indices(0, end - start))
        return LayerRange(start, end, parts[0].keys[:, at], parts[0].values[:, at])
    keys = mx.concatenate([part.keys for part in parts], axis=1)
    return LayerRange(start, end, keys, mx.concatenate([part.values for part in parts], axis=1))
