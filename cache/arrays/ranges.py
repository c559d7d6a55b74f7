"""Stored K/V of one layer over a range of tokens, and of one edge over all layers.

- A Range holds keys and values [kv_heads, end - start, D] of tokens [start, end), evaluated, and
  owns its arrays: never a view into a live pool, which would make the pool's next write a full
  copy.
- `split` and `merge` take their inputs; a taken or closed range is dead and says so.
- An EdgePayload is what the prefix tree stores for one edge: all full layers over the whole edge,
  all sliding layers over the same newest part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import mlx.core as mx

from sapwood.cache.arrays.batch import indices
from sapwood.cache.prefix.snapshot import Payload


@dataclass(slots=True)
class Range:
    """K/V of tokens [start, end) of one layer: the contract's Snapshot."""

    start: int
    end: int
    keys: mx.array
    values: mx.array
    closed: bool = field(default=False)

    def __post_init__(self) -> None:
        assert self.start < self.end, (self.start, self.end)
        assert self.keys.shape[-2] == self.values.shape[-2] == self.end - self.start

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values together; 0 once closed."""
        return int(self.keys.nbytes + self.values.nbytes)

    def close(self) -> None:
        """Free the arrays. Exactly once, directly or by being taken."""
        assert not self.closed, f"range [{self.start}, {self.end}) closed twice"
        self.closed = True
        self.keys = self.values = mx.array(())

    def part(self, start: int, end: int) -> Range:
        """A copy of [start, end), lazily; the caller evaluates it.

        A gather: `contiguous` keeps the whole buffer alive where that is up to 16 KiB larger.
        """
        assert self.start <= start < end <= self.end
        assert not self.closed
        at = mx.array(indices(start - self.start, end - self.start))
        return Range(start, end, self.keys[:, at], self.values[:, at])


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
    keys = mx.concatenate([p.keys for p in parts], axis=1)
    values = mx.concatenate([p.values for p in parts], axis=1)
    joined = Range(parts[0].start, parts[-1].end, keys, values)
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


def evaluated(ranges: Iterable[Range | None]) -> None:
    """Evaluate what was built lazily, at once."""
    mx.eval([a for r in ranges if r is not None for a in (r.keys, r.values)])


Ranges = tuple[Range | None, ...]


@dataclass(slots=True)
class EdgePayload:
    """All layers' K/V of one edge [start, end): the arrays behind prefix.snapshot.Payload.

    full: one Range per full layer over [start, end). sliding: one per sliding layer over
    [sliding_start, end), or all None where that is empty.
    """

    start: int
    end: int
    full: Ranges
    sliding: Ranges
    closed: bool = field(default=False)

    def __post_init__(self) -> None:
        assert self.start < self.end, (self.start, self.end)

    @property
    def sliding_start(self) -> int:
        """Payload.sliding_start; the same for all sliding layers."""
        held = next((r for r in self.sliding if r is not None), None)
        return self.end if held is None else held.start

    @property
    def arrays(self) -> list[mx.array]:
        """All of it, to be evaluated together."""
        held = [r for r in (*self.full, *self.sliding) if r is not None]
        return [a for r in held for a in (r.keys, r.values)]

    @property
    def full_bytes(self) -> int:
        """Payload.full_bytes, of all full layers together."""
        return sum(r.nbytes for r in self.full if r is not None)

    @property
    def sliding_bytes(self) -> int:
        """Payload.sliding_bytes, of all sliding layers together."""
        return sum(r.nbytes for r in self.sliding if r is not None)

    def split(self, at: int) -> tuple[Payload, Payload]:
        """Payload.split."""
        assert self.start < at < self.end, (self.start, at, self.end)
        self._take()
        full = [split_range(r, at) for r in self.full]
        sliding = [split_range(r, at) for r in self.sliding]
        evaluated(r for pair in (*full, *sliding) for r in pair)
        parent, child = (
            EdgePayload(a, b, tuple(p[side] for p in full), tuple(p[side] for p in sliding))
            for side, (a, b) in enumerate(((self.start, at), (at, self.end)))
        )
        return parent, child

    def merge(self, child: Payload) -> Payload:
        """Payload.merge."""
        assert isinstance(child, EdgePayload)
        assert self.end == child.start, (self.end, child.start)
        self._take()
        child._take()
        full = _pairwise(merge_full, self.full, child.full)
        sliding = _pairwise(merge_sliding, self.sliding, child.sliding)
        evaluated((*full, *sliding))
        return EdgePayload(self.start, child.end, full, sliding)

    def thin(self, sliding_start: int) -> Payload:
        """Payload.thin."""
        assert sliding_start <= self.end, (sliding_start, self.end)
        self._take()
        kept = []
        for held in self.sliding:
            dropped, rest = split_range(held, sliding_start)
            if dropped is not None:
                dropped.close()
            kept.append(rest)
        evaluated(kept)
        return EdgePayload(self.start, self.end, self.full, tuple(kept))

    def close(self) -> None:
        """Payload.close."""
        self._take()
        for held in (*self.full, *self.sliding):
            if held is not None:
                held.close()

    def _take(self) -> None:
        assert not self.closed, f"payload [{self.start}, {self.end}) closed or taken twice"
        self.closed = True


def _pairwise(
    merge: Callable[[Range | None, Range | None], Range | None], left: Ranges, right: Ranges
) -> Ranges:
    return tuple(merge(a, b) for a, b in zip(left, right, strict=True))


def window_of(parts: Sequence[Range | None], target: int, window: int) -> Range | None:
    """What a path's sliding ranges cover of [max(0, target - window), target), newest, gapless.

    Assembled from the newest part backwards, so that a parent thinned away never refuses what the
    children alone cover. A lazy copy; the parts stay whose they are. None where nothing is covered.
    """
    low, end = max(0, target - window), target
    found: list[Range] = []
    for held in reversed(parts):
        if end == low or held is None or held.start >= end:
            continue
        if held.end < end:
            break
        found.insert(0, held.part(max(held.start, low), end))
        end = found[0].start
    return join_ranges(found) if found else None
